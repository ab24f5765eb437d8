"""The extent of masks: where and how far they are above 0, in each frame and in all of them, found in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from v2edit.video.stream import Frames, FrameStream, clip_size


@dataclass(frozen=True, eq=False)
class Extent:
    """Where a mask [T, H, W] is above 0: in what `part` [T] of each frame's pixels, and in which of its `rows` and
    `columns`, int [T, 2], from the first up to that after the last (0, 0 where there is none). `most` [H, W] is the
    largest value of each pixel in any frame, and `mean` that of all."""

    part: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    most: np.ndarray
    mean: float

    @property
    def is_empty(self) -> bool:
        """Whether the mask is 0 everywhere."""
        return not self.part.any()

    def box(self, k: int) -> tuple[slice, slice]:
        """Return the rows and columns in which the mask is not 0 in frame k."""
        return slice(*self.rows[k].tolist()), slice(*self.columns[k].tolist())

    def window(self, margin: int) -> tuple[slice, slice]:
        """Return the rows and columns in which the mask is not 0 in any frame, with a margin in pixels."""
        if self.is_empty:
            return slice(0, 0), slice(0, 0)
        spans = (one[self.part > 0] for one in (self.rows, self.columns))
        rows, columns = (slice(max(int(s[:, 0].min()) - margin, 0), int(s[:, 1].max()) + margin) for s in spans)
        return rows, columns


_measured: WeakKeyDictionary[FrameStream, Extent] = WeakKeyDictionary()  # a pass over a stream takes long


def measure_extent(mask: Frames) -> Extent:
    """Return the extent of a mask [T, H, W] of values from 0 on."""
    if isinstance(mask, FrameStream) and mask in _measured:
        return _measured[mask]
    count, height, width = clip_size(mask)
    part, means = np.zeros(count), np.zeros(count)
    rows, columns = np.zeros((count, 2), int), np.zeros((count, 2), int)
    most, last = np.zeros((height, width), mask.dtype), None
    for k, frame in enumerate(mask):
        if frame is last:  # as masks from a file are, which are often still for long
            part[k], means[k], rows[k], columns[k] = part[k - 1], means[k - 1], rows[k - 1], columns[k - 1]
            continue
        last = frame
        part[k], means[k] = (frame > 0).mean(), frame.mean(dtype=np.float64)
        if part[k]:
            for ends, axis in ((rows, 1), (columns, 0)):
                places = np.flatnonzero(frame.any(axis))
                ends[k] = places[0], places[-1] + 1
            np.maximum(most, frame, out=most)
    if isinstance(mask, np.ndarray):
        return Extent(part, rows, columns, most, float(mask.mean()))
    _measured[mask] = Extent(part, rows, columns, most, float(means.mean()))
    return _measured[mask]
