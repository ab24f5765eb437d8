"""Windowed attention of long and looping clips (V2Edit Sec. B.3), by contiguous slices and without a mask.

The queries of each latent frame see the keys of as many frames as the model was trained on, those around it, and all
text; text queries see everything. In a loop the first and the last frames see each other as neighbours.

Shapes as in `replacement`. A clip has F latent frames of P tokens. In a loop each end has a *halo*: copies of the
frames beyond the other end (wrap-around), so that keys and values with halo have W >= F frames."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from v2edit.attention.kernels import attention, attention_logits, attention_with_lse
from v2edit.attention.replacement import (
    Replacement,
    identity_sources,
    merge_replaced,
    merge_states,
    replaced_maps_reference,
)


@dataclass(frozen=True)
class Window:
    """The `span` of a clip's `frames` latent frames that the video queries of each frame see. In an open clip the
    windows at the ends are moved inwards rather than cut, so that every query sees as many frames as the model was
    trained on, and a window as long as the clip is full attention."""

    frames: int
    span: int
    loop: bool = False

    def __post_init__(self) -> None:
        assert 1 <= self.span <= self.frames, self

    @property
    def halo_before(self) -> int:
        """The number of halo frames before a loop's first one."""
        return self.span // 2 if self.loop else 0

    @property
    def halo_after(self) -> int:
        """The number of halo frames after a loop's last one."""
        return self.span - 1 - self.halo_before if self.loop else 0

    def first_key(self, frame: int) -> int:
        """Return the first frame that the queries of a frame see, counted along the keys with halo."""
        return frame if self.loop else min(max(frame - self.span // 2, 0), self.frames - self.span)

    def positions(self) -> list[int]:
        """Return each frame's position in its own window, 0 to span - 1: the time at which it meets the text."""
        return [self.halo_before + frame - self.first_key(frame) for frame in range(self.frames)]

    def with_halo(self, x: Tensor) -> Tensor:
        """Add the halo to the clip's keys or values: [B, H, F P, D] to [B, H, W P, D]."""
        if self.halo_before == self.halo_after == 0:
            return x
        tokens = x.shape[2] // self.frames
        before, after = x[:, :, (self.frames - self.halo_before) * tokens :], x[:, :, : self.halo_after * tokens]
        return torch.cat([before, x, after], dim=2)


def windowed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    video: tuple[Tensor, Tensor, Tensor],
    window: Window,
    text_tokens: int,
    replacement: Replacement | None = None,
) -> Tensor:
    """Joint attention over [text | video], [B, H, N, D] like q: plain for text queries, by windows for video queries,
    with AMR on their maps of the text if there is a `replacement`.

    The clip has two sets of rotary positions. In q, k, v, which meet text, each frame is at its position in its own
    window, as if that were the whole clip. In `video` (queries [B, H, F P, D], keys and values with halo [B, H, W P,
    D]), where frames meet each other, each is at its position in the clip, halo frames beyond its ends. So the model
    meets no position that it was not trained on, and a loop has no first frame. Without rotary positions the two are
    the same."""
    shared = 0 if replacement is None else replacement.shared
    text_q, video_q = q[:, :, :text_tokens], q[:, :, text_tokens:]
    text = attention(text_q, k, v) if text_tokens else text_q  # no kernel takes no queries
    outs, lses = zip(*attention_by_window(*video, window), strict=True)
    # Joined as projections are laid out, [rows, tokens, heads, channels]: the next one takes it without a copy.
    out = torch.cat([part.transpose(1, 2) for part in (text, *outs)], dim=1).transpose(1, 2)
    video_out, lse = out[:, :, text_tokens:], torch.cat(lses, dim=2)
    if shared < text_tokens:
        own, own_lse = attention_with_lse(video_q, k[:, :, shared:text_tokens], v[:, :, shared:text_tokens])
        for row in range(len(q)):  # as in `merge_shared_columns`, for equal bits
            merge_states(video_out[row], lse[row], own[row], own_lse[row], into=video_out[row])
            torch.logaddexp(lse[row], own_lse[row], out=lse[row])
    if replacement is not None:
        merge_replaced(video_out, lse, video_q, k, v, replacement)
    return out


def attention_by_window(q: Tensor, k: Tensor, v: Tensor, window: Window) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the attention [B, H, ., D] of video queries over keys with halo and its log-sum-exp [B, H, .], frame after
    frame; frames that see the same keys together."""
    tokens, start = q.shape[2] // window.frames, 0
    for first, frames in groupby(range(window.frames), key=window.first_key):
        stop = start + len(list(frames))
        keys = slice(first * tokens, (first + window.span) * tokens)
        yield attention_with_lse(q[:, :, start * tokens : stop * tokens], k[:, :, keys], v[:, :, keys])
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
    """`windowed_attention` from explicit maps with a mask: memory of queries x keys."""
    q_video, k_halo, v_halo = video
    tokens = q_video.shape[2] // window.frames
    visible = torch.zeros(q_video.shape[2], k_halo.shape[2], dtype=torch.bool, device=q.device)
    for frame in range(window.frames):
        first = window.first_key(frame)
        visible[frame * tokens : (frame + 1) * tokens, first * tokens : (first + window.span) * tokens] = True
    text = attention_logits(q[:, :, :text_tokens], k).softmax(-1) @ v.to(torch.promote_types(v.dtype, torch.float32))
    text_logits = attention_logits(q[:, :, text_tokens:], k[:, :, :text_tokens])
    video_logits = attention_logits(q_video, k_halo).masked_fill(~visible, -math.inf)
    replacement = Replacement(0, identity_sources(len(q))) if replacement is None else replacement
    maps = replaced_maps_reference(torch.cat([text_logits, video_logits], dim=-1), replacement)
    values = torch.cat([v[:, :, :text_tokens], v_halo], dim=2)
    return torch.cat([text, maps @ values.to(maps)], dim=2).to(q)
