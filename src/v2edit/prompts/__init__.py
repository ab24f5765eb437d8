"""Prompts: the pair that describes an edit, the alignment of its tokens, and the language models that write it."""

from v2edit.prompts.align import Alignment, align, align_triple
from v2edit.prompts.pair import PromptPair, read_prompts, write_prompts

__all__ = ["Alignment", "PromptPair", "align", "align_triple", "read_prompts", "write_prompts"]
