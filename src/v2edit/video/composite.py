"""Composite an edited video over its source, whose bytes stay where nothing may change."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.video.extent import measure_extent
from v2edit.video.stream import Frames, FrameStream, map_frames

Seam = Literal["feather", "match"]

GRID, MIN_CELL = 96, 4  # cells of the short side, and pixels of a cell: drift is smooth
AROUND = 0.25  # of the short side: as far from the mask drift is measured
SMOOTHING = 1  # frames before and after: over these drift is averaged
PRIOR = 0.1  # of a cell's pixels: the weight of what its wider neighbourhood says of it
TOLERANCES = (12.0, 6.0, 3.0, 1.5)  # of 255, one after the other: by how much a cell may differ from the drift around
MAX_DRIFT = 24  # of 255: a drift of so much is half believed
REACH = SMOOTHING * len(TOLERANCES)  # frames before and after on which a frame's drift depends
DRIFT_CHUNK = 4  # frames of a stream whose drift is found at a time
MATCHED = 1 / 3  # of the video: what is known of the drift around a larger mask says nothing of its inside


@overload
def composite(source: np.ndarray, edited: np.ndarray, share: np.ndarray, seam: Seam | None = None) -> np.ndarray: ...
@overload
def composite(source: Frames, edited: Frames, share: Frames, seam: Seam | None = None) -> Frames: ...
def composite(source: Frames, edited: Frames, share: Frames, seam: Seam | None = None) -> Frames:
    """Return m edited + (1 - m) source, uint8 [T, H, W, 3] like both, with m = `share`, float32 [T, H, W] of 0 to 1:
    where it is 0 the source's bytes, where it is 1 the edit's. With the `seam` "match" the drift of the edit's colours
    (`find_drift`) is first taken off it, so that they go on over the edge of m; by default where m is not large."""
    extent = measure_extent(share)
    seam = seam or ("match" if extent.mean < MATCHED else "feather")
    if extent.is_empty:
        return source.copy() if isinstance(source, np.ndarray) else source
    window = extent.window(round(AROUND * min(share.shape[1:])))

    def mix(k: int, frame: np.ndarray, edit: np.ndarray, m: np.ndarray, drift: Tensor | None = None) -> np.ndarray:
        """Return a frame in whose box of m, of which `edit` and `m` are, the edit shows."""
        box = extent.box(k)
        out, before, after = frame.copy(), frame[box], edit.astype(np.float32)
        if drift is not None and extent.part[k]:
            resized = F.interpolate(drift[None], frame[window].shape[:2], mode="bilinear", align_corners=False)
            rows, columns = (slice(b.start - w.start, b.stop - w.start) for b, w in zip(box, window, strict=True))
            after = (after - resized[0, :, rows, columns].permute(1, 2, 0).numpy()).clip(0, 255)
        mixed = before + m[..., None] * (after - before)
        np.rint(mixed, out=mixed)
        out[box] = mixed
        return out

    if seam == "feather":
        mix_boxes = lambda k, frame, edit, m: mix(k, frame, edit[extent.box(k)], m[extent.box(k)])  # noqa: E731
        return map_frames(mix_boxes, [source, edited, share])
    clips = [source, edited, share]
    is_array = all(isinstance(clip, np.ndarray) for clip in clips)
    size = len(share) if is_array else DRIFT_CHUNK

    def sums_of(number: int, frame: np.ndarray, edit: np.ndarray, m: np.ndarray) -> tuple[Tensor, Tensor]:
        free = m if extent.part[number] else extent.most  # as in `spread_in_time`
        return _cell_sums(frame[window], edit[window], free[window])

    def read(first: int, stop: int) -> Iterator[np.ndarray]:
        """Hold back frames until the sums of those after them are there."""
        begin, end = max(0, first - REACH), min(len(share), stop + REACH)
        waiting: deque[tuple[np.ndarray, ...]] = deque()
        sums: deque[tuple[Tensor, Tensor]] = deque()  # of the frames from `begin` on
        number, after = first, min(first + size, stop)  # of the chunk that comes next
        for k, frames in enumerate(zip(*(clip[begin:end] for clip in clips), strict=True), start=begin):
            sums.append(sums_of(k, *frames))
            if first <= k < stop:
                frame, edit, m = frames
                waiting.append((frame, edit[extent.box(k)].copy(), m[extent.box(k)].copy()))
            while number < stop and k + 1 == min(after + REACH, end):
                drift = _solve_drift(*(torch.stack(part) for part in zip(*sums, strict=True)))
                for one in range(number - begin, after - begin):
                    frame, edit, m = waiting.popleft()
                    yield mix(begin + one, frame, edit, m, drift[one])
                number, after = after, min(after + size, stop)
                while begin < number - REACH:
                    sums.popleft()
                    begin += 1

    stream = FrameStream(read, source.shape, source.dtype)
    return np.asarray(stream) if is_array else stream


def find_drift(source: np.ndarray, edited: np.ndarray, share: np.ndarray) -> Tensor:
    """Return the drift of an edit's colours, float32 [T, 3, h, w] in levels of 255, on a coarse grid.

    Where nothing may change, `share` [T, H, W] is 0 and the edit's difference from the source, uint8 [T, H, W, 3], is
    drift: of the autoencoder, or of the model. It is averaged over some frames and continued smoothly to where the edit
    is (pull-push, Gortler et al. 1996, "The Lumigraph": each cell's own value by its weight, the rest by the next
    coarser level). Cells that differ from the drift around them, as where the edit shows beyond its mask, count little;
    and what is too large for drift (`MAX_DRIFT`) is taken for the edit's."""
    sums = [_cell_sums(*frames) for frames in zip(source, edited, share, strict=True)]
    return _solve_drift(*(torch.stack(part) for part in zip(*sums, strict=True)))


def _cell_sums(before: np.ndarray, after: np.ndarray, m: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the sums over the cells of a frame of its differences where m is 0, [3, h, w], and of such pixels,
    [1, h, w]."""
    height, width = m.shape
    scale = max(MIN_CELL, min(height, width) / GRID)
    grid = max(1, round(height / scale)), max(1, round(width / scale))
    weight = torch.from_numpy((m == 0).astype(np.float32))[None]
    difference = torch.from_numpy(after.astype(np.float32) - before).permute(2, 0, 1)
    sums = F.adaptive_avg_pool2d(torch.cat([difference * weight, weight]), grid)
    return sums[:3], sums[3:]


def _solve_drift(total: Tensor, weight: Tensor) -> Tensor:
    """Return the drift [T, 3, h, w] by sums over cells; each frame's depends on `REACH` frames before and after."""
    mean = total / weight.clamp(min=1e-6)
    drift = mean.where(weight > 0, torch.nan).flatten(2).nanmedian(2).values.nan_to_num()[..., None, None]
    for tolerance in TOLERANCES:
        trust = (1 + ((mean - drift) / tolerance).square().sum(1, keepdim=True)) ** -2  # as Geman and McClure
        drift = _pull_push(*(_average_in_time(part * trust) for part in (total, weight)))
    return drift / (1 + (drift.norm(dim=1, keepdim=True) / MAX_DRIFT) ** 4)


def _average_in_time(values: Tensor) -> Tensor:
    """Return the mean of values [T, C, h, w] over the frames before and after."""
    size = 2 * SMOOTHING + 1
    over = values.permute(1, 2, 3, 0).flatten(0, 2)[None]
    return F.avg_pool1d(over, size, 1, SMOOTHING, count_include_pad=False)[0].view(*values.shape[1:], -1).movedim(-1, 0)


def _pull_push(total: Tensor, weight: Tensor) -> Tensor:
    """Return a smooth field [T, C, h, w] from sums of values with their weights, [T, C, h, w] and [T, 1, h, w]: near a
    cell of weight its value, elsewhere that of what is near; 0 where there is no weight at all."""
    height, width = total.shape[2:]
    if max(height, width) == 1:
        return total / weight.clamp(min=1e-6) * (weight > 0)
    half = -(-height // 2), -(-width // 2)
    coarse = _pull_push(*(F.adaptive_avg_pool2d(part, half) for part in (total, weight)))
    around = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return (total + PRIOR * around) / (weight + PRIOR)
