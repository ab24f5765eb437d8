"""Micro-batches: the rows of a step go through the network in as few calls as memory allows.

The unconditional rows of the branches that need one come first, then the conditional row of every branch. Those of one
call share its memory: when it runs out, the step is repeated in smaller calls, and the rest of the edit keeps to them.
Every split gives the same result, up to float rounding. With a second device the unconditional rows are computed there,
beside the others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from v2edit.attention import Replacement
from v2edit.backbones import Backbone, Text
from v2edit.backbones.caching import StepCache
from v2edit.host import retry_smaller_on_oom
from v2edit.sampling import Schedule

# From the fastest to the smallest: which rows go through the network in one call.
SPLITS = (
    "all rows at once",
    "the conditional and the unconditional batch one after the other",
    "one row after the other (those that exchange attention maps together)",
)


def unconditional_branches(
    classifier_free: bool, guidance: Sequence[float], amr_unconditional: bool = False
) -> tuple[int, ...]:
    """Return which branches [*sources, edit] of these guidance scales have an unconditional row: those whose scale is
    above 1 (at 1, x0 is the conditional row's) and, where such a row of the edit takes maps, the sources it takes them
    from."""
    if not classifier_free:
        return ()
    needed = amr_unconditional and guidance[-1] > 1
    return tuple(branch for branch, scale in enumerate(guidance) if scale > 1 or needed)


class MicroBatcher:
    """Calls a backbone with at most as many rows at a time as its memory mode says, where maps allow; running out of
    memory lowers that."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._second = ThreadPoolExecutor(1, "second device")

    @property
    def max_rows(self) -> int:
        """The rows of one call."""
        rows = self.backbone.memory_mode.max_rows
        return sys.maxsize if rows is None else rows

    @max_rows.setter
    def max_rows(self, rows: int) -> None:
        self.backbone.memory_mode = replace(self.backbone.memory_mode, max_rows=rows)

    def denoise(
        self,
        latents: Tensor,
        step: int,
        schedule: Schedule,
        text: Sequence[Text],
        replacement: Replacement | None,
        loop: bool,
        unconditional: int,
        guidance: Sequence[float],
        cache: StepCache | None = None,
    ) -> Tensor:
        """Call `Backbone.denoise` on rows of which so many are unconditional, in several calls if need be."""
        rows = len(latents)
        x0 = torch.empty_like(latents, dtype=torch.float32)

        def denoise_rows(backbone: Backbone, calls: list[list[int]]) -> None:
            device = backbone.device
            for call in calls:
                maps = None if replacement is None else select_rows(replacement, call)
                of_call = [text[row].to(device) for row in call], maps, loop, [guidance[row] for row in call]
                of_call = *of_call, cache and cache.of_rows(call)
                of_rows = torch.cat([latents[row : row + 1] for row in call]).to(device)  # a list would be copied there
                for row, own in zip(call, backbone.denoise(of_rows, step, schedule, *of_call).to(x0), strict=True):
                    x0[row] = own

        def denoise_in_calls() -> Tensor:
            if replacement is not None and replacement.words is not None:
                replacement.words.clear()
            _, calls = self.split(rows, unconditional, replacement)
            if len(calls) == 1:
                cached = cache and cache.of_rows(calls[0])
                return self.backbone.denoise(latents, step, schedule, text, replacement, loop, guidance, cached)
            second = self.backbone.replica
            beside = [call for call in calls if second is not None and call[0] < unconditional]
            with self.on_second_device(denoise_rows, second, beside):
                denoise_rows(self.backbone, [call for call in calls if call not in beside])
            return x0

        return retry_smaller_on_oom(denoise_in_calls, partial(self.shrink, rows, unconditional, replacement))

    @contextmanager
    def on_second_device(
        self, work: Callable[[Backbone, list[list[int]]], None], replica: Backbone | None, calls: list[list[int]]
    ) -> Iterator[None]:
        """Do the work of some calls on a second device beside what is done within; its errors are raised at the end."""
        if replica is None or not calls:
            yield
            return
        working = self._second.submit(work, replica, calls)
        try:
            yield
        finally:
            wait([working])
        working.result()

    def split(self, rows: int, unconditional: int, replacement: Replacement | None) -> tuple[str, list[list[int]]]:
        """Return the entry of SPLITS for such a step, and the rows of each call."""
        return self._choose(rows, unconditional, replacement, self.max_rows)

    def shrink(self, rows: int, unconditional: int, replacement: Replacement | None) -> str | None:
        """Go on to the next option that needs less memory for such a step and describe it; None where none is left."""
        _, before = self.split(rows, unconditional, replacement)
        fewer = largest_call(before) - 1
        name, after = self._choose(rows, unconditional, replacement, fewer)
        if largest_call(after) > fewer:
            return self.backbone.shrink()
        self.max_rows = fewer
        return name

    def _choose(
        self, rows: int, unconditional: int, replacement: Replacement | None, max_rows: int
    ) -> tuple[str, list[list[int]]]:
        least = 0 if self.backbone.replica is None else 1  # the two devices have a batch each
        return choose_split(rows, unconditional, replacement, max_rows, least)


def choose_split(
    rows: int, unconditional: int, replacement: Replacement | None, max_rows: int, least: int = 0
) -> tuple[str, list[list[int]]]:
    """Return the first entry of SPLITS whose calls have at most `max_rows` rows, else the last, and the rows of each
    call; those before index `least` are split as that."""
    indices = [(name, max(index, least)) for index, name in enumerate(SPLITS)]
    options = [(name, split_rows(rows, unconditional, replacement, index)) for name, index in indices]
    return next((option for option in options if largest_call(option[1]) <= max_rows), options[-1])


def largest_call(calls: list[list[int]]) -> int:
    """Return the number of rows in the largest call."""
    return max(map(len, calls))


def split_rows(rows: int, unconditional: int, replacement: Replacement | None, split: int) -> list[list[int]]:
    """Return the rows of each call for an index of SPLITS; a row is in one call with the rows whose maps it takes."""
    group = [{0: 0, 1: int(row >= unconditional), 2: row}[split] for row in range(rows)]
    for row, sources in enumerate(replacement.sources if replacement else ()):
        for source, _ in sources:
            group = [group[source] if g == group[row] else g for g in group]
    return [[row for row in range(rows) if group[row] == g] for g in dict.fromkeys(group)]


def select_rows(replacement: Replacement, rows: Sequence[int]) -> Replacement:
    """Return the replacement of some rows alone, renumbered from 0."""
    index = {row: i for i, row in enumerate(rows)}
    sources = tuple(tuple((index[source], weight) for source, weight in replacement.sources[row]) for row in rows)
    return Replacement(replacement.shared, sources, words=replacement.words and replacement.words.of_rows(rows))
