"""Edits of primitives with ground truth: an instruction, two prompts, two scenes, and the region that changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import numpy as np

from v2edit.primitives.captions import Wording, caption, sample_wording
from v2edit.primitives.render import ClipCameras, RenderedClip, render_clip
from v2edit.primitives.scene import COLOURS, FLOORS, SHAPES, SIZES, SKIES, Scene, sample_object, sample_scene

KINDS = ("recolour", "reshape", "resize", "insert", "remove", "floor", "sky", "reshape and recolour")
CHANGE_THRESHOLD = 6  # of 255: the changed region is where any channel differs by more


@dataclass(frozen=True)
class Edit:
    """An edit of a scene. `subject` is the index of the edited object in `target` (in `source` if removed)."""

    kind: str
    instruction: str
    source: Scene
    target: Scene
    wording: Wording
    subject: int | None

    @property
    def source_prompt(self) -> str:
        return caption(self.source, self.wording)

    @property
    def target_prompt(self) -> str:
        return caption(self.target, self.wording)


@dataclass(frozen=True)
class EditTruth:
    """The source and the true target clip of an edit, and the mask where they differ, `changed` bool [T, H, W]."""

    source: RenderedClip
    target: RenderedClip
    changed: np.ndarray


def render_truth(
    edit: Edit, frames: int = 9, height: int = 64, width: int = 64, samples: int = 2, cameras: ClipCameras | None = None
) -> EditTruth:
    """Render both scenes of an edit, by their own cameras unless `cameras` (as many) are given."""
    source, target = (render_clip(one, frames, height, width, samples, cameras) for one in (edit.source, edit.target))
    difference = np.abs(source.frames.astype(np.int16) - target.frames.astype(np.int16)).max(-1)
    return EditTruth(source, target, difference > CHANGE_THRESHOLD)


def sample_edit(rng: Random, kind: str | None = None) -> Edit:
    """Sample an edit, of this kind if one is given."""
    kind = kind or rng.choice(KINDS)
    assert kind in KINDS, kind
    wording = sample_wording(rng)
    source = sample_scene(rng, {"insert": 1, "remove": 2}.get(kind))
    if kind == "insert" and source.objects[0].place == "middle":  # makes room beside it
        source = source.with_object(0, place=rng.choice(("left", "right")))
    subject: int | None = rng.randrange(len(source.objects))
    edited = source.objects[subject]
    reference = f"the {edited.colour} {wording.word(edited.shape)}"
    colour = rng.choice([c for c in COLOURS if all(c != o.colour for o in source.objects)])
    shape = rng.choice([s for s in SHAPES if s != edited.shape])

    if kind == "recolour":
        template = rng.choice(("make {} {}", "turn {} {}", "paint {} {}", "change {} to {}"))
        instruction, target = template.format(reference, colour), source.with_object(subject, colour=colour)
    elif kind == "reshape":
        template = rng.choice(("turn {} into a {}", "replace {} with a {}"))
        instruction = template.format(reference, wording.word(shape))
        target = source.with_object(subject, shape=shape)
    elif kind == "reshape and recolour":
        template = rng.choice(("turn {} into a {} {}", "replace {} with a {} {}"))
        instruction = template.format(reference, colour, wording.word(shape))
        target = source.with_object(subject, shape=shape, colour=colour)
    elif kind == "resize":
        size = next(s for s in SIZES if s != edited.size)
        instruction, target = f"make {reference} {wording.word(size)}", source.with_object(subject, size=size)
    elif kind == "insert":
        place = "right" if edited.place == "left" else "left"
        new = sample_object(rng, place, [c for c in COLOURS if c != edited.colour], motion="stay")
        objects = (*source.objects, new) if place == "right" else (new, *source.objects)
        description = f"{wording.word(new.size)} {new.colour} {wording.word(new.shape)} {wording.word(place)}"
        instruction = rng.choice(("add a {}", "put a {}", "insert a {}")).format(description)
        target, subject = replace(source, objects=objects), objects.index(new)
    elif kind == "remove":
        target = replace(source, objects=tuple(o for o in source.objects if o is not edited))
        instruction = rng.choice(("remove {}", "take {} away", "delete {}")).format(reference)
    elif kind == "floor":
        floor = rng.choice([f for f in FLOORS if f != source.floor])
        instruction = rng.choice(("make the {} {}", "change the {} to {}")).format(wording.word("floor"), floor)
        target, subject = replace(source, floor=floor), None
    else:
        sky = rng.choice([s for s in SKIES if s != source.sky])
        instruction = rng.choice(("make the sky {}", "change the sky to {}", "turn the sky {}")).format(sky)
        target, subject = replace(source, sky=sky), None
    return Edit(kind, instruction, source, target, wording, subject)
