"""What an edit costs, before it is run, counted from its settings and a model's configuration."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from v2edit.attention import Replacement
from v2edit.backbones import Size
from v2edit.backbones.families import Offload
from v2edit.editing.config import EditConfig, ResolvedConfig
from v2edit.editing.controls import Source, attention_map_replacement, first_step
from v2edit.editing.microbatch import SPLITS, groups, part_of
from v2edit.editing.state import LOOP
from v2edit.sampling import Schedule

if TYPE_CHECKING:
    from v2edit.backbones.fake import Cost, FakeModel


@dataclass(frozen=True)
class Call:
    """A kind of step: how many branches run in it, in how many guidance cfg_batches, and whether they exchange maps."""

    branches: int
    cfg_batches: int
    maps: bool

    @property
    def rows(self) -> int:
        return self.branches * self.cfg_batches


def steps_per_subtask(schedule: Schedule, config: EditConfig) -> int:
    """How many of the schedule's steps each subtask takes."""
    return schedule.steps - first_step(schedule, config.alpha, config.inc)


def calls(schedule: Schedule, config: ResolvedConfig) -> list[Counter[Call]]:
    """How many steps of each kind each subtask takes. In the window of the controls the sources run beside the edit;
    below it the edit runs alone."""
    alone, together = 1 + (config.guidance > 1), 1 + (max(config.guidance, config.source_guidance) > 1)
    start = first_step(schedule, config.alpha, config.inc)
    held = sum((config.pnc or config.amr) and schedule.controlled(k, config.beta) for k in range(start, schedule.steps))
    counts = []
    for subtask in range(1, config.subtasks + 1):
        sources = 1 if subtask == 1 else (config.mixture > 0) + (config.mixture < 1)
        steps = {Call(1 + sources, together, config.amr): held, Call(1, alone, False): schedule.steps - start - held}
        counts.append(Counter({call: count for call, count in steps.items() if count}))
    return counts


def loop_steps(schedule: Schedule, config: EditConfig) -> dict[str, int]:
    """The steps of each loop of an edit, by the name of its snapshot in a snapshots."""
    return {f"{LOOP}-{subtask}": steps_per_subtask(schedule, config) for subtask in range(1, config.subtasks + 1)}


def count_forwards(schedule: Schedule, config: ResolvedConfig) -> list[int]:
    """How many rows pass through the network in each subtask."""
    return [sum(call.rows * count for call, count in one.items()) for one in calls(schedule, config)]


def maps_of(call: Call, shared: int, unconditional: bool) -> Replacement | None:
    """The maps that are taken in a step of this kind, by weights of no matter here."""
    if not call.maps:
        return None
    nothing = torch.empty(0)
    sources = [Source(nothing, nothing, 1 / (call.branches - 1)) for _ in range(call.branches - 1)]
    return attention_map_replacement(sources, shared, call.cfg_batches, unconditional)


@dataclass(frozen=True)
class MemoryOption:
    """A smaller way to run an edit: what it is called, what of it has to be asked for on the command line (nothing
    where a run that is out of memory takes it by itself), and the bytes of tensors on the device at its peak."""

    name: str
    options: str
    peak: int


@dataclass(frozen=True)
class EditCost:
    """An edit, counted: floating-point operations, and the bytes of tensors on the device: of the weights, and at the
    peak, which is in `phase`."""

    flops: float
    weights: int
    peak: int
    phase: str


@dataclass(frozen=True)
class CostModel:
    """Counts what edits of one configuration cost with a model, for clips of valid sizes."""

    fake: FakeModel
    config: ResolvedConfig

    @property
    def steps(self) -> Counter[Call]:
        """The steps of all subtasks, by their kind."""
        return sum(calls(self.fake.backbone.schedule(self.config.steps), self.config), Counter())

    def edit(self, size: Size, offload: Offload, tiling: bool) -> EditCost:
        """An edit as it is tried first, all rows of a step at once."""
        flops = sum(count * self.step(call, size).flops for call, count in self.steps.items())
        encoded, decoded = self.coded(size, tiling)
        flops += encoded.flops + self.config.subtasks * decoded.flops
        peak, phase = max((bytes_, name) for name, bytes_ in self.peaks(size, offload, tiling).items())
        return EditCost(flops, sum(self.fake.weights.values()), peak, phase)

    def peaks(
        self, size: Size, offload: Offload, tiling: bool, split: int = 0, row_by_row: bool = False
    ) -> dict[str, int]:
        """The bytes on the device in each phase, weights and all."""
        encoded, decoded = self.coded(size, tiling)
        steps = max(self.step(call, size, split, row_by_row).peak for call in self.steps)
        needs = {"denoising": ("transformer", steps), "encoding": ("vae", encoded.peak)}
        needs["decoding"] = ("vae", decoded.peak)
        return {phase: self.held(part, offload) + need for phase, (part, need) in needs.items()}

    def held(self, part: str, offload: Offload) -> int:
        """The bytes of weights on the device while a part works."""
        weights = self.fake.weights
        return {"none": sum(weights.values()), "model": weights[part], "group": 2 * self.fake.largest_layer}[offload]

    def step(self, call: Call, size: Size, split: int = 0, row_by_row: bool = False) -> Cost:
        """A step of this kind, its rows split as a run out of memory splits them: all that it computes, and the peak
        of its largest part."""
        shared = self.fake.backbone.text_length * 3 // 4  # as prompts go; little depends on it
        maps = maps_of(call, shared, self.config.amr_unconditional)
        part = max(groups(call.rows, call.cfg_batches, maps, split), key=len)
        taken = None if maps is None else part_of(maps, part)
        one = self.fake.forward(len(part), size, self.config.loop, taken, row_by_row)
        return replace(one, flops=one.flops * call.rows / len(part))

    def coded(self, size: Size, tiling: bool) -> tuple[Cost, Cost]:
        """Encoding and decoding a clip."""
        loop = self.config.loop
        return self.fake.encoding(size, loop, tiling), self.fake.decoding(size, loop, tiling)

    def memory_options(self, size: Size, on_gpu: bool) -> list[MemoryOption]:
        """Smaller ways, each with what it takes of those before it."""

        def peak(offload: Offload, tiling: bool, row_by_row: bool = True) -> int:
            return max(self.peaks(size, offload, tiling, len(SPLITS) - 1, row_by_row).values())

        ways = [
            MemoryOption("fewer rows of a step at a time", "", peak("none", False, row_by_row=False)),
            MemoryOption("its rows one at a time in each layer", "", peak("none", False)),
        ]
        offloads: tuple[Offload, ...] = ("model", "group") if on_gpu else ()
        ways += [MemoryOption(f"--offload {one}", f"--offload {one}", peak(one, False)) for one in offloads]
        offload = "group" if on_gpu else "none"
        options = " ".join([*(["--offload group"] if on_gpu else []), "--vae-tiling"])
        return [*ways, MemoryOption(options, options, peak(offload, True))]

    def max_frames(self, size: Size, room: int, offload: Offload, tiling: bool) -> int | None:
        """How many frames of this size fit, rows one at a time; None where not even one does."""
        backbone, group = self.fake.backbone, 2 * self.fake.backbone.temporal

        def fits(groups: int) -> bool:
            clip = backbone.nearest_size(Size(groups * group + 1, size.height, size.width), self.config.loop)
            return max(self.peaks(clip, offload, tiling, len(SPLITS) - 1, True).values()) <= room

        low, high = -1, math.ceil(size.frames / group)  # in groups after the first frame: low fits, high does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return None if low < 0 else low * group + 1
