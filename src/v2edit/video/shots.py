"""Shots of a clip: the cuts between them, found frame by frame.

Letters: T frames, H and W their sides in pixels."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice

import numpy as np

from v2edit.errors import UserError
from v2edit.video.stream import Frames

WIDTH = 256  # pixels at which frames are compared
# A picture is compared with so many before and after it: a cut stands out from them, a moving camera does not. The
# least ratio and the least difference (of 255, in hue, saturation and value) are PySceneDetect's own; of its detectors
# this one found the most cuts and no false ones (benchmarks/shots.py).
WINDOW, LEAST_RATIO, LEAST_DIFFERENCE = 2, 3.0, 15.0
# Where the picture before a cut is back within so many seconds, as near as this share of the cut's difference, it was
# a flash and no cut.
FLASH, FLASH_SHARE = 0.25, 0.5
# Frames that differ by less than so many levels, on average, repeat the one before; at most as many in a row are left
# out as footage of so many frames a second repeats.
LEAST_MOTION, HELD_FPS = 1.0, 6
MISSING = (
    "looking for cuts takes PySceneDetect: pip install scenedetect-headless, or say with --shots off that there are "
    "none, or where each shot begins (--shots 2.5,1:30)"
)


def find_cuts(frames: Frames, fps: Fraction | float) -> list[int]:
    """Return the numbers of the frames, uint8 [T, H, W, 3], that begin a new shot, without the first. Reads them in
    one pass and holds a few small ones. Dissolves and fades are no cuts. Raises `UserError` where the library that
    looks for them is missing."""
    if len(frames) < 2:
        return []
    try:
        from scenedetect import FrameTimecode
        from scenedetect.detectors import AdaptiveDetector
    except ImportError as error:
        raise UserError(MISSING) from error
    detector, held = AdaptiveDetector(LEAST_RATIO, 0, WINDOW, LEAST_DIFFERENCE), max(1, int(fps / HELD_FPS))
    length, count = max(1, round(FLASH * float(fps))), len(frames)
    filter_, places, cuts = FlashFilter(length, WINDOW * held), Distinct(held), []
    # Both ends are mirrored, so that a cut beside them is compared with as many pictures as any other.
    margin, shown = (min(one, count - 1) for one in (WINDOW * held, WINDOW))
    for place, small in enumerate(_mirrored(_small_frames(frames), margin), start=-margin):
        found = []
        if places.add(place, small):
            found = detector.process_frame(FrameTimecode(len(places.places) - 1, fps=25.0), small)
        if -shown <= place < count + shown:
            filter_.add_frame(place, small)
        cuts += filter_.check([cut for one in found if 0 < (cut := places.places[one.frame_num]) < count])
    return sorted({*cuts, *filter_.finish()})


@dataclass
class Distinct:
    """The places of the frames that differ from the one before them: footage of fewer frames a second than its file
    has repeats each, up to the encoder's noise, and would seem to stand still between two cuts. Of `held` frames that
    are alike, one counts."""

    held: int
    places: list[int] = field(default_factory=list, init=False)
    last: np.ndarray | None = field(default=None, init=False)

    def add(self, place: int, small: np.ndarray) -> bool:
        """Take the next frame, uint8 [H, W, 3]; return whether it counts."""
        if self.last is not None and place - self.places[-1] < self.held and _is_repeated(self.last, small):
            return False
        self.places.append(place)
        self.last = small
        return True


def _is_repeated(one: np.ndarray, other: np.ndarray) -> bool:
    return float(np.abs(one.astype(np.int16) - other).mean()) < LEAST_MOTION


@dataclass
class FlashFilter:
    """Drops cuts that are flashes: where the picture before the cut is back after at most `length` frames, or the one
    behind it was there at most so many frames before. Cuts are told at most `delay` frames late."""

    length: int
    delay: int = WINDOW
    count: int = field(default=0, init=False)
    recent: deque[np.ndarray] = field(init=False)
    waiting: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.recent = deque(maxlen=2 * self.length + self.delay + 2)

    def add_frame(self, place: int, small: np.ndarray) -> None:
        """Take the next frame, uint8 [H, W, 3], at its place."""
        self.recent.append(_in_hsv(small))
        self.count = place + 1

    def check(self, cuts: list[int]) -> list[int]:
        """Take cuts that were found; return those that stand by now."""
        self.waiting += cuts
        due = [cut for cut in self.waiting if self.count - cut > self.length]
        return self._settle(due)

    def finish(self) -> list[int]:
        """Return the cuts that stand of those that still waited for frames after them."""
        return self._settle(list(self.waiting))

    def _settle(self, cuts: list[int]) -> list[int]:
        self.waiting = [cut for cut in self.waiting if cut not in cuts]
        return [cut for cut in cuts if not self._is_flash(cut)]

    def _is_flash(self, cut: int) -> bool:
        first = self.count - len(self.recent)

        def near(one: int, others: range) -> bool:
            there = (self.recent[k - first] for k in others if first <= k < self.count)
            return any(_difference(self.recent[one - first], other) < most for other in there)

        most = FLASH_SHARE * _difference(self.recent[cut - 1 - first], self.recent[cut - first])
        return near(cut - 1, range(cut + 1, cut + 1 + self.length)) or near(cut, range(cut - 1 - self.length, cut - 1))


def _small_frames(frames: Frames) -> Iterator[np.ndarray]:
    """Yield each frame at the size at which it is compared, with its channels reversed: BGR, as OpenCV has them."""
    import cv2

    height, width = frames.shape[1:3]
    scale = min(1.0, WIDTH / width)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    for frame in frames:
        small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA) if scale < 1 else frame
        yield np.ascontiguousarray(small[..., ::-1])


def _mirrored(frames: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Yield frames with `count` of them mirrored before the first and behind the last."""
    head = list(islice(frames, count + 1))
    yield from reversed(head[1:])
    last = deque(head, maxlen=count + 1)
    yield from head
    for frame in frames:
        last.append(frame)
        yield frame
    yield from list(last)[-2::-1]


def _in_hsv(small: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.cvtColor(small, cv2.COLOR_BGR2HSV).astype(np.int16)


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean difference of two pictures in hue, saturation and value, as the detector measures it."""
    return float(np.abs(one - other).mean())
