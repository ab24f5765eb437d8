"""What instructions call objects and places: "the red one", "it", "the ball on the left", "behind the cube"."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from v2edit.errors import UserError
from v2edit.primitives.captions import WORDS, describe_object
from v2edit.primitives.parsing import (
    ADJECTIVES,
    NOUNS,
    OBJECT,
    PLAIN,
    Description,
    either,
    normalise,
    quoted,
    read_concept,
    read_object,
    wordings,
)
from v2edit.primitives.scene import COLOURS, PLACES, ROWS, SIZES, Object

ANYTHING = ("one", "object", "thing", "it")
REFERRED = ("shape", "colour", "size", "place", "row", "material", "copies", "hat")  # what a reference may tell
NOUN = either(*NOUNS, *ANYTHING)
STANDING = rf"(?: (?:{wordings(*PLACES)}|{wordings(*ROWS)}))*"  # "on the left in the back"
REFERENCE = (
    rf"(?:\bthe |\bit\b)?(?:three )?(?:(?:{ADJECTIVES}) )*\b(?:{NOUN})\b"
    rf"(?: with an? (?:{either(*COLOURS)} )?hat)?{STANDING}"
)
POLITE = (
    r"\b(?:please|kindly|now|just|also|instead|again|(?:can|could|would|will) you|should(?: be(?:come)?)?"
    r"|i (?:want|(?:would|d) like)(?: you)?(?: to)?)\b"
)
# What people write in an instruction, and the same in the grammar's words.
SPELLINGS = (
    (r"\b(?:let )?there (?:should )?be\b", "add"),
    (POLITE, ""),
    (r"\bits\b", "it"),
    (rf"(?<!the )(?<!all )\b((?:{either(*COLOURS)} )?)hats\b", r"a \1hat"),
    (r"\b(?:bigger|larger|huge|giant|enormous)\b", "big"),
    (r"\b(?:smaller|tiny)\b", "small"),
    (r"\bcent(?:er|re)\b", "middle"),
    (r"\bwith the (\w+ hat|hat)\b", r"with a \1"),
    (r"\bin (?:the )?front of\b", "before"),
    (r"\bwhat (?:is|stands) (?=behind|before)", "the thing "),
    (r"\b(?:at|in|on) the (?:front|foreground)\b", "in front"),
    (r"\b(?:at|on) the back\b|\bin back\b|\bin the background\b", "in the back"),
    (r"\b(?:at|in) the (left|right)\b", r"on the \1"),
    (r"\b(?:at|on) the middle\b", "in the middle"),
    (rf"\bgolden(?= (?:{NOUN})\b)", "gold"),
    (rf"\b((?:(?:{ADJECTIVES}) )*(?:{NOUN})) from (\w+) (?:in)?to\b", r"\2 \1 to"),
    (r"\b(floor|ground|sky|light|hat|balloon|colou?r) from \w+ (?:in)?to\b", r"\1 to"),
    # "the left ball"
    (rf"\bthe (left|right) ((?:(?:{ADJECTIVES}) )*(?:{NOUN}))\b", r"the \2 on the \1"),
    (rf"\bthe (middle|back) ((?:(?:{ADJECTIVES}) )*(?:{NOUN}))\b", r"the \2 in the \1"),
    (rf"\bthe front ((?:(?:{ADJECTIVES}) )*(?:{NOUN}))\b", r"the \1 in front"),
)


@dataclass(frozen=True)
class Pair:
    """Both prompts while the clauses of an instruction are applied, and the key of the object that the last one was
    about: "it"."""

    source: Description
    target: Description
    subject: int | None = None

    def with_target(self, target: Description, subject: int | None = None) -> Pair:
        return replace(self, target=target, subject=subject)


def simplify(text: str) -> str:
    """Return an instruction, normalised, in the grammar's words."""
    flat = normalise(text)
    for pattern, words in SPELLINGS:
        flat = re.sub(pattern, words, flat)
    return normalise(flat)


def phrase_of(description: Description, k: int) -> str:
    """Return what a prompt says of an object, but not how it moves."""
    names = description.named.objects[k] or frozenset()
    return describe_object(description.scene.objects[k], names - {"motion"}, description.wording)


def shown(description: Description) -> str:
    """Return what objects a prompt names, for a message."""
    count = len(description.scene.objects)
    return " and ".join(phrase_of(description, k) for k in range(count)) or "no object"


@dataclass(frozen=True)
class Beside:
    """What "behind the cube" tells of an object: the place and the row, where the prompt says where the cube is, and
    which object the cube is."""

    words: str
    where: dict[str, str]
    other: int


def refer(pair: Pair, reference: str, beside: Beside | None = None) -> tuple[Pair, int]:
    """Return both prompts, with what a reference tells of its object, and the object's index in the target. Raises
    `UserError` where no object fits or several do."""
    k = find_object(pair, reference, beside)
    told, fields = read_reference(reference, beside)
    source, target = pair.source, pair.target
    before = target.named.objects[k] or frozenset()
    key, added = target.keys[k], fields - before - {"shape", "copies"}
    if added:
        values = {field: getattr(told, field) for field in added - {"hat colour"}}
        values |= {"hat": told.hat} if "hat colour" in added else {}
        target = target.with_object(k, before | added, **values)
        if key in source.keys:
            i = source.keys.index(key)
            source = source.with_object(i, (source.named.objects[i] or frozenset()) | added, **values)
    return Pair(source, target, key), k


def find_object(pair: Pair, reference: str, beside: Beside | None = None) -> int:
    """Return the index in the target of the object that a reference fits: of those that nothing contradicts, the one
    that the prompt says most of. Raises `UserError` where that is not one."""
    target = pair.target
    if reference.strip() == "it" and pair.subject is not None:
        if pair.subject not in target.keys:
            raise UserError(f"{quoted('it')} is gone: say which object of {shown(target)} you mean")
        return target.keys.index(pair.subject)
    told, fields = read_reference(reference, beside)
    fits: list[tuple[int, int]] = []
    for k, (obj, names) in enumerate(zip(target.scene.objects, target.named.objects, strict=True)):
        known = (names or frozenset()) | {"shape", "copies"}
        common = [field for field in REFERRED if field in fields & known]
        if "hat colour" not in fields & known:
            common = [field for field in common if field != "hat"]
        if all(getattr(obj, field) == getattr(told, field) for field in common) and not (
            (beside and k == beside.other) or _is_gold_and_coloured(told, fields, obj, known)
        ):
            fits.append((len(common), k))
    best = max(fits, default=(0, -1))[0]
    ties = [k for count, k in fits if count == best]
    if len(ties) == 1:
        return ties[0]
    found = "more than one object that fits" if ties else "nothing that fits"
    hint = "; say which by its colour, shape or place" if ties else ""
    called = f"{reference} {beside.words}" if beside else reference
    raise UserError(f"the source shows {found} {quoted(called.strip())}: it shows {shown(target)}{hint}")


def _is_gold_and_coloured(one: Object, fields: frozenset[str], other: Object, known: frozenset[str]) -> bool:
    """Return whether one of two is said to be of gold and the other to have a colour, which gold has not."""
    of_gold = ("material" in fields and one.material == "gold", "material" in known and other.material == "gold")
    return (of_gold[0] and "colour" in known) or (of_gold[1] and "colour" in fields)


def is_said_of(obj: Object, names: frozenset[str] | None, told: Object, fields: frozenset[str]) -> bool:
    """Return whether a prompt says of an object, of which it names these fields, all that a reference tells."""
    known = (names or frozenset()) | {"shape", "copies"}
    return fields <= known and all(getattr(obj, field) == getattr(told, field) for field in fields)


def read_reference(reference: str, beside: Beside | None = None) -> tuple[Object, frozenset[str]]:
    """Return what a reference says of an object, and the fields that it tells."""
    if beside:
        told, fields = read_reference(reference)
        return replace(told, **beside.where), fields | set(beside.where)
    match = OBJECT.search(reference)
    if match is None:  # "the red one"
        concepts = {"colour": COLOURS, "size": SIZES, "place": PLACES, "row": ROWS}
        told = {field: read_concept(reference, values) for field, values in concepts.items()}
        told = {name: value for name, value in told.items() if value}
        return replace(PLAIN, **told), frozenset(told)
    obj, names = read_object(match)
    return obj, names | {"shape"} | ({"copies"} if match["three"] else set())


def find_wearer(pair: Pair, colour: str) -> tuple[Pair, int]:
    """Return both prompts and the index of the only object with a hat (of a colour, unless that is empty). Raises
    `UserError`."""
    named = zip(pair.target.scene.objects, pair.target.named.objects, strict=True)
    wearers = [
        k
        for k, (obj, names) in enumerate(named)
        if names and "hat" in names and (not colour or "hat colour" not in names or obj.hat == colour)
    ]
    if len(wearers) == 1:
        return replace(pair, subject=pair.target.keys[wearers[0]]), wearers[0]
    which = "more than one hat" if wearers else f"no {colour} hat".replace("  ", " ")
    raise UserError(f"the source shows {which}: it shows {shown(pair.target)}; say whose, as 'the hat of the ball'")


# --- places ---------------------------------------------------------------------------------------

WHERE = r"(?: (?:(?:on|to|in|into)(?: the)? )?(?:left|middle|right)(?: side)?)"
ROW = r"(?: (?:(?:to|in|into)(?: the)? )?(?:front|back))"
BESIDE = rf"(?: (?P<side>behind|before) (?P<other>{REFERENCE}))"
DESTINATION = rf"(?P<where>{WHERE}{ROW}?|{ROW}{WHERE}?|{BESIDE})"


def read_destination(pair: Pair, match: re.Match[str]) -> dict[str, str]:
    """Return the place and the row, as far as they are told, of a match of DESTINATION. Raises `UserError`."""
    if match["side"]:
        k = find_object(pair, match["other"])
        obj = pair.target.scene.objects[k]
        if "place" not in (pair.target.named.objects[k] or ()):
            raise UserError(
                f"the source prompt does not say where {quoted(match['other'].strip())} is: name it there, "
                "for example 'on the left'"
            )
        return {"place": obj.place, "row": "back" if match["side"] == "behind" else "front"}
    words = match["where"].split()
    told = {"place": next((w for w in words if w in PLACES), None), "row": next((w for w in words if w in ROWS), None)}
    return {field: value for field, value in told.items() if value}


def occupant(description: Description, place: str, row: str | None, but: int | None = None) -> int | None:
    """Return the index of the object that a prompt names at a place and a row (None: in either), None where it names
    none. A row that goes without saying is the front."""
    for k, (obj, names) in enumerate(zip(description.scene.objects, description.named.objects, strict=True)):
        names = names or frozenset()
        is_there = k != but and "place" in names and obj.place == place
        if is_there and row in (None, obj.row if "row" in names else "front"):
            return k
    return None


def refuse_place(description: Description, taken: int, place: str, row: str | None, way_out: str) -> UserError:
    """Return the error for a place where there is no room, with what is possible instead."""
    where = f"{WORDS[place][0]} {WORDS[row][0]}" if row else WORDS[place][0]
    there = phrase_of(description, taken)
    return UserError(f"there is no room for another object {where}, where the source shows {there}: {way_out}")
