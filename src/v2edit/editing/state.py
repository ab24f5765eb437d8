"""The state of a subtask's denoising loop: all that its steps to come depend on, random draws included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from v2edit.editing.change import ChangeMap
from v2edit.runs.snapshots import LoopState

LOOP = "edit"  # first word of a loop's name, before the number of the subtask


def noise_stream(seed: int, subtask: int, like: Tensor) -> Iterator[Tensor]:
    """Draw independent unit-normal noise, each draw shaped as `like`. Drawn on the CPU, so that a seed means the same
    noise on every device, and from a stream of the subtask's own, so that a resumed run draws the same. In page-locked
    memory for a GPU, which then copies it in its own time."""
    state = np.random.SeedSequence([seed, subtask]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state))
    while True:
        noise = torch.randn(like.shape, generator=generator, pin_memory=like.is_cuda)
        yield noise.to(like, non_blocking=like.is_cuda)


class CountedDraws:
    """A stream of noise with a count, so that a resumed loop can skip what was drawn before."""

    def __init__(self, stream: Iterator[Tensor], skip: int = 0) -> None:
        self._stream = islice(stream, skip, None)
        self.count = skip

    def __iter__(self) -> CountedDraws:
        return self

    def after(self, drawn: int) -> CountedDraws:
        """Return the stream behind its first so many draws; nothing may have been drawn of it before."""
        assert self.count == 0
        return CountedDraws(self._stream, drawn)

    def __next__(self) -> Tensor:
        noise = next(self._stream)
        self.count += 1
        return noise


@dataclass
class EditState:
    """The loop before step `k`: the edit's v_k, the noise in the sources' v_k, and each branch's x0 of the step before,
    sources first (all [1, F, C, h, w]; no x0 before the first step). The sources' v_k follow from `eps`. `changes`:
    where the edit happens, by the controlled steps so far."""

    k: int
    edit: Tensor
    eps: Tensor
    x0s: list[Tensor | None]
    changes: ChangeMap | None = None

    def to_snapshot(self, draws: int) -> LoopState:
        """Return the state and the number of `draws` so far in the form that snapshots hold."""
        tensors = {"edit": self.edit, "eps": self.eps}
        tensors |= {f"x0.{branch}": x0 for branch, x0 in enumerate(self.x0s) if x0 is not None}
        facts: dict[str, int] = {"k": self.k, "drawn": draws, "branches": len(self.x0s)}
        if self.changes is not None:
            tensors["difference"], facts["compared"] = self.changes.difference, self.changes.steps
            if self.changes.attention is not None:
                tensors["attention"], facts["attended"] = self.changes.attention, self.changes.attended
        return LoopState(tensors, facts)

    @classmethod
    def from_snapshot(cls, snapshot: LoopState, like: Tensor) -> tuple[EditState, int]:
        """Read what `to_snapshot` wrote, on the device of `like`: the state and the number of draws."""
        tensors = {name: tensor.to(like) for name, tensor in snapshot.tensors.items()}
        x0s = [tensors.get(f"x0.{branch}") for branch in range(snapshot.facts["branches"])]
        compared, attended = (snapshot.facts.get(name, 0) for name in ("compared", "attended"))
        changes = ChangeMap(tensors["difference"], compared, tensors.get("attention"), attended) if compared else None
        return cls(snapshot.facts["k"], tensors["edit"], tensors["eps"], x0s, changes), snapshot.facts["drawn"]


@dataclass(frozen=True)
class FrameNoise:
    """Independent unit-normal noise of a subtask that belongs to a clip's latent frames, each of a shape [C, h, w]: any
    of it can be drawn at any time, so none of it is kept."""

    seed: int
    subtask: int
    shape: tuple[int, ...]

    def draw(self, number: int, frames: Sequence[int]) -> Tensor:
        """Return the draw of a number for some frames, float32 [1, N, C, h, w], on the CPU."""
        return torch.stack([self._of_frame(number, frame) for frame in frames])[None]

    def _of_frame(self, number: int, frame: int) -> Tensor:
        state = np.random.SeedSequence([self.seed, self.subtask, number, frame]).generate_state(1, np.uint64)[0]
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(int(state)))
