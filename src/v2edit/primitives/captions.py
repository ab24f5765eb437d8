"""Captions of primitives: sentences that name some of what a scene shows, and leave the rest out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import chain
from random import Random

from v2edit.primitives.scene import COLOURS, FLOORS, LIGHTS, SHAPES, SKIES, Object, Scene

# concept -> its wordings; the first is the plain one. A caption uses one wording of each throughout.
WORDS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "sphere"), "cube": ("cube", "box"), "cone": ("cone",), "cylinder": ("cylinder", "tube"),
    "tower": ("tower",), "ring": ("ring", "hoop"), "star": ("star",),
    "big": ("big", "large"), "small": ("small", "little"), "gold": ("gold", "golden metal"), "glass": ("glass",),
    "stay": ("stays still", "rests"), "slide left": ("slides left", "glides left"),
    "slide right": ("slides right", "glides right"), "hop": ("hops", "bounces"),
    "left": ("on the left",), "middle": ("in the middle",), "right": ("on the right",),
    "front": ("in front",), "back": ("in the back",),
    "floor": ("floor", "ground"), "pencil": ("drawn in pencil", "as a pencil drawing"), "night": ("at night",),
    "snow": ("in the snow",), "still": ("the camera is still", "the camera does not move"),
    "orbit left": ("the camera orbits left", "the camera circles left"),
    "orbit right": ("the camera orbits right", "the camera circles right"),
    "pan left": ("the camera pans left", "the camera turns left"),
    "pan right": ("the camera pans right", "the camera turns right"),
    "come nearer": ("the camera comes nearer", "the camera moves in"),
}  # fmt: skip
PLURALS = {"box": "boxes"}
PARTS = ("objects", "balloon", "floor", "sky", "light", "style", "camera")
EXTRA_WORDS = "a an and beside three with hat balloon in the air on under sky light , . nothing stands there"
VOCABULARY = frozenset(" ".join([EXTRA_WORDS, *COLOURS, *FLOORS, *SKIES, *LIGHTS, *chain(*WORDS.values())]).split()) | {
    PLURALS.get(noun, f"{noun}s") for shape in SHAPES for noun in WORDS[shape]
}
EXAMPLE = Scene((Object("ball", "red", "big", "middle"),), floor="gray", sky="blue")
TEXT_LENGTH = 56  # tokens that the text encoder reads, the end of the sentence among them
# What a caption leaves out first, where it would be longer than the text encoder reads: what goes without saying, then
# what is least asked for. Of objects and of the scene; a test for its value, or None for any.
LEFT_OUT: tuple[tuple[str, str | None], ...] = (
    ("light", "white"), ("camera", "still"), ("motion", "stay"), ("row", "front"), ("balloon place", None),
    ("light", None), ("row", None), ("hat colour", None), ("camera", None), ("size", None), ("motion", None),
    ("sky", None), ("floor", None), ("place", None), ("material", None), ("hat", None),
)  # fmt: skip


@dataclass(frozen=True)
class Named:
    """What a caption names: of each object its fields (None: the object is not mentioned), and fields of the scene.
    The shape and the number of a mentioned object are always named."""

    objects: tuple[frozenset[str] | None, ...]
    scene: frozenset[str]


@dataclass(frozen=True)
class Wording:
    """The order of a caption's parts, its connective and its wording of each concept."""

    order: tuple[str, ...] = PARTS
    connective: str = " and "
    choices: tuple[tuple[str, int], ...] = ()

    def word(self, concept: str) -> str:
        return WORDS[concept][dict(self.choices).get(concept, 0)]

    def noun(self, obj: Object) -> str:
        word = self.word(obj.shape)
        return word if obj.copies == 1 else PLURALS.get(word, word + "s")


def sample_wording(rng: Random) -> Wording:
    """Sample the order of the parts (objects come before the camera), a connective and a wording of each concept."""
    order = list(PARTS[:-1])
    if rng.random() < 0.5:
        rng.shuffle(order)
    choices = tuple((concept, rng.randrange(len(words))) for concept, words in WORDS.items())
    return Wording((*order, "camera"), rng.choice((" and ", " and ", " beside ")), choices)


def name_everything(scene: Scene) -> Named:
    """Return what a caption names that leaves nothing out (of what captions can name)."""
    return Named(tuple(_nameable(o) for o in scene.objects), frozenset(_nameable_in_scene(scene)))


def sample_named(rng: Random, scene: Scene, rate: float | None = None) -> Named:
    """Sample what a caption names: each field at a rate that is drawn for the whole caption unless it is given.
    Materials, hats, styles and balloons are named more often where there are some, as people would."""
    rate = rng.choice((0.1, 0.3, 0.5, 0.7, 0.9, 1.0)) if rate is None else rate

    def keep(field: str) -> bool:
        often = {"colour": 0.5, "material": 0.9, "hat": 0.75, "hat colour": 0.6, "style": 0.85, "balloon": 0.7,
                 "balloon colour": 0.6}  # fmt: skip
        return rng.random() < max(rate, often.get(field, 0.0))

    objects = [
        frozenset(filter(keep, sorted(_nameable(o)))) if rng.random() < max(rate, 0.6) else None for o in scene.objects
    ]
    if not any(names is not None for names in objects):
        k = rng.randrange(len(objects))
        objects[k] = frozenset(filter(keep, sorted(_nameable(scene.objects[k]))))
    return Named(tuple(objects), frozenset(filter(keep, sorted(_nameable_in_scene(scene)))))


def _nameable(obj: Object) -> frozenset[str]:
    names = {"size", "place", "row", "motion"}
    names |= {"colour"} if obj.material != "gold" else set()
    names |= {"material"} if obj.material != "matt" else set()
    names |= {"hat", "hat colour"} if obj.hat else set()
    return frozenset(names - ({"size"} if obj.copies > 1 else set()))


def _nameable_in_scene(scene: Scene) -> set[str]:
    names = {"floor", "sky", "camera", "light"}
    names |= {"style"} if scene.style != "photo" else set()
    return names | ({"balloon", "balloon colour", "balloon place"} if scene.balloon else set())


def describe_object(obj: Object, named: frozenset[str], wording: Wording) -> str:
    """Return a phrase such as "a big red ball on the left in front hops"."""
    words: list[str] = []
    words += [wording.word(obj.size)] if "size" in named else []
    words += [obj.colour] if "colour" in named and obj.material != "gold" else []
    words += [wording.word(obj.material)] if "material" in named else []
    words.append(wording.noun(obj))
    if "hat" in named:
        words.append(f"with {with_article(str(obj.hat))} hat" if "hat colour" in named else "with a hat")
    words += [wording.word(getattr(obj, field)) for field in ("place", "row", "motion") if field in named]
    phrase = " ".join(words)
    return f"three {phrase}" if obj.copies > 1 else with_article(phrase)


def with_article(phrase: str) -> str:
    """Return a phrase with "a" or "an" before it."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def caption(scene: Scene, named: Named | None = None, wording: Wording = Wording()) -> str:
    """Describe a scene in one sentence that names what it is to name (default: everything)."""
    parts = caption_parts(scene, named or name_everything(scene), wording)
    return ", ".join(parts[part] for part in wording.order if parts.get(part)) + "."


def caption_parts(scene: Scene, named: Named, wording: Wording) -> dict[str, str]:
    """Return what a caption says of each of the PARTS that it mentions."""
    phrases = [
        describe_object(o, n, wording) for o, n in zip(scene.objects, named.objects, strict=True) if n is not None
    ]
    parts = {"objects": wording.connective.join(phrases)}
    if scene.balloon and "balloon" in named.scene:
        colour = f"{scene.balloon.colour} " if "balloon colour" in named.scene else ""
        place = f" {wording.word(scene.balloon.place)}" if "balloon place" in named.scene else ""
        parts["balloon"] = with_article(f"{colour}balloon in the air{place}")
    if "floor" in named.scene:
        parts["floor"] = f"on a {scene.floor} {wording.word('floor')}"
    if "sky" in named.scene:
        parts["sky"] = f"under a {scene.sky} sky"
    if "light" in named.scene:
        parts["light"] = f"in {scene.light} light"
    if "style" in named.scene:
        parts["style"] = wording.word(scene.style)
    if "camera" in named.scene:
        parts["camera"] = wording.word(scene.camera)
    return parts


def count_words(text: str) -> int:
    """Return how many tokens a caption has, without the end of the sentence."""
    return len(text.replace(",", " ,").replace(".", " .").split())


def describe(scene: Scene, wording: Wording = Wording(), unsaid: Collection[str] = ()) -> str:
    """Return the caption of a scene that names as much as the text encoder reads (without a balloon's place, which is
    not read off, and the fields that are to stay `unsaid`)."""
    named = name_everything(scene)
    objects = tuple(names and names - {*unsaid} for names in named.objects)
    named = Named(objects, named.scene - {"balloon place", *unsaid})
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
