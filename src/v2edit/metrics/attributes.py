"""Measures of an edit of the built-in world against its true result, which can be rendered.

Letters: T frames, Q questions (`questions.QUESTIONS`). Frames are uint8 [T, H, W, 3], masks bool [T, H, W], answers
int64 [Q], -1 where a question does not apply. The *inside* of an edit is where the true clips differ, its *outside* the
rest: inside, an edit is measured against the true edited clip; outside, against the source. What was done and what was
kept is read off the frames by a classifier.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from v2edit.metrics.pixels import flicker, harmonic_mean, psnr, ssim
from v2edit.primitives.captions import Named
from v2edit.primitives.edits import Edit, EditTruth
from v2edit.primitives.questions import NEVER_CAPTIONED, NONE, QUESTIONS, scene_labels
from v2edit.primitives.scene import COLOURS, Scene

Read = Callable[[np.ndarray], np.ndarray]  # frames uint8 [T, H, W, 3] to answers [Q]
HIGHEST = 10 * math.log10(255**2 / 0.065)  # dB, about 60: a mean squared error below 0.065 is rounding to 8 bits
LEAST_OUTSIDE = 0.05  # share of pixels: in fewer, as a style leaves them, nothing can be seen of what is kept
OWN = 0.4  # the share of a pixel from which on it is counted as an object's own
NO_OBJECT = QUESTIONS["left", "front", "shape"].index(NONE)  # the answer to the question for the shape at any slot


@dataclass(frozen=True)
class Scores:
    """The figures of one edit, in the order of the tables. An undefined one (a region without a pixel, a hue where none
    changes, an attribute that nothing has or that is misread off the truth) is nan."""

    # Harmonic mean of `success` and preservation: `ssim_outside` clipped to 0 ... 1, or `kept` where hardly any pixel
    # is outside.
    score: float
    # Of the answers that the classifier reads rightly off the true clips themselves:
    success: float  # share of those that the edit changes which are read as in the true edited clip
    kept: float  # share of those that the edit is to leave which are read as in the source
    unsaid: float  # the same, of what the source prompt does not name
    unsaid_pattern: float  # of these alone, which no caption ever names
    unsaid_tone: float
    unsaid_angle: float
    unsaid_floor_pattern: float
    unsaid_backdrop: float
    unsaid_light_from: float
    ssim_outside: float
    psnr_outside: float
    ssim_inside: float
    psnr_inside: float
    psnr_target: float  # of whole frames
    flicker: float
    hue: float  # 1 where the recoloured object's mean colour is nearest, by hue, to the target's; needs no classifier


@dataclass(frozen=True)
class AskedAnswers:
    """What an edit asks for: the right answers, and which questions it changes and keeps, bool [Q]."""

    answers: np.ndarray  # of the true edited clip
    changed: np.ndarray
    kept: np.ndarray
    unsaid: np.ndarray  # of those kept, what the source prompt does not name

    def readable(self, source: np.ndarray, target: np.ndarray) -> AskedAnswers:
        """Return the same without what a classifier misreads off the true clips themselves, by its answers [Q] to
        both: such an answer would tell of the classifier, not of an edit."""
        right = target == self.answers
        kept = right & (source == self.answers)
        return replace(self, changed=self.changed & right & ~kept, kept=self.kept & kept, unsaid=self.unsaid & kept)


def measure(edit: Edit, clips: EditTruth, frames: np.ndarray, read: Read, asked: AskedAnswers | None = None) -> Scores:
    """Return the figures of an edited clip; `asked` is `readable_answers` where it is known."""
    source, target, outside = clips.source.frames, clips.target.frames, ~clips.changed
    shares = attributes(asked or readable_answers(edit, clips, read), read(frames))
    ssim_outside = ssim(frames, source, outside)
    preserved = shares["kept"] if outside.mean() < LEAST_OUTSIDE else min(max(ssim_outside, 0.0), 1.0)
    return Scores(
        score=harmonic_mean(shares["success"], preserved),
        **shares,
        ssim_outside=ssim_outside,
        psnr_outside=psnr(frames, source, outside, highest=HIGHEST),
        ssim_inside=ssim(frames, target, clips.changed),
        psnr_inside=psnr(frames, target, clips.changed, highest=HIGHEST),
        psnr_target=psnr(frames, target, highest=HIGHEST),
        flicker=flicker(frames, source, outside),
        hue=hue_success(edit, clips, frames),
    )


def readable_answers(edit: Edit, clips: EditTruth, read: Read) -> AskedAnswers:
    """Return what an edit asks for, of what a classifier reads rightly off the true clips."""
    return asked_answers(edit, clips).readable(read(clips.source.frames), read(clips.target.frames))


def asked_answers(edit: Edit, clips: EditTruth) -> AskedAnswers:
    """Return what an edit asks for. What neither the source shows nor the target prompt names (the pattern of what was
    hidden) is not asked for."""
    before = np.array(scene_labels(edit.source, visible_pixels(clips.source.coverage)))
    after = np.array(scene_labels(edit.target, visible_pixels(clips.target.coverage)))
    named = np.array([_is_named(edit.target, edit.target_named, question) for question in QUESTIONS])
    said = np.array([_is_named(edit.source, edit.source_named, question) for question in QUESTIONS])
    changed = (before != after) & (after >= 0) & ((before >= 0) | named)
    # What the target prompt alone names, and the source shows, is an edit too where they differ; else it is kept.
    kept = (before == after) & (after >= 0)
    return AskedAnswers(after, changed, kept, kept & ~said)


def attributes(asked: AskedAnswers, answers: np.ndarray) -> dict[str, float]:
    """Return the shares of right answers [Q] by the names of `Scores`: of what the edit changes, of what it keeps, and
    of what it keeps without a word. Of an object that is not seen, no attribute is right."""
    seen = {(place, row): answers[k] != NO_OBJECT for k, (place, row, name) in enumerate(QUESTIONS) if name == "shape"}
    there = np.array([name == "shape" or seen.get((place, row), True) for place, row, name in QUESTIONS])
    right = (answers == asked.answers) & there
    names = np.array([name for _, _, name in QUESTIONS])

    def share(which: np.ndarray) -> float:
        return float(right[which].mean()) if which.any() else math.nan

    return {
        "success": share(asked.changed),
        "kept": share(asked.kept),
        "unsaid": share(asked.unsaid),
        **{f"unsaid_{name.replace(' ', '_')}": share(asked.unsaid & (names == name)) for name in NEVER_CAPTIONED},
    }


def visible_pixels(coverage: np.ndarray) -> np.ndarray:
    """Return how many pixels are each object's own, int64 [N], by coverage [N, T, H, W], all frames together."""
    if len(coverage) == 0:
        return np.zeros(0, np.int64)
    owner = np.where(coverage.max(0) >= OWN, coverage.argmax(0), -1)
    return np.bincount(owner[owner >= 0].ravel(), minlength=len(coverage))


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


def hue_success(edit: Edit, clips: EditTruth, frames: np.ndarray) -> float:
    """Return 1 where the mean over a recoloured object's true mask is nearest in hue to the target's colour, else 0."""
    if edit.subject is None or "recolour" not in edit.kind:
        return math.nan
    visible = clips.target.coverage[edit.subject] > 0.5
    if not visible.any():
        return math.nan
    return float(nearest_colour(frames[visible].mean(0)) == edit.target.objects[edit.subject].colour)


def nearest_colour(rgb: np.ndarray) -> str:
    """Return the built-in world's colour that is nearest in hue to a mean colour [3], 0 ... 255."""
    hue = colorsys.rgb_to_hsv(*(rgb / 255))[0]

    def distance(name: str) -> float:
        gap = abs(colorsys.rgb_to_hsv(*COLOURS[name])[0] - hue)
        return min(gap, 1 - gap)

    return min(COLOURS, key=distance)
