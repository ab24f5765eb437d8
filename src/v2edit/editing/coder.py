"""A session's clips to latents and back: in one call, or of long ones a stretch at a time into files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial

import numpy as np
from torch import Tensor

from v2edit.backbones import Backbone, Size
from v2edit.backbones.memory import MemoryMode
from v2edit.backbones.stretches import Stretch, decode_in_stretches, encode_in_stretches, plan_stretches
from v2edit.editing.latents import LatentStore, release_pages
from v2edit.runs.snapshots import LoopSnapshot, LoopState, Snapshots
from v2edit.video.stream import Frames

LONG = 60  # frames of a clip whose coding is reported


@dataclass(frozen=True, eq=False)
class ClipCoder:
    """Codes clips of one valid `size`. What it codes in stretches is in the `store`, by a name; with `snapshots` it
    goes on where it was interrupted. `report` gets what it does, the frames that are done, and of how many, first of
    all none; of a clip of `LONG` frames at most in one stretch it gets nothing."""

    backbone: Backbone
    size: Size
    loop: bool
    store: LatentStore
    snapshots: Snapshots | None = None
    report: Callable[[str, int, int], None] = lambda stage, done, total: None

    @cached_property
    def stretches(self) -> list[Stretch]:
        return plan_stretches(self.backbone, self.size, self.loop)

    def encode(self, frames: Frames, name: str) -> Tensor:
        """Encode frames [T, H, W, 3] to latents [1, F, C, h, w], those of stretches on the CPU."""
        if len(self.stretches) == 1:
            with self._reported("encoding"):
                return self.backbone.encode(np.asarray(frames), loop=self.loop)
        out = self.store.open(name, (1, *self.backbone.latent_shape(self.size, self.loop)))
        return encode_in_stretches(self.backbone, frames, self.stretches, self._steps("encoding", name), out)

    def decode(self, latents: Tensor, name: str) -> np.ndarray:
        """Decode latents [1, F, C, h, w] to uint8 frames [T, H, W, 3]."""
        if len(self.stretches) == 1:
            with self._reported("decoding"):
                return self.backbone.decode(latents.to(self.backbone.device), self.loop)
        out = self.store.open_frames(name, (self.size.frames, self.size.height, self.size.width, 3))
        steps = self._steps("decoding", name, partial(release_pages, out))
        return decode_in_stretches(self.backbone, latents, self.stretches, steps, out)

    @contextmanager
    def _reported(self, stage: str) -> Iterator[None]:
        """Report the beginning and the end of what codes a long clip in one call."""
        frames = self.size.frames
        if frames > LONG:
            self.report(stage, 0, frames)
        yield
        if frames > LONG:
            self.report(stage, frames, frames)

    def _steps(
        self, stage: str, name: str, release: Callable[[], None] = lambda: None
    ) -> Callable[[int], Iterator[int]]:
        """Return what yields the numbers of the stretches that are not coded yet, saves how far it is, and calls
        `release` after each."""

        def steps(count: int) -> Iterator[int]:
            quiet = self.snapshots and replace(self.snapshots, on_step=lambda name, left: None)
            snapshot, first = quiet.loop(name, every_step=False) if quiet else LoopSnapshot(), 0
            if loop_state := snapshot.load():
                first = loop_state.facts["done"]
                if mode := MemoryMode.from_record(loop_state.facts["memory"]):
                    self.backbone.memory_mode = mode
            done, frames = first, np.cumsum([0, *(len(one.kept_frames) for one in self.stretches)]).tolist()

            def state() -> LoopState:
                self.store.flush([name])
                return LoopState({}, {"done": done, "memory": asdict(self.backbone.memory_mode)})

            self.report(stage, frames[done], self.size.frames)
            for number in snapshot.steps(first, count, state):
                yield number
                release()
                done = number + 1
                self.report(stage, frames[done], self.size.frames)

        return steps
