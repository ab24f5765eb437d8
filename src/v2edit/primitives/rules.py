"""The rules of the grammar of instructions: each takes both prompts and a clause, and returns them with the change, or
None where the clause is not of its kind."""

from __future__ import annotations

import re
from dataclasses import replace

from v2edit.errors import UserError
from v2edit.primitives.captions import WORDS
from v2edit.primitives.parsing import (
    NOUNS,
    OBJECT,
    OF_SCENE,
    PLURAL_NOUNS,
    either,
    quoted,
    read_concept,
    read_object,
    wordings,
)
from v2edit.primitives.references import (
    DESTINATION,
    REFERENCE,
    Pair,
    find_wearer,
    occupant,
    phrase_of,
    read_destination,
    refer,
    refuse_place,
    shown,
)
from v2edit.primitives.scene import CAMERAS, COLOURS, FLOORS, LIGHTS, MOTIONS, PLACES, SIZES, SKIES, Balloon

ADD = either("add", "put", "insert", "place", "hang")
REMOVE = either("remove", "take", "delete", "erase", "get rid of")
MOVE = either("move", "put", "place", "bring", "push", "shift", "add", "insert", "take")
# Words behind an object that say nothing of it.
SURROUNDINGS = rf" (?:on|under|in|from) (?:an?|the) (?:\w+ )?(?:{wordings('floor')}|sky|light)\b"
ASIDE = rf"{SURROUNDINGS}| (?:(?:of|in|from|to|into) the (?:scene|picture|video|clip|air)|here|there|too|side|up)\b"
COLOUR = either(*COLOURS)
HAT = rf"an? (?:(?P<hat_colour>{COLOUR}) )?hat"
THE_BALLOON = rf"\b(?:the|it) (?:{COLOUR} )?balloon\b"
SLIDE = either("slide", "glide", "move", "go", "roll")
MOTIONS_OF_VERBS = {
    "stay": r"stay|stand|rest|stop|not move", "slide left": rf"{SLIDE} (?:to the )?left",
    "slide right": rf"{SLIDE} (?:to the )?right", "hop": r"hop|bounce|jump",
}  # fmt: skip
MATERIALS_OF_WORDS = {"gold": r"gold|golden|golden metal", "glass": r"glass", "matt": r"matt|matte"}
STYLES_OF_WORDS = {
    "night": r"night|nighttime|midnight", "snow": r"snow|snowy|snowing|snows|winter",
    "pencil": r"pencil|sketch|drawing|drawn", "photo": r"photo|photograph|realistic|day|daytime|daylight",
}  # fmt: skip
MOST_OBJECTS = 4  # of a clip, as `sample_scene` makes them
CAMERAS_OF_WORDS = {
    "still": r"still|stop|not move|fixed", "orbit": r"orbits?|circles?", "pan": r"pans?|turns?",
    "come nearer": r"nearer|closer|moves? in|zooms?(?! out)",
}  # fmt: skip


def apply_clause(pair: Pair, clause: str) -> Pair | None:
    """Return both prompts after a clause, None where no rule understands it. Raises `UserError` where it cannot be
    followed."""
    for rule in RULES:
        if (result := rule(pair, clause)) is not None:
            return result
    return None


# --- the scene ------------------------------------------------------------------------------------


def _exchange(pair: Pair, clause: str) -> Pair | None:
    match = re.match(rf"(?:exchange|swap|switch) ({REFERENCE}) (?:with|for) ({REFERENCE})$", clause)
    if match is None:
        return None
    keys = []
    for text in (match[1], match[2]):
        told, k = refer(pair, text)
        keys.append(told.target.keys[k])
        pair = replace(told, subject=pair.subject)  # "it" is what it was
    target = pair.target
    i, j = map(target.keys.index, keys)
    objects, named = list(target.scene.objects), list(target.named.objects)
    if i == j:
        raise UserError(f"{quoted(clause)} names one object twice: name two, 'exchange the ball and the cube'")
    if "place" not in (named[i] or ()) or "place" not in (named[j] or ()):
        raise UserError(
            "objects are exchanged where the source prompt says where both are, for example 'a ball on the left and a "
            f"cube on the right': it shows {shown(target)}"
        )
    a, b = objects[i], objects[j]
    objects[i], objects[j] = replace(b, place=a.place, row=a.row), replace(a, place=b.place, row=b.row)
    row_i, row_j = (frozenset({"row"}) & (named[k] or frozenset()) for k in (i, j))
    named[i], named[j] = (named[j] or frozenset()) - {"row"} | row_i, (named[i] or frozenset()) - {"row"} | row_j
    keys = list(target.keys)
    keys[i], keys[j] = keys[j], keys[i]
    return pair.with_target(target.with_objects(objects, named, tuple(keys)))


def _change_balloon(pair: Pair, clause: str) -> Pair | None:
    """Hang a balloon up, remove it, or give it another colour or place."""
    if match := re.search(rf"\b{ADD} {OF_SCENE['balloon'].pattern}", clause):
        colour, place = (match["colour"] or "").strip(), read_concept(match["place"] or "", PLACES)
        place = _read_where(pair, clause, clause[match.end() :]).get("place", place)
        fields = {"balloon", *(["balloon colour"] if colour else []), *(["balloon place"] if place else [])}
        balloon = Balloon(colour or "red", place or "middle")
        return pair.with_target(pair.target.with_scene(*fields, balloon=balloon))
    if (match := re.search(rf"{THE_BALLOON}(?P<rest>.*)", clause)) is None:
        return None
    target = pair.target
    if "balloon" not in target.named.scene or target.scene.balloon is None:
        raise UserError(f"the source shows no balloon: it shows {shown(target)}")
    if re.match(REMOVE, clause) and _says_away(match["rest"]):
        return pair.with_target(target.without_scene("balloon", "balloon colour", "balloon place"))
    colour, where = read_concept(match["rest"], COLOURS), re.search(rf"{DESTINATION}$", match["rest"])
    place = read_destination(pair, where).get("place") if where else None
    values = {name: value for name, value in (("colour", colour), ("place", place)) if value}
    if not values:
        return None
    balloon = replace(target.scene.balloon, **values)
    return pair.with_target(target.with_scene(*(f"balloon {name}" for name in values), balloon=balloon))


def _change_surroundings(pair: Pair, clause: str) -> Pair | None:
    """Give the floor, the sky or the light another colour. Raises `UserError` where a clause names two of them."""
    if len(named := re.findall(rf"\b(?:{wordings('floor')}|sky|light)\b", clause)) > 1:
        raise UserError(f"{quoted(clause)} names both {named[0]!r} and {named[1]!r}: say them one by one, with 'and'")
    for field, word, values in (
        ("floor", wordings("floor"), FLOORS), ("sky", "sky", SKIES), ("light", "light", LIGHTS),
    ):  # fmt: skip
        match = re.search(rf"(?:\b(?P<before>{either(*values)}) )?\b{word}\b(?P<after>.*)", clause)
        if match is None or re.search(rf"\b{either(*NOUNS)}\b", clause[: match.start()]):
            continue
        if value := read_concept(match["after"], values) or match["before"]:
            return pair.with_target(pair.target.with_scene(field, **{field: value}))
        raise UserError(f"{quoted(clause)} names no {field} that the built-in model knows: {', '.join(values)}")
    return None


def _move_camera(pair: Pair, clause: str) -> Pair | None:
    if not re.search(r"\bcamera\b|^zoom\b", clause):
        return None
    side = re.search(r"\b(left|right)\b", clause)
    for name, words in CAMERAS_OF_WORDS.items():
        camera = f"{name} {side[1]}" if side and name in ("orbit", "pan") else name
        if camera in CAMERAS and re.search(rf"\b(?:{words})\b", clause):
            return pair.with_target(pair.target.with_scene("camera", camera=camera))
    known = ", ".join(WORDS[camera][0] for camera in CAMERAS)
    raise UserError(f"{quoted(clause)} says no camera's motion that the built-in model knows: {known}")


def _change_style(pair: Pair, clause: str) -> Pair | None:
    named = re.search(rf"\b(?:{either(*NOUNS)}|hat|balloon)\b", clause)
    before = clause[: named.start()] if named else clause  # "turn the ball into snow" is about the ball
    styles = [style for style, words in STYLES_OF_WORDS.items() if re.search(rf"\b(?:{words})\b", before)]
    if len(styles) != 1:
        return None
    if styles[0] != "photo" and not re.match(REMOVE, clause):
        return pair.with_target(pair.target.with_scene("style", style=styles[0]))
    if "style" in pair.target.named.scene and styles[0] in ("photo", pair.target.scene.style):
        return pair.with_target(pair.target.without_scene("style"))
    return None


# --- objects --------------------------------------------------------------------------------------


def _insert(pair: Pair, clause: str) -> Pair | None:
    match = re.match(rf"{ADD} (?={either('a', 'an', 'three', 'another')} )", clause)
    text = re.sub(r"^another\b", "a", clause[match.end() :]) if match else ""
    found = OBJECT.match(re.sub(rf" (?:that|which)(?= {wordings(*MOTIONS)}\b)", "", text))
    if found is None:
        return None
    new, names = read_object(found)
    told = _read_where(pair, clause, found.string[found.end() :])
    new, names = replace(new, **told), names | set(told)
    target = pair.target
    if len(target.scene.objects) >= MOST_OBJECTS:
        raise UserError(
            f"there is no room for another object beside {shown(target)}: the built-in model knows {MOST_OBJECTS} at "
            "most, so remove one first"
        )
    if "place" not in names:
        free = [place for place in ("right", "left", "middle") if occupant(target, place, None) is None]
        if not free:
            raise UserError(
                f"there is no room for another object beside {shown(target)}: say where, in the back or in front, or "
                "remove one first"
            )
        if all("place" in (named or ()) for named in target.named.objects):  # else nobody knows which place is free
            new, names = replace(new, place=free[0]), names | {"place"}
    else:
        row = new.row if "row" in names else None
        if (taken := occupant(target, new.place, row)) is not None:
            other = "back" if row != "back" else "front"
            way = f"say {WORDS[other][0]!r} or another place"
            raise refuse_place(target, taken, new.place, row, way)
    key = 1 + max((*pair.source.keys, *target.keys), default=-1)
    return pair.with_target(target.with_another(new, names, key), key)


def _read_where(pair: Pair, clause: str, rest: str) -> dict[str, str]:
    """Return the place and the row, as far as they are told, that follow a new thing. Raises `UserError` where
    something else does."""
    rest = re.sub(ASIDE, "", rest)
    if where := re.match(rf"{DESTINATION}$", rest):
        return read_destination(pair, where)
    if rest.strip():
        raise UserError(f"the built-in grammar does not understand {quoted(rest)} in {quoted(clause)}")
    return {}


def _says_away(rest: str) -> bool:
    """Return whether what follows a thing says no more than that it goes."""
    return re.fullmatch(r"(?: (?:away|out|off))*", re.sub(ASIDE, "", rest)) is not None


def _remove(pair: Pair, clause: str) -> Pair | None:
    match = re.match(rf"{REMOVE}(?: (?:away|out|off))? ({REFERENCE})", clause)
    if match is None or not _says_away(clause[match.end() :]):
        return None
    pair, k = refer(pair, match[1])
    objects, named = list(pair.target.scene.objects), list(pair.target.named.objects)
    del objects[k], named[k]
    keys = pair.target.keys
    return pair.with_target(pair.target.with_objects(objects, named, (*keys[:k], *keys[k + 1 :])), keys[k])


def _move(pair: Pair, clause: str) -> Pair | None:
    match = re.match(rf"{MOVE} (?P<thing>(?:the|it)\b.*?){DESTINATION}$", clause)
    if match is None or re.search(r"\bhat\b$", match["thing"]):
        return None
    told = read_destination(pair, match)
    pair, k = refer(pair, match["thing"])
    return _put(pair, k, told)


def _put(pair: Pair, k: int, told: dict[str, str]) -> Pair:
    """Return both prompts with an object at another place or in another row. Raises `UserError` where one stands."""
    target = pair.target
    obj, names = target.scene.objects[k], target.named.objects[k] or frozenset()
    place, row = told.get("place", obj.place), told.get("row", obj.row if "row" in names else None)
    if ("place" in names or "place" in told) and (taken := occupant(target, place, row, but=k)) is not None:
        one, other = (phrase_of(target, i).partition(" ")[2] for i in (k, taken))
        raise refuse_place(target, taken, place, row, f"try: exchange the {one} and the {other}")
    return pair.with_target(target.with_object(k, names | set(told), **told), target.keys[k])


def _change_hat(pair: Pair, clause: str) -> Pair | None:
    """Put a hat on an object, take it off, or give it another colour."""
    if match := re.search(rf"\b{HAT} (?:on top of|on|onto|to|for) (?P<thing>{REFERENCE})", clause) or re.search(
        rf"\b(?:give|let|make) (?P<thing>{REFERENCE}) (?:wear |have )?{HAT}", clause
    ):
        pair, k = refer(pair, match["thing"])
        names = (pair.target.named.objects[k] or frozenset()) - {"hat colour"} | {"hat"}
        names |= {"hat colour"} if match["hat_colour"] else set()
        changed = pair.target.with_object(k, names, hat=match["hat_colour"] or "red")
        return pair.with_target(changed, pair.subject)
    match = re.search(rf"(?P<thing>{REFERENCE})(?P<told>) hat\b(?P<rest>.*)", clause) or re.search(
        rf"\bthe (?P<told>{COLOUR} )?hat\b(?: (?:of|on|off|from) (?P<thing>{REFERENCE}))?(?P<rest>.*)", clause
    )
    if match is None:
        return None
    pair, k = refer(pair, match["thing"]) if match["thing"] else find_wearer(pair, (match["told"] or "").strip())
    names = pair.target.named.objects[k] or frozenset()
    if re.match(REMOVE, clause):
        if "hat" not in names:
            raise UserError(f"the source shows no hat there: it shows {shown(pair.target)}")
        return pair.with_target(pair.target.with_object(k, names - {"hat", "hat colour"}, hat=None), pair.subject)
    if colour := read_concept(match["rest"], COLOURS):
        return pair.with_target(pair.target.with_object(k, names | {"hat", "hat colour"}, hat=colour), pair.subject)
    return None


def _change_object(pair: Pair, clause: str) -> Pair | None:
    match = re.search(rf"({REFERENCE}) ?(.*)", clause)
    if match is None or re.match(rf"(?:{ADD}|{MOVE}|{REMOVE})\b", clause) or re.search(r"\bas (?:\w+ )?as\b", clause):
        return None  # "put the ball on the cube", "as big as the cube"
    reference, new = match[1], match[2]
    if multiplied := re.match(rf"make three (?:{either(*NOUNS)} )?(?:of|from|out of) ({REFERENCE})$", clause):
        reference, new = multiplied[1], clause[: multiplied.start(1)]
    new = re.sub(SURROUNDINGS, "", f" {new}").strip()
    where, told = re.search(rf"{DESTINATION}$", f" {new}"), {}
    slides = rf"(?:{SLIDE} \S*|(?:slide|glide|roll) to the (?:left|right))$"
    if where and not re.search(slides, f" {new}"[: where.end()]):
        told, new = read_destination(pair, where), f" {new}"[: where.start()]
    values = _read_changes(new)
    hat = re.search(rf"\b{HAT}", new)
    if hat:
        values |= {"hat": hat["hat_colour"] or "red"}
        if hat["hat_colour"] and values.get("colour") == hat["hat_colour"]:
            del values["colour"]
    if not values and not told:
        return None
    pair, k = refer(pair, reference)
    pair = _put(pair, k, told) if told else pair
    obj, before = pair.target.scene.objects[k], pair.target.named.objects[k] or frozenset()
    if obj.copies == 3 and "shape" in values and "copies" not in values and re.search(r"\b(?:an?|one)\b", new):
        values["copies"] = 1
    names = before | (set(values) - {"shape", "copies"}) | ({"hat colour"} if hat and hat["hat_colour"] else set())
    if values.get("material") == "gold":
        names -= {"colour"}
    elif values.get("material") == "matt" or ("colour" in values and "material" in before and obj.material == "gold"):
        names, values = names - {"material"}, values | {"material": "matt"}
    if values.get("copies") == 3:
        names, values = names - {"size"}, values | {"size": "big"}
    return pair.with_target(pair.target.with_object(k, names, **values), pair.subject)


def _read_changes(new: str) -> dict[str, object]:
    """Return what a clause says about what an object is to become. Raises `UserError` where it says two things."""
    if re.search(r"\btwo\b", new):
        raise UserError(f"{quoted(new)} are two: the built-in model knows one, or three side by side")
    nouns = [word for word in new.split() if word in NOUNS]
    if len(nouns) > 1:
        raise UserError(f"{quoted(new)} says both {nouns[0]!r} and {nouns[1]!r}: leave one of them out")
    plain = re.sub(rf"\b{HAT}", "a hat", new)  # whose colour is another one's
    motions = [m for m, verbs in MOTIONS_OF_VERBS.items() if re.search(rf"\b(?:{verbs})", new)]
    if len(motions) > 1:
        raise UserError(f"{quoted(new)} says both {motions[0]!r} and {motions[1]!r}: leave one of them out")
    values: dict[str, object] = {
        "shape": NOUNS[nouns[0]] if nouns else None,
        "copies": 3 if re.search(r"\bthree\b", new) or (nouns and nouns[0] in PLURAL_NOUNS) else None,
        "colour": read_concept(plain, COLOURS),
        "size": read_concept(new, SIZES),
        "material": next((m for m, words in MATERIALS_OF_WORDS.items() if re.search(rf"\b(?:{words})\b", new)), None),
        "motion": motions[0] if motions else None,
    }
    return {name: value for name, value in values.items() if value is not None}


RULES = (
    _exchange, _change_balloon, _insert, _move_camera, _change_surroundings, _change_hat, _remove, _move, _change_style,
    _change_object,
)  # fmt: skip
