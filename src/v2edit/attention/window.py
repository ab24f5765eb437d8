"""Attention of long and of looping clips (V2Edit Sec. B.3), by contiguous slices and without a mask.

The queries of each latent frame see the keys of as many frames as the model was trained on, those around it, and
all text; text queries see everything. In a loop the first and the last frames see each other as neighbours.

Shapes as in `replacement`. A clip has F latent frames of P tokens; `wide` keys and values have those of W frames: F,
and in a loop the ones that each end borrows from the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.attention.replacement import (
    Replacement,
    attention_with_lse,
    logits_of,
    merge_states,
    own_maps,
    replaced_maps_reference,
    split_columns,
    take_maps,
)


@dataclass(frozen=True)
class Window:
    """Which `span` of a clip's `frames` latent frames the video queries of each frame see.

    In an open clip the windows at the ends are moved inwards rather than cut, so that every query sees as many frames
    as the model was trained on, and a window as long as the clip is full attention.
    """

    frames: int
    span: int
    loop: bool = False

    def __post_init__(self) -> None:
        assert 1 <= self.span <= self.frames, self

    @property
    def before(self) -> int:
        """How many frames the first one borrows from the end of a loop."""
        return self.span // 2 if self.loop else 0

    @property
    def after(self) -> int:
        return self.span - 1 - self.before if self.loop else 0

    def first(self, frame: int) -> int:
        """The first frame that the queries of a frame see, counted along the wide keys."""
        return frame if self.loop else min(max(frame - self.span // 2, 0), self.frames - self.span)

    def positions(self) -> list[int]:
        """Where each frame stands in its own window, from 0 to span - 1: the time at which it meets the text."""
        return [self.before + frame - self.first(frame) for frame in range(self.frames)]

    def wide(self, x: Tensor) -> Tensor:
        """Keys or values of the clip [B, H, F P, D] with those that its ends borrow, [B, H, W P, D]."""
        if self.before == self.after == 0:
            return x
        tokens = x.shape[2] // self.frames
        return torch.cat([x[:, :, (self.frames - self.before) * tokens :], x, x[:, :, : self.after * tokens]], dim=2)


def windowed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    video: tuple[Tensor, Tensor, Tensor],
    window: Window,
    text_tokens: int,
    replacement: Replacement | None = None,
) -> Tensor:
    """Joint attention over [text | video], [B, H, N, D] like q: text queries plain, video queries by windows, and
    their maps of the text replaced on request.

    Two placings of the same clip: in q, k, v, which meet text, each frame is at its place within its own window, as
    if that were the whole clip; in `video` (queries [B, H, F P, D], wide keys and values [B, H, W P, D]), which meet
    each other, at its place in the clip, borrowed frames at theirs beyond its ends. Without rotary positions these
    are the same. So no position is met that the model was not trained on, and a loop has no first frame.
    """
    shared = 0 if replacement is None else replacement.shared
    (k_own, k_shared), (v_own, v_shared) = (split_columns(x[:, :, :text_tokens], shared) for x in (k, v))
    text = F.scaled_dot_product_attention(q[:, :, :text_tokens], k, v)
    outs, lses = zip(*windows(*video, window), strict=True)
    # Joined as projections are laid out, [rows, tokens, heads, channels]: the next one takes it without a copy.
    out = torch.cat([part.transpose(1, 2) for part in (text, *outs)], dim=1).transpose(1, 2)
    seen, lse, queries = out[:, :, text_tokens:], torch.cat(lses, dim=2), q[:, :, text_tokens:]
    if k_own.shape[2] > 0:
        own, own_lse = attention_with_lse(queries, k_own, v_own)
        for row in range(len(q)):  # as in `take_maps`, for equal bits
            merge_states(seen[row], lse[row], own[row], own_lse[row], into=seen[row])
            torch.logaddexp(lse[row], own_lse[row], out=lse[row])
    if replacement is not None:
        take_maps(seen, lse, queries, k_shared, v_shared, replacement.sources, replacement.kept)
    return out


def windows(q: Tensor, k: Tensor, v: Tensor, window: Window) -> Iterator[tuple[Tensor, Tensor]]:
    """Attention [B, H, ., D] of video queries over wide keys and its log-sum-exp [B, H, .], frame after frame; frames
    that see the same ones together."""
    tokens, start = q.shape[2] // window.frames, 0
    for first, frames in groupby(range(window.frames), key=window.first):
        stop = start + len(list(frames))
        seen = slice(first * tokens, (first + window.span) * tokens)
        yield attention_with_lse(q[:, :, start * tokens : stop * tokens], k[:, :, seen], v[:, :, seen])
        start = stop


def windowed_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    video: tuple[Tensor, Tensor, Tensor],
    window: Window,
    text_tokens: int,
    replacement: Replacement | None = None,
) -> Tensor:
    """`windowed_attention` with its maps in sight, masked: memory of queries x keys."""
    q_video, k_wide, v_wide = video
    tokens = q_video.shape[2] // window.frames
    sees = torch.zeros(q_video.shape[2], k_wide.shape[2], dtype=torch.bool, device=q.device)
    for frame in range(window.frames):
        first = window.first(frame)
        sees[frame * tokens : (frame + 1) * tokens, first * tokens : (first + window.span) * tokens] = True
    text = logits_of(q[:, :, :text_tokens], k).softmax(-1) @ v.to(torch.promote_types(v.dtype, torch.float32))
    of_text = logits_of(q[:, :, text_tokens:], k[:, :, :text_tokens])
    of_video = logits_of(q_video, k_wide).masked_fill(~sees, -math.inf)
    replacement = Replacement(0, own_maps(len(q))) if replacement is None else replacement
    maps = replaced_maps_reference(torch.cat([of_text, of_video], dim=-1), replacement)
    values = torch.cat([v[:, :, :text_tokens], v_wide], dim=2)
    return torch.cat([text, maps @ values.to(maps)], dim=2).to(q)
