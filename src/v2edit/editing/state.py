"""Where the loop of a subtask stands: all that the denoising steps to come depend on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from v2edit.runs.snapshots import LoopState

LOOP = "edit"  # of a snapshots, with the number of the subtask


class Draws:
    """A stream of noise that counts what is drawn: as many again, of the same seed, and it goes on where it stood."""

    def __init__(self, stream: Iterator[Tensor], drawn: int = 0) -> None:
        self._stream = islice(stream, drawn, None)
        self.drawn = drawn

    def __iter__(self) -> Draws:
        return self

    def __next__(self) -> Tensor:
        one = next(self._stream)
        self.drawn += 1
        return one


@dataclass
class EditState:
    """Before step `k`: the edit's v_k, the noise that is in the sources' v_k, and each branch's x0 of the step before
    (all [1, F, C, h, w]; no x0 before the first step). The sources' v_k follow, since the sources are known."""

    k: int
    edit: Tensor
    eps: Tensor
    memory: list[Tensor | None]

    def kept(self, drawn: int) -> LoopState:
        """As a snapshot keeps it, with how many draws the subtask has drawn."""
        x0s = {f"x0.{branch}": x0 for branch, x0 in enumerate(self.memory) if x0 is not None}
        facts = {"k": self.k, "drawn": drawn, "branches": len(self.memory)}
        return LoopState({"edit": self.edit, "eps": self.eps} | x0s, facts)

    @classmethod
    def of(cls, kept: LoopState, like: Tensor) -> tuple[EditState, int]:
        """From what `kept` made, on the device of `like`."""
        tensors = {name: one.to(like) for name, one in kept.tensors.items()}
        memory = [tensors.get(f"x0.{branch}") for branch in range(kept.facts["branches"])]
        return cls(kept.facts["k"], tensors["edit"], tensors["eps"], memory), kept.facts["drawn"]
