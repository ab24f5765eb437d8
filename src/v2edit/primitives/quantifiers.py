"""Clauses about several objects, "everything", "both cubes", and about what stands behind or before another: as clauses
about "it"."""

from __future__ import annotations

import re

from v2edit.errors import UserError
from v2edit.primitives.clauses import VERB, each_becomes
from v2edit.primitives.parsing import ADJECTIVES, NOUNS, PLURAL_NOUNS, either, quoted
from v2edit.primitives.references import (
    BESIDE,
    REFERENCE,
    STANDING,
    Beside,
    Pair,
    find_object,
    is_said_of,
    read_reference,
    refer,
    shown,
)
from v2edit.primitives.rules import ASIDE, REMOVE

ALL = re.compile(
    rf"\b(?:everything|(?P<every>all|every|each|both)(?: of)?(?: the)? (?P<what>(?:(?:{ADJECTIVES}) )*"
    rf"(?:{either(*NOUNS)}|objects?|things?|ones?|them)))\b(?P<where>{STANDING})"
)
PLURAL = re.compile(
    rf"\bthe (?P<every>two )?(?P<what>(?:(?:{ADJECTIVES}) )*(?:{either(*PLURAL_NOUNS)}|objects|things|ones))\b"
    rf"(?P<where>{STANDING})"
)
LOCATED = re.compile(rf"(?=\bthe )(?P<thing>{REFERENCE})(?: (?:that|which) is)?{BESIDE}(?P<rest>.*)")


def find_several(pair: Pair, clause: str) -> tuple[list[int], str]:
    """Return the keys of all objects that a clause is about, and the clause about one of them, "it"; no keys where it
    is about one. Raises `UserError` where it is about all of none, or both of not two."""
    match = ALL.search(clause) or PLURAL.search(clause)
    if match is None:
        return [], clause
    told, fields = read_reference(f"{match['what'] or 'thing'}{match['where']}")
    target, are_two = pair.target, match["every"] in ("both", "two ")
    named = list(zip(target.keys, target.scene.objects, target.named.objects, strict=True))
    keys = [key for key, obj, names in named if is_said_of(obj, names, told, fields)]
    if (
        match.re is PLURAL
        and not are_two
        and (len(keys) < 2 or any(obj.copies > 1 for key, obj, _ in named if key in keys))
    ):
        return [], clause
    what = quoted(match[0].strip())
    if re.match(r" (?:behind|before)\b", rest := clause[match.end() :]):
        raise UserError(f"{quoted(clause)} says where {what} is: say which object of {shown(target)} you mean")
    if not keys or (are_two and len(keys) != 2):
        raise UserError(f"the source shows {len(keys) or 'none'} of {what}: it shows {shown(target)}")
    return keys, f"{clause[: match.start()]}it{each_becomes(rest)}"


def find_beside(pair: Pair, clause: str) -> tuple[Pair, str]:
    """Return both prompts with an object that a clause calls by what it stands behind or before, "the cube behind the
    ball", and the clause about "it"; both as they are where the place is where something is to go. Raises `UserError`
    where no object is there."""
    match = LOCATED.search(clause)
    if match is None:
        return pair, clause
    verb, rest = clause[: match.start()], re.sub(ASIDE, "", match["rest"]).strip()
    goes_there = re.fullmatch(rf"(?:{VERB} )+", verb) and not re.match(rf"(?:exchange|swap|switch|{REMOVE})\b", verb)
    if not rest and (goes_there or re.match(r"take\b", verb)):
        return pair, clause
    other = find_object(pair, match["other"])
    obj, names = pair.target.scene.objects[other], pair.target.named.objects[other] or ()
    where = {"place": obj.place, "row": "back" if match["side"] == "behind" else "front"} if "place" in names else {}
    pair, _ = refer(pair, match["thing"], Beside(f"{match['side']} {match['other']}", where, other))
    return pair, f"{verb}it{match['rest']}"
