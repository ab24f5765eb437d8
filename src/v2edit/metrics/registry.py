"""The metrics of edits whose true results nobody knows: each by its name, and what it loads.

Letters: T frames. What the columns of a metric mean, and what they cannot tell, is in `columns`.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from v2edit.errors import UserError
from v2edit.metrics.columns import COLUMNS, Column
from v2edit.video.stream import Frames, map_frames

if TYPE_CHECKING:
    from v2edit.metrics.attributes import Read
    from v2edit.metrics.clip_score import ClipEncoder
    from v2edit.prompts import PromptPair

Figures = Mapping[str, float]  # by column; nan where one is undefined
DINO = "facebook/dino-vitb8"  # as Tumanyan et al. and PnPInversion use


@dataclass(frozen=True, eq=False)
class EditedClip:
    """An edit to be measured: `source` and `edited`, uint8 [T, H, W, 3]; its prompts, where it has any; what the edit
    may change, `mask` bool [T, H, W], and the true result, `target` as the source, where they are known. Long clips are
    streams; functions from outside get arrays."""

    source: Frames
    edited: Frames
    prompts: PromptPair | None = None
    instruction: str = ""
    mask: Frames | None = None
    target: Frames | None = None

    @property
    def outside(self) -> Frames:
        """Where the source is to stay, bool [T, H, W]: everywhere where nothing else is known."""
        if self.mask is None:
            return self.everywhere
        return map_frames(lambda _, frame: ~frame, [self.mask], dtype=bool)

    @property
    def everywhere(self) -> Frames:
        """All pixels, bool [T, H, W]."""
        shape = self.source.shape[1:3]
        return map_frames(lambda _, frame: np.ones(shape, bool), [self.source], shape, bool)

    def as_arrays(self) -> EditedClip:
        """Return the edit with its clips in memory."""
        mask, target = (None if one is None else np.asarray(one) for one in (self.mask, self.target))
        return replace(self, source=np.asarray(self.source), edited=np.asarray(self.edited), mask=mask, target=target)


Measure = Callable[[EditedClip], Figures]


@dataclass(frozen=True)
class MetricOptions:
    """What metrics load: a `clip` by name, LPIPS's weights as a file (default: those of the package lpips), a DINO."""

    clip: str | None = None
    lpips: Path | None = None
    dino: str = DINO
    device: str = "cpu"


@dataclass(frozen=True)
class Metric:
    """A metric: its columns by name, and `load`, which returns its function; heavy libraries are loaded there."""

    name: str
    columns: Mapping[str, Column]
    load: Callable[[MetricOptions, ClipEncoder | None], Measure]
    needs_clip: bool = False


@dataclass(frozen=True, eq=False)
class Measures:
    """The loaded metrics, and the models of the built-in world's own figures."""

    read: Read | None = None
    clip: ClipEncoder | None = None
    measures: Sequence[Measure] = field(default_factory=tuple)

    def of(self, clip: EditedClip) -> dict[str, float]:
        """Return all figures of an edit."""
        return {name: value for measure in self.measures for name, value in measure(clip).items()}


def _pixels(options: MetricOptions, encoder: ClipEncoder | None) -> Measure:
    from v2edit.metrics.pixels import clip_psnr, ssim

    def measure(clip: EditedClip) -> Figures:
        where = "source" if clip.mask is None else "outside"
        outside, everywhere = clip.outside, clip.everywhere
        figures = {
            f"psnr_{where}": clip_psnr(clip.edited, clip.source, outside, EQUAL),
            f"ssim_{where}": ssim(clip.edited, clip.source, outside),
        }
        if clip.target is not None:
            figures["psnr_target"] = clip_psnr(clip.edited, clip.target, everywhere, EQUAL)
            figures["ssim_target"] = ssim(clip.edited, clip.target, everywhere)
        return figures

    return measure


EQUAL = 10 * math.log10(255**2 / 0.065)  # dB, about 60: a mean squared error below 0.065 is rounding to 8 bits


def _lpips(options: MetricOptions, encoder: ClipEncoder | None) -> Measure:
    from v2edit.metrics.perceptual import load_lpips

    distance = load_lpips(options.lpips, options.device)

    def measure(clip: EditedClip) -> Figures:
        where = "source" if clip.mask is None else "outside"
        # Inside the mask the source is put in both: what lies there is the other figures' matter.
        edited = map_frames(
            lambda _, one, source, outside: np.where(outside[..., None], one, source),
            [clip.edited, clip.source, clip.outside],
        )
        figures = {f"lpips_{where}": float(distance(edited, clip.source).mean())}
        if clip.target is not None:
            figures["lpips_target"] = float(distance(clip.edited, clip.target).mean())
        return figures

    return measure


def _structure(options: MetricOptions, encoder: ClipEncoder | None) -> Measure:
    from v2edit.metrics.perceptual import StructureDistance

    distance = StructureDistance.load(options.dino, options.device)
    return lambda clip: {"structure": float(distance(clip.edited, clip.source).mean())}


def _warp(options: MetricOptions, encoder: ClipEncoder | None) -> Measure:
    from v2edit.metrics.temporal import warp_error

    return lambda clip: {"warp_error": warp_error(clip.edited, clip.source)}


def _flicker(options: MetricOptions, encoder: ClipEncoder | None) -> Measure:
    from v2edit.metrics.pixels import flicker

    return lambda clip: {"flicker": flicker(clip.edited, clip.source, clip.outside)}


def _colour(options: MetricOptions, encoder: ClipEncoder | None) -> Measure:
    from v2edit.metrics.temporal import colour_drift

    return lambda clip: {"colour_drift": colour_drift(clip.edited, clip.source, clip.outside)}


def _clip(options: MetricOptions, encoder: ClipEncoder | None) -> Measure:
    assert encoder is not None

    def measure(clip: EditedClip) -> Figures:
        figures = {"clip_frames": encoder.frame_consistency(clip.edited)}
        if clip.prompts is not None:
            figures |= encoder.score_edit(clip.prompts, clip.source, clip.edited)
            figures |= {"clip_text": encoder.text_similarity(clip.prompts.target, clip.edited)}
            figures |= {"clip_preference": encoder.preference(clip.prompts, clip.edited)}
        return figures

    return measure


def _metric(name: str, columns: Sequence[str], load: Any, needs_clip: bool = False) -> Metric:
    return Metric(name, {column: COLUMNS[column] for column in columns}, load, needs_clip)


METRICS = {
    one.name: one
    for one in (
        _metric("clip", ("ctids", "cdc", "clip_text", "clip_frames", "clip_preference"), _clip, needs_clip=True),
        _metric("pixels", ("psnr_outside", "ssim_outside", "psnr_source", "ssim_source", "psnr_target", "ssim_target"),
                _pixels),
        _metric("lpips", ("lpips_outside", "lpips_source", "lpips_target"), _lpips),
        _metric("structure", ("structure",), _structure),
        _metric("warp", ("warp_error",), _warp),
        _metric("flicker", ("flicker",), _flicker),
        _metric("colour", ("colour_drift",), _colour),
    )
}  # fmt: skip
DEFAULT = ("clip", "pixels", "warp", "flicker", "colour")  # what needs no weights but a CLIP's, where one is given


def find_metrics(names: Sequence[str], with_clip: bool) -> list[Metric]:
    """Return the metrics of these names (default: all that need no more than is there), or of functions written
    module:function, which take an `EditedClip` and return a number. Raises `UserError` for what is neither."""
    chosen = names or [name for name in DEFAULT if with_clip or not METRICS[name].needs_clip]
    metrics = [METRICS[name] if name in METRICS else _own_metric(name) for name in dict.fromkeys(chosen)]
    for metric in metrics:
        if metric.needs_clip and not with_clip:
            raise UserError(f"the metric {metric.name} needs a CLIP: name one with --clip")
    return metrics


def _own_metric(name: str) -> Metric:
    """Return the metric of a function module:function. Its docstring's first line is the column's note; attributes of
    the function may say `more_is_better`, `decimals` and `heading`."""
    if ":" not in name:
        raise UserError(f"there is no metric {name!r}; known are {', '.join(METRICS)}, and your own as module:function")
    function = import_object(name, "a function")
    column = name.rpartition(":")[2]
    about = (inspect.getdoc(function) or "").partition("\n")[0].rstrip(".")
    heading, decimals = getattr(function, "heading", column.replace("_", " ")), getattr(function, "decimals", 3)
    return Metric(
        name,
        {column: Column(heading, decimals, getattr(function, "more_is_better", True), about)},
        lambda options, encoder: lambda clip: {column: float(function(clip.as_arrays()))},
    )


def import_object(name: str, what: str) -> Any:
    """Return the object that package.module:name means, also from the working folder. Raises `UserError`."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, ValueError, AttributeError) as error:
        raise UserError(f"{name} names nothing that can be imported: {error}") from error
    if not callable(found):
        raise UserError(f"{name} is {type(found).__name__}, expected {what}")
    return found
