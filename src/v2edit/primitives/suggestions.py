"""What an instruction that the grammar refuses may have meant: a word spelled otherwise, or a mood put as an edit."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

from v2edit.primitives.captions import VOCABULARY, WORDS, normalise
from v2edit.primitives.scene import COLOURS, FLOORS, SHAPES, SIZES, SKIES

# Words of instructions beside the concepts; what is none of these is looked up for its spelling.
USUAL = frozenset(
    re.findall(
        r"\w+",
        """
        make turn paint change add insert put place move remove delete erase take get rid of away and then to into in
        with for it one object thing bigger larger smaller tiny hop bounce stay slide left right middle look like all
        from please now instead
        """,
    )
)
CONCEPTS = sorted(
    {word for name in SHAPES + tuple(SIZES) for word in WORDS[name]}
    | {*COLOURS, *FLOORS, *SKIES, "sky", "camera", *WORDS["floor"]}
)
# Moods and materials that people ask for, and the nearest edit of the built-in world.
MOODS = {
    "night dark darker midnight moonlight nighttime evening space stormy": "make the sky dark",
    "sunset sunrise dawn dusk warm warmer autumn": "make the sky golden",
    "day daytime daylight noon sunny sun summer clear": "make the sky blue",
    "romantic candy spring": "make the sky pink",
    "snow snowy winter ice icy frozen": "make the floor white",
    "wood wooden earth dirt sand desert mud": "make the floor brown",
    "water sea ocean lake underwater": "make the floor teal",
    "street concrete stone road city": "make the floor gray",
}
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
    return f"try: {found}" if found and works(found) else None


def unknown_words(flat: str) -> list[str]:
    """Return the words of a normalised text that are neither concepts nor usual in instructions."""
    return [word for word in flat.split() if not {word, word.removesuffix("s")} & KNOWN]


def correct_word(word: str) -> str:
    """Return the concept that an unknown word is spelled like, or the word as it is."""
    if len(word) < 3 or not unknown_words(word):
        return word
    return next(iter(difflib.get_close_matches(word, CONCEPTS, n=1, cutoff=CUTOFF)), word)
