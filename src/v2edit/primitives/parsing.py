"""The reading of captions: what a prompt names. Nothing is guessed about the rest."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace

from v2edit.errors import UserError
from v2edit.primitives.captions import PARTS, PLURALS, VOCABULARY, WORDS, Named, Wording, caption
from v2edit.primitives.scene import (
    CAMERAS,
    COLOURS,
    FLOORS,
    LIGHTS,
    MATERIALS,
    MOTIONS,
    PLACES,
    ROWS,
    SHAPES,
    SIZES,
    SKIES,
    STYLES,
    Balloon,
    Object,
    Scene,
)

VERBS = {"stay": ("stay still", "stand still", "rest"), "slide left": ("slide left", "glide left"),
         "slide right": ("slide right", "glide right"), "hop": ("hop", "bounce")}  # fmt: skip
PLAIN = Object("ball", "red", "big", "middle")  # values of what is not named
EXAMPLE_PROMPT = "a red ball on the left, under a blue sky"


def either(*words: str) -> str:
    """Return a pattern of any of these words, the longest first."""
    return f"(?:{'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})"


def wordings(*concepts: str) -> str:
    return either(*(word for concept in concepts for word in WORDS.get(concept, (concept,))))


NOUNS = {word: shape for shape in SHAPES for word in WORDS[shape]}
PLURAL_NOUNS = {PLURALS.get(word, f"{word}s"): shape for word, shape in NOUNS.items()}
NOUNS |= PLURAL_NOUNS
ADJECTIVES = f"{wordings(*SIZES)}|{either(*COLOURS)}|{wordings(*MATERIALS[1:])}"
OBJECT = re.compile(
    rf"(?P<three>\bthree )?(?:\b(?:an?|the) )?(?P<before>(?:\b(?:{ADJECTIVES}) )*)\b(?P<noun>{either(*NOUNS)})\b"
    rf"(?P<hat> with an? (?P<hat_colour>{either(*COLOURS)} )?hat)?"
    rf"(?P<after>(?: (?:{wordings(*PLACES)}|{wordings(*ROWS)}|{wordings(*MOTIONS)}))*)"
)
OF_SCENE = {
    "balloon": re.compile(
        rf"\ban? (?P<colour>{either(*COLOURS)} )?balloon(?: in the air)?(?P<place> {wordings(*PLACES)})?"
    ),
    "floor": re.compile(rf"\bon an? (?P<value>{either(*FLOORS)}) {wordings('floor')}\b"),
    "sky": re.compile(rf"\bunder an? (?P<value>{either(*SKIES)}) sky\b"),
    "light": re.compile(rf"\bin (?P<value>{either(*LIGHTS)}) light\b"),
    "style": re.compile(rf"\b(?P<value>{wordings(*STYLES[1:])})\b"),
    "camera": re.compile(rf"\b(?P<value>{wordings(*CAMERAS)})\b"),
}
# Words that name nothing: "on a floor" says no more than that there is one.
EMPTY = re.compile(rf"\bon (?:a|the) {wordings('floor')}\b|\bunder (?:a|the) sky\b|\b(?:and|beside)\b")


@dataclass(frozen=True)
class Description:
    """What a prompt names: a scene whose unnamed fields mean nothing, what is named of it, and the wording. `keys` tell
    which objects of two prompts are the same."""

    scene: Scene
    named: Named
    wording: Wording
    keys: tuple[int, ...]

    @property
    def text(self) -> str:
        return caption(self.scene, self.named, self.wording)

    def with_object(self, index: int, names: frozenset[str], **changes: object) -> Description:
        """Return it with fields of one object changed, and these fields of it named."""
        objects, named = list(self.scene.objects), list(self.named.objects)
        objects[index], named[index] = replace(objects[index], **changes), names  # pyright: ignore[reportArgumentType]
        return self.with_objects(objects, named, self.keys)

    def with_objects(
        self, objects: list[Object], named: list[frozenset[str] | None], keys: tuple[int, ...]
    ) -> Description:
        scene = replace(self.scene, objects=tuple(objects))
        return replace(self, scene=scene, named=replace(self.named, objects=tuple(named)), keys=keys)

    def with_another(self, obj: Object, names: frozenset[str], key: int) -> Description:
        """Return it with another object at the end."""
        return self.with_objects([*self.scene.objects, obj], [*self.named.objects, names], (*self.keys, key))

    def with_scene(self, *fields: str, **changes: object) -> Description:
        """Return it with fields of the scene changed, and these named."""
        named = replace(self.named, scene=self.named.scene | set(fields))
        return replace(self, scene=replace(self.scene, **changes), named=named)  # pyright: ignore[reportArgumentType]

    def without_scene(self, *fields: str) -> Description:
        """Return it without these fields of the scene."""
        return replace(self, named=replace(self.named, scene=self.named.scene - set(fields)))


def normalise(text: str) -> str:
    """Return a text in lower case with single spaces, without punctuation, in the grammar's spelling."""
    flat = re.sub(r"[^a-z ]+", " ", text.lower().replace("grey", "gray").replace("'s", ""))
    return re.sub(r"\s+", " ", flat).strip()


def parse_caption(text: str) -> Description:
    """Return what a prompt names. Raises `UserError` where it says something that the grammar does not know, or says
    one thing twice: nothing is skipped."""
    if strange := [word for word in re.findall(r"\w+", text.lower()) if not (word.isascii() and word.isalpha())]:
        raise UserError(_refuse_caption(text, strange))
    flat, positions, scene, fields = normalise(text), {}, Scene((), "gray", "blue"), set()
    wording = parse_wording(text)
    for part, pattern in OF_SCENE.items():
        match = pattern.search(flat)
        if match is None:
            continue
        positions[part] = match.start()
        fields.add(part)
        flat = _blank(flat, match)
        if part == "balloon":
            place = next((p for p in PLACES if match["place"] and match["place"].strip() in WORDS[p]), None)
            scene = replace(scene, balloon=Balloon((match["colour"] or "red").strip(), place or "middle"))
            fields |= ({"balloon colour"} if match["colour"] else set()) | ({"balloon place"} if place else set())
        else:
            scene = replace(scene, **{part: _concept(match["value"])})
    found = []
    for match in OBJECT.finditer(flat):
        before = flat[: match.start()].split()
        if not re.match(r"an?\b|the\b|three\b", match[0]) and before[-1:] not in ([], ["and"], ["beside"]):
            raise UserError(_refuse_caption(text, match[0].split()))
        if match["noun"] in PLURAL_NOUNS and not match["three"]:
            raise UserError(_refuse_caption(text, [match["noun"]]))
        obj, names = read_object(match)
        if obj.material == "gold" and "colour" in names:
            raise UserError(f"{quoted(match[0].strip())} says both {obj.colour!r} and 'gold': leave one of them out")
        found.append((match.start(), obj, names))
    flat = OBJECT.sub(" ", flat)
    if found:
        positions["objects"] = found[0][0]
    left = EMPTY.sub(" ", flat).split()
    if left or not positions:
        raise UserError(_refuse_caption(text, left))
    order = sorted(positions, key=lambda part: positions[part])
    wording = replace(wording, order=(*order, *(part for part in PARTS if part not in positions)))
    scene = replace(scene, objects=tuple(obj for _, obj, _ in found))
    named = Named(tuple(names for *_, names in found), frozenset(fields))
    return Description(scene, named, wording, tuple(range(len(found))))


def is_caption(text: str) -> bool:
    """Return whether a text is a caption of this grammar."""
    try:
        parse_caption(text)
    except UserError:
        return False
    return True


def parse_wording(text: str) -> Wording:
    """Return the wording of a text: the plain one of concepts that it does not name."""
    flat = normalise(text)
    choices = []
    for concept, words in WORDS.items():
        spelled = [(*VERBS.get(concept, ()), word, PLURALS.get(word, f"{word}s")) for word in words]
        if concept in VERBS:  # "hops" and "hop"
            spelled = [(word, verb) for word, verb in zip(words, (VERBS[concept][0], VERBS[concept][-1]), strict=True)]
        hits = [k for k, forms in enumerate(spelled) if re.search(rf"\b{either(*forms)}\b", flat)]
        choices += [(concept, hits[0])] if hits else []
    return Wording(connective=" beside " if " beside " in flat else " and ", choices=tuple(choices))


def _blank(flat: str, match: re.Match[str]) -> str:
    return flat[: match.start()] + " " * (match.end() - match.start()) + flat[match.end() :]


def _concept(words: str) -> str:
    """Return the concept that words are a wording of."""
    return next((concept for concept, wordings in WORDS.items() if words in wordings), words)


def read_concept(text: str, concepts: Iterable[str]) -> str | None:
    """Return the concept that a text names, None where it names none. Raises `UserError` where it names two."""
    hits = sorted((m.start(), m[0], c) for c in concepts for m in re.finditer(rf"\b{wordings(c)}\b", text))
    if len(hits) > 1:
        raise UserError(f"{quoted(text.strip())} says both {hits[0][1]!r} and {hits[1][1]!r}: leave one of them out")
    return hits[0][2] if hits else None


def read_object(match: re.Match[str]) -> tuple[Object, frozenset[str]]:
    """Return the object of a phrase, and which of its fields are named."""
    values: dict[str, object] = {
        "size": read_concept(match["before"], SIZES),
        "colour": read_concept(match["before"], COLOURS),
        "material": read_concept(match["before"], MATERIALS[1:]),
        "place": read_concept(match["after"], PLACES),
        "row": read_concept(match["after"], ROWS),
        "motion": read_concept(match["after"], MOTIONS),
    }
    values = {name: value for name, value in values.items() if value is not None}
    names = set(values)
    if match["hat"]:
        names |= {"hat", "hat colour"} if match["hat_colour"] else {"hat"}
        values["hat"] = (match["hat_colour"] or "red").strip()
    obj = replace(PLAIN, shape=NOUNS[match["noun"]], copies=3 if match["three"] else 1, **values)  # pyright: ignore[reportArgumentType]
    return obj, frozenset(names)


def quoted(text: str) -> str:
    """Return a text in quotes, shortened for a message."""
    return repr(textwrap.shorten(text, 80, placeholder="…"))


def _refuse_caption(text: str, left: list[str]) -> str:
    unknown = [word for word in left if word not in VOCABULARY]
    if unknown:
        fault = f"it does not know {', '.join(map(repr, [*dict.fromkeys(unknown)][:3]))}"
    else:
        fault = f"it does not understand {' '.join(left[:3])!r}" if left else "it names nothing"
    refusal = f"the prompt {quoted(text)} is outside the captions of the built-in model"
    return f"{refusal}: {fault}; an example is {EXAMPLE_PROMPT!r}"
