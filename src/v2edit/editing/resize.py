"""Bring clips to the sizes that models take, and back."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from v2edit.backbones import Size

RESIZE_BATCH = 8  # frames: in float32 a long clip would be four times its size, several times over


def resize_clip(frames: np.ndarray, size: Size, loop: bool = False) -> np.ndarray:
    """Resize uint8 frames [T, H, W, 3]: repeat the last frame or cut frames, resample pixels (bicubic). In a loop
    frames are repeated all over it, evenly, and the repeated ones cut again: a pause would be visible."""
    count, height, width = frames.shape[:3]
    if count != size.frames:
        frames = frames[frame_index(count, size.frames, loop)]
    if (height, width) == (size.height, size.width):
        return np.ascontiguousarray(frames)
    resized = np.empty((size.frames, size.height, size.width, 3), np.uint8)
    for k in range(0, size.frames, RESIZE_BATCH):
        video = torch.from_numpy(frames[k : k + RESIZE_BATCH]).permute(0, 3, 1, 2).float()
        video = F.interpolate(video, (size.height, size.width), mode="bicubic", antialias=True)
        resized[k : k + RESIZE_BATCH] = video.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return resized


def frame_index(count: int, frames: int, loop: bool = False) -> np.ndarray:
    """Return which of `count` frames each of `frames` is after resizing, int [frames]."""
    index = np.arange(frames)
    if loop:  # Ups round down and downs up: what was repeated is cut to the very frames it came from.
        index = index * count // frames if count < frames else -(-index * count // frames)
    return np.minimum(index, count - 1)
