"""Progression: a hard edit as a sequence of mild ones between two prompts (V2Edit Sec. 3.3).

Letters: L text slots, D width of an encoded token, S subtasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from v2edit.backbones import Backbone, Text
from v2edit.prompts import PromptPair, align, align_triple


@dataclass(frozen=True)
class BranchText:
    """The prompts of a subtask's branches [L, D] on common slots: the original video's, the current one's and the
    edit's. The first `shared` slots hold the same token in all, so their columns of the attention maps correspond."""

    original: Tensor
    current: Tensor
    edit: Tensor
    negative: Tensor
    shared: int


@dataclass(frozen=True)
class AlignedText:
    """Both prompts on common slots: `source` and `target` [L, D], `negative` [L, D]; the first `shared` slots hold
    the same token in both. What lies between them is interpolated."""

    source: Tensor
    target: Tensor
    negative: Tensor
    shared: int

    def for_subtask(self, subtask: int, subtasks: int) -> BranchText:
        """What the branches of a subtask, counted from 1, are told."""
        original, current, edit = (subtask_prompt(self, s, subtasks) for s in (0, subtask - 1, subtask))
        return BranchText(original, current, edit, self.negative, self.shared)


@dataclass(frozen=True)
class WrittenText:
    """A progression whose prompts are all written: what the branches of each subtask are told."""

    subtasks: tuple[BranchText, ...]

    def for_subtask(self, subtask: int, subtasks: int) -> BranchText:
        """What the branches of a subtask, counted from 1, are told."""
        assert subtasks == len(self.subtasks), (subtasks, len(self.subtasks))
        return self.subtasks[subtask - 1]


def encode_progression(
    backbone: Backbone, prompts: PromptPair, negative: str = "", padding_shared: bool = True
) -> AlignedText | WrittenText:
    """The prompts of all subtasks: between the two where there are but two, else those that are written."""
    if prompts.intermediate:
        return written_text(backbone, prompts, negative, padding_shared)
    return aligned_text(backbone, prompts, negative, padding_shared)


def aligned_text(
    backbone: Backbone, prompts: PromptPair, negative: str = "", padding_shared: bool = True
) -> AlignedText:
    """Encodes both prompts and lays their tokens on common slots: the model sees its text as a set."""
    source, target, nothing = backbone.encode_text([prompts.source, prompts.target, negative])
    return _aligned(backbone, source, target, nothing, padding_shared)


def written_text(
    backbone: Backbone, prompts: PromptPair, negative: str = "", padding_shared: bool = True
) -> WrittenText:
    """Encodes the chain of prompts and aligns those of each subtask anew: the original's p_0, the current p_{s-1} and
    the edit's p_s, of which the first two are one prompt where s = 1."""
    *chain, nothing = backbone.encode_text([*prompts.chain, negative])
    subtasks = [_aligned(backbone, chain[0], chain[1], nothing, padding_shared).for_subtask(1, 1)]
    for current, edit in pairwise(chain[1:]):
        texts = (chain[0], current, edit)
        laid = align_triple(chain[0].ids, current.ids, edit.ids, backbone.text_length, backbone.pad_id)
        original, before, after = (_laid_out(text, order) for text, order in zip(texts, laid.orders, strict=True))
        subtasks.append(BranchText(original, before, after, nothing.embedding, laid.prefix(padding_shared)))
    return WrittenText(tuple(subtasks))


def _aligned(backbone: Backbone, source: Text, target: Text, nothing: Text, padding_shared: bool) -> AlignedText:
    laid = align(source.ids, target.ids, backbone.text_length, backbone.pad_id)
    return AlignedText(
        _laid_out(source, laid.source_order),
        _laid_out(target, laid.target_order),
        nothing.embedding,
        laid.prefix(padding_shared),
    )


def _laid_out(text: Text, order: Sequence[int]) -> Tensor:
    return text.embedding[torch.tensor(order, device=text.embedding.device)]


def subtask_prompt(text: AlignedText, subtask: int, subtasks: int) -> Tensor:
    """p_s = lerp(e_source, e_target, s / S) on aligned tokens [L, D]; p_0 is the source prompt, p_S the target."""
    return torch.lerp(text.source, text.target, subtask / subtasks)
