"""The times of frames and sound: one clock a file, one rule for timestamps that are missing or do not rise."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from v2edit.errors import UserError
from v2edit.video.clip import frame_times

if TYPE_CHECKING:
    from pathlib import Path

    from av import Packet

MIN_FPS, MAX_FPS = Fraction(1, 100_000), 1000  # frames a second
MAX_FORWARD, MAX_BACKWARD = 10, Fraction(1, 10)  # seconds that a clock may jump, as in the ffmpeg command
MAX_FAULTY = Fraction(1, 20)  # of times that do not rise; with more of them all are sorted
ROUNDING = Fraction(1, 500)  # seconds by which containers round times

Times = Sequence[Fraction | None]


def continue_clock(packets: Iterator[Packet]) -> Iterator[Packet]:
    """Yield packets with the jumps of the file's clock taken out, as the ffmpeg command does it for MPEG streams: a
    recording that was joined to another goes on where that ended, in all of its streams."""
    offset = Fraction(0)
    ends: dict[int, tuple[Fraction, Fraction]] = {}  # by stream, of its last packet: its time and its end
    last: Fraction | None = None  # of any stream
    for packet in packets:
        if packet.dts is not None:
            time = packet.dts * packet.time_base + offset
            before, expected = ends.get(packet.stream_index, (time, last))
            delta = time - expected if expected is not None else Fraction(0)
            if abs(delta) > MAX_FORWARD or time + MAX_BACKWARD < before:
                offset, time = offset - delta, time - delta
            last = time
            ends[packet.stream_index] = time, time + (packet.duration or 0) * packet.time_base
        if offset:
            shift = round(offset / packet.time_base)
            packet.dts = packet.dts + shift if packet.dts is not None else None
            packet.pts = packet.pts + shift if packet.pts is not None else None
        yield packet


def resolve_times(presented: Times, decoded: Times, durations: Sequence[Fraction]) -> list[Fraction]:
    """Return the seconds at which frames appear, in display order and rising.

    Times that rise are right. Where many do not (H.264 in AVI, MP4 without ctts), they are the right ones in the wrong
    order. A few that do not rise, or lack, are replaced: where all others are whole frames apart, by what is missing
    between them, else by times spread evenly between their neighbours, which keep theirs.

    Args:
        presented: What FFmpeg takes for each frame's time; None where it knows none.
        decoded: The decode time of each frame's packet in a container that has no presentation times, else None.
            Pictures there are as late as the decoder had to wait for others; it is not in the file, and taken off.
        durations: How long each frame lasts, by the file or by its rate."""
    known, stored = (sorted(time for time in times if time is not None) for times in (presented, decoded))
    is_shuffled = _count_faults(presented) > MAX_FAULTY * len(presented)
    if len(known) == len(stored) == len(presented):
        lag = sorted(p - d for p, d in zip(known, stored, strict=True))[len(stored) // 2]
        presented = stored if is_shuffled else [p - lag for p in known]
    elif is_shuffled:
        in_order = iter(known)
        presented = [None if time is None else next(in_order) for time in presented]
    kept = _longest_rise(presented)
    if not kept:
        return [sum(durations[:k], Fraction(0)) for k in range(len(presented))]
    start = (presented[kept[0]] or 0) - sum(durations[: kept[0]], Fraction(0))
    grid = [start, *(start + end for end in accumulate(durations[:-1]))]
    if len(kept) < len(presented) and _fits_grid(presented, grid, durations):
        return grid
    times: list[Fraction] = []
    for k in range(len(presented)):
        at = bisect_left(kept, k)
        if at == 0:
            times.append((presented[kept[0]] or 0) - sum(durations[k : kept[0]], Fraction(0)))
        elif at == len(kept):
            times.append(times[-1] + durations[k - 1])
        else:
            times.append(times[-1] + ((presented[kept[at]] or 0) - times[-1]) / (kept[at] - k + 1))
    return times


def is_rising(times: Times) -> bool:
    """Return whether all times are known and each is later than the one before."""
    return None not in times and not _count_faults(times)


def _count_faults(times: Times) -> int:
    return sum(b is None or (a is not None and b <= a) for a, b in pairwise(times))


def _fits_grid(times: Times, grid: Sequence[Fraction], durations: Sequence[Fraction]) -> bool:
    """Return whether most times are on a grid, the last one among them, and none is off by more than a frame."""
    off = [0 if time is None else abs(time - at) for time, at in zip(times, grid, strict=True)]
    is_near = all(a < b + ROUNDING for a, b in zip(off, durations, strict=True))
    return is_near and off[-1] < ROUNDING and sum(d < ROUNDING for d in off) > len(off) * 3 / 4


def _longest_rise(times: Times) -> list[int]:
    """Return the indices of the longest subsequence of rising times, the earliest of several."""
    ends: list[int] = []  # by length: the index of the smallest time that ends a subsequence of that length
    values: list[Fraction] = []
    before: dict[int, int | None] = {}
    for k, time in enumerate(times):
        if time is None:
            continue
        at = bisect_left(values, time)
        before[k] = ends[at - 1] if at else None
        if at == len(ends):
            ends.append(k)
            values.append(time)
        elif time < values[at]:
            ends[at], values[at] = k, time
    result: list[int] = []
    k = ends[-1] if ends else None
    while k is not None:
        result.append(k)
        k = before[k]
    return result[::-1]


def compute_rate(
    path: Path, starts: list[Fraction], end: Fraction, rates: list[Fraction], tick: Fraction
) -> tuple[Fraction, np.ndarray]:
    """Return the frame rate and the times [T] at which frames appear, from timestamps that are whole ticks. Containers
    round timestamps to their tick (Matroska: 1 ms). Where those fit a rate that the file names, the times are exactly k
    / fps; where they only have jitter around it, the rate is that one and the times are as stored; otherwise (and where
    the last frame is held long) the frame rate is variable, and fps is the average."""
    count, since, duration = len(starts), [start - starts[0] for start in starts], end - starts[0]
    times = np.array([float(t) for t in since])
    average = count / duration
    if not MIN_FPS <= average <= MAX_FPS:
        raise UserError(f"{path} shows {float(average):.3g} frames a second, which no player does")
    evenly = (count - 1) / since[-1] if count > 1 else average

    def fits(fps: Fraction, slack: Fraction) -> bool:
        lasts = abs(duration - count / fps) <= (1 / (2 * fps) if count > 1 else tick)
        return lasts and all(abs(t - k / fps) <= slack for k, t in enumerate(since))

    for fps in [*rates, evenly]:
        if fits(fps, tick if fps * tick < Fraction(1, 4) else Fraction(0)):
            return fps, frame_times(count, fps)
    for fps in rates:
        if fits(fps, 1 / (2 * fps)):
            return fps, times
    return average.limit_denominator(1_000_000), times
