"""CogVideoX's attention: diffusers' processor with map replacement and windows, and blocks that take rows in turn.

Letters: R rows, N text + video tokens, H heads, D channels of a head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from torch import Tensor

from v2edit.attention import Replacement, Window, replaced_attention, windowed_attention

RotaryTable = tuple[Tensor, Tensor]  # cos and sin, each [video tokens, D]


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Apply rotary positions to queries or keys [R, H, video tokens, D]."""
    return apply_rotary_emb(x, table)  # pyright: ignore[reportArgumentType, reportReturnType] (diffusers' own hints)


@dataclass(frozen=True, eq=False)
class WindowTables:
    """A window and its rotary tables: frames at their positions in their windows, for meeting text, and at those in the
    clip, for meeting each other, without and with halo (see `windowed_attention`)."""

    window: Window
    in_window: RotaryTable
    in_clip: RotaryTable
    with_halo: RotaryTable

    def rotate_video(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries, and keys and values with halo, from those of the clip before rotation."""
        k, v = self.window.with_halo(k), self.window.with_halo(v)
        return rotate(q, self.in_clip), rotate(k, self.with_halo), v


class JointAttention:
    """diffusers' `CogVideoXAttnProcessor2_0` with AMR (V2Edit Sec. 3.2) and windows (Sec. B.3) on request."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: RotaryTable | None = None,
        replacement: Replacement | None = None,
        windows: WindowTables | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert attention_mask is None
        text_tokens = encoder_hidden_states.shape[1]
        joint = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        q, k, v = (to(joint).unflatten(2, (attn.heads, -1)).transpose(1, 2) for to in (attn.to_q, attn.to_k, attn.to_v))
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        attention = F.scaled_dot_product_attention
        if windows is not None:
            video = windows.rotate_video(*(x[:, :, text_tokens:] for x in (q, k, v)))
            attention = partial(
                windowed_attention, video=video, window=windows.window, text_tokens=text_tokens, replacement=replacement
            )
        elif replacement is not None:
            attention = partial(replaced_attention, text_tokens=text_tokens, replacement=replacement)
        if image_rotary_emb is not None:
            q[:, :, text_tokens:] = rotate(q[:, :, text_tokens:], image_rotary_emb)
            k[:, :, text_tokens:] = rotate(k[:, :, text_tokens:], image_rotary_emb)
        out = attention(q, k, v)
        out = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
        return out[:, text_tokens:], out[:, :text_tokens]


class RowwiseBlock(CogVideoXBlock):
    """A layer that takes the rows of a batch one at a time: a row's intermediate tensors are most of the memory of a
    network call. Rows whose maps others take leave their queries and shared keys in the layer's cache."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: RotaryTable | None = None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        kwargs = attention_kwargs or {}
        maps: Replacement | None = kwargs.get("replacement")
        cache: list[tuple[Tensor, Tensor]] = []
        for row, (video, text, time) in enumerate(
            zip(hidden_states.split(1), encoder_hidden_states.split(1), temb.split(1), strict=True)
        ):
            if maps is not None:
                kwargs = kwargs | {"replacement": Replacement(maps.shared, (maps.sources[row],), cache)}
            new_video, new_text = super().forward(video, text, time, image_rotary_emb, kwargs)
            if maps is not None and cache:
                later = {source for sources in maps.sources[row + 1 :] for source, _ in sources}
                if row not in later:
                    cache[-1] = cache[-1][0][:0].clone(), cache[-1][1][:0].clone()  # empty: a view would hold it all
            video.copy_(new_video)
            text.copy_(new_text)
        return hidden_states, encoder_hidden_states
