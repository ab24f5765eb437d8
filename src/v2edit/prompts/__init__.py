"""Prompts: the pair that says what changes, and how its two texts line up token by token."""

from v2edit.prompts.align import Alignment, align
from v2edit.prompts.pair import PromptPair

__all__ = ["Alignment", "PromptPair", "align"]
