"""What is asked about a clip of primitives, and its answers: what captions name and what they never do.

Letters: Q questions (`QUESTIONS`). Answers are indices, int64 [Q], -1 where a question does not apply.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from v2edit.primitives.scene import (
    BACKDROPS,
    CAMERAS,
    COLOURS,
    FLOOR_PATTERNS,
    FLOORS,
    LIGHTS,
    MATERIALS,
    MOTIONS,
    PATTERNS,
    PLACES,
    ROWS,
    SHAPES,
    SIZES,
    SKIES,
    STYLES,
    Backdrop,
    Balloon,
    Object,
    Pattern,
    Scene,
    slot_order,
)

NONE = "none"
NEVER_CAPTIONED = ("pattern", "tone", "angle", "floor pattern", "backdrop", "light from")
ANGLES = ("0", "45", "90", "135")  # degrees, of stripes and checks: the nearest; checks repeat after 90
MIN_VISIBLE = 40  # pixels of all frames together, for an object to be asked for


def angle_of(obj: Object) -> str | None:
    """Return the nearest of the angles to that of an object's stripes; None for other patterns."""
    if obj.pattern.kind != "stripes":
        return None
    return ANGLES[round(obj.pattern.angle / (math.pi / len(ANGLES))) % len(ANGLES)]


# Each field's possible answers, and how it is read off an object or a scene; None where it does not apply.
OF_OBJECT: dict[str, tuple[tuple[str, ...], Callable[[Object], str | None]]] = {
    "shape": ((NONE, *SHAPES), lambda o: o.shape),
    "colour": (tuple(COLOURS), lambda o: None if o.material == "gold" else o.colour),
    "size": (tuple(SIZES), lambda o: o.size),
    "motion": (MOTIONS, lambda o: o.motion),
    "material": (MATERIALS, lambda o: o.material),
    "hat": ((NONE, *COLOURS), lambda o: o.hat or NONE),
    "copies": (("1", "3"), lambda o: str(o.copies)),
    "pattern": (PATTERNS, lambda o: o.pattern.kind if o.material == "matt" else None),
    "tone": (("white", "black"), lambda o: None if o.pattern.kind == "plain" else o.pattern.tone),
    "angle": (ANGLES, angle_of),
}
OF_SCENE: dict[str, tuple[tuple[str, ...], Callable[[Scene], str | None]]] = {
    "floor": (tuple(FLOORS), lambda s: s.floor),
    "sky": (tuple(SKIES), lambda s: s.sky),
    "camera": (CAMERAS, lambda s: s.camera),
    "light": (tuple(LIGHTS), lambda s: s.light),
    "style": (STYLES, lambda s: s.style),
    "balloon": ((NONE, *COLOURS), lambda s: s.balloon.colour if s.balloon else NONE),
    "floor pattern": (FLOOR_PATTERNS, lambda s: s.floor_pattern),
    "backdrop": (BACKDROPS, lambda s: s.backdrop.kind),
    "light from": (("left", "right"), lambda s: "right" if s.light_azimuth > 0 else "left"),
}
OF_CLIPS = ("motion", "camera")  # fields that a still does not show
COLOURS_ALONE = ("colour", "floor", "sky", "light")  # fields that a pencil drawing does not show
SLOTS = [(place, row) for place in PLACES for row in ROWS]
QUESTIONS: dict[tuple[str, str, str], tuple[str, ...]] = {
    **{(place, row, field): answers for place, row in SLOTS for field, (answers, _) in OF_OBJECT.items()},
    **{("", "", field): answers for field, (answers, _) in OF_SCENE.items()},
}


def scene_labels(scene: Scene, visible: np.ndarray) -> list[int]:
    """Return the index of the right answer to each question, -1 where there is none. `visible`: the pixels of each
    object, in the scene's order; one that is hidden is not asked for, nor for the colours of a pencil drawing."""
    slots = {(o.place, o.row): (o, pixels) for o, pixels in zip(scene.objects, visible, strict=False)}
    labels = []
    for (place, row, field), answers in QUESTIONS.items():
        if not place:
            answer = OF_SCENE[field][1](scene)
        elif (place, row) not in slots:
            answer = NONE if field == "shape" else None
        else:
            obj, pixels = slots[place, row]
            answer = OF_OBJECT[field][1](obj) if pixels >= MIN_VISIBLE else None
        if scene.style == "pencil" and (field in COLOURS_ALONE or (field in ("hat", "balloon") and answer != NONE)):
            answer = None
        labels.append(-1 if answer is None else answers.index(answer))
    return labels


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
