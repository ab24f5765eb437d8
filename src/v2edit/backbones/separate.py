"""Processors of models that keep text and video apart: self-attention of the video, then cross-attention to the text.

Letters: R rows, H heads, D channels of a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from v2edit.attention import AttentionCall, RotaryTable, cross_attention, self_attention


class SelfAttention:
    """diffusers' `WanAttnProcessor` on video alone, with windows (V2Edit Sec. B.3) on request."""

    def __init__(self, call: AttentionCall) -> None:
        self.call = call

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any) -> Tensor:
        return project_out(attn, self_attention(*project(attn, hidden_states, hidden_states), self.call))


class CrossAttention:
    """diffusers' `WanAttnProcessor` from video to text, with AMR (V2Edit Sec. 3.2) on request."""

    def __init__(self, call: AttentionCall) -> None:
        self.call = call

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any) -> Tensor:
        return project_out(attn, cross_attention(*project(attn, hidden_states, encoder_hidden_states), self.call))


def project(attn: Any, video: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [R, H, tokens, D]; Wan's norm is over all heads together."""
    q, k, v = attn.norm_q(attn.to_q(video)), attn.norm_k(attn.to_k(keys)), attn.to_v(keys)
    q, k, v = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
    return q, k, v


def project_out(attn: Any, out: Tensor) -> Tensor:
    return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


def rotate_pairs(x: Tensor, table: RotaryTable) -> Tensor:
    """Apply rotary positions to neighbouring channels of queries or keys [R, H, video tokens, D]."""
    cos, sin = table
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(x)
