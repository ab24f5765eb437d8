"""Prompt pairs by grammar: from a source prompt and an instruction about primitives, without a language model."""

from __future__ import annotations

import re
import textwrap
from dataclasses import replace

from v2edit.errors import UserError
from v2edit.primitives.captions import (
    WORDS,
    Wording,
    caption,
    describe_object,
    find_concepts,
    normalise,
    parse_caption,
    parse_wording,
)
from v2edit.primitives.scene import CAMERAS, COLOURS, FLOORS, MOTIONS, PLACES, SHAPES, SIZES, SKIES, Object, Scene
from v2edit.primitives.suggestions import correct_word, suggest_instruction, unknown_words
from v2edit.prompts import PromptPair

ADD = r"\b(?:add|insert|put|place)\b(?! (?:the|it)\b)"
MOVE = r"\b(?:move|add|insert|put|place) (?=(?:the|it)\b)"  # "the" ball exists already: it is moved, not added
DESTINATION = r"\b(?:on|to|in|into) the (left|middle|right)\b"
REMOVE = r"\b(?:remove|delete|erase|take|get rid of)\b"
NEW_THING = r"\b(?:into|with) an? "
QUOTED = 80  # characters of an instruction that a message quotes
RELATIVE = {"bigger": "big", "larger": "big", "smaller": "small", "tiny": "small"}
NOUN = rf"\b(?:{'|'.join([*(w for s in SHAPES for w in WORDS[s]), 'it', 'one', 'object', 'thing'])})s?\b"
VERBS = {"hop": "hop", "bounce": "hop", "stay": "stay", "slide left": "slide left", "slide right": "slide right"}


def edit_prompt(source_prompt: str, instruction: str) -> PromptPair:
    """Apply an instruction to a source prompt; the two prompts of the pair differ only where the edit does. Raises
    `UserError` where one is outside the grammar, or names an object that the source does not have; it proposes an
    instruction where one is near."""
    scene, wording = parse_caption(source_prompt), parse_wording(source_prompt)
    # Concepts that only the instruction names keep its wording; the source's wording comes first.
    wording = replace(wording, choices=parse_wording(instruction).choices + wording.choices)
    try:
        edited = _edit(scene, instruction, wording)
    except UserError as error:
        hint = suggest_instruction(instruction, lambda text: _is_edit(scene, text, wording))
        raise UserError(f"{error}; {hint}" if hint else str(error)) from error
    return PromptPair(caption(scene, wording), caption(edited, wording))


def _edit(scene: Scene, instruction: str, wording: Wording) -> Scene:
    """Apply an instruction to a scene. Raises `UserError` where it is not understood or changes nothing."""
    edited = scene
    if misspelled := [word for word in normalise(instruction).split() if correct_word(word) != word]:
        raise _unknown(misspelled, scene)
    for clause in _clauses(instruction):
        try:
            edited = _apply(edited, clause, instruction)
        except UserError as error:
            if edited == scene:
                raise
            _apply(scene, clause, instruction)  # says what the source shows
            raise UserError(f"{error}, after the changes before") from None
    if edited == scene:
        quoted = textwrap.shorten(instruction, QUOTED, placeholder="…")
        raise UserError(f"the instruction {quoted!r} changes nothing in {caption(scene, wording)!r}")
    return edited


def _is_edit(scene: Scene, instruction: str, wording: Wording) -> bool:
    try:
        return bool(_edit(scene, instruction, wording))
    except UserError:
        return False


def _clauses(instruction: str) -> list[str]:
    """Split an instruction at "and" and "then"; a clause without a verb takes the verb before it."""
    flat = normalise(instruction)
    for relative, size in RELATIVE.items():
        flat = re.sub(rf"\b{relative}\b", size, flat)
    verb, clauses = "", []
    for words in filter(None, map(str.split, re.split(r"\b(?:and|then)\b", flat))):
        if clauses and _is_continued(clauses[-1], words):
            clauses[-1] = " ".join([clauses[-1], *words])
            continue
        if words[0] in ("the", "a", "an") and verb:
            words.insert(0, verb)
        verb = words[0]
        clauses.append(" ".join(words))
    if not clauses:
        raise UserError(
            f"the instruction {instruction!r:.{QUOTED}} has no words that the built-in grammar reads: say in English "
            "what to change, for example 'make the red ball blue'"
        )
    return clauses


def _is_continued(clause: str, words: list[str]) -> bool:
    """Return whether words are only sizes and colours, of a kind that the clause before them gives its object none of:
    "make the ball bigger and green"."""
    changes, further = _cut(clause)[1], " ".join(words)
    kinds = [names for names in (tuple(SIZES), tuple(COLOURS)) if find_concepts(further, names)]
    is_plain = {*COLOURS, *(word for size in SIZES for word in WORDS[size])}.issuperset(words)
    return bool(is_plain and re.search(NOUN, clause)) and not any(find_concepts(changes, names) for names in kinds)


def _apply(scene: Scene, clause: str, instruction: str) -> Scene:
    place = next(iter(find_concepts(clause, tuple(PLACES))), None)
    if (move := re.search(MOVE, clause)) and (destinations := list(re.finditer(DESTINATION, clause))):
        return _move(scene, clause[move.end() : destinations[-1].start()], destinations[-1][1])
    if re.search(ADD, clause) and (new := find_concepts(clause, SHAPES)):
        return _insert(scene, clause, new[0], place)
    if re.search(REMOVE, clause) and find_concepts(clause, (*SHAPES, *COLOURS)):
        removed = _find(scene, clause)
        return replace(scene, objects=tuple(o for k, o in enumerate(scene.objects) if k != removed))
    if find_concepts(clause, ("floor",)) and (floors := find_concepts(clause, tuple(FLOORS))):
        return replace(scene, floor=floors[-1])
    if "sky" in clause.split() and (skies := find_concepts(clause, tuple(SKIES))):
        return replace(scene, sky=skies[-1])
    if "camera" in clause.split() and (cameras := [c for c in CAMERAS if c.split()[-1] in clause.split()]):
        return replace(scene, camera=cameras[0])
    reference, new = _cut(clause)
    subject = _find(scene, reference)
    changes = {
        field: names[-1]
        for field, concepts in (("shape", SHAPES), ("colour", tuple(COLOURS)), ("size", tuple(SIZES)))
        if (names := find_concepts(new, concepts))
    }
    if motions := [motion for verb, motion in VERBS.items() if re.search(rf"\b{verb}s?\b", new)]:
        changes["motion"] = motions[-1]
    if re.search(NEW_THING, clause) and "shape" not in changes and (unknown := unknown_words(new.split()[-1])):
        raise _unknown(unknown, scene)
    if not changes:
        quoted = textwrap.shorten(instruction, QUOTED, placeholder="…")
        raise UserError(
            f"the built-in grammar does not understand {quoted!r}: it knows colours ({', '.join(COLOURS)}), "
            f"shapes ({', '.join(SHAPES)}), sizes, motions, floors ({', '.join(FLOORS)}) and skies ({', '.join(SKIES)})"
        )
    return scene.with_object(subject, **changes)


def _move(scene: Scene, reference: str, place: str) -> Scene:
    subject = _find(scene, reference)
    if any(o.place == place for k, o in enumerate(scene.objects) if k != subject):
        raise UserError(f"there is no room for another object {WORDS[place][0]}")
    moved = scene.with_object(subject, place=place)
    return replace(moved, objects=tuple(sorted(moved.objects, key=lambda o: PLACES[o.place])))


def _insert(scene: Scene, clause: str, shape: str, place: str | None) -> Scene:
    occupied = {o.place for o in scene.objects}
    place = place or next((p for p in ("right", "left", "middle") if p not in occupied), None)
    if place is None or place in occupied:
        raise UserError(f"there is no room for another object {WORDS[place or 'middle'][0]}")
    colours, unknown = find_concepts(clause, tuple(COLOURS)), unknown_words(clause)
    if unknown and not colours:
        raise _unknown(unknown, scene)
    new = Object(
        shape,
        next(iter(colours), "red"),
        next(iter(find_concepts(clause, tuple(SIZES))), "big"),
        place,
        next((m for m in MOTIONS if any(w in clause for w in WORDS[m])), "stay"),
    )
    return replace(scene, objects=tuple(sorted((*scene.objects, new), key=lambda o: PLACES[o.place])))


def _cut(clause: str) -> tuple[str, str]:
    """Split a clause into its object and the change: at "into", "with" or "to", else after the first noun."""
    if match := re.search(r"\b(?:into|with|to|for)\b", clause):
        return clause[: match.start()], clause[match.end() :]
    match = re.search(NOUN, clause)
    return (clause[: match.end()], clause[match.end() :]) if match else (clause, clause)


def _find(scene: Scene, reference: str) -> int:
    """Return the index of the only object that a reference fits. Raises `UserError`."""
    concepts = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(SIZES), "place": tuple(PLACES)}
    attributes = {field: find_concepts(reference, names) for field, names in concepts.items()}
    matches = [
        index
        for index, o in enumerate(scene.objects)
        if all(not names or getattr(o, field) in names for field, names in attributes.items())
    ]
    if (unknown := unknown_words(reference)) and not re.search(NOUN, reference):
        raise _unknown(unknown, scene)
    if len(matches) == 1:
        return matches[0]
    count = "more than one object that fits" if matches else "nothing that fits"
    raise UserError(f"the source shows {count} {reference.strip()!r:.{QUOTED}}: it shows {_describe(scene)}")


def _describe(scene: Scene) -> str:
    return " and ".join(describe_object(o, parse_wording(""), motion=False) for o in scene.objects) or "no object"


def _unknown(words: list[str], scene: Scene) -> UserError:
    """Return the error for words of an instruction that the built-in grammar does not know."""
    names = ", ".join(map(repr, [*dict.fromkeys(words)][:3]))
    return UserError(f"the built-in grammar does not know {names}: the source shows {_describe(scene)}")
