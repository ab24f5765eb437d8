"""CogVideoX 1.0 (2b: absolute positions and DDIM; 5b: rotary and DPM) over diffusers, from a hub id or a folder.

Letters: R rows, N text + video tokens, H heads, D channels of a head.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import CogVideoXDPMScheduler, CogVideoXPipeline, CogVideoXVideoToVideoPipeline
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXAttnProcessor2_0
from PIL import Image
from torch import Tensor

from v2edit.attention import Replacement, replaced_attention
from v2edit.backbones.base import Size, Text
from v2edit.errors import UserError
from v2edit.noise import Schedule, x0_from_epsilon, x0_from_v

log = logging.getLogger(__name__)
GUIDANCE = 7.0  # V2Edit, Sec. 4.1
X0_FROM = {"v_prediction": x0_from_v, "epsilon": x0_from_epsilon}


class JointAttention:
    """diffusers' `CogVideoXAttnProcessor2_0`, with attention-map replacement (V2Edit Sec. 3.2) on request."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,  # (cos, sin), each [video tokens, D]
        replacement: Replacement | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert attention_mask is None
        text_tokens = encoder_hidden_states.shape[1]
        joint = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        q, k, v = (to(joint).unflatten(2, (attn.heads, -1)).transpose(1, 2) for to in (attn.to_q, attn.to_k, attn.to_v))
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        if image_rotary_emb is not None:
            q[:, :, text_tokens:] = apply_rotary_emb(q[:, :, text_tokens:], image_rotary_emb)
            k[:, :, text_tokens:] = apply_rotary_emb(k[:, :, text_tokens:], image_rotary_emb)
        if replacement is None:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = replaced_attention(q, k, v, replacement, text_tokens)
        out = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
        return out[:, text_tokens:], out[:, :text_tokens]


class CogVideoX:
    """The `Backbone` of a `CogVideoXPipeline`."""

    guidance = GUIDANCE

    def __init__(self, pipeline: CogVideoXPipeline, name: str = "CogVideoX") -> None:
        if pipeline.transformer.config.patch_size_t is not None:
            raise UserError(f"{name} is a CogVideoX 1.5 model; this version edits with CogVideoX 1.0 (2b and 5b)")
        self.name, self.pipeline = name, pipeline
        self.transformer, self.vae = pipeline.transformer, pipeline.vae
        self.transformer.set_attn_processor(JointAttention())
        for part in (self.transformer, self.vae, pipeline.text_encoder):
            part.eval().requires_grad_(False)
        scheduler = pipeline.scheduler
        self.solver = "dpm-sde" if isinstance(scheduler, CogVideoXDPMScheduler) else "ddim"
        if scheduler.config.prediction_type not in X0_FROM:
            raise UserError(f"{name} predicts {scheduler.config.prediction_type!r}; known are {', '.join(X0_FROM)}")
        config = self.transformer.config
        self.text_length, self.pad_id = config.max_text_seq_length, pipeline.tokenizer.pad_token_id
        self.spatial, self.temporal = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
        self.trained = Size(
            config.sample_frames, config.sample_height * self.spatial, config.sample_width * self.spatial
        )
        # Each network call is told the rotary table of its grid; clips of one size share it.
        self._rotary = lru_cache(maxsize=4)(self._rotary_of)

    @property
    def device(self) -> torch.device:
        return self.pipeline._execution_device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    def fit(self, size: Size) -> Size:
        # The decoder gives every frame back only for an odd number of latent frames.
        group = 2 * self.temporal
        frames = max(0, math.ceil((size.frames - 1) / group)) * group + 1
        side = self.spatial * self.transformer.config.patch_size
        scale = math.sqrt(self.trained.height * self.trained.width / (size.height * size.width))
        height, width = (max(side, round(x * scale / side) * side) for x in (size.height, size.width))
        return Size(frames, height, width)

    @torch.no_grad()
    def encode(self, frames: np.ndarray, generator: torch.Generator | None = None) -> Tensor:
        video = torch.from_numpy(frames).to(self.device).permute(3, 0, 1, 2)[None]
        posterior = self.vae.encode((video.float() / 255 * 2 - 1).to(self.vae.dtype)).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return latents.transpose(1, 2).float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        latents = latents.transpose(1, 2) / self.vae.config.scaling_factor
        video = self.vae.decode(latents.to(self.vae.dtype)).sample[0].float()
        return ((video / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> list[Text]:
        tokenizer = self.pipeline.tokenizer
        whole = [tokenizer(prompt, verbose=False).input_ids for prompt in prompts]
        ids = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.text_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        for prompt, tokens in zip(prompts, whole, strict=True):
            if len(tokens) > self.text_length:
                log.warning("prompt cut to %d of its %d tokens: %.60s…", self.text_length, len(tokens), prompt)
        embedding = self.pipeline.text_encoder(ids.to(self.device))[0].to(self.transformer.dtype)
        lengths = [min(len(tokens), self.text_length) for tokens in whole]
        return [Text(e, tuple(row[:n])) for e, row, n in zip(embedding, ids.tolist(), lengths, strict=True)]

    def schedule(self, steps: int) -> Schedule:
        return Schedule.from_diffusers(self.pipeline.scheduler, steps)

    @torch.no_grad()
    def denoise(
        self,
        latents: Tensor,
        step: int,
        schedule: Schedule,
        text: Tensor,
        replacement: Replacement | None = None,
    ) -> Tensor:
        rows, frames, _, height, width = latents.shape
        out = self.transformer(
            hidden_states=latents.to(self.transformer.dtype),
            encoder_hidden_states=text,
            timestep=schedule.timesteps[step].to(latents.device).expand(rows),
            image_rotary_emb=self._rotary(frames, height, width),
            attention_kwargs=None if replacement is None else {"replacement": replacement},
            return_dict=False,
        )[0]
        x0_from = X0_FROM[self.pipeline.scheduler.config.prediction_type]
        return x0_from(latents.float(), out.float(), float(schedule.a[step]), float(schedule.s[step]))

    def video_to_video(
        self, frames: np.ndarray, prompt: str, steps: int, strength: float, guidance: float, seed: int
    ) -> np.ndarray:
        video = self._peer(
            video=[Image.fromarray(frame) for frame in frames],
            prompt=prompt,
            height=frames.shape[1],
            width=frames.shape[2],
            num_inference_steps=steps,
            strength=strength,
            guidance_scale=guidance,
            max_sequence_length=self.text_length,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).frames[0]
        return (video * 255).round().astype(np.uint8)

    @cached_property
    def _peer(self) -> CogVideoXVideoToVideoPipeline:
        """diffusers' pipeline on these weights: its own modules and processors around the same tensors."""
        tensors = [*self.transformer.parameters(), *self.transformer.buffers()]
        transformer = copy.deepcopy(self.transformer, {id(tensor): tensor for tensor in tensors})
        transformer.set_attn_processor(CogVideoXAttnProcessor2_0())
        parts = self.pipeline.components | {"transformer": transformer}
        parts["scheduler"] = type(parts["scheduler"]).from_config(parts["scheduler"].config)
        peer = CogVideoXVideoToVideoPipeline(**parts)
        peer.set_progress_bar_config(disable=True)
        return peer

    def _rotary_of(self, frames: int, height: int, width: int) -> tuple[Tensor, Tensor] | None:
        if not self.transformer.config.use_rotary_positional_embeddings:
            return None
        return self.pipeline._prepare_rotary_positional_embeddings(
            height * self.spatial, width * self.spatial, frames, self.device
        )
