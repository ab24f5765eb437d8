"""Progression: a hard edit as a sequence of mild ones between two prompts (V2Edit Sec. 3.3).

Letters: L text slots, D width of an encoded token, S subtasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from v2edit.backbones import Backbone
from v2edit.prompts import PromptPair, align


@dataclass(frozen=True)
class AlignedText:
    """Both prompts on common slots: `source` and `target` [L, D], `negative` [L, D]; the first `shared` slots hold
    the same token in both, so their columns of the attention maps correspond."""

    source: Tensor
    target: Tensor
    negative: Tensor
    shared: int


def aligned_text(
    backbone: Backbone, prompts: PromptPair, negative: str = "", padding_shared: bool = True
) -> AlignedText:
    """Encodes both prompts and lays their tokens on common slots: the model sees its text as a set."""
    source, target, nothing = backbone.encode_text([prompts.source, prompts.target, negative])
    laid = align(source.ids, target.ids, backbone.text_length, backbone.pad_id)
    order = (torch.tensor(order, device=source.embedding.device) for order in (laid.source_order, laid.target_order))
    return AlignedText(
        source.embedding[next(order)],
        target.embedding[next(order)],
        nothing.embedding,
        laid.prefix(padding_shared),
    )


def subtask_prompt(text: AlignedText, subtask: int, subtasks: int) -> Tensor:
    """p_s = lerp(e_source, e_target, s / S) on aligned tokens [L, D]; p_0 is the source prompt, p_S the target."""
    return torch.lerp(text.source, text.target, subtask / subtasks)
