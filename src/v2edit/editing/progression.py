"""Progression: a hard edit as a sequence of mild ones between two prompts (V2Edit Sec. 3.3).

Letters: L text slots, D width of an encoded token, S subtasks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from v2edit.backbones import Backbone, Text
from v2edit.prompts import PromptPair, align, align_triple


@dataclass(frozen=True, eq=False)
class BranchText:
    """The prompts of a subtask's branches on common slots: the original video's, the current one's and the edit's. The
    first `shared` slots hold the same token in all, so their columns of the attention maps correspond."""

    original: Text
    current: Text
    edit: Text
    negative: Text
    shared: int


@dataclass(frozen=True, eq=False)
class AlignedText:
    """A source and a target prompt on common slots, interpolated in between, and the negative prompt; the first
    `shared` slots hold the same token in source and target."""

    source: Text
    target: Text
    negative: Text
    shared: int

    def for_subtask(self, subtask: int, subtasks: int) -> BranchText:
        """Return the prompts of a subtask's branches; subtasks are counted from 1."""
        original, current, edit = (interpolate_prompt(self, s, subtasks) for s in (0, subtask - 1, subtask))
        return BranchText(original, current, edit, self.negative, self.shared)


@dataclass(frozen=True)
class WrittenText:
    """A progression whose prompts are all written out: those of each subtask's branches."""

    subtasks: tuple[BranchText, ...]

    def for_subtask(self, subtask: int, subtasks: int) -> BranchText:
        """Return the prompts of a subtask's branches; subtasks are counted from 1."""
        assert subtasks == len(self.subtasks), (subtasks, len(self.subtasks))
        return self.subtasks[subtask - 1]


def encode_progression(
    backbone: Backbone, prompts: PromptPair, negative: str = "", padding_shared: bool = True
) -> AlignedText | WrittenText:
    """Encode the prompts of a progression: those written, or source and target to interpolate between."""
    encode = written_text if prompts.intermediate else aligned_text
    return encode(backbone, prompts, negative, padding_shared)


def aligned_text(
    backbone: Backbone, prompts: PromptPair, negative: str = "", padding_shared: bool = True
) -> AlignedText:
    """Encode source and target and lay their tokens on common slots, which the model allows: its text is a set."""
    source, target, nothing = backbone.encode_text([prompts.source, prompts.target, negative])
    return _align(backbone, source, target, nothing, padding_shared)


def written_text(
    backbone: Backbone, prompts: PromptPair, negative: str = "", padding_shared: bool = True
) -> WrittenText:
    """Encode a chain of prompts and align those of each subtask anew: the original's p_0, the current p_{s-1} and the
    edit's p_s; in the first subtask p_0 and p_{s-1} are one prompt."""
    *chain, nothing = backbone.encode_text([*prompts.chain, negative])
    subtasks = [_align(backbone, chain[0], chain[1], nothing, padding_shared).for_subtask(1, 1)]
    for current, edit in pairwise(chain[1:]):
        texts = (chain[0], current, edit)
        alignment = align_triple(chain[0].ids, current.ids, edit.ids, backbone.text_length, backbone.pad_id)
        shared = alignment.shared_prefix(padding_shared and not backbone.hides_padding)
        p_0, p_current, p_edit = (
            _reorder(text, order, shared) for text, order in zip(texts, alignment.orders, strict=True)
        )
        subtasks.append(BranchText(p_0, p_current, p_edit, nothing, shared))
    return WrittenText(tuple(subtasks))


def _align(backbone: Backbone, source: Text, target: Text, nothing: Text, padding_shared: bool) -> AlignedText:
    alignment = align(source.ids, target.ids, backbone.text_length, backbone.pad_id)
    # Padding that is hidden is no column of the maps.
    shared = alignment.shared_prefix(padding_shared and not backbone.hides_padding)
    p_0, p_1 = (_reorder(*one, shared) for one in zip((source, target), alignment.orders, strict=True))
    return AlignedText(p_0, p_1, nothing, shared)


def _reorder(text: Text, order: tuple[int, ...], shared: int) -> Text:
    """Return a text on common slots, of which so many hold the same token in all its partners."""
    changed = tuple(slot for slot in range(shared, len(order)) if order[slot] < len(text.ids))
    return replace(text.reordered(order), changed=changed)


def interpolate_prompt(text: AlignedText, subtask: int, subtasks: int) -> Text:
    """Return p_s = lerp(e_source, e_target, s / S); p_0 is the source prompt, p_S the target."""
    return text.source.lerp(text.target, subtask / subtasks)
