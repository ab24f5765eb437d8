"""Wan 2.1 (1.3B, 14B) and 2.2 (TI2V-5B; A14B, whose two experts share the steps by their noise): self-attention of the
video with rotary positions, and cross-attention to all text slots, padding of zeros included.

Letters: R rows, H heads, D channels of a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor, nn

from v2edit.attention import RotaryTable
from v2edit.backbones.base import Size, Text
from v2edit.backbones.families import Defaults
from v2edit.backbones.separate import SeparateBackbone
from v2edit.sampling import Schedule


class Wan(SeparateBackbone):
    """The `Backbone` of a diffusers `WanPipeline`."""

    stock_processor = WanAttnProcessor
    float32_parts = ("vae",)
    shares_tokens = True
    native_fps = 16.0
    lead_groups = 8  # as many frames as of CogVideoX; not measured on real weights

    def configure(self, pipeline: Any) -> Size:
        config, vae = pipeline.transformer.config, pipeline.vae.config
        self.temporal = self.group = vae.scale_factor_temporal
        self.spatial, self.side = vae.scale_factor_spatial, vae.scale_factor_spatial * config.patch_size[1]
        if vae.patch_size:  # 2.2's of 5B
            self.native_fps = 24.0
            return Size(121, 704, 1280)
        return Size(81, 480, 832)

    @property
    def networks(self) -> list[Any]:
        pipeline = self.pipeline
        return [pipeline.transformer, *([pipeline.transformer_2] if has_two_experts(pipeline.config) else [])]

    @property
    def video_to_video_pipeline(self) -> str | None:
        return None if len(self.networks) == 2 or self.vae.config.patch_size else "WanVideoToVideoPipeline"

    @staticmethod
    def defaults_of(index: Mapping[str, Any], defaults: Defaults) -> Defaults:
        return replace(defaults, guidance=4.0, guidance_2=3.0) if has_two_experts(index) else defaults

    @classmethod
    def schedule_of(
        cls, scheduler: Any, index: Mapping[str, Any], steps: int, shape: Sequence[int] | None = None
    ) -> Schedule:
        schedule = super().schedule_of(scheduler, index, steps, shape)
        if not has_two_experts(index):
            return schedule
        boundary = index["boundary_ratio"] * scheduler.config.num_train_timesteps
        return replace(schedule, second_expert=int((schedule.timesteps >= boundary).sum()))

    def stacks(self, network: Any) -> list[nn.ModuleList]:
        return [network.blocks]

    @staticmethod
    def text_length_of(config: Mapping[str, Any]) -> int:
        return 512

    @property
    def text_width(self) -> int:
        return self.pipeline.transformer.config.text_dim

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> list[Text]:
        tokens, lengths = self.tokenizer.pad([prompt_clean(prompt) for prompt in prompts])
        ids, mask = tokens.input_ids, tokens.attention_mask
        embedding = self.pipeline.text_encoder(ids.to(self.device), mask.to(self.device))[0].to(self.dtype)
        embedding = embedding * mask[..., None].to(embedding)
        return [Text(e, tuple(row[:n])) for e, row, n in zip(embedding, ids.tolist(), lengths, strict=True)]

    def predict(
        self, network: Any, latents: Tensor, timestep: Tensor, text: Sequence[Text], guidance: Tensor
    ) -> Tensor:
        embedding = torch.stack([one.embedding for one in text])
        return network(latents.transpose(1, 2), timestep, embedding, return_dict=False)[0].transpose(1, 2)

    def make_rotary(self, frames: int, height: int, width: int) -> RotaryTable:
        rope = self.networks[0].rope
        cos, sin = rope(torch.empty(1, 1, frames, height, width, device="meta"))
        return cos[0, :, 0].to(self.device), sin[0, :, 0].to(self.device)

    def video_to_video_options(self, prompt: str) -> dict[str, Any]:
        # The pipeline's own way of cleaning a prompt wants a library (ftfy) that it does not ask for.
        embeds = [text.embedding[None] for text in self.encode_text([prompt, ""])]
        return {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1]}


def has_two_experts(index: Mapping[str, Any]) -> bool:
    """Whether a model has a network for much noise and another for little; folders of Wan 2.1 may name the boundary,
    too."""
    return index.get("boundary_ratio") is not None and (index.get("transformer_2") or [None])[0] is not None
