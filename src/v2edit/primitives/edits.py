"""Edits of primitives with ground truth: an instruction, two prompts, two scenes, and the region that changes.

The prompts name the edited thing and a little around it; what they do not name must come from the source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import numpy as np

from v2edit.primitives.captions import (
    TEXT_LENGTH,
    Named,
    Wording,
    caption,
    count_words,
    describe_object,
    sample_named,
    sample_wording,
    with_article,
)
from v2edit.primitives.grammar import understands
from v2edit.primitives.render import ClipCameras, RenderedClip, render_clip
from v2edit.primitives.scene import (
    COLOURS,
    FLOORS,
    MOTIONS,
    PLACES,
    ROWS,
    SIZES,
    SKIES,
    STYLES,
    Balloon,
    Object,
    Pattern,
    Scene,
    sample_object,
    sample_scene,
    slot_order,
)

CHANGE_THRESHOLD = 6  # of 255: the changed region is where any channel differs by more
SIMPLE, TALL_OR_HOLLOW = ("ball", "cube", "cone", "cylinder"), ("tower", "ring", "star")


@dataclass(frozen=True)
class Edit:
    """An edit of a scene. `subject` is the index of the edited object in `target` (in `source` if removed), None for
    the scene as a whole."""

    kind: str
    instruction: str
    source: Scene
    target: Scene
    source_named: Named
    target_named: Named
    wording: Wording
    subject: int | None

    @property
    def source_prompt(self) -> str:
        return caption(self.source, self.source_named, self.wording)

    @property
    def target_prompt(self) -> str:
        return caption(self.target, self.target_named, self.wording)


@dataclass(frozen=True)
class EditTruth:
    """The source and the true target clip of an edit, and the mask where they differ, `changed` bool [T, H, W]."""

    source: RenderedClip
    target: RenderedClip
    changed: np.ndarray


@dataclass(frozen=True)
class _Change:
    """What a kind of edit does to a scene: the new scene, the subject, the fields of it (or of the scene) that both
    prompts must name, and what the instruction says of the change."""

    target: Scene
    subject: int | None
    fields: tuple[str, ...]
    words: str


def render_truth(
    edit: Edit,
    frames: int = 9,
    height: int = 64,
    width: int = 96,
    samples: int = 2,
    cameras: ClipCameras | None = None,
) -> EditTruth:
    """Render both scenes of an edit, by `cameras` (as many as frames) where some are given."""
    source, target = (render_clip(one, frames, height, width, samples, cameras) for one in (edit.source, edit.target))
    difference = np.abs(source.frames.astype(np.int16) - target.frames.astype(np.int16)).max(-1)
    return EditTruth(source, target, difference > CHANGE_THRESHOLD)


def sample_edit(rng: Random, kind: str | None = None) -> Edit:
    """Sample an edit, of this kind if one is given."""
    kind = kind or rng.choice(KINDS)
    wording = sample_wording(rng)
    while True:  # Not every scene admits every kind.
        source = sample_scene(rng, style="photo")
        if (change := _CHANGES[kind](rng, source, wording)) is not None:
            break
    while (
        True
    ):  # Something that stays is named, the text encoder reads both prompts whole, and they tell which is meant.
        around = sample_named(rng, source, rate=rng.choice((0.1, 0.3, 0.5)))
        named = _name_change(around, source, change, kind)
        edit = Edit(kind, change.words, source, change.target, *named, wording, change.subject)
        stays = edit.target_named.scene or any(names is not None for names in edit.target_named.objects)
        is_read = max(count_words(edit.source_prompt), count_words(edit.target_prompt)) < TEXT_LENGTH
        if stays and is_read and understands(edit.source_prompt, edit.instruction):
            return edit


def _name_change(around: Named, source: Scene, change: _Change, kind: str) -> tuple[Named, Named]:
    """Return what the two prompts name: what is around, and in both the fields that the edit changes."""
    fields, subject = frozenset(change.fields), change.subject
    objects = dict(zip(map(slot_order, source.objects), around.objects, strict=True))
    if subject is None:
        names = tuple(around.objects)
        target_scene = around.scene | fields
        source_scene = around.scene | (fields - {"style", "balloon", "balloon colour", "balloon place"})
        return Named(names, source_scene), Named(names, target_scene)
    if kind in ("insert", "behind"):
        new = change.target.objects[subject]
        target = tuple(fields if o is new else objects[slot_order(o)] for o in change.target.objects)
        return around, Named(target, around.scene)
    named = [
        n if o in change.target.objects else (n or frozenset()) | fields
        for o, n in zip(source.objects, around.objects, strict=True)
    ]
    if kind in ("remove", "uncover"):
        rest = tuple(n for k, n in enumerate(named) if k != subject)
        return Named(tuple(named), around.scene), Named(rest, around.scene)
    if kind == "exchange":
        names_of = {_at_no_place(o): n for o, n in zip(source.objects, named, strict=True)}
        after = tuple(names_of[_at_no_place(o)] for o in change.target.objects)
        return Named(tuple(named), around.scene), Named(after, around.scene)
    both = (around.objects[subject] or frozenset()) | fields
    gone = {"hat", "hat colour"} if kind == "wear" else {"material"} if kind == "material" else set()
    stays = {"colour"} if change.target.objects[subject].material == "gold" else set()
    stays |= {"size"} if kind == "multiply" else set()
    before, after = (
        tuple(both - drop if k == subject else n for k, n in enumerate(around.objects)) for drop in (gone, stays)
    )
    return Named(before, around.scene), Named(after, around.scene)


def _at_no_place(obj: Object) -> Object:
    return replace(obj, place="", row="", dx=0.0, dy=0.0)


def _refer(source: Scene, subject: int, wording: Wording) -> str:
    """Return how an instruction calls an object: by its colour where it shows, and by its place where that is not
    enough."""
    obj = source.objects[subject]
    fields = {"material"} if obj.material == "gold" else {"colour"}
    names = [(o.shape, o.copies, "gold" if o.material == "gold" else o.colour) for o in source.objects]
    fields |= {"place", "row"} if names.count(names[subject]) > 1 else set()
    phrase = describe_object(obj, frozenset(fields), wording)
    return "the " + phrase.partition(" ")[2]


Chooser = Callable[[Random, Scene, Wording], "_Change | None"]


def _pick(rng: Random, scene: Scene, suits: Callable[[Object], bool]) -> int | None:
    """Return the index of a random object that suits, None where there is none."""
    able = [k for k, obj in enumerate(scene.objects) if suits(obj)]
    return rng.choice(able) if able else None


def _is_covered(scene: Scene, obj: Object) -> bool:
    """Return whether an object stands behind another."""
    return obj.row == "back" and any(o.place == obj.place and o.row == "front" for o in scene.objects)


def _is_alone_at_place(scene: Scene, obj: Object) -> bool:
    return sum(o.place == obj.place for o in scene.objects) == 1


def _is_seen(scene: Scene, index: int) -> bool:
    """Return whether enough of an object is seen to tell what it is (`questions.MIN_VISIBLE`, twice), by a small
    render."""
    share = render_clip(scene, 3, 32, 48, samples=1).coverage[index]
    return share.sum() * 12 >= 80  # of nine frames of 64x96


def _alter(
    templates: tuple[str, ...], fields: tuple[str, ...], suits: Callable[[Object], bool],
    changes: Callable[[Random, Object, Wording], tuple[dict[str, object], str]],
) -> Chooser:  # fmt: skip
    """Return the chooser of a kind that changes fields of one object; templates take its reference and the words."""

    def choose(rng: Random, scene: Scene, wording: Wording) -> _Change | None:
        subject = _pick(rng, scene, lambda o: suits(o) and not _is_covered(scene, o))
        if subject is None:
            return None
        new, words = changes(rng, scene.objects[subject], wording)
        text = rng.choice(templates).format(_refer(scene, subject, wording), words)
        return _Change(scene.with_object(subject, **new), subject, fields, text)

    return choose


def _recolour(rng: Random, obj: Object, _: Wording) -> tuple[dict[str, object], str]:
    colour = rng.choice([c for c in COLOURS if c != obj.colour])
    return {"colour": colour}, colour


def _reshape_to(shapes: tuple[str, ...]) -> Callable[[Random, Object, Wording], tuple[dict[str, object], str]]:
    def changes(rng: Random, obj: Object, wording: Wording) -> tuple[dict[str, object], str]:
        shape = rng.choice([s for s in shapes if s != obj.shape])
        return {"shape": shape}, with_article(wording.word(shape))

    return changes


def _reshape_and_recolour(rng: Random, obj: Object, wording: Wording) -> tuple[dict[str, object], str]:
    shape, colour = (
        rng.choice([s for s in SIMPLE if s != obj.shape]),
        rng.choice([c for c in COLOURS if c != obj.colour]),
    )
    return {"shape": shape, "colour": colour}, with_article(f"{colour} {wording.word(shape)}")


def _resize(_: Random, obj: Object, wording: Wording) -> tuple[dict[str, object], str]:
    size = next(s for s in SIZES if s != obj.size)
    return {"size": size}, wording.word(size)


def _move_otherwise(rng: Random, obj: Object, wording: Wording) -> tuple[dict[str, object], str]:
    motion = rng.choice([m for m in MOTIONS if m != obj.motion])
    words = {"stay": "stay still", "hop": "hop", "slide left": "slide left", "slide right": "slide right"}
    return {"motion": motion}, words[motion]


def _make_of(rng: Random, _: Object, wording: Wording) -> tuple[dict[str, object], str]:
    material = rng.choice(("gold", "glass"))
    return {"material": material, "pattern": Pattern()}, material


def _wear(rng: Random, obj: Object, _: Wording) -> tuple[dict[str, object], str]:
    colour = rng.choice([c for c in COLOURS if c != obj.colour])
    return {"hat": colour}, with_article(f"{colour} hat")


def _multiply(rng: Random, scene: Scene, wording: Wording) -> _Change | None:
    alone = [o.row for o in scene.objects]
    subject = _pick(
        rng,
        scene,
        lambda o: o.copies == 1 and o.size == "big" and alone.count(o.row) == 1 and not _is_covered(scene, o),
    )
    if subject is None:
        return None
    obj = replace(scene.objects[subject], copies=3)
    text = f"turn {_refer(scene, subject, wording)} into three {wording.noun(obj)}"
    return _Change(scene.with_object(subject, copies=3), subject, ("colour", "place"), text)


def _insert_into(row: str) -> Chooser:
    def choose(rng: Random, scene: Scene, wording: Wording) -> _Change | None:
        if any(o.copies > 1 and o.row == row for o in scene.objects) or len(scene.objects) == 4:
            return None
        taken = {(o.place, o.row) for o in scene.objects}
        covered = {o.place for o in scene.objects if o.row == "front"}
        if row == "back":
            free = [p for p in PLACES if p in covered and (p, "back") not in taken]
        else:
            free = [p for p in PLACES if all((p, r) not in taken for r in ROWS)]
        if not free:
            return None
        new = sample_object(rng, rng.choice(free), row, motion="stay", material="matt")
        new = replace(new, hat=None, pattern=Pattern(), size="big" if row == "back" else new.size)
        if row == "back":
            new = replace(new, shape=rng.choice(("tower", "cone", "cylinder", "cube")))
        if any((o.shape, o.colour) == (new.shape, new.colour) for o in scene.objects):
            return None
        target = scene.with_objects([*scene.objects, new])
        if row == "back" and not _is_seen(target, target.objects.index(new)):
            return None
        fields = ("colour", "size", "place", "row")
        phrase = describe_object(new, frozenset(fields), wording)
        text = rng.choice(("add {}", "put {}", "insert {}")).format(phrase)
        return _Change(target, target.objects.index(new), fields, text)

    return choose


def _remove(uncover: bool) -> Chooser:
    def choose(rng: Random, scene: Scene, wording: Wording) -> _Change | None:
        if len(scene.objects) < 2:
            return None

        def suits(obj: Object) -> bool:
            hides = obj.row == "front" and not _is_alone_at_place(scene, obj)
            return hides if uncover else _is_alone_at_place(scene, obj)

        subject = _pick(rng, scene, suits)
        if subject is None:
            return None
        text = rng.choice(("remove {}", "take {} away", "delete {}")).format(_refer(scene, subject, wording))
        rest = [o for k, o in enumerate(scene.objects) if k != subject]
        return _Change(scene.with_objects(rest), subject, ("colour",), text)

    return choose


def _exchange(rng: Random, scene: Scene, wording: Wording) -> _Change | None:
    pairs = [
        (i, j)
        for i, a in enumerate(scene.objects)
        for j, b in enumerate(scene.objects)
        if i < j and a.place != b.place and a.row == b.row and (a.shape, a.colour) != (b.shape, b.colour)
    ]
    if not pairs:
        return None
    i, j = rng.choice(pairs)
    a, b = scene.objects[i], scene.objects[j]
    objects = list(scene.objects)
    objects[i] = replace(a, place=b.place, dx=b.dx, dy=b.dy)
    objects[j] = replace(b, place=a.place, dx=a.dx, dy=a.dy)
    text = f"exchange {_refer(scene, i, wording)} and {_refer(scene, j, wording)}"
    target = scene.with_objects(objects)
    return _Change(target, target.objects.index(objects[i]), ("colour", "place"), text)


def _hang(rng: Random, scene: Scene, wording: Wording) -> _Change | None:
    if scene.balloon:
        return None
    balloon = Balloon(rng.choice(tuple(COLOURS)), rng.choice(tuple(PLACES)), rng.uniform(-0.25, 0.25))
    text = f"add {with_article(balloon.colour)} balloon in the air {wording.word(balloon.place)}"
    fields = ("balloon", "balloon colour", "balloon place")
    return _Change(replace(scene, balloon=balloon), None, fields, text)


def _change_scene(field: str, values: tuple[str, ...], templates: tuple[str, ...]) -> Chooser:
    def choose(rng: Random, scene: Scene, wording: Wording) -> _Change | None:
        value = rng.choice([v for v in values if v != getattr(scene, field)])
        words = wording.word(value) if field == "style" else value
        text = rng.choice(templates).format(words, wording.word("floor"))
        return _Change(replace(scene, **{field: value}), None, (field,), text)

    return choose


def _is_matt(obj: Object) -> bool:
    return obj.material == "matt"


def _is_one(obj: Object) -> bool:
    return obj.copies == 1


def _is_simple(obj: Object) -> bool:
    return obj.shape in SIMPLE and _is_one(obj)


INTO = ("turn {} into {}", "replace {} with {}")


_CHANGES: dict[str, Chooser] = {
    "recolour": _alter(("make {} {}", "turn {} {}", "paint {} {}"), ("colour",), _is_matt, _recolour),
    "reshape": _alter(INTO, ("colour",), _is_simple, _reshape_to(SIMPLE)),
    "resize": _alter(("make {} {}",), ("size",), _is_one, _resize),
    "insert": _insert_into("front"),
    "remove": _remove(uncover=False),
    "floor": _change_scene("floor", tuple(FLOORS), ("make the {1} {0}", "change the {1} to {0}")),
    "sky": _change_scene("sky", tuple(SKIES), ("make the sky {0}", "change the sky to {0}", "turn the sky {0}")),
    "reshape and recolour": _alter(
        INTO, ("colour",), lambda o: _is_matt(o) and _is_simple(o), _reshape_and_recolour
    ),
    "outline": _alter(INTO, ("colour",), _is_simple, _reshape_to(TALL_OR_HOLLOW)),
    "wear": _alter(
        ("put {1} on {0}", "give {0} {1}"), ("hat", "hat colour"),
        lambda o: o.hat is None and o.motion != "stay" and _is_one(o), _wear,
    ),
    "air": _hang,
    "behind": _insert_into("back"),
    "exchange": _exchange,
    "multiply": _multiply,
    "motion": _alter(("make {} {}", "let {} {}"), ("motion",), _is_one, _move_otherwise),
    "material": _alter(("make {} of {}", "turn {} into {}"), ("material",), _is_matt, _make_of),
    "style": _change_scene("style", STYLES[1:], ("show it {0}", "make it look {0}")),
    "uncover": _remove(uncover=True),
}  # fmt: skip
KINDS = tuple(_CHANGES)
