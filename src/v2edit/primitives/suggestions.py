"""What an instruction that the grammar refuses may have meant: a word spelled otherwise, or a mood put as an edit."""

from __future__ import annotations

import difflib
import re

from v2edit.primitives.captions import VOCABULARY, WORDS, normalise
from v2edit.primitives.scene import COLOURS, FLOORS, SHAPES, SIZES, SKIES

# Words of instructions beside the concepts; what is none of these is looked up for its spelling.
USUAL = frozenset(
    re.findall(
        r"\w+",
        """
        make turn paint change add insert put place move remove delete erase take get rid of away and then to into in
        with for it one object bigger larger smaller tiny hop bounce stay slide left right middle look like all from
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


def suggest_instruction(instruction: str) -> str | None:
    """Return a question or a proposal for an instruction that is not understood, or None."""
    flat = normalise(instruction)
    corrected = " ".join(_correct(word) for word in flat.split())
    if corrected != flat:
        return f"did you mean {corrected!r}?"
    moods = {word: edit for words, edit in MOODS.items() for word in words.split()}
    found = next((moods[word] for word in re.findall(r"\w+", flat) if word in moods and moods[word] != flat), None)
    return found and f"try: {found}"


def _correct(word: str) -> str:
    known = VOCABULARY | USUAL | {mood for words in MOODS for mood in words.split()}
    if word in known or word.removesuffix("s") in known or len(word) < 3:
        return word
    return next(iter(difflib.get_close_matches(word, CONCEPTS, n=1, cutoff=CUTOFF)), word)
