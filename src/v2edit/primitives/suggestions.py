"""What an instruction that the grammar refuses may have meant: a word spelled otherwise, or a mood put as an edit."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

from v2edit.primitives.captions import VOCABULARY, WORDS
from v2edit.primitives.parsing import normalise
from v2edit.primitives.scene import COLOURS, FLOORS, LIGHTS, MATERIALS, SHAPES, SIZES, SKIES

# Words of instructions beside the concepts; what is none of these is looked up for its spelling.
USUAL = frozenset(
    re.findall(
        r"\w+",
        """
        make turn paint change add insert put place move remove delete erase take get rid of away and then to
        into in with for it its one object thing bigger larger smaller tiny huge giant enormous hop bounce jump
        stay slide glide go left right middle center centre side look like all from please now just also instead
        again kindly can could would will you i want let give replace show hang exchange swap switch places
        positions bring push shift stop set keep colour color enlarge grow shrink draw become becomes be is are
        that which this so wear wearing have out off onto top by as behind front back foreground background
        before stand still another three two bit more very really nice nicer size shape picture scene video clip
        whole everything some here matt matte metal metallic closer zoom zooms not moving fixed do does up down
        over at if my me their they too both every each them should d there roll recolour recolor dye freeze zoom
        what stands
        """,
    )
)
CONCEPTS = sorted(
    {word for name in SHAPES + tuple(SIZES) for word in WORDS[name]}
    | {*COLOURS, *FLOORS, *SKIES, *LIGHTS, *MATERIALS, *WORDS["floor"]}
    | {"sky", "camera", "light", "hat", "balloon", "pencil", "night", "snow"}
)
# Moods that people ask for, and the nearest edit of the built-in world.
MOODS = {
    "midnight nighttime moonlight stars": "make it night",
    "dark darker evening space stormy": "make the sky dark",
    "sunset sunrise dawn dusk autumn": "make the sky golden",
    "day daytime daylight noon sunny sun summer clear": "make the sky blue",
    "romantic candy spring": "make the sky pink",
    "warm warmer cosy cozy": "make the light warm",
    "cool cooler cold": "make the light cool",
    "snowy snowing winter wintry ice icy frozen": "make it snow",
    "sketch drawing drawn cartoon comic": "show it as a pencil drawing",
    "photo photograph realistic": "make the sky blue",
    "wood wooden earth dirt sand desert mud": "make the floor brown",
    "water sea ocean lake underwater": "make the floor teal",
    "street concrete stone road city": "make the floor gray",
}
# Words beyond the built-in world, and the nearest that it knows.
NEAREST = {
    word: concept
    for concept, words in {
        "red": "crimson scarlet maroon", "blue": "navy azure", "purple": "violet lilac", "green": "lime",
        "glass": "transparent translucent crystal", "gold": "gilded brass", "big": "tall taller",
        "small": "short shorter mini", "ball": "orb globe", "cube": "block dice", "cone": "pyramid",
        "cylinder": "pillar column can", "ring": "donut doughnut torus", "tower": "castle", "hat": "cap",
    }.items()
    for word in words.split()
}  # fmt: skip
VERBS = ("make", "turn", "paint", "give", "change", "replace", "remove", "delete", "move", "exchange", "swap")
CUTOFF = 0.75  # of difflib's similarity: one letter of four may differ, be missing or be too many
KNOWN = VOCABULARY | USUAL | {mood for words in MOODS for mood in words.split()}


def suggest_instruction(instruction: str, works: Callable[[str], bool]) -> str | None:
    """Return a question or a proposal for an instruction that is not understood, or None; only what `works`."""
    flat = normalise(instruction)
    words = flat.split()
    corrected = " ".join(map(correct_word, words))
    if corrected != flat and 2 * len(unknown_words(corrected)) < len(words) and works(corrected):
        return f"did you mean {corrected!r}?"
    if 2 * len(unknown_words(flat)) > len(words):
        return "it understands plain English, such as 'make the red ball blue'"
    moods = {word: edit for words, edit in MOODS.items() for word in words.split()}
    found = next((moods[word] for word in re.findall(r"\w+", flat) if word in moods), None)
    return f"try: {found}" if found and "not" not in words and works(found) else None


def unknown_words(flat: str) -> list[str]:
    """Return the words of a normalised text that are neither concepts nor usual in instructions."""
    return [word for word in flat.split() if not {word, f"{word}s", word.removesuffix("s")} & KNOWN]


def correct_word(word: str) -> str:
    """Return the concept or verb that an unknown word is spelled like or near to, or the word as it is."""
    if len(word) < 3 or not unknown_words(word):
        return word
    if word in NEAREST:
        return NEAREST[word]
    return next(iter(difflib.get_close_matches(word, [*CONCEPTS, *VERBS], n=1, cutoff=CUTOFF)), word)
