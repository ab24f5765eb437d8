"""A subtask's denoising loop over the blocks of a long clip: the network sees a block at a time, and memory holds that
and what is blended of its neighbours.

Step k reads the clip's latents of one set of buffers and writes those of another, which then change places. Frames are
written once all their blocks are denoised, and are not read before the next step; so what is written since a snapshot
of the same step may be written again, and a snapshot copies no more than the frames that are in between. After each
step there is one, since the next step writes what this one read.

Letters: F latent frames, C channels, N frames of a block, B branches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from v2edit.editing.block_processes import CPU, BlockInputs, BlockProcesses, with_sources
from v2edit.editing.blocks import BlendedFrames, Blocks
from v2edit.editing.change import ChangeMap
from v2edit.editing.latents import LatentStore
from v2edit.editing.local import LatentBlend
from v2edit.editing.state import FrameNoise
from v2edit.editing.subtask import ReportStep, Subtask, Watch, recall_mode
from v2edit.runs.snapshots import LoopSnapshot, LoopState

SOME = 64  # latent frames that are computed with at a time


@dataclass(eq=False)
class BlockLoop:
    """The loop of a subtask over blocks. `current` is the video that it starts from, [1, F, C, h, w] on the CPU, like
    the sources and the tensors of the `store`, whose names begin with `name`."""

    subtask: Subtask
    blocks: Blocks
    current: Tensor
    noise: FrameNoise
    local: LatentBlend
    store: LatentStore
    name: str
    report: ReportStep = lambda step, steps: None
    watch: Watch = lambda rows, x0: None
    processes: BlockProcesses | None = None  # that denoise blocks; None: this one alone
    begun: Mapping[str, Any] = field(default_factory=dict)
    done: int = 0  # blocks, of all steps
    attended: bool = False  # whether the attention to the words that change is gathered
    blend: BlendedFrames = field(init=False)
    ahead: dict[int, tuple[Tensor, bool]] = field(default_factory=dict, init=False)  # by their places in `order`

    @cached_property
    def order(self) -> list[tuple[int, int]]:
        """The blocks of all steps: each a step and the number of a block there."""
        steps = range(self.subtask.start, self.subtask.schedule.steps)
        return [(k, number) for k in steps for number in range(self.blocks.count(k))]

    def run(self, snapshot: LoopSnapshot = LoopSnapshot()) -> Tensor:
        """Run the loop from where its snapshot stands; return the edit's latents [1, F, C, h, w]."""
        steps, start = self.subtask.schedule.steps, self.subtask.start
        self._begin(snapshot.load())
        self.local.begin()
        for index in snapshot.steps(self.done, len(self.order), self._state, self._ends_step):
            k, number = self.order[index]
            controlled = self.subtask.is_controlled(k)
            if number == 0:
                self.blend = BlendedFrames.of(self.blocks.of_step(k), self.blocks.frames)
            if number == 0 or index == self.done:
                self.local.narrow(None if controlled else self._changes(k))
            block = self.blocks.of_step(k)[number]
            for rows, values in self.blend.add(block, self._denoise(index)):
                self._advance(rows, values, k)
            self.done = index + 1
            if self._ends_step(index):
                self.report(k - start + 1, steps - start)
        self.local.narrow(self._changes(steps))
        for name in ("edit", *self._x0_names):  # what changed is asked for again where the run is resumed later
            for k in range(steps + (name == "edit"), steps + 2):
                self.store.remove(self._full_name(name, k))
        return self._buffer("edit", steps)

    def _ends_step(self, index: int) -> bool:
        """Return whether a block is its step's last: from there on the buffers that the step read are written again, so
        that no earlier snapshot can be gone on from."""
        k, number = self.order[index]
        return number == self.blocks.count(k) - 1

    def _begin(self, loop_state: LoopState | None) -> None:
        start, backbone, schedule = self.subtask.start, self.subtask.backbone, self.subtask.schedule
        if loop_state is None:
            self.begun = asdict(backbone.memory_mode)
            for rows in self._ranges():
                eps = self.noise.draw(0, range(self.blocks.frames)[rows])
                self._buffer("edit", start)[:, rows] = schedule.add_noise(self.current[:, rows], eps, start)
            return
        self.begun, facts = recall_mode(backbone, loop_state), loop_state.facts
        self.done, self.attended = facts["done"], facts["attended"]
        if self.done < len(self.order):
            k, number = self.order[self.done]
            sums = {int(name): tensor for name, tensor in loop_state.tensors.items()}
            self.blend = BlendedFrames.of(self.blocks.of_step(k)[number:], self.blocks.frames, sums)

    def _state(self) -> LoopState:
        """Return the state after the blocks that are done, once all of it that is in files is on the disk."""
        self.store.flush([self._full_name(name, k) for k in range(2) for name in self._names])
        memory = asdict(self.subtask.backbone.memory_mode)
        facts = {"done": self.done, "attended": self.attended, "memory": memory, "begun": self.begun}
        return LoopState({str(frame): tensor for frame, tensor in self.blend.sums.items()}, facts)

    def _denoise(self, index: int) -> Tensor:
        """Return what a block of all steps takes for x0 in each branch and, where it is gathered, the attention to the
        words that change: [N, B C, h, w], or a channel more. Blocks after it in its step may be denoised with it, since
        they read what the step before has written."""
        if index not in self.ahead:
            k, number = self.order[index]
            together = 1 if self.processes is None else min(self.processes.count, self.blocks.count(k) - number)
            inputs = [self._inputs(place) for place in range(index, index + together)]
            denoised = (
                [inputs[0].denoise(self.subtask)]
                if self.processes is None
                else self.processes.denoise(self.subtask, inputs)
            )
            self.ahead = dict(enumerate(denoised, start=index))
        values, attended = self.ahead.pop(index)
        self.attended |= attended
        return values

    def _inputs(self, index: int) -> BlockInputs:
        k, number = self.order[index]
        frames = list(self.blocks.of_step(k)[number].frames)
        sources = [source.x0[:, frames] for source in self.subtask.sources]
        eps = self.noise.draw(self._eps_number(k), frames)
        return BlockInputs(k, self._buffer("edit", k)[:, frames], eps, sources)

    def _advance(self, rows: slice, values: Tensor, k: int) -> None:
        """Take step k in some frames, from what their blocks took for x0."""
        frames, channels = range(self.blocks.frames)[rows], self.current.shape[2]
        own = with_sources(self.subtask, [source.x0[:, rows] for source in self.subtask.sources], CPU)
        number = self._eps_number(k)
        eps = self.noise.draw(number, frames)
        branches = own.branches(self._buffer("edit", k)[:, rows], eps, k)
        x0s = [values[None, :, b * channels : (b + 1) * channels] for b in range(len(branches))]
        previous = self._x0s(k, rows)
        draws = (self.noise.draw(n, frames) for n in (k - own.start + 1,))
        edit, eps = own.advance(branches, x0s, previous, k, eps, draws)
        source = partial(own.schedule.add_noise, self.local.original[:, rows], eps, k + 1)
        edit = self.local.blend(edit, source, rows)
        own.check(edit, k + 1)
        self._buffer("edit", k + 1)[:, rows] = edit
        self.watch(rows, x0s[-1])
        for name, x0 in zip(self._x0_names[-len(x0s) :], x0s, strict=False):  # no names where none is asked for again
            self._buffer(name, k + 1)[:, rows] = x0
        if own.is_controlled(k) and self.local.find:
            self._add("difference", (x0s[-1] - x0s[0]).abs().mean(2, keepdim=True), rows, k)
            if self.attended:
                self._add("attention", values[None, :, -1:], rows, k)

    def _add(self, name: str, values: Tensor, rows: slice, k: int) -> None:
        """Add what step k gives in some frames to the sum over the steps before it."""
        before = self._buffer(name, k)[:, rows] if k > self.subtask.start else 0
        self._buffer(name, k + 1)[:, rows] = before + values

    def _changes(self, k: int) -> ChangeMap | None:
        """Return what is known before step k of where the edit happens."""
        if not self.local.find or not (steps := self._controlled_before(k)):
            return None
        last = self.subtask.start + steps
        attention = self._buffer("attention", last) if self.attended else None
        return ChangeMap(self._buffer("difference", last), steps, attention, steps * self.attended)

    def _controlled_before(self, k: int) -> int:
        """Return how many steps before step k are controlled: they are the first ones."""
        return sum(map(self.subtask.is_controlled, range(self.subtask.start, k)))

    def _eps_number(self, k: int) -> int:
        """Return the number of the draw that is in the sources' latents at step k."""
        return self._controlled_before(k) if self.subtask.config.pnc else 0

    @property
    def _x0_names(self) -> list[str]:
        """The names of the branches' x0, sources first; none where no step takes that of the step before."""
        if not self.subtask.keeps_x0:
            return []
        return [f"x0.{branch}" for branch in range(len(self.subtask.sources) + 1)]

    def _x0s(self, k: int, rows: slice) -> list[Tensor | None]:
        """Return the x0 of the step before step k in some frames, of each branch."""
        if k == self.subtask.start or not self._x0_names:
            return [None] * (len(self.subtask.sources) + 1)
        return [self._buffer(name, k)[:, rows] for name in self._x0_names]

    @property
    def _names(self) -> list[str]:
        found = ["difference", *(["attention"] if self.attended else [])] if self.local.find else []
        return ["edit", *self._x0_names, *found]

    def _full_name(self, name: str, k: int) -> str:
        return f"{self.name}.{name}.{k % 2}"

    def _buffer(self, name: str, k: int) -> Tensor:
        """Return the buffer of a name before step k."""
        _, frames, channels, height, width = self.current.shape
        channels = 1 if name in ("difference", "attention") else channels
        return self.store.open(self._full_name(name, k), (1, frames, channels, height, width))

    def _ranges(self) -> Iterator[slice]:
        for first in range(0, self.blocks.frames, SOME):
            yield slice(first, min(first + SOME, self.blocks.frames))
