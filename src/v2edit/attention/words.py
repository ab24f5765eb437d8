"""The share of video queries' attention that goes to some words, exactly and without a map: e^(l_c - l), by the
log-sum-exps of those words' columns (l_c, one small attention) and of a query's whole row (l, known from AMR's merge).

Shapes as in `replacement`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from v2edit.attention.kernels import attention_with_lse

Slots = tuple[int, ...]  # of the text


@lru_cache
def runs(slots: Slots) -> tuple[slice, ...]:
    """Return the runs of neighbours among text slots: a list of slots would be copied to the device in each layer."""
    starts = [k for k, slot in enumerate(slots) if k == 0 or slot != slots[k - 1] + 1]
    return tuple(slice(slots[a], slots[b - 1] + 1) for a, b in pairwise([*starts, len(slots)]))


def take(x: Tensor, parts: Sequence[slice]) -> Tensor:
    """Return some slots [1, H, n, D] of a row's queries, keys or values [H, N, D]."""
    return torch.cat([x[:, part] for part in parts], dim=1)[None]


@dataclass(frozen=True, eq=False)
class WordShare:
    """The share of each video query's attention that goes to some words, gathered over the layers of a call.

    `columns`: for each row of the batch its words' text slots; none where nothing is asked. `rows`: which rows of the
    whole batch these are. `sums`: by row of the whole batch, the sum over layers of the mean over heads [video tokens],
    and the number of layers."""

    columns: tuple[Slots, ...]
    rows: tuple[int, ...]
    sums: dict[int, tuple[Tensor, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, columns: Sequence[Slots]) -> WordShare:
        return cls(tuple(columns), tuple(range(len(columns))))

    def of_rows(self, rows: Sequence[int]) -> WordShare:
        """Return the same for some rows alone, renumbered from 0; what they add is added here."""
        columns, whole = (tuple(of_all[row] for row in rows) for of_all in (self.columns, self.rows))
        return replace(self, columns=columns, rows=whole)

    def among(self, slots: Slots) -> WordShare:
        """Return the same where only these text slots are keys."""
        index = {slot: k for k, slot in enumerate(slots)}
        return replace(self, columns=tuple(tuple(index[c] for c in own if c in index) for own in self.columns))

    def in_layer(self, q: Tensor, k: Tensor) -> LayerShare:
        """Begin a layer of video queries and of keys that begin with the text: compute each row's l_c."""
        keys = (take(k[row], runs(own)) if own else None for row, own in enumerate(self.columns))
        logs = [None if own is None else attention_with_lse(q[[row]], own, own)[1] for row, own in enumerate(keys)]
        return LayerShare(self, logs)

    def clear(self) -> None:
        """Forget what was gathered: the call begins anew."""
        self.sums.clear()

    @property
    def mean(self) -> Tensor | None:
        """The mean over layers, summed over rows, [video tokens]; None where nothing was gathered."""
        means = [total / layers for _, (total, layers) in sorted(self.sums.items())]
        return sum(means[1:], means[0]) if means else None


@dataclass(frozen=True, eq=False)
class LayerShare:
    """The same in one layer, with each row's log-sum-exp over its words, `logs` [1, H, Nq]; None where it has none."""

    share: WordShare
    logs: Sequence[Tensor | None]

    def add(self, row: int, lse: Tensor, weight: float = 1.0) -> None:
        """Add e^(l_c - l) of a row by its whole log-sum-exp l [1, H, Nq], or that with one of several sources' maps, by
        its weight."""
        if (own := self.logs[row]) is None:
            return
        added, layers = weight * torch.exp(own - lse).mean((0, 1)), weight
        if known := self.share.sums.get(self.share.rows[row]):
            added, layers = known[0] + added, known[1] + weight
        self.share.sums[self.share.rows[row]] = added, layers
