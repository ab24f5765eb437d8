"""Find out where an edit happens, free of charge: the difference of what source and edit denoise to, at every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.attention import Replacement, identity_sources
from v2edit.attention.words import Slots, WordShare

LEAST = 1e-4  # of the largest difference: less is as good as none
LARGE, MOST = 0.4, 0.6  # of all cells: a region that is large, and one that is as good as everything
MOST_CHANGED = 1e-3  # of all cells, one at least: by these an edit is judged that may be a small object
SOME = 256  # latent frames that are compared at a time
MIN_CONTRAST = 3.0  # the factor by which the difference of what changes is larger, to be told from what does not


def latent_change(original: Tensor, edited: Tensor) -> float:
    """Return how much an edit changed latents [1, F, C, h, w]: the mean difference in the cells that changed most, in
    standard deviations of the original's latents."""
    parts = zip(edited.split(SOME, 1), original.split(SOME, 1), strict=True)
    cells = torch.cat([(one - other).abs().float().mean(2).flatten() for one, other in parts])
    most = cells.topk(max(1, round(MOST_CHANGED * len(cells)))).values
    return float(most.mean() / original.float().std().clamp(min=1e-6))


@dataclass(frozen=True, eq=False)
class ChangeMap:
    """What is known of where a subtask's edit happens after some of its controlled steps, [1, F, 1, h, w]: the
    `difference` of the branches' x0 and the `attention` that video pays to the words that change, each summed over so
    many steps (`steps`, `attended`)."""

    difference: Tensor
    steps: int
    attention: Tensor | None = None
    attended: int = 0

    @classmethod
    def of(cls, x0_source: Tensor, x0_edit: Tensor, words: WordShare | None = None) -> ChangeMap:
        """Return the change map of one step: r = mean over channels of |x0_edit - x0_source|."""
        attention = None if words is None else on_latents(words.mean, x0_edit.shape[1:])
        difference = (x0_edit - x0_source).abs().mean(2, keepdim=True)
        return cls(difference, 1, attention, int(attention is not None))

    def after(self, earlier: ChangeMap | None) -> ChangeMap:
        """Return what is known after these steps and earlier ones."""
        if earlier is None:
            return self
        known = [one for one in (earlier.attention, self.attention) if one is not None]
        attention = sum(known[1:], known[0]) if known else None
        steps, attended = earlier.steps + self.steps, earlier.attended + self.attended
        return ChangeMap(earlier.difference + self.difference, steps, attention, attended)

    def find_region(self) -> Tensor:
        """Return where the edit happens, [1, F, 1, h, w] of 0 and 1: generously, for what it leaves out stays.

        The logarithm of r has two humps, what changes and the noise of what does not, whatever the model's scale. Weak
        cells above the threshold between them are kept where they are connected, in space and time, with strong ones
        that attend to the words that change: so a shadow belongs to its object, and an object has its whole path. Then
        it grows by a cell, and by another where it is large, whose rim is far (a sky down to the haze). Ones everywhere
        where r has no two humps or the region is most of the clip, zeros where nothing differs."""
        r = self.difference / self.steps
        if not (highest := float(r.max())):
            return torch.zeros_like(r)
        if float(r.min()) == highest:
            return torch.ones_like(r)
        logs = r.clamp(min=highest * LEAST).log()
        threshold = otsu_threshold(logs)
        weak = logs > threshold
        above, below = logs[weak].mean(), logs[~weak].mean()
        if above - below < math.log(MIN_CONTRAST):
            return torch.ones_like(r)
        strong = logs > (threshold + above) / 2
        if self.attention is not None:
            strong &= self.attention >= self.attention.mean()
        region = grow(connected(weak, strong).float())
        if (covered := float(region.mean())) > MOST:
            return torch.ones_like(r)
        return grow(region) if covered > LARGE else region


def connected(weak: Tensor, strong: Tensor) -> Tensor:
    """Return the cells of `weak` that are connected through it with those of `strong`, bool [1, F, 1, h, w]: neighbours
    are the 26 around a cell in space and time."""
    kept = (weak & strong)[:, :, 0].float()
    while True:
        grown = F.max_pool3d(kept, 3, 1, 1) * weak[:, :, 0]
        if torch.equal(grown, kept):
            return kept[:, :, None].bool()
        kept = grown


def grow(mask: Tensor) -> Tensor:
    """Return a mask [1, F, 1, h, w] grown by a cell in space."""
    return F.max_pool3d(mask[:, :, 0], (1, 3, 3), 1, (0, 1, 1))[:, :, None]


def with_words(replacement: Replacement | None, words: Sequence[Slots]) -> Replacement:
    """Return a replacement that also gathers the share of attention of each row's words; without one, of rows that
    replace nothing."""
    maps = replacement or Replacement(0, identity_sources(len(words)))
    return replace(maps, words=WordShare.of(words))


def on_latents(tokens: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """Lay values of a video's tokens [N] on latents, [1, F, 1, h, w] of `shape` [F, C, h, w], each on its patch."""
    if tokens is None:
        return None
    frames, _, height, width = shape
    for time in (1, 2):
        side = math.isqrt(cells := frames * height * width // (time * len(tokens)))
        if side**2 == cells and len(tokens) * time * cells == frames * height * width:
            grid = tokens.view(frames // time, height // side, width // side)
            for dim, times in enumerate((time, side, side)):
                grid = grid.repeat_interleave(times, dim)
            return grid[None, :, None]
    raise AssertionError((len(tokens), shape))


def otsu_threshold(values: Tensor, bins: int = 128) -> float:
    """Return the threshold that parts values, not all of them equal, into two classes with the greatest variance
    between them (Otsu 1979)."""
    low, high = float(values.min()), float(values.max())
    counts = torch.histc(values.float().cpu(), bins, low, high).double()
    centres = low + (torch.arange(bins).double() + 0.5) * (high - low) / bins
    below, mass = counts.cumsum(0), (counts * centres).cumsum(0)
    between = (mass[-1] * below / below[-1] - mass) ** 2 / (below * (below[-1] - below)).clamp(min=1e-9)
    return low + (float(between[:-1].argmax()) + 1) * (high - low) / bins
