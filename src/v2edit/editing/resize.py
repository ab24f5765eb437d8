"""Bring clips to the sizes that models take, and back."""

from __future__ import annotations

from typing import overload

import numpy as np
import torch
import torch.nn.functional as F

from v2edit.backbones import Size
from v2edit.video.stream import Frames, clip_size, pick

RESIZE_BATCH = 8  # frames


@overload
def resize_clip(frames: np.ndarray, size: Size, loop: bool = False) -> np.ndarray: ...
@overload
def resize_clip(frames: Frames, size: Size, loop: bool = False) -> Frames: ...
def resize_clip(frames: Frames, size: Size, loop: bool = False) -> Frames:
    """Resize uint8 frames [T, H, W, 3]: repeat the last frame or cut frames, resample pixels (bicubic). In a loop
    frames are repeated all over it, evenly, and the repeated ones cut again: a pause would be visible."""
    count, height, width = clip_size(frames)
    if count != size.frames:
        frames = pick(frames, frame_index(count, size.frames, loop))
    if (height, width) == (size.height, size.width):
        return np.ascontiguousarray(frames) if isinstance(frames, np.ndarray) else frames
    if not isinstance(frames, np.ndarray):
        return frames.map(lambda frame: _resize_pixels(frame[None], size)[0], (size.height, size.width, 3))
    resized = np.empty((size.frames, size.height, size.width, 3), np.uint8)
    for k in range(0, size.frames, RESIZE_BATCH):
        resized[k : k + RESIZE_BATCH] = _resize_pixels(frames[k : k + RESIZE_BATCH], size)
    return resized


def _resize_pixels(frames: np.ndarray, size: Size) -> np.ndarray:
    # In 8 bits, a tenth of the time that float32 takes; to a single pixel torch's kernel of that fails (2.13).
    video = torch.tensor(frames).permute(0, 3, 1, 2)
    video = video.float() if size.height == size.width == 1 else video
    video = F.interpolate(video, (size.height, size.width), mode="bicubic", antialias=True)
    return (
        (video if video.dtype == torch.uint8 else video.round().clamp(0, 255).byte())
        .permute(0, 2, 3, 1)
        .contiguous()
        .numpy()
    )


def frame_index(count: int, frames: int, loop: bool = False) -> np.ndarray:
    """Return which of `count` frames each of `frames` is after resizing, int [frames]."""
    index = np.arange(frames)
    if loop:  # Ups round down and downs up: what was repeated is cut to the very frames it came from.
        index = index * count // frames if count < frames else -(-index * count // frames)
    return np.minimum(index, count - 1)
