"""Prompts: the pair that says what changes, how its texts line up token by token, and who writes them."""

from v2edit.prompts.align import Alignment, CommonSlots, align, align_three
from v2edit.prompts.pair import PromptPair, read_prompts, write_prompts

__all__ = ["Alignment", "CommonSlots", "PromptPair", "align", "align_three", "read_prompts", "write_prompts"]
