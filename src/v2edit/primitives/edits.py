"""Edits whose true result is known: an instruction, two prompts, two scenes, and the region that changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import numpy as np

from v2edit.primitives.captions import Wording, caption, sample_wording
from v2edit.primitives.render import ClipCameras, RenderedClip, render_clip
from v2edit.primitives.scene import COLOURS, FLOORS, SHAPES, SIZES, SKIES, Scene, sample_object, sample_scene

KINDS = ("recolour", "reshape", "resize", "insert", "remove", "floor", "sky", "reshape and recolour")
CHANGE_THRESHOLD = 6  # of 255: a pixel that differs by more in any channel belongs to the changed region


@dataclass(frozen=True)
class Edit:
    """One task of the built-in world. `subject`: the edited object's index in `target` (in `source` if removed)."""

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
    """The two clips of an edit and where they differ: `changed` bool [T, H, W]."""

    source: RenderedClip
    target: RenderedClip
    changed: np.ndarray


def render_truth(
    edit: Edit, frames: int = 9, height: int = 64, width: int = 64, samples: int = 2, cameras: ClipCameras | None = None
) -> EditTruth:
    """Renders both scenes of an edit, seen by their own cameras unless as many others are given."""
    source, target = (
        render_clip(scene, frames, height, width, samples, cameras) for scene in (edit.source, edit.target)
    )
    difference = np.abs(source.frames.astype(np.int16) - target.frames.astype(np.int16)).max(-1)
    return EditTruth(source, target, difference > CHANGE_THRESHOLD)


def sample_edit(rng: Random, kind: str | None = None) -> Edit:
    """A random edit, of this kind if one is given."""
    kind = kind or rng.choice(KINDS)
    assert kind in KINDS, kind
    wording = sample_wording(rng)
    source = sample_scene(rng, {"insert": 1, "remove": 2}.get(kind))
    if kind == "insert" and source.objects[0].place == "middle":  # leaves room beside it
        source = source.with_object(0, place=rng.choice(("left", "right")))
    subject = rng.randrange(len(source.objects))
    one = source.objects[subject]
    named = f"the {one.colour} {wording.word(one.shape)}"
    colour = rng.choice([c for c in COLOURS if all(c != o.colour for o in source.objects)])
    shape = rng.choice([s for s in SHAPES if s != one.shape])

    if kind == "recolour":
        said = rng.choice(("make {} {}", "turn {} {}", "paint {} {}", "change {} to {}"))
        return Edit(
            kind,
            said.format(named, colour),
            source,
            source.with_object(subject, colour=colour),
            wording,
            subject,
        )
    if kind == "reshape":
        said = rng.choice(("turn {} into a {}", "replace {} with a {}"))
        target = source.with_object(subject, shape=shape)
        return Edit(kind, said.format(named, wording.word(shape)), source, target, wording, subject)
    if kind == "reshape and recolour":
        said = rng.choice(("turn {} into a {} {}", "replace {} with a {} {}"))
        target = source.with_object(subject, shape=shape, colour=colour)
        return Edit(kind, said.format(named, colour, wording.word(shape)), source, target, wording, subject)
    if kind == "resize":
        size = next(s for s in SIZES if s != one.size)
        target = source.with_object(subject, size=size)
        return Edit(kind, f"make {named} {wording.word(size)}", source, target, wording, subject)
    if kind == "insert":
        place = "right" if one.place == "left" else "left"
        new = sample_object(rng, place, [c for c in COLOURS if c != one.colour], motion="stay")
        objects = (*source.objects, new) if place == "right" else (new, *source.objects)
        what = f"{wording.word(new.size)} {new.colour} {wording.word(new.shape)} {wording.word(place)}"
        said = rng.choice(("add a {}", "put a {}", "insert a {}")).format(what)
        return Edit(kind, said, source, replace(source, objects=objects), wording, objects.index(new))
    if kind == "remove":
        objects = tuple(o for o in source.objects if o is not one)
        said = rng.choice(("remove {}", "take {} away", "delete {}")).format(named)
        return Edit(kind, said, source, replace(source, objects=objects), wording, subject)
    if kind == "floor":
        floor = rng.choice([f for f in FLOORS if f != source.floor])
        said = rng.choice(("make the {} {}", "change the {} to {}")).format(wording.word("floor"), floor)
        return Edit(kind, said, source, replace(source, floor=floor), wording, None)
    sky = rng.choice([s for s in SKIES if s != source.sky])
    said = rng.choice(("make the sky {}", "change the sky to {}", "turn the sky {}")).format(sky)
    return Edit(kind, said, source, replace(source, sky=sky), wording, None)
