"""Read the frames of a file again, as often as asked, from where an earlier reading stopped where that is possible."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from v2edit.errors import UserError
from v2edit.video.decoding import DamageError

MAX_PARKED = 3  # decoders, which hold some frames each
MAX_RECENT, RECENT_BYTES = 16, 2**27  # frames, and bytes of them, that are kept for readers a little behind

Item = TypeVar("Item")


class Rereader(Generic[Item]):
    """Reads the frames of a file in order, from any of them on, always the same.

    Nothing is sought, since what a decoder gives after a seek need not be what it gives in order: frames before the
    first one are decoded and left out. A reader that stops leaves its decoder open, for the one that goes on there;
    and one that follows another closely takes its frames, which are read-only, instead of decoding them, too."""

    def __init__(
        self, path: Path, count: int, begin: Callable[[], Iterator[Item]], convert: Callable[[Item], np.ndarray]
    ) -> None:
        """`begin` starts at the first of `count` items, each of which `convert` makes a frame of."""
        self.path, self.count = path, count
        self._begin, self._convert = begin, convert
        self._parked: list[tuple[int, Iterator[Item]]] = []  # the number of the next item, and the items from there
        self._recent: dict[int, np.ndarray] = {}  # frames by their numbers, while there are readers
        self._readers = 0
        self._lock = threading.Lock()

    def __call__(self, first: int, stop: int) -> Iterator[np.ndarray]:
        """Yield the frames from `first` up to `stop`. Raises `UserError` where the file is not what it was."""
        position, items = 0, None
        with self._lock:
            self._readers += 1
        try:
            for wanted in range(first, stop):
                frame = self._recent.get(wanted)
                if frame is None:
                    if items is None:
                        position, items = self._take(wanted)
                    for _ in range(position, wanted):
                        next(items)
                        position += 1
                    frame, position = self._convert(next(items)), position + 1  # no item is held: see `decode_frames`
                    self._keep(wanted, frame)
                yield frame
        except (StopIteration, DamageError):
            position = self.count
            raise UserError(f"{self.path} is no longer what it was; start again") from None
        except GeneratorExit:  # the reader has all that it wanted
            raise
        except BaseException:
            position = self.count
            raise
        finally:
            with self._lock:
                self._readers -= 1
                if not self._readers:
                    self._recent.clear()
            if items is not None:
                self._park(position, items)

    def _keep(self, number: int, frame: np.ndarray) -> None:
        """Keep a frame for those who read it soon."""
        frame.flags.writeable = False
        with self._lock:
            self._recent[number] = frame
            while len(self._recent) > min(MAX_RECENT, RECENT_BYTES // frame.nbytes):
                del self._recent[next(iter(self._recent))]

    def _take(self, first: int) -> tuple[int, Iterator[Item]]:
        """Return items that begin at or before `first`, and the number of the first of them."""
        with self._lock:
            behind = [one for one in self._parked if one[0] <= first]
            if behind:
                nearest = max(behind, key=lambda one: one[0])
                self._parked.remove(nearest)
                return nearest
        return 0, self._begin()

    def _park(self, position: int, items: Iterator[Item]) -> None:
        """Keep items for a later reader, the latest ones only."""
        with self._lock:
            if position < self.count:
                self._parked.append((position, items))
                del self._parked[:-MAX_PARKED]


class FileStamp:
    """The size and time of a file, by which it is told from one that has taken its place."""

    def __init__(self, path: Path) -> None:
        self.path, self._facts = path, self._look(path)

    def check(self) -> None:
        """Raise `UserError` where the file is gone or another."""
        try:
            facts = self._look(self.path)
        except OSError:
            raise UserError(f"{self.path} is gone, and is still needed; put it back") from None
        if facts != self._facts:
            raise UserError(f"{self.path} has changed since it was first read; put that back, or start again")

    @staticmethod
    def _look(path: Path) -> tuple[int, int]:
        facts = os.stat(path)
        return facts.st_size, facts.st_mtime_ns
