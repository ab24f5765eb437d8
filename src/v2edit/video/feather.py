"""Growth and feather of masks: how much of each pixel is taken from the edit.

The feather lies outside a mask, within the pixels that it is grown by, so that the mask's interior is wholly edited;
or, where a mask may not grow, within it.
"""

from __future__ import annotations

from typing import overload

import numpy as np

from v2edit.errors import UserError
from v2edit.video.extent import measure_extent
from v2edit.video.stream import Frames, clip_size, map_frames

GROW = 1 / 60  # of the short side: the default growth, 8 pixels of 480
MIN_GROW = 2  # pixels
INNER = 1 / 240  # of the short side: the width of a feather within the mask


def default_grow(height: int, width: int) -> int:
    """Return the pixels by which a mask of a clip of this size is grown by default."""
    return max(MIN_GROW, round(min(height, width) * GROW))


@overload
def feathered_share(allowed: np.ndarray, keep: np.ndarray | None = None, grow: int | None = None) -> np.ndarray: ...
@overload
def feathered_share(allowed: Frames, keep: Frames | None = None, grow: int | None = None) -> Frames: ...
def feathered_share(allowed: Frames, keep: Frames | None = None, grow: int | None = None) -> Frames:
    """Return the share of the edit in each pixel, float32 [T, H, W] of 0..1 (the paper's m̃ is a mask's).

    Where `allowed` [T, H, W] is 1, so is the share; it falls smoothly to 0 at `grow` pixels from the mask (by default
    `default_grow`), measured as the crow flies, and is exactly 0 beyond, where `keep` [T, H, W] is 1, and in frames in
    which nothing is allowed. Towards what is kept it falls within the allowed pixels. With a `grow` of 0 it falls
    within the mask everywhere; parts too thin for that are edited as they are. Raises `UserError` for a `grow`
    below 0 or beyond the longer side."""
    _, height, width = clip_size(allowed)
    grow = default_grow(height, width) if grow is None else grow
    if not 0 <= grow <= max(height, width):
        most = max(height, width)
        raise UserError(f"a mask of {width}x{height} can be grown by 0 to {most} pixels, and this is {grow}")
    inner = max(1, round(min(height, width) * INNER))
    # Of a stream without a pass over it: each frame's own window is as good, but for what is kept around it.
    common = find_window(allowed, grow + 1) if isinstance(allowed, np.ndarray) else None
    if common is None and keep is not None:
        common = slice(None), slice(None)
    last: tuple[np.ndarray, ...] = ()  # the masks of a frame and its share: often the next frame's, too

    def feather(number: int, *masks: np.ndarray) -> np.ndarray:
        nonlocal last
        known = last
        if len(known) and all(np.array_equal(a, b) for a, b in zip(masks, known, strict=False)):
            return known[-1]
        share = np.zeros((height, width), np.float32)
        rows, columns = common or find_window(masks[0][None], grow + 1)
        part, *kept = (mask[rows, columns].astype(np.float32)[None] for mask in masks)
        if part.any():
            feathered = _grow(part, grow) if grow else _feather_within(part, inner)
            for one in kept:
                feathered = np.minimum(feathered, 1 - (_grow(one, grow) if grow else one))
            share[rows, columns] = feathered[0]
        last = (*masks, share)
        return share

    return map_frames(feather, [allowed, *([] if keep is None else [keep])], dtype=np.float32)


def find_window(mask: Frames, margin: int) -> tuple[slice, slice]:
    """Return the rows and columns in which a mask [T, H, W] is not 0 in any frame, with a margin in pixels."""
    return measure_extent(mask).window(margin)


def _grow(mask: np.ndarray, radius: int) -> np.ndarray:
    """Return a mask, float32 [T, h, w], grown by a radius in pixels, over which it falls to 0."""
    levels = np.rint(mask * 255).astype(np.uint8)
    plateau = (radius + 1) // 2
    grown = blur(dilate(levels, plateau), radius - plateau)
    return np.maximum(np.where(dilate(levels, radius) > 0, grown, 0), mask)


def _feather_within(mask: np.ndarray, radius: int) -> np.ndarray:
    """Return a mask, float32 [T, h, w], that falls to 0 at its own edges."""
    levels = np.rint(mask * 255).astype(np.uint8)
    opened = dilate(255 - dilate(255 - levels, radius), radius)
    feathered = (2 * blur(levels, radius) - mask).clip(0, mask)
    return np.where(levels > opened, mask, feathered)


def dilate(levels: np.ndarray, radius: int) -> np.ndarray:
    """Return the largest level within a disc about each pixel, uint8 or bool [T, H, W]."""
    wide, result, reached = levels.copy(), levels.copy(), 0
    for offset in range(radius, -1, -1):  # rows away: the further, the shorter the disc's row
        half = int((radius * radius - offset * offset) ** 0.5)
        for step in range(reached + 1, half + 1):
            np.maximum(wide[..., step:], levels[..., :-step], out=wide[..., step:])
            np.maximum(wide[..., :-step], levels[..., step:], out=wide[..., :-step])
        reached = half
        if offset:
            np.maximum(result[:, offset:], wide[:, :-offset], out=result[:, offset:])
            np.maximum(result[:, :-offset], wide[:, offset:], out=result[:, :-offset])
    return np.maximum(result, wide)


def blur(levels: np.ndarray, radius: int) -> np.ndarray:
    """Blur levels, uint8 [T, H, W], by a tent of this radius in both directions, to float32 of 0..1; beyond the picture
    its last pixels go on. Sums are of whole numbers, so that where all is 0 or 255 the result is exactly 0 or 1."""
    size = radius + 1
    dtype = np.int32 if 255 * size**3 * max(levels.shape[1:]) < 2**30 else np.int64
    sums = np.pad(levels, ((0, 0), (radius, radius), (radius, radius)), mode="edge").astype(dtype)
    for _ in range(2):  # a tent is a box twice
        for axis in (1, 2):
            total = np.cumsum(sums, axis, out=sums)
            ends, starts = (
                (slice(None),) * axis + (slice(size - 1, None),),
                (slice(None),) * axis + (slice(None, -size),),
            )
            sums = total[ends].copy()
            sums[(slice(None),) * axis + (slice(1, None),)] -= total[starts]
    return (sums / np.float32(255 * size**4)).astype(np.float32)


@overload
def spread_in_time(share: np.ndarray) -> np.ndarray: ...
@overload
def spread_in_time(share: Frames) -> Frames: ...
def spread_in_time(share: Frames) -> Frames:
    """Return a share [T, H, W] in which frames without any edit have the most of all others': what the model is free to
    edit. The composite alone keeps those frames. Held in latents, too, they would hold the edit back in the others,
    which are to be like them."""
    extent = measure_extent(share)
    if (extent.part > 0).all():
        return share
    return map_frames(lambda k, frame: frame if extent.part[k] else extent.most, [share])
