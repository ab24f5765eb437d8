"""Blocks: a long clip's latent frames in overlapping parts of the length that the model was trained on, each denoised
by itself. What they take for x0 is blended before the solver's step (MultiDiffusion, Bar-Tal et al. 2023, on x0).

Letters: F latent frames, C channels, N frames of a block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from v2edit.backbones import Backbone
from v2edit.editing.config import EditConfig

WeightName = Literal["cosine", "triangle", "flat"]


@dataclass(frozen=True)
class BlockSettings:
    """How a clip is cut into blocks: their `length` in latent frames (None: the model's native one), the share of a
    block that the next one `overlap`s at least, how a block's weight falls off to its ends, that of its `lead` (see
    `Blocks`), and whether every other step has its blocks half a stride later, so that no joint stays in its place."""

    length: int | None = None
    overlap: float = 0.5
    weights: WeightName = "cosine"
    lead: float = 0.25
    shifted: bool = True


@dataclass(frozen=True)
class Blocks:
    """Blocks of `length` in a clip of `frames` latent frames, at most `stride` apart. They begin where a clip could, a
    whole number of the autoencoder's groups of `group` latent frames after the first frame: the network knows the
    groups (x0 of blocks in between is as much as 1.5 dB worse). `first`: where the first one begins; a block of a loop
    may lie across its ends. Every frame is in some block, and a block's weights beside the others' sum to 1 in each
    frame. `lead`: by how much the weight of a block's first `unit` frames is multiplied where they are not the clip's:
    the network takes them for a clip's first one, which holds a single frame and no motion."""

    frames: int
    length: int
    stride: int
    group: int = 1
    loop: bool = False
    first: int = 0
    weights: WeightName = "cosine"
    lead: float = 1.0
    unit: int = 1
    shifted: bool = False

    def __post_init__(self) -> None:
        assert 1 <= self.stride <= self.length < self.frames, self
        assert self.stride % self.group == 0 and (self.frames - self.length * (not self.loop)) % self.group == 0, self

    def starts(self, k: int) -> list[int]:
        """Return the first frame of each block at step k, in order."""
        last = self.frames if self.loop else self.frames - self.length
        count = math.ceil(last / self.stride)
        stride = last / count / self.group
        late = self.shifted and k % 2
        starts = [(block + 0.5 * late) * stride for block in range(count)]
        if not self.loop:
            starts = [0.0, *starts, last / self.group] if late else [*starts, last / self.group]
        return sorted({math.floor(start + 0.5) * self.group + self.first for start in starts})

    def count(self, k: int) -> int:
        """Return the number of blocks at step k."""
        return len(self.of_step(k))

    def of_step(self, k: int) -> list[Block]:
        """Return the blocks of step k, each with its weights beside the others'."""
        return self._of_parity[k % 2]

    @cached_property
    def _of_parity(self) -> list[list[Block]]:
        return [self._place(k) for k in range(2)]

    def _place(self, k: int) -> list[Block]:
        placed, total = [], torch.zeros(self.frames, dtype=torch.float64)
        for start in self.starts(k):
            own = block_weights(self.length, self.weights)
            if start or self.loop:
                own[: self.unit] *= self.lead
            frames = [(start + n) % self.frames for n in range(self.length)]
            placed.append((frames, own))
            total[frames] += own
        return [Block(tuple(frames), (own / total[frames]).float()) for frames, own in placed]


@dataclass(frozen=True, eq=False)
class Block:
    """The latent frames of a block, and its weight in each, float32 [N]."""

    frames: tuple[int, ...]
    weights: Tensor


def block_weights(length: int, name: WeightName) -> Tensor:
    """Return how a block's weight falls off to its ends, above 0, float64 [N]."""
    middle = torch.arange(length, dtype=torch.float64) + 0.5
    if name == "flat":
        return torch.ones_like(middle)
    if name == "triangle":
        return torch.minimum(middle, length - middle)
    return torch.sin(math.pi * middle / length).square()


def plan_blocks(settings: BlockSettings, backbone: Backbone, frames: int, loop: bool = False) -> Blocks | None:
    """Return the blocks of a clip of so many latent frames; None where one has room for all of it."""
    unit, group = backbone.unit, math.lcm(backbone.latent_group, backbone.unit)
    length = settings.length or backbone.latent_shape(backbone.native_size)[0]
    # In a loop groups begin with the first frame; elsewhere a frame of its own comes before them, or tokens of copies.
    first = -1 if loop and unit == 1 < group else 0
    length -= 0 if first else (length - frames) % group  # so that the last one ends with the clip
    if frames <= length:
        return None
    stride = min(max(1, math.floor((1 - settings.overlap) * length / group + 0.5)), length // group) * group
    return Blocks(frames, length, stride, group, loop, first, settings.weights, settings.lead, unit, settings.shifted)


def blocks_of(
    config: EditConfig, backbone: Backbone, frames: int, settings: BlockSettings = BlockSettings()
) -> Blocks | None:
    """Return the blocks in which an edit denoises a clip of so many latent frames, None for all of it at once: where
    the settings ask for them, and where the model has no other way beyond the length that it was trained on."""
    if config.long == "blocks" or (config.long == "auto" and not backbone.has_rotary_time):
        return plan_blocks(settings, backbone, frames, config.loop)
    return None


@dataclass(eq=False)
class BlendedFrames:
    """The latent frames of a step that some of their blocks have denoised: the sum so far, by their weights, of what
    each gives, [K, h, w], and how many blocks are still to come."""

    left: list[int]
    sums: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, blocks: Sequence[Block], frames: int, sums: dict[int, Tensor] | None = None) -> BlendedFrames:
        """Begin with the blocks that are to come of a clip of so many frames, and the sums of those before."""
        left = [0] * frames
        for block in blocks:
            for frame in block.frames:
                left[frame] += 1
        return cls(left, sums or {})

    def add(self, block: Block, values: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Add what a block gives, [N, K, h, w]; yield the runs of frames that are complete with it, and the blend of
        each, [n, K, h, w]."""
        complete = []
        for n, frame in enumerate(block.frames):
            own = values[n] * block.weights[n].to(values)
            self.sums[frame] = self.sums[frame] + own if frame in self.sums else own
            self.left[frame] -= 1
            if not self.left[frame]:
                complete.append(frame)
        for _, run in groupby(enumerate(sorted(complete)), key=lambda pair: pair[1] - pair[0]):
            part = [frame for _, frame in run]
            yield slice(part[0], part[-1] + 1), torch.stack([self.sums.pop(frame) for frame in part])
