"""The grammar of instructions: the prompt pair of a source prompt and what is to change, without a language model.

What an instruction tells of an object is added to the source prompt where that leaves it out, so that both prompts name
what the edit changes.
"""

from __future__ import annotations

import re
from dataclasses import replace

from v2edit.errors import UserError
from v2edit.primitives.captions import LEFT_OUT, TEXT_LENGTH, count_words
from v2edit.primitives.clauses import rephrase, split_clauses
from v2edit.primitives.parsing import Description, normalise, parse_caption, parse_wording, quoted
from v2edit.primitives.quantifiers import find_beside, find_several
from v2edit.primitives.references import Pair, shown, simplify
from v2edit.primitives.rules import apply_clause
from v2edit.primitives.scene import COLOURS, SHAPES
from v2edit.primitives.suggestions import correct_word, suggest_instruction, unknown_words
from v2edit.prompts import PromptPair


def edit_prompt(source_prompt: str, instruction: str) -> PromptPair:
    """Return the prompt pair of an instruction: the source prompt, with what the instruction tells of its objects, and
    the same with the change. Raises `UserError` where one of them is outside the grammar, where a reference is not
    clear, and where nothing changes; it proposes an instruction where one is near."""
    source = parse_caption(source_prompt)
    spoken = parse_wording(instruction)  # for what the source prompt does not name; its own words come first
    source = replace(source, wording=replace(source.wording, choices=spoken.choices + source.wording.choices))
    try:
        pair = _shorten(_edit(source, instruction))
    except UserError as error:
        hint = suggest_instruction(instruction, lambda text: _is_edit(source, text))
        raise UserError(f"{error}; {hint}" if hint else str(error)) from error
    return PromptPair(pair.source.text, pair.target.text)


def understands(source_prompt: str, instruction: str) -> bool:
    """Return whether `edit_prompt` makes a pair of this. Raises `UserError` for a prompt outside the grammar."""
    return _is_edit(parse_caption(source_prompt), instruction)


def _edit(source: Description, instruction: str) -> Pair:
    """Apply an instruction to a prompt. Raises `UserError`."""
    if unknown := unknown_words(simplify(instruction)) + [
        w for w in normalise(instruction).split() if correct_word(w) != w
    ]:
        names = ", ".join(map(repr, [*dict.fromkeys(unknown)][:3]))
        raise UserError(f"the built-in grammar does not know {names}: the source shows {shown(source)}")
    if negated := re.search(r"\b(?:\w+ )?not (?!mov)\w+", simplify(instruction)):
        raise UserError(f"it is asked what is not to be, {quoted(negated[0])}: say what is to be instead")
    pair = start = Pair(source, source)
    for clause in split_clauses(instruction):
        try:
            changed = _apply(pair, clause)
        except UserError as error:
            if pair.target == source:
                raise
            _apply(start, clause)  # says what the source shows
            raise UserError(f"{error}, after the changes before") from None
        if changed is None:
            raise UserError(
                f"the built-in grammar does not understand {quoted(clause)}: it adds, removes, moves, exchanges and "
                f"multiplies objects ({', '.join(SHAPES)}), gives them colours ({', '.join(COLOURS)}), sizes, motions, "
                "materials and hats, and changes floor, sky, light, camera and style"
            )
        pair = changed
    if not pair.target.named.scene and not pair.target.scene.objects:
        raise UserError(
            f"nothing is left of {pair.source.text!r} after {quoted(instruction)}: name something that stays in the "
            "source prompt, for example 'on a gray floor'"
        )
    if pair.source.text == pair.target.text:
        raise UserError(f"the instruction {quoted(instruction)} changes nothing in {pair.source.text!r}")
    return pair


def _apply(pair: Pair, clause: str) -> Pair | None:
    """Apply a clause to each object that it is about, also to what stands behind another. Raises `UserError`."""
    keys, about_each = find_several(pair, clause)
    if not keys:
        pair, clause = find_beside(pair, clause)
        return apply_clause(pair, rephrase(clause))
    for key in keys:
        if (changed := apply_clause(replace(pair, subject=key), rephrase(about_each))) is None:
            return None
        pair = changed
    return pair


def _is_edit(source: Description, instruction: str) -> bool:
    try:
        return bool(_edit(source, instruction))
    except UserError:
        return False


def _shorten(pair: Pair) -> Pair:
    """Leave out of both prompts what is the same in both, until the text encoder reads them whole."""
    for field, value in LEFT_OUT:
        if max(count_words(one.text) for one in (pair.source, pair.target)) < TEXT_LENGTH:
            break
        pair = _without(pair, field, value)
    return pair


def _without(pair: Pair, field: str, value: str | None) -> Pair:
    """Return both prompts without a field (of objects or of the scene) where they agree on it and it has a value (None:
    any)."""
    ones = (pair.source, pair.target)
    if field in pair.source.named.scene & pair.target.named.scene:
        values = {getattr(one.scene, field.split()[0]) for one in ones}
        if len(values) == 1 and value in (None, *values):
            ones = tuple(one.without_scene(field) for one in ones)
    for key in set(pair.source.keys) & set(pair.target.keys):
        i, j = (one.keys.index(key) for one in ones)
        objects = [one.scene.objects[k] for one, k in zip(ones, (i, j), strict=True)]
        named = [one.named.objects[k] or frozenset() for one, k in zip(ones, (i, j), strict=True)]
        values = {getattr(obj, field.split()[0], None) for obj in objects}
        if all(field in names for names in named) and len(values) == 1 and value in (None, *values):
            ones = tuple(one.with_object(k, names - {field}) for one, k, names in zip(ones, (i, j), named, strict=True))
    return replace(pair, source=ones[0], target=ones[1])
