"""LTX-Video 0.9.x: self-attention of the video with rotary positions in seconds and pixels, and cross-attention to the
text without its padding.

Letters: R rows, F latent frames, H heads, N video tokens, D channels of a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.models.transformers.transformer_ltx import LTXVideoAttnProcessor
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from torch import Tensor

from v2edit.attention import RotaryTable
from v2edit.backbones.base import Size, Text
from v2edit.backbones.separate import SeparateBackbone

NATIVE_LATENTS = (21, 128, 16, 22)  # of 161 frames, 512 x 704
# Below it a clip of the native size is longer than the 20 seconds that the network's positions are made for.
LOWEST_FRAME_RATE = 8
# From 0.9.1 on the decoder takes noise away, and is told how much there is.
DECODE_TIMESTEP, DECODE_NOISE = 0.05, 0.025


class LTX(SeparateBackbone):
    """The `Backbone` of a diffusers `LTXPipeline`."""

    stock_processor = LTXVideoAttnProcessor
    hides_padding = True
    coded_frame_by_frame = True
    coded_whole = True
    native_fps = 25.0  # diffusers' default; it is told the rate, and was trained on several
    # Its decoder looks ahead as far as back. As many frames as of CogVideoX; not measured on real weights.
    lead_groups = trail_groups = 4

    def configure(self, pipeline: Any) -> Size:
        self.spatial = self.side = pipeline.vae_spatial_compression_ratio
        self.temporal = self.group = pipeline.vae_temporal_compression_ratio
        return Size(161, 512, 704)

    @staticmethod
    def text_length_of(config: Mapping[str, Any]) -> int:
        return 128

    @property
    def text_width(self) -> int:
        return self.pipeline.transformer.config.caption_channels

    @staticmethod
    def schedule_options(scheduler: Any, steps: int, shape: Sequence[int] | None) -> dict[str, Any]:
        frames, _, height, width = NATIVE_LATENTS if shape is None else shape
        settings = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
        shifts = (scheduler.config.get(name, default) for name, default in settings.items())
        return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": calculate_shift(frames * height * width, *shifts)}

    def latent_statistics(self, latents: Tensor) -> list[Tensor]:
        return [one.to(latents).view(1, 1, -1, 1, 1) for one in (self.vae.latents_mean, self.vae.latents_std)]

    def decode_latents(self, latents: Tensor) -> Tensor:
        if not self.vae.config.timestep_conditioning:
            return super().decode_latents(latents)
        with torch.random.fork_rng([latents.device] if latents.is_cuda else []):
            torch.manual_seed(0)  # for equal frames of equal latents; some layers of the decoder draw noise, too
            noise = torch.randn(latents.shape, dtype=latents.dtype).to(latents.device)
            timestep = latents.new_tensor([DECODE_TIMESTEP])
            return self.vae.decode(latents.lerp(noise, DECODE_NOISE), timestep).sample

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> list[Text]:
        tokens, lengths = self.tokenizer.pad(prompts)
        ids, mask = tokens.input_ids, self.encoder_mask(tokens.attention_mask)
        embedding = self.pipeline.text_encoder(ids.to(self.device), mask)[0].to(self.dtype)
        rows = zip(embedding, ids.tolist(), lengths, strict=True)
        return [Text(e, tuple(row[:n]), present=tuple(range(n))) for e, row, n in rows]

    def encoder_mask(self, mask: Tensor) -> Tensor | None:
        """Return what the text encoder is told of the tokens [R, L] that are no padding."""
        return None

    def predict(
        self, network: Any, latents: Tensor, timestep: Tensor, text: Sequence[Text], guidance: Tensor
    ) -> Tensor:
        embedding = torch.stack([one.embedding for one in text])
        tokens = latents.permute(0, 1, 3, 4, 2)  # [R, F, h, w, C]
        # The processors have positions and hide padding: the network is not to make large tables of its own.
        grid = {"num_frames": 1, "height": 1, "width": 1, "encoder_attention_mask": None}
        out = network(tokens.flatten(1, 3), embedding, timestep, **grid, return_dict=False)[0]
        return out.unflatten(1, tokens.shape[1:4]).permute(0, 1, 4, 2, 3)

    def make_rotary(self, frames: int, height: int, width: int) -> RotaryTable:
        grid = {"num_frames": frames, "height": height, "width": width}
        scale = self.temporal / self.positions_rate, self.spatial, self.spatial
        return self.tables_of_heads(**grid, rope_interpolation_scale=scale)

    @property
    def positions_rate(self) -> float:
        """The frame rate that places frames in time."""
        return max(self.frame_rate, LOWEST_FRAME_RATE)

    def tables_of_heads(self, **positions: Any) -> RotaryTable:
        """Return the network's rotary tables of positions, each head's apart [H, N, D]."""
        rope, heads = self.networks[0].rope, self.networks[0].config.num_attention_heads
        cos, sin = rope(torch.empty(1, device=self.device), **positions)
        return tuple(part[0].unflatten(-1, (heads, -1)).transpose(0, 1) for part in (cos, sin))
