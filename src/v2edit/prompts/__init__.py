"""Prompts: the pair that says what changes, how its texts line up token by token, and who writes them."""

from v2edit.prompts.align import Alignment, TripleAlignment, align, align_triple
from v2edit.prompts.pair import PromptPair, read_prompts, write_prompts

__all__ = ["Alignment", "PromptPair", "TripleAlignment", "align", "align_triple", "read_prompts", "write_prompts"]
