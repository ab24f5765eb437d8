"""Fitting a clip that another tool made of a source to that source: its size, rate and length."""

from __future__ import annotations

import numpy as np

from v2edit.backbones import Size
from v2edit.editing.resize import resize_clip
from v2edit.errors import UserError
from v2edit.video import Video
from v2edit.video.masks import nearest
from v2edit.video.stream import Frames, pick

SAME_RATE = 0.02  # share by which two frame rates may differ and count as the same
ASPECT = 0.03  # by which the ratio of sides may differ without a note


def fit_clip(made: Video, source: Video) -> tuple[Frames, list[str]]:
    """Return frames in the source's size and number, uint8 [T, H, W, 3], and what was done to get them: each frame of
    the source takes the one that is nearest in time; where the rates are the same, or the numbers, frame by frame. Of a
    stream they are one."""
    count, height, width = source.frames.shape[:3]
    frames, notes = made.frames, []
    given = len(frames)
    of_images = made.names or source.names  # whose rate nobody knows
    same_rate = of_images or abs(float(made.fps / source.fps) - 1) <= SAME_RATE
    if not same_rate and given != count:
        taken = nearest(made.times, source.times)
        frames = pick(frames, taken)
        notes.append(f"{float(made.fps):.4g} fps for {float(source.fps):.4g}: frames by their times")
        if made.duration < source.duration * (1 - SAME_RATE):
            notes.append(f"{float(made.duration):.3g} s for {float(source.duration):.3g}: its last frame repeated")
    elif given > count:
        frames = frames[:count]
        notes.append(f"{given} frames for {count}: the first {count}")
    elif given < count:
        if 2 * given < count:
            raise UserError(f"it has {given} frames, and the source {count}: less than half")
        frames = pick(frames, np.minimum(np.arange(count), given - 1))
        notes.append(f"{given} frames for {count}: its last frame repeated")
    if frames.shape[1:3] != (height, width):
        was = f"{frames.shape[2]}x{frames.shape[1]} for {width}x{height}"
        stretched = abs((frames.shape[2] / frames.shape[1]) / (width / height) - 1) > ASPECT
        notes.append(f"{was}: resized{', stretched' if stretched else ''}")
        frames = resize_clip(frames, Size(count, height, width))
    return frames, notes
