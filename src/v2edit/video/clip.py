"""A video in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Video:
    """Frames of a video, the times at which they appear, and the file that has its sound.

    frames: uint8 [T, H, W, 3], RGB, upright and with square pixels, as a player shows them.
    fps: Frames a second. With a variable frame rate the average, so that T / fps is always the duration.
    times: float64 [T], seconds at which each frame appears; the first is 0. Default: 1 / fps apart.
    path: The file that the sound can be copied from; None for generated videos and those read from images.
    names: The images' file names, of a video read from images.
    """

    frames: np.ndarray
    fps: Fraction
    times: np.ndarray = field(default_factory=lambda: np.empty(0))
    path: Path | None = None
    names: tuple[str, ...] = ()

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
