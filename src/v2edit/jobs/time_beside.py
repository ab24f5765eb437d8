"""Time what an edit does beside the model, on a few frames: colours, compositing, carrying the change, writing."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2edit.jobs.clip import FormatOptions

if TYPE_CHECKING:
    from v2edit.backbones import Backbone, Size
    from v2edit.jobs.video import ClipEdit
    from v2edit.video import Video
    from v2edit.video.stream import Frames

FEW, WRITTEN, FINISHED = 4, 20, 6  # frames that writing is timed on, twice, and what comes before it
REPEATS = 5  # of carrying to one frame
DRIFT = 3  # levels: by which the colours of the frames that are timed drift, as an edit's do


def time_beside(clip: ClipEdit, backbone: Backbone, size: Size, output: FormatOptions) -> dict[str, float]:
    """Estimate the seconds, by part, of an edit of frames of a `size` beside a model."""
    given, carried = sum(clip.given_to(backbone)), sum(clip.carried_by(backbone))
    seconds = {}
    if carried:
        passes = clip.config.subtasks + clip.local.find
        seconds["carrying"] = time_carrying(clip.frames, max(2, round(carried / given)), passes * carried)
    seconds["writing"] = time_after_decoding(clip, backbone.nearest_size(size), given, output)
    return seconds


def time_writing(frames: Frames, fps: Fraction | int, subtasks: int, output: FormatOptions = FormatOptions()) -> float:
    """Estimate the seconds that writing a clip, uint8 [T, H, W, 3], without a mask takes, by writing a part of it."""
    from v2edit.video import Video

    return _time_results(Video(frames, Fraction(fps)), None, subtasks, output)


def time_after_decoding(clip: ClipEdit, fitted: Size, given: int, output: FormatOptions) -> float:
    """Estimate the seconds that all takes but carrying from the frames of the `fitted` size that are decoded, so many
    as the model is `given`, to the files: colours, compositing and writing. A mask that is yet to be found is left
    out."""
    import numpy as np

    from v2edit.backbones import Size
    from v2edit.editing.resize import resize_clip
    from v2edit.video.colour_hold import estimate_drift, hold_colours
    from v2edit.video.composite import composite

    frames, share = clip.frames[:FINISHED], clip.local.share
    share = None if share is None else share[:FINISHED]

    def finish() -> None:
        decoded = resize_clip(np.asarray(frames), Size(len(frames), fitted.height, fitted.width))
        back = resize_clip(np.minimum(decoded, 255 - DRIFT) + np.uint8(DRIFT), Size(len(frames), *frames.shape[1:3]))
        held = hold_colours(back, estimate_drift(frames, back, share))
        if share is not None:
            composite(np.asarray(frames), held, np.asarray(share))

    finishing = clip.config.subtasks * given / len(frames) * _seconds(finish)
    return finishing + _time_results(clip.source, clip.local.share, clip.config.subtasks, output)


def _time_results(source: Video, share: Frames | None, subtasks: int, output: FormatOptions) -> float:
    """Estimate the seconds that writing the results of an edit that changes nothing takes."""
    from v2edit.editing.editor import EditResult
    from v2edit.jobs.results import write_results

    def write(count: int) -> float:
        frames = source.frames[:count]
        part = replace(source, frames=frames, times=source.times[:count], names=source.names[:count])
        result: Any = EditResult([frames] * subtasks, None if share is None else share[:count])
        with tempfile.TemporaryDirectory() as folder:
            return _seconds(
                lambda: write_results(Path(folder), part, slice(0, count), result, "", output, False, False)
            )

    count = len(source.frames)
    few, more = min(FEW, count), min(WRITTEN, count)
    first, second = write(few), write(more)  # both with the sheet, and what encoders take to begin and to end
    return second + (count - more) * max(0.0, second - first) / max(1, more - few)


def time_carrying(frames: Frames, every: int, carried: int) -> float:
    """Estimate the seconds that carrying the change to so many frames of a clip, uint8 [T, H, W, 3], takes where every
    n-th is edited, by carrying none to one that lies between two, some times."""
    from v2edit.editing.rates import Carry

    carry = Carry(frames[:3], 0, 2, False, None, None)
    work = lambda: list(carry.change(frames[:3:2]))  # noqa: E731
    work()
    return carried * (every - 1) / every * statistics.median(_seconds(work) for _ in range(REPEATS))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
