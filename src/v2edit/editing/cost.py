"""The cost of an edit before it runs: FLOPs and memory, counted from its settings and a model's configuration."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from v2edit.attention import Replacement
from v2edit.backbones import Size
from v2edit.backbones.families import Offload
from v2edit.editing.config import ResolvedConfig
from v2edit.editing.controls import attention_map_replacement, first_step, is_controlled
from v2edit.editing.microbatch import SPLITS, select_rows, split_rows, unconditional_branches
from v2edit.editing.skips import plan_skips
from v2edit.editing.state import LOOP
from v2edit.sampling import Schedule

if TYPE_CHECKING:
    from v2edit.backbones.fake import Cost, FakeModel


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

    def edit(self, size: Size, offload: Offload, tiling: bool) -> EditCost:
        """Count an edit as it is tried first, all rows of a step at once."""
        flops = sum(count * self.step(kind, size).flops for kind, count in self.steps.items())
        encoding, decoding = self.coding(size, tiling)
        flops += encoding.flops + self.config.subtasks * decoding.flops
        peak, phase = max((peak, phase) for phase, peak in self.peaks(size, offload, tiling).items())
        return EditCost(flops, sum(self.fake.weights.values()), peak, phase)

    def peaks(
        self, size: Size, offload: Offload, tiling: bool, split: int = 0, row_by_row: bool = False
    ) -> dict[str, int]:
        """Return the peak in bytes on the device in each phase, weights included."""
        encoding, decoding = self.coding(size, tiling)
        denoising = max(self.step(kind, size, split, row_by_row).peak for kind in self.steps)
        skipped = (self.fake.skipped(kind.rows, size, self.config.loop) for kind in self.steps if kind.skipped)
        denoising += max((kept for _, kept in skipped), default=0)
        texts = [part for part in self.fake.weights if part.startswith("text_encoder")]
        return {
            "encoding prompts": max(self.resident_weights(part, offload) for part in texts),
            "denoising": self.resident_weights("transformer", offload) + denoising,
            "encoding": self.resident_weights("vae", offload) + encoding.peak,
            "decoding": self.resident_weights("vae", offload) + decoding.peak,
        }

    def resident_weights(self, part: str, offload: Offload) -> int:
        """Return the bytes of weights on the device while a part works."""
        weights = self.fake.weights
        return {"none": sum(weights.values()), "model": weights[part], "group": 2 * self.fake.largest_layer}[offload]

    def step(self, kind: StepKind, size: Size, split: int = 0, row_by_row: bool = False) -> Cost:
        """Count a step of a kind in the calls of a `split`: the FLOPs of all of them, and the peak of the largest."""
        if kind.skipped:
            return self.fake.skipped(kind.rows, size, self.config.loop)[0]
        shared = self.fake.backbone.typical_keys * 3 // 4  # as prompts go; little depends on it
        maps = kind.replacement(shared, self.config.amr_unconditional)
        call = max(split_rows(kind.rows, len(kind.unconditional), maps, split), key=len)
        call_maps = None if maps is None else select_rows(maps, call)
        cost = self.fake.forward(len(call), size, self.config.loop, call_maps, row_by_row)
        return replace(cost, flops=cost.flops * kind.rows / len(call))

    def coding(self, size: Size, tiling: bool) -> tuple[Cost, Cost]:
        """Count encoding and decoding a clip."""
        loop = self.config.loop
        return self.fake.encoding(size, loop, tiling), self.fake.decoding(size, loop, tiling)

    def memory_options(self, size: Size, on_gpu: bool) -> list[MemoryOption]:
        """Return the ways to need less memory, from the fastest to the smallest; each includes those before it."""

        def peak(offload: Offload, tiling: bool, row_by_row: bool = True) -> int:
            return max(self.peaks(size, offload, tiling, len(SPLITS) - 1, row_by_row).values())

        options = [
            MemoryOption("fewer rows of a step at a time", "", peak("none", False, row_by_row=False)),
            MemoryOption("its rows one at a time in each layer", "", peak("none", False)),
        ]
        offloads: tuple[Offload, ...] = ("model", "group") if on_gpu else ()
        options += [MemoryOption(f"--offload {mode}", f"--offload {mode}", peak(mode, False)) for mode in offloads]
        smallest = "--offload group --vae-tiling" if on_gpu else "--vae-tiling"
        return [*options, MemoryOption(smallest, smallest, peak("group" if on_gpu else "none", True))]

    def max_frames(self, size: Size, available: int, offload: Offload, tiling: bool) -> int | None:
        """Return the most frames that fit into `available` bytes with rows one at a time; None where not one does."""
        backbone, group = self.fake.backbone, 2 * self.fake.backbone.temporal

        def fits(groups: int) -> bool:
            clip = backbone.nearest_size(Size(groups * group + 1, size.height, size.width), self.config.loop)
            return max(self.peaks(clip, offload, tiling, len(SPLITS) - 1, True).values()) <= available

        low, high = -1, math.ceil(size.frames / group)  # in groups after the first frame: low fits, high does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return None if low < 0 else low * group + 1
