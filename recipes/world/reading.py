"""From a classifier's answers to a scene, and to the caption that a source prompt begins with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from recipes.world.captions import Named, Wording, caption, name_everything
from recipes.world.classifier import NONE, QUESTIONS, SLOTS
from recipes.world.scene import Backdrop, Balloon, Object, Pattern, Scene, slot_order
from recipes.world.text import TEXT_LENGTH, count_words

PLAIN_WORDING = Wording()
# What a caption leaves out first, where it would be longer than the text encoder reads: what goes without saying, then
# what is least asked for. Of objects and of the scene; a test for its value, or None for any.
LEFT_OUT: tuple[tuple[str, str | None], ...] = (
    ("light", "white"), ("camera", "still"), ("motion", "stay"), ("row", "front"), ("balloon place", None),
    ("light", None), ("row", None), ("hat colour", None), ("camera", None), ("size", None), ("motion", None),
    ("sky", None), ("floor", None), ("place", None), ("material", None), ("hat", None),
)  # fmt: skip


def scene_of(answers: np.ndarray) -> Scene:
    """Return the scene that answers [Q] describe, without the jitter that nobody asks for."""
    said = {(place, row, name): values[answers[k]] for k, ((place, row, name), values) in enumerate(QUESTIONS.items())}
    objects = [_object_of(place, row, said) for place, row in SLOTS if said[place, row, "shape"] != NONE]
    whole = {name: answer for (place, _, name), answer in said.items() if not place}
    return Scene(
        tuple(sorted(objects, key=slot_order)),
        floor=whole["floor"],
        sky=whole["sky"],
        camera=whole["camera"],
        light=whole["light"],
        style=whole["style"],
        balloon=None if whole["balloon"] == NONE else Balloon(whole["balloon"], "middle"),
        floor_pattern=whole["floor pattern"],
        backdrop=Backdrop(whole["backdrop"]),
        light_azimuth=0.7 if whole["light from"] == "right" else -0.7,
    )


def _object_of(place: str, row: str, said: dict[tuple[str, str, str], str]) -> Object:
    def answer(name: str) -> str:
        return said[place, row, name]

    pattern = Pattern(answer("pattern"), answer("tone"), math.radians(float(answer("angle"))))
    matt = answer("material") == "matt"
    return Object(
        answer("shape"), answer("colour"), answer("size"), place, row, answer("motion"), answer("material"),
        hat=None if answer("hat") == NONE else answer("hat"), copies=int(answer("copies")),
        pattern=pattern if matt else Pattern(),
    )  # fmt: skip


def describe(scene: Scene, wording: Wording = PLAIN_WORDING) -> str:
    """Return the caption of a scene that names as much as the text encoder reads (without a balloon's place, which is
    not read off)."""
    named = name_everything(scene)
    named = replace(named, scene=named.scene - {"balloon place"})
    for field, value in LEFT_OUT:
        if count_words(caption(scene, named, wording)) < TEXT_LENGTH:
            break
        named = _without(scene, named, field, lambda actual, value=value: value in (None, actual))
    return caption(scene, named, wording)


def _without(scene: Scene, named: Named, field: str, leaves: Callable[[object], bool]) -> Named:
    objects = tuple(
        names - {field} if names and field in names and leaves(getattr(obj, field.split()[0])) else names
        for obj, names in zip(scene.objects, named.objects, strict=True)
    )
    drop = {field} if field in named.scene and leaves(getattr(scene, field.split()[0])) else set()
    return Named(objects, named.scene - drop)
