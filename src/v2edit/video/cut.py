"""Parts of a clip by time, other frame rates, and a part put back into its clip."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np

from v2edit.errors import UserError
from v2edit.video.clip import Video, frame_times
from v2edit.video.reading import check_size
from v2edit.video.stream import Frames, clip_size, concatenate, is_large, pick

SLACK = 0.0005  # seconds: times are typed to the millisecond


def find_part(video: Video, start: float | None = None, end: float | None = None) -> slice:
    """Return which frames appear from `start` on and before `end`, in seconds; None is the clip's own. Raises
    `UserError` where there is none."""
    duration, begin = float(video.duration), start or 0.0
    if begin >= duration - SLACK:
        raise UserError(f"--start is {begin:g} s, and the clip ends at {duration:.4g} s")
    first, stop = frames_between(video, begin, math.inf if end is None else end)
    if stop <= first:
        until = duration if end is None else end
        raise UserError(
            f"no frame appears between {begin:g} and {until:g} s: at {begin:g} s one is shown that appeared before it; "
            "choose a smaller --start or a larger --end"
        )
    return slice(first, stop)


def frames_between(video: Video, start: float, end: float) -> tuple[int, int]:
    """Return the first frame that appears from `start` seconds on, and the first from `end` on; both may be one."""
    first, stop = np.searchsorted(video.times, (start - SLACK, end - SLACK))
    return int(first), int(stop)


def resample(video: Video, fps: Fraction) -> Video:
    """Return a clip of `fps` frames a second that lasts as long, to half a frame: at each time the frame of the source
    that is nearest, the earlier of two. Images, which have no rate, stay as many and are shown at that one. Raises
    `UserError` where none is left, or more than a clip may have."""
    if video.names:
        return replace(video, fps=fps, times=np.empty(0))
    if not (count := round(video.duration * fps)):
        raise UserError(f"--fps is {float(fps):g}, and the clip lasts {float(video.duration):.4g} s: no frame is left")
    _, height, width = clip_size(video.frames)
    check_size(video.path or "the clip", width, height, count)
    middles = (video.times[1:] + video.times[:-1]) / 2
    times = frame_times(count, fps)
    nearest = np.searchsorted(middles, times - 1e-9)
    frames = pick(video.frames, nearest, streamed=is_large(count, height, width))
    return replace(video, frames=frames, fps=fps, times=times)


def splice(frames: Frames, part: slice, edited: Frames) -> Frames:
    """Return the frames [T, H, W, 3] with `edited` in place of a part; the rest is the same to the bit."""
    assert edited.shape == frames[part].shape, (edited.shape, frames[part].shape)
    if len(edited) == len(frames):
        return edited
    return concatenate([frames[: part.start], edited, frames[part.stop :]])
