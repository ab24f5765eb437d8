"""The grammar of instructions: the prompt pair of a source prompt and what is to change.

What an instruction refers to is added to the source prompt where that leaves it out, so that both prompts name what the
edit changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from recipes.world.captions import describe_object
from recipes.world.parsing import (
    ADJECTIVES,
    NOUNS,
    OBJECT,
    OF_SCENE,
    PLAIN,
    VERBS,
    Description,
    either,
    first_concept,
    normalise,
    parse_caption,
    parse_wording,
    read_object,
    wordings,
)
from recipes.world.scene import (
    CAMERAS,
    COLOURS,
    FLOORS,
    LIGHTS,
    MATERIALS,
    PLACES,
    ROWS,
    SIZES,
    SKIES,
    STYLES,
    Balloon,
    Object,
)
from v2edit.errors import UserError
from v2edit.prompts import PromptPair

ANYTHING = ("one", "object", "thing", "it")
REFERRED = ("shape", "colour", "size", "place", "row", "material", "copies", "hat")  # what a reference may tell
RELATIVE_SIZES = {"bigger": "big", "larger": "big", "smaller": "small", "tiny": "small"}
REFERENCE = (
    rf"(?:the |it\b)?(?:three )?(?:(?:{ADJECTIVES}) )*(?:{either(*NOUNS, *ANYTHING)})\b"
    rf"(?: with an? (?:{either(*COLOURS)} )?hat)?(?: (?:{wordings(*PLACES)}|{wordings(*ROWS)}))*"
)
ADD = either("add", "put", "insert", "place", "hang")
REMOVE = either("remove", "take", "delete", "erase", "get rid of")
VERB = either(
    "make", "turn", "paint", "let", "give", "change", "replace", "show", "add", "put", "insert", "remove", "take",
    "delete",
)  # fmt: skip

Pair = tuple[Description, Description]  # the source's and the target's


def edit_prompt(source_prompt: str, instruction: str) -> PromptPair:
    """Return the prompt pair of an instruction: the source prompt, with what the instruction refers to, and the same
    with the change. Raises `UserError` where one of them is outside the grammar, where a reference is not clear, and
    where nothing changes."""
    source = parse_caption(source_prompt)
    spoken = parse_wording(instruction)  # for what the source prompt does not name; its own words come first
    source = replace(source, wording=replace(source.wording, choices=spoken.choices + source.wording.choices))
    target = source
    for clause in _clauses(instruction):
        source, target = _apply(source, target, clause)
    if not target.named.scene and all(names is None for names in target.named.objects):
        raise UserError(f"nothing is left in {source.text!r} after {instruction!r:.80}: name something that stays")
    if source.text == target.text:
        raise UserError(f"the instruction {instruction!r:.80} changes nothing in {source.text!r}")
    return PromptPair(source.text, target.text)


def _clauses(instruction: str) -> list[str]:
    """Return the instruction's clauses: what "and" joins that begins with a verb of its own, or goes on with what to
    make of the same object."""
    flat = normalise(instruction)
    for relative, size in RELATIVE_SIZES.items():
        flat = re.sub(rf"\b{relative}\b", size, flat)
    if re.match(rf"{either('exchange', 'swap', 'switch')}\b", flat):
        return [flat]
    clauses: list[str] = []
    for part in re.split(r"\b(?:and|then)\b", flat):
        text = part.strip()
        if not text:
            continue
        if clauses and not re.match(rf"{VERB}\b", text):
            first = re.match(rf"({VERB}) ({REFERENCE})", clauses[0])
            text = f"{first[1]} {first[2]} {text}" if first else f"{clauses[0].split()[0]} {text}"
        clauses.append(text)
    if not clauses:
        raise UserError(f"the instruction {instruction!r:.80} says nothing: 'make the red ball blue' is one")
    return clauses


def _apply(source: Description, target: Description, clause: str) -> Pair:
    """Return both prompts after a clause."""
    for rule in (_exchange, _hang, _wear, _multiply, _change_scene, _insert, _remove, _change_object):
        if (result := rule(source, target, clause)) is not None:
            return result
    raise UserError(
        f"the built-in grammar does not understand {clause!r:.80}: it adds, removes, exchanges and multiplies objects, "
        "gives them colours, shapes, sizes, motions, materials and hats, and changes floor, sky, light and style"
    )


def _exchange(source: Description, target: Description, clause: str) -> Pair | None:
    match = re.match(rf"(?:exchange|swap|switch) ({REFERENCE}) (?:and|with|for) ({REFERENCE})$", clause)
    if match is None:
        return None
    for text in (match[1], match[2]):
        source, target, _ = _refer(source, target, text)
    i, j = (_find(target, text) for text in (match[1], match[2]))
    if i is None or j is None or i == j:
        raise UserError(f"{clause!r:.80} does not say which two objects are exchanged")
    objects, named = list(target.scene.objects), list(target.named.objects)
    if "place" not in (named[i] or ()) or "place" not in (named[j] or ()):
        raise UserError(
            "the source prompt must say where the two objects stand that are exchanged: left, middle, right"
        )
    objects[i], objects[j] = (
        replace(objects[j], place=objects[i].place), replace(objects[i], place=objects[j].place)
    )  # fmt: skip
    named[i], named[j] = named[j], named[i]
    keys = list(target.keys)
    keys[i], keys[j] = keys[j], keys[i]
    return source, target.with_objects(objects, named, tuple(keys))


def _hang(source: Description, target: Description, clause: str) -> Pair | None:
    match = re.search(rf"\b{ADD} (?P<thing>{OF_SCENE['balloon'].pattern})", clause)
    if match is None:
        return None
    place = first_concept(match["place"] or "", tuple(PLACES))
    fields = {"balloon", *(["balloon colour"] if match["colour"] else []), *(["balloon place"] if place else [])}
    balloon = Balloon((match["colour"] or "red").strip(), place or "middle")
    return source, target.with_scene(*fields, balloon=balloon)


def _wear(source: Description, target: Description, clause: str) -> Pair | None:
    hat = rf"an? (?:({either(*COLOURS)}) )?hat"
    if match := re.search(rf"{hat} on ({REFERENCE})", clause):
        colour, reference = match[1], match[2]
    elif match := re.search(rf"\bgive ({REFERENCE}) {hat}", clause):
        reference, colour = match[1], match[2]
    else:
        return None
    source, target, k = _refer(source, target, reference)
    names = (target.named.objects[k] or frozenset()) | ({"hat", "hat colour"} if colour else {"hat"})
    return source, target.with_object(k, names, hat=colour or "red")


def _multiply(source: Description, target: Description, clause: str) -> Pair | None:
    match = re.search(rf"({REFERENCE}) (?:into|with|by) three(?: ({either(*NOUNS)}))?", clause)
    if match is None:
        return None
    source, target, k = _refer(source, target, match[1])
    names = (target.named.objects[k] or frozenset()) - {"size"}
    shape = NOUNS[match[2]] if match[2] else target.scene.objects[k].shape
    return source, target.with_object(k, names, copies=3, size="big", shape=shape)


def _change_scene(source: Description, target: Description, clause: str) -> Pair | None:
    if value := first_concept(clause, STYLES[1:]):
        return source, target.with_scene("style", style=value)
    for field, word, values in (
        ("floor", wordings("floor"), FLOORS),
        ("sky", "sky", SKIES),
        ("light", "light", LIGHTS),
    ):
        if match := re.search(rf"\bthe {word}\b(.*)", clause):
            if value := first_concept(match[1], tuple(values)):
                return source, target.with_scene(field, **{field: value})
            raise UserError(f"{clause!r:.80} says no {field} that is known: {', '.join(values)}")
    if "the camera" in clause:
        for camera in CAMERAS:
            if all(re.search(rf"\b{word[:3]}", clause) for word in camera.split()):
                return source, target.with_scene("camera", camera=camera)
    return None


def _insert(source: Description, target: Description, clause: str) -> Pair | None:
    match = re.match(rf"{ADD} (?={either('a', 'an', 'three')} )", clause)
    found = OBJECT.match(clause, match.end()) if match else None
    if found is None:
        return None
    new, names = read_object(found)
    return source, target.with_another(new, names, _new_key(source, target))


def _remove(source: Description, target: Description, clause: str) -> Pair | None:
    match = re.match(rf"{REMOVE} ({REFERENCE})", clause)
    if match is None:
        return None
    source, target, k = _refer(source, target, match[1])
    objects, named = list(target.scene.objects), list(target.named.objects)
    del objects[k], named[k]
    return source, target.with_objects(objects, named, (*target.keys[:k], *target.keys[k + 1 :]))


def _change_object(source: Description, target: Description, clause: str) -> Pair | None:
    match = re.search(rf"({REFERENCE}) ?(.*)", clause)
    if match is None:
        return None
    new = match[2]
    values: dict[str, object] = {
        "shape": next((NOUNS[word] for word in new.split() if word in NOUNS), None),
        "colour": first_concept(new, tuple(COLOURS)),
        "size": first_concept(new, tuple(SIZES)),
        "material": first_concept(new, MATERIALS[1:]),
        "motion": next((m for m, verbs in VERBS.items() if re.search(rf"\b{either(*verbs)}", new)), None),
    }
    values = {name: value for name, value in values.items() if value is not None}
    if not values:
        return None
    source, target, k = _refer(source, target, match[1])
    names = (target.named.objects[k] or frozenset()) | (set(values) - {"shape"})
    if values.get("material") == "gold":
        names -= {"colour"}
    return source, target.with_object(k, names, **values)


def _refer(source: Description, target: Description, reference: str) -> tuple[*Pair, int]:
    """Return both prompts, with what a reference tells of its object, and the object's index in the target. An object
    that the prompts leave out is added to both. Raises `UserError`."""
    k = _find(target, reference)
    told, fields = _read_reference(reference)
    if k is None:
        if "shape" not in fields:
            raise UserError(f"the source prompt names nothing that fits {reference!r:.80}")
        key = _new_key(source, target)
        source, target = (one.with_another(told, fields - {"shape", "copies"}, key) for one in (source, target))
        return source, target, len(target.scene.objects) - 1
    before = target.named.objects[k] or frozenset()
    added = fields - before - {"shape", "copies"}
    if added:
        values = {field: getattr(told, field) for field in added}
        target = target.with_object(k, before | added, **values)
        if target.keys[k] in source.keys:
            i = source.keys.index(target.keys[k])
            source = source.with_object(i, (source.named.objects[i] or frozenset()) | added, **values)
    return source, target, k


def _new_key(source: Description, target: Description) -> int:
    return 1 + max((*source.keys, *target.keys), default=-1)


def _read_reference(reference: str) -> tuple[Object, frozenset[str]]:
    """Return what a reference says of an object, and the fields that it tells."""
    match = OBJECT.search(reference)
    if match is None:  # "the red one"
        concepts = {"colour": COLOURS, "size": SIZES, "place": PLACES, "row": ROWS}
        told = {field: first_concept(reference, tuple(values)) for field, values in concepts.items()}
        told = {name: value for name, value in told.items() if value}
        return replace(PLAIN, **told), frozenset(told)
    obj, names = read_object(match)
    return obj, names | {"shape"} | ({"copies"} if match["three"] else set())


def _find(description: Description, reference: str) -> int | None:
    """Return the index of the object that a reference fits, None where the prompt leaves it out: of those that nothing
    contradicts, the one that the prompt says most of. Raises `UserError` where that is not one."""
    told, fields = _read_reference(reference)
    fits: list[tuple[int, int]] = []
    for k, (obj, names) in enumerate(zip(description.scene.objects, description.named.objects, strict=True)):
        known = (names or frozenset()) | {"shape", "copies"}
        common = [field for field in REFERRED if field in fields & known]
        contradicts = told.material == "gold" and "colour" in known  # gold has no other colour
        if all(getattr(obj, field) == getattr(told, field) for field in common) and not contradicts:
            fits.append((len(common), k))
    best = max(fits, default=(0, -1))[0]
    ties = [k for count, k in fits if count == best]
    if len(ties) > 1:
        shown = " and ".join(_phrases(description))
        raise UserError(f"more than one object fits {reference!r:.80}: the source prompt names {shown}")
    return ties[0] if ties else None


def _phrases(description: Description) -> Iterator[str]:
    for obj, names in zip(description.scene.objects, description.named.objects, strict=True):
        if names is not None:
            yield describe_object(obj, names, description.wording)
