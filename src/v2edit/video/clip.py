"""A video: its frames, in memory or read as they are needed, and their times."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from v2edit.video.stream import Frames


@dataclass(frozen=True, eq=False)
class Video:
    """Frames of a video, the times at which they appear, and the file that has its sound."""

    frames: Frames  # uint8 [T, H, W, 3], RGB, upright and with square pixels, as a player shows them
    fps: Fraction  # frames a second; with a variable rate the average, so that T / fps is always the duration
    times: np.ndarray = field(default_factory=lambda: np.empty(0))  # float64 [T], seconds from 0 (default: k / fps)
    path: Path | None = None  # to copy the sound from; None for generated videos and those read from images
    names: tuple[str, ...] = ()  # the images' file names, of a video read from images

    def __post_init__(self) -> None:
        object.__setattr__(self, "fps", Fraction(self.fps))
        if not len(self.times):
            object.__setattr__(self, "times", frame_times(len(self.frames), self.fps))
        assert len(self.times) == len(self.frames)

    def __repr__(self) -> str:
        count, height, width = self.frames.shape[:3]
        path = "" if self.path is None else f"{str(self.path)!r}, "
        return f"Video({path}{count} frames of {width}x{height}, {float(self.fps):.6g} fps)"

    @property
    def duration(self) -> Fraction:
        """Seconds from the appearance of the first frame to the end of the last one."""
        return len(self.frames) / self.fps


def frame_times(count: int, fps: Fraction) -> np.ndarray:
    """Return the seconds, float64 [count], at which the frames of a constant-rate video appear."""
    return np.arange(count) * fps.denominator / fps.numerator
