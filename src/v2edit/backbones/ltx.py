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
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule
from torch import Tensor

from v2edit.attention import AttentionCall, RotaryTable
from v2edit.backbones.base import Size, Text
from v2edit.backbones.core import PipelineBackbone
from v2edit.backbones.separate import CrossAttention, SelfAttention, rotate_pairs
from v2edit.errors import UserError

NATIVE_LATENTS = (21, 128, 16, 22)  # of 161 frames, 512 x 704
# Below it a clip of the native size is longer than the 20 seconds that the network's positions are made for.
LOWEST_FRAME_RATE = 8
# From 0.9.1 on the decoder takes noise away, and is told how much there is.
DECODE_TIMESTEP, DECODE_NOISE = 0.05, 0.025


class LTX(PipelineBackbone):
    """The `Backbone` of a diffusers `LTXPipeline`."""

    hides_padding = True
    coded_frame_by_frame = True
    coded_whole = True
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

    def install(self, network: Any, call: AttentionCall) -> None:
        for block in network.transformer_blocks:
            block.attn1.processor, block.attn2.processor = SelfAttention(call), CrossAttention(call)

    def uninstall(self, network: Any) -> None:
        for block in network.transformer_blocks:
            block.attn1.processor, block.attn2.processor = LTXVideoAttnProcessor(), LTXVideoAttnProcessor()

    def scaled(self, latents: Tensor) -> Tensor:
        mean, std = self._latent_statistics(latents)
        return (latents - mean) * self.vae.config.scaling_factor / std

    def unscaled(self, latents: Tensor) -> Tensor:
        mean, std = self._latent_statistics(latents)
        return latents * std / self.vae.config.scaling_factor + mean

    def _latent_statistics(self, latents: Tensor) -> list[Tensor]:
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

    rotate = staticmethod(rotate_pairs)


class LTXCondition(LTX):
    """The `Backbone` of a diffusers `LTXConditionPipeline` (0.9.5 and later), from text alone: more text, a schedule of
    its own, and frames at the times of their first pixels. So a clip's first latent frame, which stands for one frame,
    is nearer to the second than others are to each other; in a window that does not begin the clip, and in a loop, all
    are evenly spaced."""

    @staticmethod
    def text_length_of(config: Mapping[str, Any]) -> int:
        return 256

    @staticmethod
    def schedule_options(scheduler: Any, steps: int, shape: Sequence[int] | None) -> dict[str, Any]:
        if scheduler.config.use_dynamic_shifting:
            raise UserError(
                "the model's scheduler shifts its steps by a clip's size (use_dynamic_shifting), which its pipeline, "
                "LTXConditionPipeline, cannot; is it an LTXPipeline? its model_index.json says which"
            )
        timesteps = linear_quadratic_schedule(steps) * scheduler.config.num_train_timesteps
        return {"timesteps": timesteps, "sigmas": timesteps / scheduler.config.num_train_timesteps}

    def encoder_mask(self, mask: Tensor) -> Tensor:
        return mask.bool().to(self.device)

    def make_rotary(self, frames: int, height: int, width: int) -> RotaryTable:
        indices = self.pipeline._prepare_video_ids(1, frames, height, width, device=self.device)
        places = self.pipeline._scale_video_ids(indices, self.spatial, self.temporal, device=self.device).float()
        places[:, 0] *= 1 / self.positions_rate
        return self.tables_of_heads(video_coords=places)

    make_loop_rotary = LTX.make_rotary
