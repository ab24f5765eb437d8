"""The cost of an edit before it runs: FLOPs and memory, counted from its settings and a model's configuration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from v2edit.attention import Replacement
from v2edit.backbones import Size
from v2edit.backbones.families import Offload
from v2edit.backbones.memory import MemoryMode
from v2edit.backbones.stretches import plan_stretches
from v2edit.editing.blocks import Blocks, blocks_of
from v2edit.editing.config import ResolvedConfig
from v2edit.editing.controls import attention_map_replacement, first_step, is_controlled
from v2edit.editing.microbatch import (
    SPLITS,
    choose_split,
    largest_call,
    select_rows,
    split_rows,
    unconditional_branches,
)
from v2edit.editing.skips import plan_skips
from v2edit.editing.state import LOOP
from v2edit.sampling import Schedule

if TYPE_CHECKING:
    from v2edit.backbones.fake import Cost, FakeModel

PHASES = ("encoding prompts", "encoding", "decoding", "denoising")
AT_ONCE = MemoryMode()
SMALLEST = MemoryMode("group", vae_tiling=True, max_rows=1, row_by_row=True)
# What a device needs beside the tensors that are counted; neither was measured on one.
FRAGMENTATION, WORKSPACE = 1.04, 2**29


@dataclass(frozen=True)
class StepKind:
    """A kind of step: the number of its branches, which of them have an unconditional row, and whether branches
    exchange maps."""

    branches: int
    unconditional: tuple[int, ...]
    amr: bool
    skipped: bool = False  # by step caching: no row passes through the network's layers

    @property
    def rows(self) -> int:
        return self.branches + len(self.unconditional)

    def replacement(self, shared: int, unconditional: bool) -> Replacement | None:
        """Return the maps that such a step exchanges, with equal weights: the cost does not depend on them."""
        sources = self.branches - 1
        weights = [1 / sources] * sources if self.amr else []
        return attention_map_replacement(weights, shared, self.unconditional, unconditional) if self.amr else None


def steps_per_subtask(schedule: Schedule, config: ResolvedConfig) -> int:
    """Return how many of the schedule's steps each subtask runs."""
    return schedule.steps - first_step(schedule, config.alpha, config.inc)


def loop_steps(schedule: Schedule, config: ResolvedConfig) -> dict[str, int]:
    """Return the number of steps of each loop of an edit, by the name of its snapshot."""
    return {f"{LOOP}-{subtask}": steps_per_subtask(schedule, config) for subtask in range(1, config.subtasks + 1)}


def count_steps(schedule: Schedule, config: ResolvedConfig, classifier_free: bool = True) -> list[Counter[StepKind]]:
    """Count the steps of each kind in each subtask: with the sources in the control window, below it the edit alone."""
    counts = []
    skips = plan_skips(schedule, config)
    for subtask in range(1, config.subtasks + 1):
        sources = 1 if subtask == 1 else (config.mixture > 0) + (config.mixture < 1)
        steps = Counter()
        for k in range(first_step(schedule, config.alpha, config.inc), schedule.steps):
            guidance, source_guidance = config.guidance_at(schedule, k, classifier_free)
            beside = sources if is_controlled(schedule, k, config) else 0
            amr = bool(beside) and config.amr
            scales = [source_guidance] * beside + [guidance]
            unconditional = unconditional_branches(classifier_free, scales, amr and config.amr_unconditional)
            steps[StepKind(1 + beside, unconditional, amr, k in skips)] += 1
        counts.append(steps)
    return counts


def count_forwards(schedule: Schedule, config: ResolvedConfig, classifier_free: bool = True) -> list[int]:
    """Return the number of rows that pass through the network's layers in each subtask."""
    steps_of_subtasks = count_steps(schedule, config, classifier_free)
    return [sum(kind.rows * n for kind, n in steps.items() if not kind.skipped) for steps in steps_of_subtasks]


@dataclass(frozen=True)
class MemoryOption:
    """A way to run an edit in less memory: its name, the command-line `options` that ask for it (none where a run that
    is out of memory does it by itself), and the peak in bytes of tensors on the device."""

    name: str
    options: str
    peak: int


@dataclass(frozen=True)
class EditCost:
    """The cost of an edit: FLOPs, bytes of the weights, and the peak in bytes on the device, reached in `phase`."""

    flops: float
    weights: int
    peak: int
    phase: str


@dataclass(frozen=True)
class CostModel:
    """Counts the cost of edits with one configuration and one model, for clips of valid sizes."""

    fake: FakeModel
    config: ResolvedConfig

    @property
    def steps(self) -> Counter[StepKind]:
        """The steps of all subtasks, by kind."""
        backbone = self.fake.backbone
        return sum(count_steps(backbone.schedule(self.config.steps), self.config, backbone.classifier_free), Counter())

    def edit(self, size: Size, mode: MemoryMode) -> EditCost:
        """Count an edit in a memory mode."""
        flops = sum(count * self.step(kind, size, mode).flops for kind, count in self.steps.items())
        encoding, decoding = self.coding(size, mode.vae_tiling)
        flops += encoding.flops + self.config.subtasks * decoding.flops
        peak, phase = max((peak, phase) for phase, peak in self.peaks(size, mode).items())
        return EditCost(flops, sum(self.fake.weights.values()), peak, phase)

    def peaks(self, size: Size, mode: MemoryMode) -> dict[str, int]:
        """Return the peak in bytes on the device in each phase, weights included."""
        return {phase: self.peak(phase, size, mode) for phase in PHASES}

    def peak(self, phase: str, size: Size, mode: MemoryMode) -> int:
        """Return the peak in bytes on the device in one of PHASES."""
        weights = self.fake.placement.weights(mode.offload)
        if phase == "encoding prompts":
            return weights["text"] + self.fake.text_encoding(self.config.subtasks + 2).peak
        if phase == "denoising":
            kinds = [] if self.blocks(size) else [kind for kind in self.steps if kind.skipped]
            skipped = (self.fake.skipped(kind.rows, size, self.config.loop) for kind in kinds)
            kept = max((kept for _, kept in skipped), default=0)
            return weights["networks"] + max(self.step(kind, size, mode).peak for kind in self.steps) + kept
        encoding, decoding = self.coding(size, mode.vae_tiling)
        return weights["vae"] + (encoding if phase == "encoding" else decoding).peak

    def step(self, kind: StepKind, size: Size, mode: MemoryMode = AT_ONCE) -> Cost:
        """Count a step of a kind in a memory mode: the FLOPs of all its calls, and the peak of the largest."""
        if blocks := self.blocks(size):  # each an open clip, in which nothing is skipped
            one = replace(self, config=replace(self.config, loop=False, long="windows"))
            cost = one.step(replace(kind, skipped=False), self.block(size), mode)
            return replace(cost, flops=cost.flops * (blocks.count(0) + blocks.count(1)) / 2)
        return self._whole_step(kind, size, mode)

    def blocks(self, size: Size) -> Blocks | None:
        """Return the blocks in which a clip is denoised; None for all of it at once."""
        frames = self.fake.backbone.latent_shape(size, self.config.loop)[0]
        return blocks_of(self.config, self.fake.backbone, frames)

    def block(self, size: Size) -> Size:
        """Return the size of the clip that a block of a longer clip is."""
        return replace(size, frames=self.fake.backbone.native_size.frames)

    def disk(self, size: Size) -> int:
        """Return the bytes of a run's state that long clips have in files: latents, where a step takes them and where
        it gives them, and decoded frames; 0 where all of that is in memory."""
        backbone, config, taken = self.fake.backbone, self.config, 0
        latents = 4 * math.prod(backbone.latent_shape(size, config.loop))
        if self.blocks(size):
            branches = max(kind.branches for kind in self.steps)
            taken += latents * (2 * (1 + branches) + config.subtasks)
        if len(plan_stretches(backbone, size, config.loop)) > 1:
            taken += latents + config.subtasks * size.frames * size.height * size.width * 3
        return taken

    def _whole_step(self, kind: StepKind, size: Size, mode: MemoryMode) -> Cost:
        if kind.skipped:
            return self.fake.skipped(kind.rows, size, self.config.loop)[0]
        maps = self.maps(kind)
        _, calls = choose_split(kind.rows, len(kind.unconditional), maps, mode.max_rows or kind.rows)
        call = max(calls, key=len)
        call_maps = None if maps is None else select_rows(maps, call)
        cost = self.fake.forward(len(call), size, self.config.loop, call_maps, mode.row_by_row)
        return replace(cost, flops=cost.flops * kind.rows / len(call))

    def maps(self, kind: StepKind) -> Replacement | None:
        """Return the maps that a step of a kind exchanges."""
        shared = self.fake.backbone.typical_keys * 3 // 4  # as prompts go; little depends on it
        return kind.replacement(shared, self.config.amr_unconditional)

    def coding(self, size: Size, tiling: bool) -> tuple[Cost, Cost]:
        """Count encoding and decoding a clip."""
        loop = self.config.loop
        stretches = plan_stretches(self.fake.backbone, size, loop)
        if len(stretches) > 1:
            frames = max(len(one.frames) for one in stretches)
            encoding, decoding = (
                replace(one, flops=one.flops * sum(len(part.frames) for part in stretches) / frames)
                for one in replace(self, config=replace(self.config, loop=False)).coding(
                    replace(size, frames=frames), tiling
                )
            )
            return encoding, decoding
        return self.fake.encoding(size, loop, tiling), self.fake.decoding(size, loop, tiling)

    @property
    def row_options(self) -> list[tuple[int | None, bool]]:
        """The settings `max_rows` and `row_by_row` of memory modes that differ for this edit, the largest first."""
        splits = []
        for index in range(1, len(SPLITS)):
            calls = [split_rows(one.rows, len(one.unconditional), self.maps(one), index) for one in self.steps]
            splits.append(max(largest_call(of_kind) for of_kind in calls))
        fewer = [rows for rows in dict.fromkeys(splits) if rows < max(kind.rows for kind in self.steps)]
        return [(None, False), *((rows, False) for rows in fewer), (None, True), *((rows, True) for rows in fewer)]

    def ladder(self, offloads: Sequence[Offload], tiling: bool) -> Iterator[MemoryMode]:
        """Yield memory modes from the fastest to the smallest; `tiling` for all of them, else it comes last, since its
        result is another. Layers that come to the device for each call make fewer rows in a call the last choice."""
        for tiled in (True,) if tiling else (False, True):
            for offload in offloads:
                options = self.row_options
                if offload == "group":
                    options = sorted(options, key=lambda option: option[0] is not None)
                for max_rows, row_by_row in options:
                    yield MemoryMode(offload, tiled, max_rows, row_by_row)

    def fastest_mode(
        self, size: Size, available: int, offloads: Sequence[Offload], tiling: bool = False
    ) -> MemoryMode | None:
        """Return the fastest memory mode whose peaks, with a margin for what is not counted, are within `available`
        bytes of the device; None where none is."""
        for mode in self.ladder(offloads, tiling):
            # The phases are in the order of what they take to count; nothing is counted twice.
            if all(with_margin(self.peak(phase, size, mode)) <= available for phase in PHASES):
                return mode
        return None

    def memory_options(self, size: Size, on_gpu: bool) -> list[MemoryOption]:
        """Return the ways to need less memory, from the fastest to the smallest; each includes those before it."""
        fewest = MemoryMode(max_rows=1)

        def option(name: str, options: str, mode: MemoryMode) -> MemoryOption:
            return MemoryOption(name, options, max(self.peaks(size, mode).values()))

        options = [
            option("fewer rows of a step at a time", "", fewest),
            option("its rows one at a time in each layer", "", replace(fewest, row_by_row=True)),
        ]
        offloads: tuple[Offload, ...] = ("model", "group") if on_gpu else ()
        for offload in offloads:
            name = f"--offload {offload}"
            options.append(option(name, name, replace(SMALLEST, offload=offload, vae_tiling=False)))
        smallest = "--offload group --vae-tiling" if on_gpu else "--vae-tiling"
        return [*options, option(smallest, smallest, SMALLEST if on_gpu else replace(SMALLEST, offload="none"))]

    def max_frames(self, size: Size, available: int, mode: MemoryMode) -> int | None:
        """Return the most frames that fit into `available` bytes in a memory mode; None where not one does."""
        backbone, group = self.fake.backbone, 2 * self.fake.backbone.temporal

        def fits(groups: int) -> bool:
            clip = backbone.nearest_size(Size(groups * group + 1, size.height, size.width), self.config.loop)
            return max(self.peaks(clip, mode).values()) <= available

        low, high = -1, math.ceil(size.frames / group)  # in groups after the first frame: low fits, high does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return None if low < 0 else low * group + 1


def with_margin(peak: int) -> int:
    """Return the free memory that a peak of tensors asks for: libraries' workspaces, and blocks that do not fit."""
    return int(peak * FRAGMENTATION) + WORKSPACE


def without_margin(available: int) -> int:
    """Return the bytes of tensors that so much free memory takes; the inverse of `with_margin`."""
    return max(0, int((available - WORKSPACE) / FRAGMENTATION))
