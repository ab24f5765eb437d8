"""Captions of primitives: one grammar writes and parses the captions that the built-in model was trained on."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import chain
from random import Random

from v2edit.errors import UserError
from v2edit.primitives.scene import CAMERAS, COLOURS, FLOORS, MOTIONS, PLACES, SHAPES, SIZES, SKIES, Object, Scene

# concept -> its wordings; the first is the plain one. A caption uses one wording of each throughout.
WORDS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "sphere"), "cube": ("cube", "box"), "cone": ("cone",), "cylinder": ("cylinder", "tube"),
    "big": ("big", "large"), "small": ("small", "little"), "stay": ("stays still", "rests"),
    "slide left": ("slides left", "glides left"), "slide right": ("slides right", "glides right"),
    "hop": ("hops", "bounces"), "floor": ("floor", "ground"),
    "still": ("the camera is still", "the camera does not move"),
    "orbit left": ("the camera orbits left", "the camera circles left"),
    "orbit right": ("the camera orbits right", "the camera circles right"),
    "left": ("on the left",), "middle": ("in the middle",), "right": ("on the right",),
}  # fmt: skip
# Orders of floor, sky and objects in the sentence.
TEMPLATES = (
    "{objects} on a {floor} {ground} under a {sky} sky, {camera}.",
    "on a {floor} {ground} under a {sky} sky, {objects}, {camera}.",
    "under a {sky} sky, {objects} on a {floor} {ground}, {camera}.",
)
NOTHING = "nothing stands"
VOCABULARY = frozenset(
    " ".join(["a and on under sky", NOTHING, *COLOURS, *FLOORS, *SKIES, *chain(*WORDS.values())]).split()
)


@dataclass(frozen=True)
class Wording:
    """The template of a caption and its wording of each concept; all zeros is the plain one."""

    template: int = 0
    choices: tuple[tuple[str, int], ...] = ()

    def word(self, concept: str) -> str:
        return WORDS[concept][dict(self.choices).get(concept, 0)]


def sample_wording(rng: Random) -> Wording:
    """Sample a template and a wording of each concept."""
    choices = tuple((concept, rng.randrange(len(words))) for concept, words in WORDS.items())
    return Wording(rng.randrange(len(TEMPLATES)), choices)


def describe_object(obj: Object, wording: Wording, motion: bool = True) -> str:
    """Return a phrase such as "a big red ball on the left hops"."""
    phrase = f"a {wording.word(obj.size)} {obj.colour} {wording.word(obj.shape)} {wording.word(obj.place)}"
    return f"{phrase} {wording.word(obj.motion)}" if motion else phrase


def caption(scene: Scene, wording: Wording = Wording()) -> str:
    """Describe a scene in one sentence; objects are named from left to right."""
    return TEMPLATES[wording.template].format(
        objects=" and ".join(describe_object(obj, wording) for obj in scene.objects) or NOTHING,
        floor=scene.floor,
        sky=scene.sky,
        ground=wording.word("floor"),
        camera=wording.word(scene.camera),
    )


def parse_wording(text: str) -> Wording:
    """Return the wording of a caption (plain for concepts that it does not name)."""
    flat = normalise(text)
    wordings = [(concept, index, word) for concept, words in WORDS.items() for index, word in enumerate(words)]
    choices = tuple((concept, index) for concept, index, word in wordings if _contains(flat, word))
    order = sorted(("object", "floor", "sky"), key=lambda part: _first_position(flat, part))
    return Wording({"floor": 1, "sky": 2}.get(order[0], 0), choices)


def parse_caption(text: str) -> Scene:
    """Parse a caption of this grammar to its scene, without the jitter that captions do not mention. Nothing is
    guessed: `caption` gives the same text for the scene (and adds a still camera where the text names none). Raises
    `UserError` where the text is not such a caption."""
    unknown = [
        word
        for token in re.split(r"[\s.,;:!?]+", text)
        if (word := token.strip("\"'()")) and not VOCABULARY.issuperset(normalise(word).split() or [word])
    ]
    quote = text if len(text) <= 80 else f"{text[:79]}…"
    refusal = f"the prompt {quote!r} is outside the captions of the built-in model"
    example = f"an example is {caption(EXAMPLE)!r}"
    if unknown:
        raise UserError(f"{refusal}: it does not know {', '.join(map(repr, [*dict.fromkeys(unknown)][:3]))}; {example}")
    flat = normalise(text)
    objects = tuple(_read_object(phrase) for phrase in _object_phrases(flat))
    floor = re.search(rf"({'|'.join(FLOORS)}) (?:{'|'.join(WORDS['floor'])})", flat)
    sky = re.search(rf"({'|'.join(SKIES)}) sky", flat)
    if not (objects or NOTHING in flat) or floor is None or sky is None:
        parts = {"object": objects or NOTHING in flat, "floor": floor, "sky": sky}
        missing = " and ".join(f"no {name}" for name, part in parts.items() if not part)
        raise UserError(f"{refusal}: it names {missing}; {example}")
    camera = next((c for c in CAMERAS if any(_contains(flat, word) for word in WORDS[c])), "still")
    scene = Scene(tuple(sorted(objects, key=lambda o: PLACES[o.place])), floor[1], sky[1], camera)
    again = caption(scene, parse_wording(text))
    if flat not in (normalise(again), normalise(again.rpartition(",")[0])):
        needs = "it needs the size, colour, shape, place and motion of each object, from left to right"
        raise UserError(f"{refusal}: {needs}, in the order of {again!r}, the nearest caption")
    return scene


def is_caption(text: str) -> bool:
    """Return whether a text is a caption of this grammar."""
    try:
        parse_caption(text)
    except UserError:
        return False
    return True


def normalise(text: str) -> str:
    """Return a text in lower case with single spaces, without punctuation, in the grammar's spelling."""
    flat = re.sub(r"[^a-z ]+", " ", text.lower().replace("grey", "gray").replace("'s", ""))
    return re.sub(r"\s+", " ", flat).strip()


def find_concepts(flat: str, concepts: tuple[str, ...]) -> list[str]:
    """Return the concepts that a normalised text names, in its order."""
    hits = [
        (match.start(), concept)
        for concept in concepts
        for word in WORDS.get(concept, (concept,))
        if (match := re.search(rf"\b{word}\b", flat))
    ]
    return [concept for _, concept in sorted(hits)]


def _contains(flat: str, words: str) -> bool:
    return re.search(rf"\b{words}\b", flat) is not None


def _first_position(flat: str, part: str) -> int:
    """Return the position of the floor, the sky or the first object in a text."""
    words = {"floor": WORDS["floor"], "sky": ("sky",)}.get(part, (NOTHING, *(w for s in SHAPES for w in WORDS[s])))
    return min((m.start() for w in words if (m := re.search(rf"\b{w}\b", flat))), default=len(flat))


def _object_phrases(flat: str) -> list[str]:
    """Split a text into one phrase per object, each with its noun and attributes."""
    nouns = "|".join(w for s in SHAPES for w in WORDS[s])
    floor = "|".join(WORDS["floor"])
    text = re.sub(rf"(?:on|under) an? (?:{'|'.join([*FLOORS, *SKIES])}) (?:{floor}|sky)", " ", flat)
    text = re.sub(r"\bthe camera\b.*$", " ", text)
    phrase = rf"(?:\b\w+ ){{0,3}}\b(?:{nouns})\b.*?(?=\ban? (?:\w+ ){{0,3}}(?:{nouns})\b|$)"
    return [match[0] for match in re.finditer(phrase, text)]


def _read_object(phrase: str) -> Object:
    def one_of(concepts: tuple[str, ...], otherwise: str) -> str:
        return next(iter(find_concepts(phrase, concepts)), otherwise)

    motions = [m for m in MOTIONS if any(_contains(phrase, w) for w in WORDS[m])]
    return replace(
        EXAMPLE.objects[0],
        shape=one_of(SHAPES, "ball"),
        colour=one_of(tuple(COLOURS), "red"),
        size=one_of(tuple(SIZES), "big"),
        place=one_of(tuple(PLACES), "middle"),
        motion=motions[0] if motions else "stay",
    )


EXAMPLE = Scene((Object("ball", "red", "big", "middle"),), floor="gray", sky="blue")
