"""Frames that are made as they are read, for clips that are too long to be in memory whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import DTypeLike

Index: TypeAlias = Sequence[int] | np.ndarray
STREAM_LIMIT = 2**29  # bytes: clips whose frames take more are streams
FRAME_OVERHEAD = 1024  # bytes that a frame in memory takes however small it is


@dataclass(frozen=True, eq=False)
class FrameStream:
    """Frames [T, H, W, ...] that are read in order, a few at a time, as often as asked; else like an array.

    `read(first, stop)` yields the frames from `first` up to `stop`, of the shape and dtype given. What an index gives
    is like numpy's, but for a slice, whose frames are not read yet: a number is a frame, numbers are an array of
    frames, which are read in one pass."""

    read: Callable[[int, int], Iterator[np.ndarray]]
    shape: tuple[int, ...]
    dtype: DTypeLike = np.uint8

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.read(0, len(self))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes that all frames would take in memory."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @overload
    def __getitem__(self, index: slice) -> FrameStream: ...
    @overload
    def __getitem__(self, index: int | Index) -> np.ndarray: ...
    def __getitem__(self, index: slice | int | Index) -> FrameStream | np.ndarray:
        if isinstance(index, slice):
            first, stop, step = index.indices(len(self))
            return self._every(range(first, stop, step))
        wanted = np.arange(len(self))[index]  # raises IndexError, and counts negative ones from the end
        if wanted.ndim == 0:
            return next(self.read(int(wanted), int(wanted) + 1))
        out = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        if len(wanted):
            first = int(wanted.min())
            for k, frame in enumerate(self.read(first, int(wanted.max()) + 1), start=first):
                out[wanted == k] = frame
        return out

    def _every(self, frames: range) -> FrameStream:
        """Return the stream of some frames, in rising order, that are evenly spaced."""
        assert frames.step > 0, "a stream runs forwards"

        def read(first: int, stop: int) -> Iterator[np.ndarray]:
            part = frames[first:stop]
            if part:
                yield from islice(self.read(part[0], part[-1] + 1), 0, None, frames.step)

        return replace(self, read=read, shape=(len(frames), *self.shape[1:]))

    def map(
        self,
        change: Callable[[np.ndarray], np.ndarray],
        shape: tuple[int, ...] | None = None,
        dtype: DTypeLike | None = None,
    ) -> FrameStream:
        """Return the stream of frames that `change` makes of these, one by one; `shape` [H, W, ...] and `dtype`: theirs
        where they are others."""

        def read(first: int, stop: int) -> Iterator[np.ndarray]:
            return map(change, self.read(first, stop))

        shape = self.shape if shape is None else (len(self), *shape)
        return FrameStream(read, shape, self.dtype if dtype is None else dtype)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        out = np.empty(self.shape, self.dtype)
        for k, frame in enumerate(self):
            out[k] = frame
        return out if dtype is None else out.astype(dtype)


Frames: TypeAlias = np.ndarray | FrameStream


def in_chunks(frames: Frames, size: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield an array or a stream in one pass, in arrays of up to `size` frames, with their places."""
    if isinstance(frames, np.ndarray):
        for first in range(0, len(frames), size):
            yield slice(first, min(first + size, len(frames))), frames[first : first + size]
        return
    reading = iter(frames)
    for first in range(0, len(frames), size):
        part = slice(first, min(first + size, len(frames)))
        yield part, np.stack(list(islice(reading, part.stop - first)))


def concatenate(parts: Sequence[Frames]) -> Frames:
    """Return clips of one size one after the other: an array where all are, else a stream."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return parts[0] if len(parts) == 1 else np.concatenate([np.asarray(part) for part in parts])
    ends = np.cumsum([len(part) for part in parts]).tolist()

    def read(first: int, stop: int) -> Iterator[np.ndarray]:
        for part, end in zip(parts, ends, strict=True):
            begin = end - len(part)
            low, high = max(first, begin) - begin, min(stop, end) - begin
            if low < high:
                yield from part[low:high]

    return FrameStream(read, (ends[-1], *parts[0].shape[1:]), parts[0].dtype)


def clip_size(frames: Frames) -> tuple[int, int, int]:
    """Return the number of frames, their height and their width."""
    count, height, width = frames.shape[:3]
    return count, height, width


def is_large(count: int, height: int, width: int) -> bool:
    """Return whether a clip of this size is read, and what is made of it computed, as a stream."""
    return count * max(3 * height * width, FRAME_OVERHEAD) > STREAM_LIMIT


def map_frames(
    change: Callable[..., np.ndarray],
    clips: Sequence[Frames],
    shape: tuple[int, ...] | None = None,
    dtype: DTypeLike | None = None,
) -> Frames:
    """Return the clip that `change` makes, frame by frame, of the frame's number and that frame of each of some clips
    of one length: an array where all of them are, else a stream. `shape` [H, W, ...] and `dtype` are the first clip's
    unless given."""
    count, shape = len(clips[0]), clips[0].shape[1:] if shape is None else shape
    assert all(len(clip) == count for clip in clips), [len(clip) for clip in clips]

    def read(first: int, stop: int) -> Iterator[np.ndarray]:
        for number, frames in enumerate(zip(*(clip[first:stop] for clip in clips), strict=True), start=first):
            yield change(number, *frames)

    stream = FrameStream(read, (count, *shape), clips[0].dtype if dtype is None else dtype)
    return np.asarray(stream) if all(isinstance(clip, np.ndarray) for clip in clips) else stream


def pick(frames: Frames, index: np.ndarray, streamed: bool = False) -> Frames:
    """Return the frames of some numbers, which may repeat: an array of an array, unless `streamed`, else a stream. One
    is read in one pass as far as the numbers rise."""
    if isinstance(frames, np.ndarray) and not streamed:
        return frames[index]

    def read(first: int, stop: int) -> Iterator[np.ndarray]:
        wanted = index[first:stop]
        ends = np.flatnonzero(np.diff(wanted) < 0) + 1
        for rising in np.split(wanted, ends) if len(wanted) else ():
            low = int(rising[0])
            counts = np.bincount(rising - low)
            for frame, times in zip(frames[low : low + len(counts)], counts, strict=True):
                for _ in range(times):
                    yield frame

    return FrameStream(read, (len(index), *frames.shape[1:]), frames.dtype)


def as_stream(frames: Frames) -> FrameStream:
    """Return a clip as a stream."""
    return (
        frames
        if isinstance(frames, FrameStream)
        else FrameStream(lambda a, b: iter(frames[a:b]), frames.shape, frames.dtype)
    )
