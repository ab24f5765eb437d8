"""Measures of an edit of the built-in world against its true result, which can be rendered.

Letters: T frames. Frames are uint8 [T, H, W, 3], masks bool [T, H, W]. The *inside* of an edit is where the true clips
differ, its *outside* the rest: inside, an edit is measured against the true edited clip; outside, against the source.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from v2edit.metrics.pixels import flicker, harmonic_mean, psnr, ssim
from v2edit.primitives.edits import Edit, EditTruth
from v2edit.primitives.scene import COLOURS, Object, Scene

Classify = Callable[[np.ndarray], Scene]  # uint8 frames [T, H, W, 3] to the scene that they show
OF_OBJECT = ("shape", "colour", "size", "place", "motion")
OF_SCENE = ("floor", "sky", "camera")
HIGHEST = 10 * math.log10(255**2 / 0.065)  # dB, about 60: a mean squared error below 0.065 is rounding to 8 bits


@dataclass(frozen=True)
class Scores:
    """The figures of one edit, in the order of the tables. An undefined one (a region without a pixel, a hue where none
    changes) is nan."""

    score: float  # harmonic mean of `success` and preservation, which is `ssim_outside` clipped to 0 ... 1
    success: float  # share of the attributes that the edit changes which are read as in the target
    kept: float  # share of the other attributes which are read as in the source
    ssim_outside: float
    psnr_outside: float
    ssim_inside: float
    psnr_inside: float
    flicker: float
    hue: float  # 1 where the recoloured object's mean colour is nearest, by hue, to the target's; needs no classifier


def measure(edit: Edit, clips: EditTruth, frames: np.ndarray, classify: Classify) -> Scores:
    """Return the figures of an edited clip."""
    source, target = clips.source.frames, clips.target.frames
    outside = ~clips.changed
    success, kept = attributes(edit, classify(frames))
    ssim_outside = ssim(frames, source, outside)
    return Scores(
        score=harmonic_mean(success, min(max(ssim_outside, 0.0), 1.0)),
        success=success,
        kept=kept,
        ssim_outside=ssim_outside,
        psnr_outside=psnr(frames, source, outside, highest=HIGHEST),
        ssim_inside=ssim(frames, target, clips.changed),
        psnr_inside=psnr(frames, target, clips.changed, highest=HIGHEST),
        flicker=flicker(frames, source, outside),
        hue=hue_success(edit, clips, frames),
    )


def attributes(edit: Edit, seen: Scene) -> tuple[float, float]:
    """Return (success, kept): the shares of the edit's changed and of its other attributes that a seen scene has right.

    The attributes of a clip are each object's shape, colour, size, place and motion, its floor, sky and camera, and
    that there is no other object. Changed are those in which source and target scene differ; of an inserted object, its
    presence (something at its place), shape, colour, size and motion, all of them wrong where nothing is there; of a
    removed one, its absence."""
    inserted = len(edit.target.objects) > len(edit.source.objects)
    removed = len(edit.target.objects) < len(edit.source.objects)
    known = edit.source.objects if removed else edit.target.objects
    sources: list[Object | None] = list(edit.source.objects)
    if inserted:
        assert edit.subject is not None
        sources.insert(edit.subject, None)
    matches = match(known, seen.objects)
    changed: list[bool] = []
    others = [len(seen.objects) <= sum(obj is not None for obj in matches)]
    for index, (source, target, obj) in enumerate(zip(sources, known, matches, strict=True)):
        if removed and index == edit.subject:
            changed.append(obj is None)
        elif source is None:
            present = obj is not None and obj.place == target.place
            # OF_OBJECT's "place" counts as its presence.
            changed += [present and getattr(obj, field) == getattr(target, field) for field in OF_OBJECT]
        else:
            for field in OF_OBJECT:
                right = obj is not None and getattr(obj, field) == getattr(target, field)
                (others if getattr(source, field) == getattr(target, field) else changed).append(right)
    for field in OF_SCENE:
        right = getattr(seen, field) == getattr(edit.target, field)
        (others if getattr(edit.source, field) == getattr(edit.target, field) else changed).append(right)
    return float(np.mean(changed)), float(np.mean(others))


def match(known: Sequence[Object], seen: Sequence[Object]) -> list[Object | None]:
    """Return the seen object for each known one, None where there is none left: the assignment in which most attributes
    agree, and of several the one in order from left to right."""
    assignments = permutations([*seen, *[None] * max(0, len(known) - len(seen))], len(known))

    def agreement(assignment: Sequence[Object | None]) -> int:
        pairs = [(one, other) for one, other in zip(known, assignment, strict=True) if other is not None]
        return sum(getattr(one, field) == getattr(other, field) for one, other in pairs for field in OF_OBJECT)

    return list(max(assignments, key=agreement))


def hue_success(edit: Edit, clips: EditTruth, frames: np.ndarray) -> float:
    """Return 1 where the mean over a recoloured object's true mask is nearest in hue to the target's colour, else 0."""
    if edit.subject is None or len(edit.source.objects) != len(edit.target.objects):
        return math.nan
    colour = edit.target.objects[edit.subject].colour
    visible = clips.target.coverage[edit.subject] > 0.5
    if colour == edit.source.objects[edit.subject].colour or not visible.any():
        return math.nan
    return float(nearest_colour(frames[visible].mean(0)) == colour)


def nearest_colour(rgb: np.ndarray) -> str:
    """Return the built-in world's colour that is nearest in hue to a mean colour [3], 0 ... 255."""
    hue = colorsys.rgb_to_hsv(*(rgb / 255))[0]

    def distance(name: str) -> float:
        gap = abs(colorsys.rgb_to_hsv(*COLOURS[name])[0] - hue)
        return min(gap, 1 - gap)

    return min(COLOURS, key=distance)
