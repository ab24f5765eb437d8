"""What the text tower of the CLIP is told phrase by phrase, beside the contrast of frames and captions.

A contrast alone says whether a caption fits, not which word of it does not. So the last word of a phrase (a tower of
CLIP reads from left to right) also tells all that the phrase says.

Letters: N tokens, D width, F fields (`FIELDS`). Labels are indices of answers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.primitives.text import FIELDS as SAID
from recipes.primitives.text import FieldHeads, Phrase, phrase_labels
from v2edit.primitives.questions import OF_CLIPS

FIELDS = {field: values for field, values in SAID.items() if field not in OF_CLIPS}  # a frame shows no motion


class PhraseProbe(FieldHeads):
    """Training objective of the last words of phrases: each predicts every field that its phrase says."""

    def __init__(self, width: int) -> None:
        super().__init__({field: len(values) for field, values in FIELDS.items()}, width)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of tokens [N, D] by labels int64 [N, F]."""
        told = self.logits(tokens)
        return torch.stack([F.cross_entropy(told[field], labels[:, k]) for k, field in enumerate(FIELDS)]).mean()


def last_tokens(phrases: list[Phrase], offsets: list[tuple[int, int]]) -> tuple[list[int], list[list[int]]]:
    """Return the last token of each phrase of a caption, by the characters of its tokens, and what it is to tell."""
    kept = [k for k, field in enumerate(SAID) if field in FIELDS]
    rows = phrase_labels(phrases, offsets)
    last = [max((k for k, token in enumerate(offsets) if one.holds(token)), default=-1) for one in phrases]
    last = [k for k in last if k >= 0]
    return last, [[rows[k][field] for field in kept] for k in last]
