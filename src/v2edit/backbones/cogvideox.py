"""CogVideoX 1.0 (2b: absolute positions and DDIM; 5b: rotary and DPM) and 1.5 (5b: a token is two latent frames), whose
attention is joint over text and video.

Letters: R rows, N text + video tokens, H heads, D channels of a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import diffusers
import torch
from diffusers.models.embeddings import apply_rotary_emb, get_3d_rotary_pos_embed
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXAttnProcessor2_0
from torch import Tensor

from v2edit.attention import AttentionCall, RotaryTable, joint_attention
from v2edit.backbones.base import Size, Text
from v2edit.backbones.core import PipelineBackbone
from v2edit.backbones.families import DType
from v2edit.sampling import x0_from_epsilon, x0_from_v


class CogVideoX(PipelineBackbone):
    """The `Backbone` of a diffusers `CogVideoXPipeline`."""

    # After 4 groups the output of the built-in model's autoencoder depends on its start by at most 1 of 255.
    lead_groups = 4
    native_fps = 8.0
    coded_frame_by_frame = True
    shares_tokens = True
    predictions: ClassVar = {"v_prediction": x0_from_v, "epsilon": x0_from_epsilon}

    def configure(self, pipeline: Any) -> Size:
        config = pipeline.transformer.config
        self.spatial, self.temporal = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
        self.group, self.side = 2 * self.temporal, self.spatial * config.patch_size
        for side in ("height", "width"):  # Tiles of pixels must join where those of latents do: a small one's may not.
            overlap = getattr(self.vae, f"tile_overlap_factor_{side}")
            if round(getattr(self.vae, f"tile_sample_min_{side}") * (1 - overlap)) % self.spatial:
                setattr(self.vae, f"tile_overlap_factor_{side}", 1 / 4)
        if config.patch_size_t is not None:  # 1.5
            self.unit, self.native_fps = config.patch_size_t, 16.0
            return Size(81, 768, 1360)  # its configuration has the size of the table of positions instead
        height, width = config.sample_height * self.spatial, config.sample_width * self.spatial
        return Size(config.sample_frames, height, width)

    @staticmethod
    def text_length_of(config: Mapping[str, Any]) -> int:
        return config["max_text_seq_length"]

    @classmethod
    def published_dtype(cls, config: Mapping[str, Any]) -> DType:
        return "bfloat16" if config.get("use_rotary_positional_embeddings") else "float16"  # 2b: float16

    @property
    def text_width(self) -> int:
        return self.pipeline.transformer.config.text_embed_dim

    @property
    def solver(self) -> str:
        return "dpm-sde" if isinstance(self.pipeline.scheduler, diffusers.CogVideoXDPMScheduler) else "ddim"

    @property
    def video_to_video_pipeline(self) -> str | None:
        # It refuses what it would have to fill a token of: clips of 8 j + 1 frames.
        return "CogVideoXVideoToVideoPipeline" if self.unit == 1 else None

    @property
    def has_rotary_time(self) -> bool:
        config = self.pipeline.transformer.config
        return config.use_rotary_positional_embeddings and not config.use_learned_positional_embeddings

    def install(self, network: Any, call: AttentionCall) -> None:
        network.set_attn_processor(JointAttention(call))

    def uninstall(self, network: Any) -> None:
        network.set_attn_processor(CogVideoXAttnProcessor2_0())

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> list[Text]:
        tokens, lengths = self.tokenizer.pad(prompts)
        ids = tokens.input_ids
        embedding = self.pipeline.text_encoder(ids.to(self.device))[0].to(self.dtype)
        return [Text(e, tuple(row[:n])) for e, row, n in zip(embedding, ids.tolist(), lengths, strict=True)]

    def predict(
        self, network: Any, latents: Tensor, timestep: Tensor, text: Sequence[Text], guidance: Tensor
    ) -> Tensor:
        embedding = torch.stack([one.embedding for one in text])
        return network(latents, embedding, timestep, return_dict=False)[0]

    def make_rotary(self, frames: int, height: int, width: int) -> RotaryTable | None:
        config = self.pipeline.transformer.config
        if not config.use_rotary_positional_embeddings:
            return None
        if self.unit > 1:  # as the pipeline does, whose own table ends at 2400 pixels a side
            grid = height // config.patch_size, width // config.patch_size
            return get_3d_rotary_pos_embed(
                config.attention_head_dim, None, grid, frames // self.unit, grid_type="slice", max_size=grid,
                device=self.device,
            )  # pyright: ignore[reportReturnType] (diffusers' hints)  # fmt: skip
        return self.pipeline._prepare_rotary_positional_embeddings(
            height * self.spatial, width * self.spatial, frames, self.device
        )

    @staticmethod
    def rotate(x: Tensor, table: RotaryTable) -> Tensor:
        return apply_rotary_emb(x, table)  # pyright: ignore[reportArgumentType, reportReturnType] (diffusers' hints)


class JointAttention:
    """diffusers' `CogVideoXAttnProcessor2_0` with AMR (V2Edit Sec. 3.2) and windows (Sec. B.3) on request."""

    def __init__(self, call: AttentionCall) -> None:
        self.call = call

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: None = None,
    ) -> tuple[Tensor, Tensor]:
        text_tokens = encoder_hidden_states.shape[1]
        joint = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        q, k, v = (to(joint).unflatten(2, (attn.heads, -1)).transpose(1, 2) for to in (attn.to_q, attn.to_k, attn.to_v))
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        out = joint_attention(q, k, v, text_tokens, self.call)
        out = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
        return out[:, text_tokens:], out[:, :text_tokens]
