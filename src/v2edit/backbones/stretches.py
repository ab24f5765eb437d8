"""Long clips to latents and back a stretch at a time, in memory that does not grow with the clip.

A stretch is coded with some groups before it, and after it where the decoder looks ahead, whose results are thrown
away: an autoencoder that is causal in time forgets what was long before.

Letters: T frames, F latent frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from v2edit.backbones.base import Backbone, Size
from v2edit.backbones.coding import CUT
from v2edit.video.stream import Frames, pick

STRETCH = 2**27  # bytes of the frames of a stretch, which is longer where its lead would else be most of it


@dataclass(frozen=True)
class Stretch:
    """A part of a clip, and what is coded of it: the indices of `frames` and `latents` to code, and those of what is
    kept, `kept_frames` and `kept_latents`, after the first `lead` and `latent_lead` of the results."""

    frames: np.ndarray
    latents: np.ndarray
    kept_frames: np.ndarray
    kept_latents: np.ndarray
    lead: int
    latent_lead: int


def plan_stretches(
    backbone: Backbone, size: Size, loop: bool = False, groups: int | None = None, lead: int | None = None
) -> list[Stretch]:
    """Return the stretches of a clip of a valid size, of at most so many `groups` of frames (default: as memory has
    it); one where that is the whole clip. `lead`: the groups before each that are thrown away (default: as for
    loops)."""
    group, latent_group, unit = backbone.group, backbone.latent_group, backbone.unit
    total = (size.frames - (0 if loop else 1)) // group
    lead, trail = backbone.lead_groups if lead is None else lead, backbone.trail_groups
    groups = groups or _groups_at_once(backbone, size, lead)
    latent_frames = backbone.latent_shape(size, loop)[0]
    parts = [(first, min(first + groups, total)) for first in range(0, total, groups)] or [(0, total)]
    if len(parts) == 1:
        frames, latents = np.arange(size.frames), np.arange(latent_frames)
        return [Stretch(frames, latents, frames, latents, 0, 0)]
    stretches = []
    for first, stop in parts:
        begin, end = first - lead, stop + trail
        if not loop:
            begin, end = max(begin, 0), min(end, total)
        # The frame before a group comes first, as a clip's first frame does; a loop is cut open at CUT.
        frames = np.arange(begin * group - 1, end * group) + CUT
        copies = 0 if loop else unit - 1  # of the first latent frame
        latents = np.arange(begin * latent_group - 1, end * latent_group) + (0 if loop else 1) + copies
        ahead = latents[0] - np.arange(unit - 1, 0, -1)  # what stands for the copies, which are not decoded
        opens = begin == first == 0 and not loop
        kept = 0 if opens else first * group - begin * group + 1
        latent_kept = 0 if opens else (first - begin) * latent_group + 1
        stretches.append(
            Stretch(
                frames % size.frames,
                np.concatenate([ahead, latents]) % latent_frames,
                np.arange(0 if opens else first * group + CUT, stop * group + CUT) % size.frames,
                np.arange(0 if opens else first * latent_group + (0 if loop else 1) + copies,
                          stop * latent_group + (0 if loop else 1) + copies),
                kept,
                latent_kept + (unit - 1) * (not opens),
            )
        )  # fmt: skip
    return stretches


def _groups_at_once(backbone: Backbone, size: Size, lead: int) -> int:
    """Return the groups of a stretch: as many as `STRETCH` has room for, or as the model was trained on where all of
    them are coded at once, in memory that grows with them."""
    frames = STRETCH // (3 * size.height * size.width)
    if backbone.coded_whole:
        frames = min(frames, backbone.native_size.frames)
    return max(frames // backbone.group, lead + backbone.trail_groups)


Steps = Callable[[int], Iterator[int]]  # the numbers of so many stretches that are to be coded, in order


def encode_in_stretches(
    backbone: Backbone, frames: Frames, stretches: list[Stretch], steps: Steps, out: Tensor
) -> Tensor:
    """Encode frames [T, H, W, 3] of a valid size to latents `out` [1, F, C, h, w], stretch after stretch; a part of a
    loop is coded as one of any clip."""
    for number in steps(len(stretches)):
        one = stretches[number]
        latents = backbone.encode(np.asarray(pick(frames, one.frames)))
        out[:, one.kept_latents] = latents[:, one.latent_lead :][:, : len(one.kept_latents)].to(out)
    return out


def decode_in_stretches(
    backbone: Backbone, latents: Tensor, stretches: list[Stretch], steps: Steps, out: np.ndarray
) -> np.ndarray:
    """Decode latents [1, F, C, h, w] to uint8 frames `out` [T, H, W, 3], stretch after stretch."""
    for number in steps(len(stretches)):
        one = stretches[number]
        frames = backbone.decode(latents[:, one.latents].to(backbone.device))
        out[one.kept_frames] = frames[one.lead :][: len(one.kept_frames)]
    return out
