"""Mochi: joint attention over text and video with rotary positions of each head's own, and steps that count up from
noise alone to the video. A prompt acts also by its pooled caption, which AMR does not reach.

Letters: R rows, H heads, D channels of a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import MochiAttnProcessor2_0
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from torch import Tensor

from v2edit.attention import AttentionCall, RotaryTable
from v2edit.attention.sites import rotate_pairs
from v2edit.backbones.base import Size, Text
from v2edit.backbones.coding import StandardisedCoding
from v2edit.backbones.core import PipelineBackbone
from v2edit.backbones.dual import DualStreamAttention, stack_text
from v2edit.sampling import x0_from_flow

THRESHOLD_NOISE = 0.025  # of its schedule's linear half, as in its pipeline


class Mochi(StandardisedCoding, PipelineBackbone):
    """The `Backbone` of a diffusers `MochiPipeline`."""

    hides_padding = True
    coded_whole = True
    native_fps = 30.0

    def configure(self, pipeline: Any) -> Size:
        self.spatial = pipeline.vae_spatial_scale_factor
        self.temporal = self.group = pipeline.vae_temporal_scale_factor
        self.side = self.spatial * pipeline.transformer.config.patch_size
        return Size(163, pipeline.default_height, pipeline.default_width)

    @staticmethod
    def text_length_of(config: Mapping[str, Any]) -> int:
        return config["max_sequence_length"]

    @property
    def text_width(self) -> int:
        return self.pipeline.transformer.config.text_embed_dim

    @property
    def loop_obstacle(self) -> str:
        return "has an autoencoder whose attention is over all frames so far, so that a loop has a first frame"

    def install(self, network: Any, call: AttentionCall) -> None:
        for block in network.transformer_blocks:
            block.attn1.processor = DualStreamAttention(call)

    def uninstall(self, network: Any) -> None:
        for block in network.transformer_blocks:
            block.attn1.processor = MochiAttnProcessor2_0()

    @staticmethod
    def schedule_options(scheduler: Any, steps: int, shape: Sequence[int] | None) -> dict[str, Any]:
        return {"sigmas": linear_quadratic_schedule(steps, THRESHOLD_NOISE) if steps > 1 else [1.0]}

    def x0_from(self, v: Tensor, out: Tensor, a: float, s: float) -> Tensor:
        return x0_from_flow(v, -out, a, s)  # its flow leads to the video

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> list[Text]:
        tokens, lengths = self.tokenizer.pad(prompts)
        ids, mask = tokens.input_ids, tokens.attention_mask
        if self.pipeline.config.force_zeros_for_empty_prompt:
            empty = [k for k, prompt in enumerate(prompts) if prompt == ""]
            ids[empty], mask[empty] = 0, 0
            lengths = [0 if prompt == "" else n for prompt, n in zip(prompts, lengths, strict=True)]
        embedding = self.pipeline.text_encoder(ids.to(self.device), mask.to(self.device).bool())[0].to(self.dtype)
        encoded = zip(embedding, ids.tolist(), lengths, strict=True)
        return [Text(e, tuple(row[:n]), tuple(range(n))) for e, row, n in encoded]

    def predict(
        self, network: Any, latents: Tensor, timestep: Tensor, text: Sequence[Text], guidance: Tensor
    ) -> Tensor:
        embedding, mask = stack_text(text)
        return network(latents.transpose(1, 2), embedding, timestep, mask, return_dict=False)[0].transpose(1, 2)

    def make_rotary(self, frames: int, height: int, width: int) -> RotaryTable:
        network, patch = self.networks[0], self.pipeline.transformer.config.patch_size
        frequencies = network.pos_frequencies.to(self.device)
        tables = network.rope(frequencies, frames, height // patch, width // patch, self.device, torch.float32)
        return tuple(table.transpose(0, 1) for table in tables)

    @staticmethod
    def rotate(x: Tensor, table: RotaryTable) -> Tensor:
        return rotate_pairs(x, *table)
