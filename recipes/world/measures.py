"""Measures of an edit of the detailed world: success, and what of the unsaid was kept, read off the frames.

Letters: Q questions (`classifier.QUESTIONS`). Answers are indices, int64 [Q], -1 where a question does not apply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from recipes.world.captions import Named
from recipes.world.classifier import NEVER_CAPTIONED, QUESTIONS, scene_labels
from recipes.world.edits import Edit, EditTruth
from recipes.world.scene import Scene
from v2edit.metrics.attributes import HIGHEST
from v2edit.metrics.pixels import flicker, harmonic_mean, psnr, ssim

Read = Callable[[np.ndarray], np.ndarray]  # frames uint8 [T, H, W, 3] to answers [Q]
NONE = 0  # the answer "none" to the question for a shape


@dataclass(frozen=True)
class Asked:
    """What an edit asks for: the right answers, and which questions it changes, keeps, and keeps without a word."""

    answers: np.ndarray  # of the true edited clip
    changed: np.ndarray  # bool [Q]
    kept: np.ndarray
    unsaid: np.ndarray  # of those kept, what the source prompt does not name


def asked_of(edit: Edit, clips: EditTruth) -> Asked:
    """Return what an edit asks for. What neither the source shows nor the target prompt names (the pattern of what was
    hidden) is not asked for."""
    before = np.array(scene_labels(edit.source, visible_pixels(clips.source.coverage)))
    after = np.array(scene_labels(edit.target, visible_pixels(clips.target.coverage)))
    named = [_is_named(edit.target, edit.target_named, question) for question in QUESTIONS]
    said = [_is_named(edit.source, edit.source_named, question) for question in QUESTIONS]
    changed = (before != after) & (after >= 0) & ((before >= 0) | named)
    # What the target prompt alone names, and the source shows, is an edit too where they differ; else it is kept.
    kept = (before == after) & (after >= 0)
    return Asked(after, changed, kept, kept & ~np.array(said))


def measure(edit: Edit, clips: EditTruth, frames: np.ndarray, read: Read) -> dict[str, float]:
    """Return the figures of an edited clip, uint8 [T, H, W, 3], by name; one that is undefined is nan."""
    source, target, outside = clips.source.frames, clips.target.frames, ~clips.changed
    asked = asked_of(edit, clips)
    right = _right(asked.answers, read(frames))
    success, kept, ssim_outside = _share(right, asked.changed), _share(right, asked.kept), ssim(frames, source, outside)
    preserved = kept if math.isnan(ssim_outside) else min(max(ssim_outside, 0.0), 1.0)  # a style changes every pixel
    names = np.array([name for _, _, name in QUESTIONS])
    return {
        "score": harmonic_mean(success, preserved),
        "success": success,
        "kept": kept,
        "unsaid": _share(right, asked.unsaid),
        **{f"unsaid {name}": _share(right, asked.unsaid & (names == name)) for name in dict.fromkeys(names)},
        "ssim_outside": ssim_outside,
        "psnr_outside": psnr(frames, source, outside, highest=HIGHEST),
        "ssim_inside": ssim(frames, target, clips.changed),
        "psnr_inside": psnr(frames, target, clips.changed, highest=HIGHEST),
        "psnr_target": psnr(frames, target, highest=HIGHEST),
        "flicker": flicker(frames, source, outside),
    }


def visible_pixels(coverage: Iterable[np.ndarray]) -> np.ndarray:
    """Return the pixels of each object that are its own for the most part, all frames together."""
    shares = np.stack(list(coverage))
    owner = np.where(shares.max(0) >= 0.4, shares.argmax(0), -1)
    return np.bincount(owner[owner >= 0].ravel(), minlength=len(shares))


def _right(answers: np.ndarray, read: np.ndarray) -> np.ndarray:
    """Return which questions are answered rightly, bool [Q]; of an object that is not seen, no attribute is."""
    right = answers == read
    seen = {(place, row): read[k] != NONE for k, (place, row, name) in enumerate(QUESTIONS) if name == "shape"}
    there = np.array([name == "shape" or seen.get((place, row), True) for place, row, name in QUESTIONS])
    return right & there


def _share(right: np.ndarray, which: np.ndarray) -> float:
    return float(right[which].mean()) if which.any() else math.nan


def _is_named(scene: Scene, named: Named, question: tuple[str, str, str]) -> bool:
    """Return whether a caption that names this answers a question."""
    place, row, name = question
    if not place:
        return name in named.scene
    slots = {(obj.place, obj.row): fields for obj, fields in zip(scene.objects, named.objects, strict=True)}
    fields = slots.get((place, row))
    if name in NEVER_CAPTIONED or fields is None:
        return False
    return name in ("shape", "copies") or name in fields
