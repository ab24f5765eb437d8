"""HunyuanVideo 1.5 (480p, 720p): classifier-free guidance, and beside the prompt the glyphs of what it quotes, spelled
by a second encoder. Glyphs are keys like other text; AMR does not reach them.

Letters: R rows, L text slots, G glyph slots."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from diffusers import HunyuanVideo15Pipeline, HunyuanVideo15Transformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import HunyuanVideo15AttnBlock
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15AttnProcessor2_0
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import format_text_input
from torch import Tensor, nn

from v2edit.attention import AttentionCall
from v2edit.backbones.base import Size, Text
from v2edit.backbones.core import PipelineBackbone
from v2edit.backbones.dual import DualStreamAttention, stack_text
from v2edit.backbones.hunyuanvideo import HunyuanVideo
from v2edit.errors import UserError
from v2edit.prompts.tokens import PromptTokenizer

SIGNATURE = inspect.signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds)
ENCODING = {name: option.default for name, option in SIGNATURE.parameters.items()}


class HunyuanVideo15(HunyuanVideo):
    """The `Backbone` of a diffusers `HunyuanVideo15Pipeline`."""

    classifier_free = True
    coded_whole = True

    def configure(self, pipeline: Any) -> Size:
        config = pipeline.transformer.config
        if config.use_meanflow:
            raise UserError(f"{self.name} is told where each step ends (mean flow); this version edits with others")
        self.spatial = pipeline.vae_scale_factor_spatial
        self.temporal = self.group = pipeline.vae_scale_factor_temporal
        self.side = self.spatial * config.patch_size
        self._glyphs: WeakKeyDictionary[Text, int] = WeakKeyDictionary()
        for module in self.vae.modules():
            if isinstance(module, HunyuanVideo15AttnBlock):
                module.prepare_causal_attention_mask = causal_mask
        width, height = pipeline.default_aspect_ratio
        sides = pipeline.video_processor.calculate_default_height_width(height, width, pipeline.target_size)
        return Size(121, *sides)

    @staticmethod
    def text_length_of(config: Mapping[str, Any]) -> int:
        return ENCODING["tokenizer_max_length"]

    @classmethod
    def prompt_tokenizer(cls, tokenizer: Any, config: Mapping[str, Any]) -> PromptTokenizer:
        chat = format_text_input(["{}"], ENCODING["system_message"])
        (template,) = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return PromptTokenizer(tokenizer, cls.text_length_of(config), template, ENCODING["crop_start"])

    @property
    def channels(self) -> int:
        return self.vae.config.latent_channels  # the network's other channels are for pictures

    @property
    def loop_obstacle(self) -> str:
        return "has an autoencoder whose attention is over all frames so far, so that a loop has a first frame"

    def stacks(self, network: Any) -> list[nn.ModuleList]:
        return [network.transformer_blocks]

    def install(self, network: Any, call: AttentionCall) -> None:
        network.__class__ = CountableTransformer
        for block in network.transformer_blocks:
            block.attn.processor = DualStreamAttention(call)

    def uninstall(self, network: Any) -> None:
        network.__class__ = HunyuanVideo15Transformer3DModel
        for block in network.transformer_blocks:
            block.attn.processor = HunyuanVideo15AttnProcessor2_0()

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> list[Text]:
        prompts = [prompt or " " for prompt in prompts]
        tokens, lengths = self.tokenizer.pad(prompts)
        ids = tokens.input_ids[:, self.tokenizer.cropped :].tolist()
        embedding, _, glyphs, mask = self.pipeline.encode_prompt(
            prompts, device=self.device, dtype=self.dtype, batch_size=len(prompts)
        )
        spelled = list(torch.cat([glyphs, mask[..., None]], -1)) if mask.any() else [None] * len(prompts)
        encoded = zip(embedding, spelled, ids, lengths, strict=True)
        return [Text(e, tuple(row[:n]), tuple(range(n)), one) for e, one, row, n in encoded]

    def blank_text(self) -> Text:
        return PipelineBackbone.blank_text(self)

    def predict(
        self, network: Any, latents: Tensor, timestep: Tensor, text: Sequence[Text], guidance: Tensor
    ) -> Tensor:
        embedding, mask = stack_text(text)
        glyphs = None
        if spelled := [one.pooled for one in text if one.pooled is not None]:  # all texts of an edit, or none
            glyphs, length = torch.stack(spelled)[..., :-1], self.text_length
            keys = [(len(one.present or ()), self.count_glyphs(one)) for one in text]
            self.call.present = [(*range(own), *range(length, length + count)) for own, count in keys]
        video = F.pad(latents, (0, 0, 0, 0, 0, network.config.in_channels - self.channels)).transpose(1, 2)
        return network(video, timestep.to(video.dtype), embedding, mask, glyphs).transpose(1, 2)

    def count_glyphs(self, text: Text) -> int:
        """Return the number of glyph slots that are keys, read from the device once for each text."""
        if text not in self._glyphs:
            assert text.pooled is not None
            self._glyphs[text] = int((text.pooled[:, -1] > 0).sum())
        return self._glyphs[text]


class CountableTransformer(HunyuanVideo15Transformer3DModel):
    """diffusers' transformer without the slots of pictures, and with text as the set that it is: what is hidden stays
    where it is. So no shape depends on data, and it can be counted on tensors without."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] (called by `predict` alone)
        self, latents: Tensor, timestep: Tensor, embedding: Tensor, mask: Tensor, glyphs: Tensor | None
    ) -> Tensor:
        kinds = self.cond_type_embed(torch.arange(2, device=latents.device))
        text = (self.context_embedder(embedding, timestep, mask) + kinds[0]).masked_fill(~mask[..., None], 0)
        if glyphs is not None:
            text = torch.cat([text, self.context_embedder_2(glyphs) + kinds[1]], dim=1)
        video, temb = self.x_embedder(latents), self.time_embed(timestep)
        for block in self.transformer_blocks:
            video, text = block(video, text, temb)
        patch = self.x_embedder.proj.kernel_size
        grid = [length // part for length, part in zip(latents.shape[2:], patch, strict=True)]
        video = self.proj_out(self.norm_out(video, temb)).unflatten(-1, (-1, *patch)).unflatten(1, grid)
        return video.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def causal_mask(frames: int, tokens: int, dtype: torch.dtype, device: Any, batch_size: int = 1) -> Tensor:
    """`HunyuanVideo15AttnBlock.prepare_causal_attention_mask` without its loop over all tokens, which takes minutes."""
    frame = torch.arange(frames, device=device).repeat_interleave(tokens)
    mask = torch.zeros(len(frame), len(frame), dtype=dtype, device=device)
    return mask.masked_fill_(frame > frame[:, None], -torch.inf).expand(batch_size, -1, -1)
