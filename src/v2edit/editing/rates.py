"""Clips of more frames a second than the model's: every n-th frame is edited, and the change carried to those between.

The change is what the edit adds to the source (their residual). It moves with what it is on, along the source's own
optical flow, from the edited frame before and the one behind. Letters: T frames, n frames from one that is edited to
the next, H and W the sides of a frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, repeat

import numpy as np

from v2edit.editing.editor import EditResult
from v2edit.editing.local import LocalEdit
from v2edit.video.flow import estimate_flow, warp
from v2edit.video.stream import Frames, FrameStream

# How much the pictures may differ, in levels, where the flow is right; and the least weight of a neighbour.
TOLERANCE, LEAST = 12.0, 1e-3
# How motion is looked at: in so many places of a clip, what moves by more than a share of the picture's longer side; it
# is off where it is not half the way there at half the time. So many of what moves in a place, and so many of the
# places, are allowed to be off: slides, turning cameras and real clips at 24 to 30 a second keep far below, what hops
# thrice a second is far above.
PLACES, LEAST_MOTION, OFF, LEAST_MOVING, MOST_OFF, MOST_PLACES = 16, 0.01, 0.5, 1e-3, 1 / 3, 0.25


def frames_apart(fps: float, model_fps: float) -> int:
    """Return the distance n of the frames to edit at which they come nearest to the model's rate, as a ratio."""
    return min(range(1, max(2, math.ceil(fps / model_fps) + 1)), key=lambda n: abs(math.log(fps / n / model_fps)))


def follows_motion(frames: Frames, every: int) -> bool:
    """Return whether what moves in a clip, uint8 [T, H, W, 3], goes on steadily between every n-th frame, so that those
    alone show its motion."""
    if every == 1 or len(frames) <= every:
        return True
    firsts = np.unique(np.linspace(0, len(frames) - every - 1, PLACES).astype(int)).tolist()
    off = [_share_off(frames[first : first + every + 1]) > MOST_OFF for first in firsts]
    return sum(off) < MOST_PLACES * len(firsts)


def _share_off(frames: Frames) -> float:
    """Return how much of what moves from the first frame to the last, and back, is not in the middle as far on its way
    as the time is."""
    first, *between, last = frames
    middle, time = between[len(between) // 2], (len(between) // 2 + 1) / (len(between) + 1)
    least = LEAST_MOTION * max(first.shape[:2])
    moving = off = 0
    for start, end, share in ((first, last, time), (last, first, 1 - time)):
        whole, part = estimate_flow(start, end), estimate_flow(start, middle)
        lengths = np.linalg.norm(part, axis=-1)
        moves = np.maximum(np.linalg.norm(whole, axis=-1), lengths) > least
        gap = np.linalg.norm(part - share * whole, axis=-1)
        moving += int(moves.sum())
        off += int((moves & (gap > np.maximum(least, OFF * lengths))).sum())
    return off / moving if moving > LEAST_MOVING * 2 * first[..., 0].size else 0.0


def edit_every(
    edit: Callable[[Frames, float, LocalEdit], EditResult],
    frames: Frames,
    every: int,
    frame_rate: float,
    local: LocalEdit,
    loop: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> EditResult:
    """Edit every n-th frame of a clip, uint8 [T, H, W, 3], by `edit`, which takes frames, their rate and what may
    change of them; return the result for all frames. A result of streams carries the change as it is read; for arrays
    `report` gets the frames that it is carried to, and of how many."""
    if every == 1 or len(frames) <= every:
        return edit(frames, frame_rate, local)
    # What is left over at the end is shared between both ends, which know one edited frame alone.
    chosen = slice(0 if loop else (len(frames) - 1) % every // 2, None, every)
    share = None if local.share is None else local.share[chosen]
    result = edit(frames[chosen], frame_rate / every, replace(local, share=share))
    passes = len(result.subtasks) + (local.find and result.share is not None)
    done, total = count(1), passes * len(frames)
    on_frame = lambda: report(next(done), total)  # noqa: E731
    if isinstance(frames, np.ndarray):
        report(0, total)
    carry = Carry(frames, chosen.start, every, loop, local.share, result.share, on_frame)
    videos = [carry.change(video) for video in result.subtasks]
    return replace(result, subtasks=videos, share=carry.edited_share(local.find))


@dataclass(frozen=True, eq=False)
class Carry:
    """Carries the change of every n-th frame of a clip, from `first` on, to all frames; `given` is the share of the
    edit that each pixel may take, float32 [T, H, W], and `shares` what those that are edited took, [T/n, H, W]."""

    source: Frames
    first: int
    every: int
    loop: bool
    given: Frames | None
    shares: Frames | None
    on_frame: Callable[[], None] = lambda: None  # called after each frame of an array

    def change(self, edited: Frames) -> Frames:
        """Return the clip with the change of the `edited` frames, uint8 [T/n, H, W, 3]."""

        def read(first: int, stop: int) -> Iterator[np.ndarray]:
            given = None if self.given is None else iter(self.given[first:stop])
            for frame, residual, share in self._read(edited, first, stop):
                if given is not None:  # the mask is exact at every frame, wherever the flow leads
                    residual *= np.minimum(next(given) / np.maximum(share, LEAST), 1)[..., None]
                yield np.rint(frame + residual).clip(0, 255).astype(np.uint8)

        return self._as_source(FrameStream(read, self.source.shape))

    def edited_share(self, found: bool) -> Frames | None:
        """Return how much of the edit each pixel has, float32 [T, H, W], which is carried where the model has `found`
        it; None for all of it everywhere."""
        if self.shares is None or not found:
            return self.given

        def read(first: int, stop: int) -> Iterator[np.ndarray]:
            given = None if self.given is None else iter(self.given[first:stop])
            for _, _, share in self._read(self.source[self.first :: self.every], first, stop):
                yield share if given is None else np.minimum(share, next(given))

        return self._as_source(FrameStream(read, self.source.shape[:3], np.float32))

    def _as_source(self, stream: FrameStream) -> Frames:
        if not isinstance(self.source, np.ndarray):
            return stream
        frames = np.empty(stream.shape, stream.dtype)
        for place, frame in enumerate(stream):
            frames[place] = frame
            self.on_frame()
        return frames

    def _read(self, edited: Frames, first: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield frames, their residuals, float32 [H, W, 3], and their shares [H, W], from `first` up to `stop`."""
        keys = self._keys(edited, max(0, (first - self.first) // self.every))
        before = None if first < self.first else next(keys)
        behind = next(keys, None)
        for place, frame in enumerate(self.source[first:stop], start=first):
            if behind is not None and place >= behind.place:
                before, behind = behind, next(keys, None)
            yield (frame, *_between(frame, place, before, behind))

    def _keys(self, edited: Frames, begin: int) -> Iterator[Key]:
        """Yield the frames that are edited, from the one of that number on; of a loop the first follows the last."""
        chosen = self.source[self.first :: self.every]
        whole = np.ones(self.source.shape[1:3], np.float32)

        def keys(first: int, stop: int | None, place: int) -> Iterator[Key]:
            shares = repeat(whole) if self.shares is None else iter(self.shares[first:stop])
            for k, pair in enumerate(zip(chosen[first:stop], edited[first:stop], shares, strict=False)):
                source, edit, share = pair
                yield Key(place + k * self.every, source, edit.astype(np.float32) - source, share)

        yield from keys(begin, None, self.first + begin * self.every)
        if self.loop:
            yield from keys(0, 1, len(self.source))


@dataclass(frozen=True, eq=False)
class Key:
    """A frame that was edited, at its place in the clip: the source's, uint8 [H, W, 3], the residual, float32
    [H, W, 3], and the share of the edit that each pixel took [H, W]."""

    place: int
    source: np.ndarray
    residual: np.ndarray
    share: np.ndarray


def _between(frame: np.ndarray, place: int, before: Key | None, behind: Key | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the residual, float32 [H, W, 3], and the share [H, W] of a frame, uint8 [H, W, 3], at its place between
    two that were edited, or beside one."""
    if before is not None and before.place == place:
        return before.residual.copy(), before.share
    total = np.zeros(frame.shape[:2], np.float32)
    residual, share = np.zeros(frame.shape, np.float32), np.zeros(frame.shape[:2], np.float32)
    for key, other in ((before, behind), (behind, before)):
        if key is None:
            continue
        near = 1.0 if other is None else abs(other.place - place) / abs(other.place - key.place)
        flow = estimate_flow(frame, key.source)
        gap = np.abs(warp(key.source, flow).astype(np.float32) - frame).mean(-1)
        weight = near * (np.exp(-np.square(gap / TOLERANCE)) + LEAST)
        residual += weight[..., None] * warp(key.residual, flow)
        share += weight * warp(key.share, flow)
        total += weight
    return residual / total[..., None], share / total
