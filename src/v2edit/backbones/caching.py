"""Step caching: what a network's layers add to the hidden states of a step is kept, and added at later steps in their
place (as MagCache does, Ma et al. 2025). Such a step costs the network's embedding and projection alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(eq=False)
class StepCache:
    """What the layers added to the hidden states [N, D] of video, by the row of a step.

    `scale`: None in a step whose layers run and are kept; in one that skips them, the factor of what was kept."""

    added: dict[int, Tensor] = field(default_factory=dict)
    scale: float | None = None
    returns_text: bool = False  # whether a layer returns the hidden states of text, too

    def of_rows(self, rows: Sequence[int]) -> CachedRows:
        """Return the part of a call of these rows of the step."""
        return CachedRows(self, rows)

    @property
    def nbytes(self) -> int:
        """The bytes of what is kept."""
        return sum(tensor.nbytes for tensor in self.added.values())


@dataclass(frozen=True, eq=False)
class CachedRows:
    """A cache of steps, and which row of the step each row of a call is."""

    cache: StepCache
    rows: Sequence[int]

    @contextmanager
    def around(self, stacks: Sequence[nn.ModuleList]) -> Iterator[None]:
        """Let a network's layers keep what they add in the call within, or be skipped in it. They are not changed:
        other modules stand in their places, which works with layers of any class, compiled ones or with hooks."""
        whole = [stack._modules.copy() for stack in stacks]
        layers = [layer for modules in whole for layer in modules.values()]
        replaced: list[Any] = [AddKept(self)]
        if self.cache.scale is None:
            replaced = layers.copy()
            replaced[-1] = KeepOutput(self, replaced[-1])
            replaced[0] = KeepInput(self, replaced[0])
        try:
            for stack in stacks:
                stack._modules.clear()
            for place, layer in enumerate(replaced):
                stacks[0]._modules[str(place)] = layer
            yield
        finally:
            for stack, modules in zip(stacks, whole, strict=True):
                stack._modules.clear()
                stack._modules.update(modules)


class KeepInput(nn.Module):
    """The first layer, before which the negative of its hidden states is kept: layers may change theirs in place."""

    def __init__(self, part: CachedRows, layer: Any) -> None:
        super().__init__()
        self.part, self.layer = part, layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden, *_ = tensors_of(args, kwargs)
        for row, tensor in zip(self.part.rows, hidden, strict=True):
            self.part.cache.added[row] = -tensor
        return self.layer(*args, **kwargs)


class KeepOutput(nn.Module):
    """The last layer, after which its hidden states are added to what is kept."""

    def __init__(self, part: CachedRows, layer: Any) -> None:
        super().__init__()
        self.part, self.layer = part, layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out, cache = self.layer(*args, **kwargs), self.part.cache
        cache.returns_text = isinstance(out, tuple)
        for row, tensor in zip(self.part.rows, out[0] if cache.returns_text else out, strict=True):
            cache.added[row] += tensor
        return out


class AddKept(nn.Module):
    """In place of all layers: adds what is kept to the hidden states of video; those of text pass."""

    def __init__(self, part: CachedRows) -> None:
        super().__init__()
        self.part = part

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden, *others = tensors_of(args, kwargs)
        cache = self.part.cache
        assert cache.scale is not None
        rows = zip(self.part.rows, hidden, strict=True)
        out = torch.stack(
            [torch.add(tensor, cache.added[row].to(tensor.device), alpha=cache.scale) for row, tensor in rows]
        )
        return (out, others[0]) if cache.returns_text else out


def tensors_of(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that a layer is called with: first the hidden states of video, then those of text."""
    return [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
