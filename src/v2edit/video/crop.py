"""Windows around a small region of a clip: it is edited at the model's full resolution and pasted back."""

from __future__ import annotations

from typing import overload

import numpy as np

from v2edit.video.extent import measure_extent
from v2edit.video.stream import Frames, map_frames

CONTEXTS = (1.6, 1.3)  # of the region's sides: those of its window, the first that is small enough
MARGIN = 0.1  # of the window's sides: what it shows beside the region, inside the picture
MAX_SIDE = 0.6  # of the clip's: larger windows gain too little
MAX_ENLARGED = 2.0  # times: smaller windows would only be blown up
PASSES = 400  # of smoothing a window's path


def plan_crop(share: Frames, height: int, width: int) -> np.ndarray | None:
    """Return a window for each frame, int [T, 4] of (top, left, height, width), that contains the pixels in which
    `share` [T, H, W] is above 0, for a model of `height` and `width`; None where a window would gain too little.

    All windows are of one size and of the model's proportions, inside the picture. They follow the region on the
    smoothest path that leaves it a margin, so that what stands still jumps as little as possible; where it is absent
    they go on from where it was to where it will be."""
    extent = measure_extent(share)
    if extent.is_empty:
        return None
    present = np.flatnonzero(extent.part)
    spans = [_spans(ends, present) for ends in (extent.rows, extent.columns)]  # [T, 2]
    whole, native = share.shape[1:], (height, width)
    extents = [(span[present, 1] - span[present, 0]).max() for span in spans]
    for context in CONTEXTS:
        scale = max(1 / MAX_ENLARGED, *(context * extent / side for extent, side in zip(extents, native, strict=True)))
        sides = [int(np.ceil(scale * side)) for side in native]
        if all(side <= MAX_SIDE * most for side, most in zip(sides, whole, strict=True)):
            break
    else:
        return None
    starts = [_follow(span, side, most) for span, side, most in zip(spans, sides, whole, strict=True)]
    return np.stack([*starts, *(np.full(len(share), side) for side in sides)], 1)


def _spans(ends: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Return the first row that a region occupies and that after its last one, int [T, 2]; between the frames in which
    it is `present` both go on evenly from its `ends` there."""
    frames = np.arange(len(ends))
    return np.stack([np.interp(frames, present, ends[present, k]).round() for k in range(2)], 1).astype(int)


def _follow(span: np.ndarray, side: int, whole: int) -> np.ndarray:
    """Return where a window of `side` begins in each frame, int [T], to contain a region [T, 2], within `whole` pixels:
    a path that is averaged over neighbouring frames, again and again, within what contains the region."""
    margin = int(MARGIN * side)
    low = (span[:, 1] + margin - side).clip(0, whole - side)
    high = (span[:, 0] - margin).clip(0, whole - side)
    path = ((span.sum(1) - side) / 2).clip(low, high)
    for _ in range(PASSES):
        before, after = np.append(path[:1], path[:-1]), np.append(path[1:], path[-1:])
        path = ((before + 2 * path + after) / 4).clip(low, high)
    return path.round().astype(int)


@overload
def extract(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray: ...
@overload
def extract(frames: Frames, boxes: np.ndarray) -> Frames: ...
def extract(frames: Frames, boxes: np.ndarray) -> Frames:
    """Return the windows [T, 4] of frames [T, H, W, ...], as they are: [T, h, w, ...]."""
    size = *map(int, boxes[0, 2:]), *frames.shape[3:]
    return map_frames(lambda k, frame: frame[_window(boxes[k])], [frames], size)


@overload
def paste(frames: np.ndarray, edited: np.ndarray, boxes: np.ndarray) -> np.ndarray: ...
@overload
def paste(frames: Frames, edited: Frames, boxes: np.ndarray) -> Frames: ...
def paste(frames: Frames, edited: Frames, boxes: np.ndarray) -> Frames:
    """Return frames [T, H, W, ...] with their windows [T, 4] replaced by edited ones [T, h, w, ...]."""

    def replace_window(number: int, frame: np.ndarray, window: np.ndarray) -> np.ndarray:
        out = frame.copy()
        out[_window(boxes[number])] = window
        return out

    return map_frames(replace_window, [frames, edited])


def _window(box: np.ndarray) -> tuple[slice, slice]:
    top, left, height, width = (int(value) for value in box)
    return slice(top, top + height), slice(left, left + width)
