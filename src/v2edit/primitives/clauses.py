"""The clauses of an instruction: a verb and what it is about, one change each."""

from __future__ import annotations

import re
from itertools import pairwise

from v2edit.errors import UserError
from v2edit.primitives.captions import PLURALS, with_article
from v2edit.primitives.parsing import ADJECTIVES, NOUNS, PLURAL_NOUNS, either, quoted
from v2edit.primitives.references import REFERENCE, simplify
from v2edit.primitives.rules import HAT

VERB = either(
    "make", "turn", "paint", "let", "give", "change", "replace", "show", "add", "put", "insert", "place", "hang",
    "remove", "take", "delete", "erase", "get", "move", "bring", "push", "shift", "exchange", "swap", "switch", "stop",
    "set", "keep", "colour", "color", "recolour", "recolor", "dye", "enlarge", "grow", "shrink", "draw",
    "freeze", "zoom",
)  # fmt: skip
# Verbs that say what the object becomes.
REPHRASED = (
    (rf"^(?:enlarge|grow) ({REFERENCE})", r"make \1 big"),
    (rf"^shrink ({REFERENCE})", r"make \1 small"),
    (rf"^(?:stop|freeze) ({REFERENCE})(?: from moving)?$", r"make \1 stay"),
    (rf"^(?:keep|make) ({REFERENCE}) still$", r"make \1 stay"),
)
THING = rf"({REFERENCE}(?: (?:behind|before) {REFERENCE})?)"
EXCHANGE = rf"\b(exchange|swap|switch) (?:(?:the )?(?:places|positions) of )?{THING} and {THING}"
TAKE_AND_PUT = rf"\btake ({REFERENCE}) (?:and )?(?:then )?(move|put|place|bring|push) it\b"
SINGULAR = {PLURALS.get(word, f"{word}s"): word for word in NOUNS if word not in PLURAL_NOUNS}


def split_clauses(instruction: str) -> list[str]:
    """Split an instruction at "and", "then" and commas before verbs and things. A part without a verb takes the verb
    before it, or goes on with what the object before it becomes."""
    text = re.sub(rf"[,;.:!?]\s*(?:and\s+)?(?=(?:then )?(?:{VERB}|the)\b)", " and ", instruction.lower())
    flat = re.sub(TAKE_AND_PUT, r"\2 \1", re.sub(EXCHANGE, r"\1 \2 with \3", simplify(text)))
    clauses: list[str] = []
    for part in filter(None, map(str.strip, re.split(r"\b(?:and|then)\b", flat))):
        if not clauses or re.match(rf"{VERB}\b", part):
            clauses.append(part)
        elif re.match(rf"(?:the|an?|three|another|it)\b|{REFERENCE}", part):
            clauses.append(f"{clauses[-1].split()[0]} {part}")
        else:
            clauses[-1] += f" {part}"
    if not clauses:
        raise UserError(
            f"the instruction {quoted(instruction)} has no words that the built-in grammar reads: say in English what "
            "to change, for example 'make the red ball blue'"
        )
    return _share_words(clauses)


def rephrase(clause: str) -> str:
    """Return a clause whose verb says what an object becomes in the words of the rules."""
    for pattern, words in REPHRASED:
        clause = re.sub(pattern, words, clause)
    return clause


def each_becomes(words: str) -> str:
    """Return what each of several objects becomes: "into cubes" is into a cube each."""
    several = rf"\b(three )?((?:(?:{ADJECTIVES}) )*)({either(*SINGULAR)})\b"
    return re.sub(several, lambda m: m[0] if m[1] else with_article(m[2] + SINGULAR[m[3]]), words)


def _share_words(clauses: list[str]) -> list[str]:
    """Say of each of several things what stands behind the last, "make the ball and the cube red", or before the first,
    "put a hat on the ball and the cube"."""
    shared = clauses[:]
    for k in range(len(clauses) - 2, -1, -1):
        last = re.match(rf"({VERB}) {REFERENCE}(?P<rest> .+)", shared[k + 1])
        if last and re.fullmatch(rf"{last[1]} {REFERENCE}", shared[k]):
            shared[k + 1] = shared[k + 1][: last.start("rest")] + each_becomes(last["rest"])
            shared[k] += each_becomes(last["rest"])
    for k, (before, after) in enumerate(pairwise(shared[:])):
        first = re.fullmatch(rf"(({VERB}) {HAT} (?:on|onto|to|for) ){REFERENCE}", before)
        if first and (thing := re.fullmatch(rf"{first[2]} ({REFERENCE})", after)):
            shared[k + 1] = first[1] + thing[1]
    return shared
