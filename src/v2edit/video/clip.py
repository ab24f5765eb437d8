"""A clip in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Video:
    """A clip: its frames, when each is shown, and the file its sound is in.

    frames: uint8 [T, H, W, 3], RGB, upright and with square pixels, as a player shows them.
    fps: frames a second. With a variable frame rate the average, so that T / fps is always the duration.
    times: float64 [T], seconds at which each frame appears; the first is 0. Left out, 1 / fps apart.
    path: the file that the sound can be copied from; None for clips made here or read from images.
    names: of clips read from images, what their files are called.
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

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame's appearing to the last one's going."""
        return len(self.frames) / self.fps


def frame_times(count: int, fps: Fraction) -> np.ndarray:
    """float64 [count]: seconds at which the frames of a constant-rate clip appear."""
    return np.arange(count) * fps.denominator / fps.numerator
