"""Models that keep text and video apart: self-attention of the video, then cross-attention to the text.

Letters: R rows, H heads, D channels of a head."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from v2edit.attention import AttentionCall, RotaryTable, cross_attention, self_attention
from v2edit.attention.sites import rotate_pairs
from v2edit.backbones.coding import StandardisedCoding
from v2edit.backbones.core import PipelineBackbone


class SeparateBackbone(StandardisedCoding, PipelineBackbone):
    """A backbone whose layers have self-attention `attn1` and cross-attention `attn2`."""

    stock_processor: ClassVar[type]  # diffusers' own

    def install(self, network: Any, call: AttentionCall) -> None:
        for layer in self.layers(network):
            layer.attn1.processor, layer.attn2.processor = SelfAttention(call), CrossAttention(call)

    def uninstall(self, network: Any) -> None:
        for layer in self.layers(network):
            layer.attn1.processor, layer.attn2.processor = self.stock_processor(), self.stock_processor()

    @staticmethod
    def rotate(x: Tensor, table: RotaryTable) -> Tensor:
        cos, sin = table  # each angle twice
        return rotate_pairs(x, cos[..., 0::2], sin[..., 1::2])


class SelfAttention:
    """diffusers' own on video alone, with windows (V2Edit Sec. B.3) on request."""

    def __init__(self, call: AttentionCall) -> None:
        self.call = call

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any) -> Tensor:
        return project_out(attn, self_attention(*project(attn, hidden_states, hidden_states), self.call))


class CrossAttention:
    """diffusers' own from video to text, with AMR (V2Edit Sec. 3.2) on request."""

    def __init__(self, call: AttentionCall) -> None:
        self.call = call

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any) -> Tensor:
        return project_out(attn, cross_attention(*project(attn, hidden_states, encoder_hidden_states), self.call))


def project(attn: Any, video: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [R, H, tokens, D]; the norm is over all heads together."""
    q, k, v = attn.norm_q(attn.to_q(video)), attn.norm_k(attn.to_k(keys)), attn.to_v(keys)
    q, k, v = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
    return q, k, v


def project_out(attn: Any, out: Tensor) -> Tensor:
    return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
