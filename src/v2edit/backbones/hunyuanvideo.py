"""HunyuanVideo: joint attention over text and video, in layers with projections of the text's own and then in layers
without. Its guidance is distilled: the network is told the scale, and there is no unconditional batch. A prompt acts
also by its mean and its CLIP vector, which AMR does not reach.

Letters: R rows, H heads, D channels of a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from torch import Tensor, nn

from v2edit.attention import AttentionCall, RotaryTable
from v2edit.backbones.base import Size, Text
from v2edit.backbones.core import PipelineBackbone
from v2edit.backbones.dual import DualStreamAttention, stack_text
from v2edit.errors import UserError
from v2edit.host import quiet_libraries
from v2edit.prompts.tokens import PromptTokenizer


class HunyuanVideo(PipelineBackbone):
    """The `Backbone` of a diffusers `HunyuanVideoPipeline`."""

    hides_padding = True
    classifier_free = False
    native_fps = 24.0  # by its paper; diffusers' example writes 15

    def configure(self, pipeline: Any) -> Size:
        config = pipeline.transformer.config
        if not config.guidance_embeds:
            raise UserError(f"{self.name} is not told a guidance scale; this version edits with models that are")
        self.spatial = pipeline.vae_scale_factor_spatial
        self.temporal = self.group = pipeline.vae_scale_factor_temporal
        self.side = self.spatial * config.patch_size
        return Size(129, 720, 1280)

    @staticmethod
    def text_length_of(config: Mapping[str, Any]) -> int:
        return 256

    @classmethod
    def prompt_tokenizer(cls, tokenizer: Any, config: Mapping[str, Any]) -> PromptTokenizer:
        template, cropped = DEFAULT_PROMPT_TEMPLATE["template"], DEFAULT_PROMPT_TEMPLATE["crop_start"]
        return PromptTokenizer(tokenizer, cls.text_length_of(config), template, cropped)

    @property
    def text_width(self) -> int:
        return self.pipeline.transformer.config.text_embed_dim

    @property
    def loop_obstacle(self) -> str:
        return "has an autoencoder that takes runs of frames from the first one on, so that a loop has a first frame"

    @property
    def coding_period(self) -> float:
        # Runs of frames overlap; HunyuanVideo 1.5 codes a clip whole.
        return super().coding_period if self.coded_whole else 2 * self.vae.tile_sample_stride_num_frames

    def stacks(self, network: Any) -> list[nn.ModuleList]:
        return [network.transformer_blocks, network.single_transformer_blocks]

    def install(self, network: Any, call: AttentionCall) -> None:
        for block in self.layers(network):
            block.attn.processor = DualStreamAttention(call)

    def uninstall(self, network: Any) -> None:
        for block in self.layers(network):
            block.attn.processor = HunyuanVideoAttnProcessor2_0()

    @staticmethod
    def schedule_options(scheduler: Any, steps: int, shape: Sequence[int] | None) -> dict[str, Any]:
        return {"sigmas": np.linspace(1.0, 0.0, steps + 1)[:-1]}

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> list[Text]:
        tokens, lengths = self.tokenizer.pad(prompts)
        ids = tokens.input_ids[:, self.tokenizer.cropped :].tolist()
        with quiet_libraries():  # CLIP sees 77 tokens, and diffusers warns of more
            embedding, pooled, _ = self.pipeline.encode_prompt(
                list(prompts), device=self.device, max_sequence_length=self.text_length
            )
        encoded = zip(embedding.to(self.dtype), pooled.to(self.dtype), ids, lengths, strict=True)
        return [Text(e, tuple(row[:n]), tuple(range(n)), vector) for e, vector, row, n in encoded]

    def blank_text(self) -> Text:
        width = self.pipeline.transformer.config.pooled_projection_dim
        return replace(super().blank_text(), pooled=torch.zeros(width, dtype=self.dtype, device=self.device))

    def predict(
        self, network: Any, latents: Tensor, timestep: Tensor, text: Sequence[Text], guidance: Tensor
    ) -> Tensor:
        embedding, mask = stack_text(text)
        pooled = torch.stack([one.pooled for one in text if one.pooled is not None])
        text_options = embedding, mask.to(embedding), pooled, guidance * 1000
        return network(latents.transpose(1, 2), timestep, *text_options, return_dict=False)[0].transpose(1, 2)

    def make_rotary(self, frames: int, height: int, width: int) -> RotaryTable:
        return self.networks[0].rope(torch.empty(1, device=self.device).expand(1, 1, frames, height, width))

    @staticmethod
    def rotate(x: Tensor, table: RotaryTable) -> Tensor:
        return apply_rotary_emb(x, table)  # pyright: ignore[reportArgumentType, reportReturnType] (diffusers' hints)
