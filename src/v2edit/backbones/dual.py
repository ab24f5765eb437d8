"""Transformers of two streams, video and text, whose attention is joint over both: HunyuanVideo and Mochi. They pass
their text after the video, and hide its padding.

Letters: R rows, L text slots, N tokens, H heads, D channels of a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from v2edit.attention import AttentionCall, joint_attention
from v2edit.backbones.base import Text


class DualStreamAttention:
    """diffusers' processor of such a transformer with AMR (V2Edit Sec. 3.2) and windows (Sec. B.3) on request. Text has
    projections of its own, or where a layer has none the video's."""

    def __init__(self, call: AttentionCall) -> None:
        self.call = call

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        text_tokens = encoder_hidden_states.shape[1]
        common = attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k
        own = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, attn.norm_added_q, attn.norm_added_k
        of_text = project(encoder_hidden_states, attn.heads, *(common if attn.add_q_proj is None else own))
        of_video = project(hidden_states, attn.heads, *common)
        q, k, v = (torch.cat(both, dim=1).transpose(1, 2) for both in zip(of_text, of_video, strict=True))
        out = joint_attention(q, k, v, text_tokens, self.call).transpose(1, 2).flatten(2)
        text, video = out[:, :text_tokens], out[:, text_tokens:]
        if attn.to_out is not None:
            video = attn.to_out[1](attn.to_out[0](video))
        if getattr(attn, "to_add_out", None) is not None:
            text = attn.to_add_out(text)
        return video, text


def project(x: Tensor, heads: int, to_q: Any, to_k: Any, to_v: Any, norm_q: Any, norm_k: Any) -> list[Tensor]:
    """Return queries, keys and values [R, N, H, D] of hidden states [R, N, H D]."""
    q, k, v = (to(x).unflatten(2, (heads, -1)) for to in (to_q, to_k, to_v))
    return [norm_q(q), norm_k(k), v]


def stack_text(text: Sequence[Text]) -> tuple[Tensor, Tensor]:
    """Return the embeddings [R, L, D] of texts with their keys first, and the mask [R, L] of their keys."""
    embedding = torch.stack([one.embedding for one in text])
    slots = torch.arange(embedding.shape[1], device=embedding.device)
    return embedding, torch.stack([slots < len(one.present or ()) for one in text])
