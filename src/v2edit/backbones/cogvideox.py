"""CogVideoX 1.0 (2b: absolute positions and DDIM; 5b: rotary and DPM) over diffusers, from a hub id or a folder.

Letters: R rows, L text slots, T frames, F latent frames."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXAttnProcessor2_0
from PIL import Image
from torch import Tensor

from v2edit.attention import Replacement, Window
from v2edit.backbones.base import ModelInfo, Size, Text
from v2edit.backbones.cogvideox_attention import JointAttention, RotaryTable, RowwiseBlock, WindowTables
from v2edit.backbones.families import PUBLISHED_DEFAULTS, Defaults, Offload
from v2edit.errors import UserError
from v2edit.host import retry_smaller_on_oom
from v2edit.prompts.tokens import PromptTokenizer
from v2edit.sampling import Schedule, x0_from_epsilon, x0_from_v

log = logging.getLogger(__name__)
X0_FROM = {"v_prediction": x0_from_v, "epsilon": x0_from_epsilon}

# The autoencoder is causal and takes frames in groups of 8 (2 latent frames), after a first one (a latent frame of its
# own). So a loop is coded as if it had been playing for a while: its first latent frame then is one like the others.
# After 4 groups the output of the built-in model's autoencoder depends on its start by at most 1 of 255.
LEAD_GROUPS = 4
# The loop is cut open one frame late: where it closes, the last and the first frame then share a latent frame, and
# its later half; between latent frames the autoencoder's steps are the largest.
CUT = 1


class CogVideoX:
    """The `Backbone` of a diffusers `CogVideoXPipeline`."""

    def __init__(
        self, pipeline: CogVideoXPipeline, name: str = "CogVideoX", defaults: Defaults = PUBLISHED_DEFAULTS
    ) -> None:
        if pipeline.transformer.config.patch_size_t is not None:
            raise UserError(f"{name} is a CogVideoX 1.5 model; this version edits with CogVideoX 1.0 (2b and 5b)")
        self.name, self.pipeline, self.defaults = name, pipeline, defaults
        self.transformer, self.vae = pipeline.transformer, pipeline.vae
        self.transformer.set_attn_processor(JointAttention())
        for part in (self.transformer, self.vae, pipeline.text_encoder):
            part.eval().requires_grad_(False)
        scheduler = pipeline.scheduler
        self.solver = "dpm-sde" if isinstance(scheduler, diffusers.CogVideoXDPMScheduler) else "ddim"
        if scheduler.config.prediction_type not in X0_FROM:
            raise UserError(f"{name} predicts {scheduler.config.prediction_type!r}; known are {', '.join(X0_FROM)}")
        config = self.transformer.config
        self.tokenizer = PromptTokenizer(pipeline.tokenizer, config.max_text_seq_length)
        self.text_length, self.pad_id = config.max_text_seq_length, pipeline.tokenizer.pad_token_id
        self.spatial, self.temporal = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
        self.native_size = Size(
            config.sample_frames, config.sample_height * self.spatial, config.sample_width * self.spatial
        )
        self.offload: Offload = "none"
        # Every network call takes the rotary tables of its grid; clips of one size share them.
        self._rotary = lru_cache(maxsize=4)(self._make_rotary)
        self._windows = lru_cache(maxsize=4)(self._make_windows)

    @property
    def device(self) -> torch.device:
        return self.pipeline._execution_device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    @property
    def has_rotary_time(self) -> bool:
        config = self.transformer.config
        return config.use_rotary_positional_embeddings and not config.use_learned_positional_embeddings

    def nearest_size(self, size: Size, loop: bool = False) -> Size:
        if loop and not self.has_rotary_time:
            raise UserError(
                f"--loop: {self.name} gives frames absolute positions, which have a first and a last one; "
                "a loop takes a model with rotary positions, such as zai-org/CogVideoX-5b"
            )
        # The decoder gives every frame back only for an odd number of latent frames; a loop has no first one.
        group = 2 * self.temporal
        frames = math.ceil(size.frames / group) * group if loop else math.ceil((size.frames - 1) / group) * group + 1
        side = self.spatial * self.transformer.config.patch_size
        scale = math.sqrt(self.native_size.height * self.native_size.width / (size.height * size.width))
        height, width = (max(side, round(x * scale / side) * side) for x in (size.height, size.width))
        return Size(frames, height, width)

    @torch.no_grad()
    def encode(self, frames: np.ndarray, generator: torch.Generator | None = None, loop: bool = False) -> Tensor:
        lead, latent_lead = self._lead() if loop else (0, 0)
        if loop:
            frames = frames[np.arange(CUT - lead, CUT + len(frames)) % len(frames)]

        def load_frames(encoder: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            return ((args[0].to(self.device).float() / 255 * 2 - 1).to(self.vae.dtype),)

        # The autoencoder takes a few frames at a time: only these are moved to the device and converted there.
        hook = self.vae.encoder.register_forward_pre_hook(load_frames)
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None]
        try:
            posterior = retry_smaller_on_oom(lambda: self.vae.encode(video), self.offload_more).latent_dist
        finally:
            hook.remove()
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return latents.transpose(1, 2)[:, latent_lead:].float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor, loop: bool = False) -> np.ndarray:
        lead, latent_lead = self._lead() if loop else (0, 0)
        if loop:
            latents = latents[:, torch.arange(-latent_lead, latents.shape[1]) % latents.shape[1]]
        tiled = self.vae.use_tiling  # Tiles are blended before the conversion to bytes.

        def store_frames(decoder: Any, args: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
            video, cache = output
            return (video if tiled else to_uint8(video)).cpu(), cache

        # The autoencoder gives a few frames at a time: the clip is put together in main memory.
        hook = self.vae.decoder.register_forward_hook(store_frames)
        try:
            latents = latents.transpose(1, 2) / self.vae.config.scaling_factor
            video = retry_smaller_on_oom(lambda: self.vae.decode(latents.to(self.vae.dtype)), self.offload_more).sample
        finally:
            hook.remove()
        frames = (to_uint8(video) if tiled else video)[0, :, lead:].permute(1, 2, 3, 0).numpy()
        return np.roll(frames, CUT, axis=0) if loop else frames

    def _lead(self) -> tuple[int, int]:
        """Return the number of frames, and of latent frames, that are coded before a loop and thrown away."""
        return 2 * self.temporal * LEAD_GROUPS + 1, 2 * LEAD_GROUPS + 1

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> list[Text]:
        tokenizer = self.pipeline.tokenizer
        uncut = [tokenizer(prompt, verbose=False).input_ids for prompt in prompts]
        ids = tokenizer(
            list(prompts), padding="max_length", max_length=self.text_length, truncation=True, return_tensors="pt"
        ).input_ids
        for prompt, tokens in zip(prompts, uncut, strict=True):
            if len(tokens) > self.text_length:
                log.warning("prompt cut to %d of its %d tokens: %.60s…", self.text_length, len(tokens), prompt)
        embedding = self.pipeline.text_encoder(ids.to(self.device))[0].to(self.transformer.dtype)
        lengths = [min(len(tokens), self.text_length) for tokens in uncut]
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
        loop: bool = False,
    ) -> Tensor:
        rows, frames, _, height, width = latents.shape
        in_windows = self.has_rotary_time and (loop or frames > self._native_latent_frames)
        windows = self._windows(frames, height, width, loop) if in_windows else None
        out = self.transformer(
            hidden_states=latents.to(self.transformer.dtype),
            encoder_hidden_states=text,
            timestep=schedule.timesteps[step].to(latents.device).expand(rows),
            image_rotary_emb=windows.in_window if windows else self._rotary(frames, height, width),
            attention_kwargs={"replacement": replacement, "windows": windows},
            return_dict=False,
        )[0]
        x0_from = X0_FROM[self.pipeline.scheduler.config.prediction_type]
        return x0_from(latents.float(), out.float(), float(schedule.a[step]), float(schedule.s[step]))

    def place(self, device: torch.device, offload: Offload) -> None:
        """Move the parts to the device or, with an `offload`, let them be moved there when they are needed."""
        self.pipeline.remove_all_hooks()
        if offload == "model":
            self.pipeline.enable_model_cpu_offload(device=device)
        elif offload == "group":
            self.pipeline.to("cpu", silence_dtype_warnings=True)
            self.pipeline.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=True)
        else:
            self.pipeline.to(device)
        self.offload = offload

    def shrink(self) -> str | None:
        layers = self.transformer.transformer_blocks
        if not all(isinstance(layer, RowwiseBlock) for layer in layers):
            for layer in layers:
                layer.__class__ = RowwiseBlock
            return "the rows of a call one at a time in each layer"
        return self.offload_more()

    def offload_more(self) -> str | None:
        """Offload more of the model from now on, and describe how; None on the CPU or where no further mode is left."""
        next_mode: dict[Offload, Offload] = {"none": "model", "model": "group"}
        if self.device.type == "cpu" or self.offload not in next_mode:
            return None
        self.place(self.device, next_mode[self.offload])
        return f"--offload {self.offload}"

    def video_to_video(
        self, frames: np.ndarray, prompt: str, steps: int, strength: float, guidance: float, seed: int
    ) -> np.ndarray:
        """Run diffusers' own video-to-video pipeline (SDEdit) on the same weights, for comparison: uint8 frames
        [T, H, W, 3] of a valid size to the same, noised up to `strength` (0 to 1) of the steps."""
        video = self._sdedit_pipeline(
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
    def _sdedit_pipeline(self) -> diffusers.CogVideoXVideoToVideoPipeline:
        """diffusers' pipeline on these weights: its own modules and processors around the same tensors."""
        tensors = [*self.transformer.parameters(), *self.transformer.buffers()]
        transformer = copy.deepcopy(self.transformer, {id(tensor): tensor for tensor in tensors})
        transformer.set_attn_processor(CogVideoXAttnProcessor2_0())
        parts = self.pipeline.components | {"transformer": transformer}
        parts["scheduler"] = type(parts["scheduler"]).from_config(parts["scheduler"].config)
        pipeline = diffusers.CogVideoXVideoToVideoPipeline(**parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @property
    def _native_latent_frames(self) -> int:
        return (self.native_size.frames - 1) // self.temporal + 1

    def _make_windows(self, frames: int, height: int, width: int, loop: bool) -> WindowTables:
        window = Window(frames, min(frames, self._native_latent_frames), loop)
        before, all_frames = window.halo_before, window.halo_before + frames + window.halo_after
        with_halo = self._make_rotary(all_frames, height, width)
        assert with_halo is not None
        # Rotation is relative: the clip may begin at any index, here after the halo before it.
        by_frame = [part.unflatten(0, (all_frames, -1)) for part in with_halo]
        cos, sin = (part[window.positions()].flatten(0, 1) for part in by_frame)
        clip_cos, clip_sin = (part[before : before + frames].flatten(0, 1) for part in by_frame)
        return WindowTables(window, (cos, sin), (clip_cos, clip_sin), with_halo)

    def _make_rotary(self, frames: int, height: int, width: int) -> RotaryTable | None:
        if not self.transformer.config.use_rotary_positional_embeddings:
            return None
        return self.pipeline._prepare_rotary_positional_embeddings(
            height * self.spatial, width * self.spatial, frames, self.device
        )


def to_uint8(video: Tensor) -> Tensor:
    """Convert the decoder's output, -1 to 1, to bytes."""
    return ((video.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def read_info(folder: Path, defaults: Defaults = PUBLISHED_DEFAULTS) -> ModelInfo:
    """Read the `ModelInfo` of a pipeline folder, where the weights may be missing."""
    config: Any = CogVideoXTransformer3DModel.load_config(folder / "transformer")
    tokenizer, scheduler = _read_tokenizer_and_scheduler(folder)
    return ModelInfo(PromptTokenizer(tokenizer, config["max_text_seq_length"]), defaults, scheduler)


def fake_pipeline(folder: Path, dtype: torch.dtype, without_data: AbstractContextManager[Any]) -> CogVideoXPipeline:
    """Build the pipeline of a folder from its configuration alone, in a context that gives tensors no data."""
    text: Any = getattr(transformers, _read_index(folder)["text_encoder"][-1])
    transformer_config: Any = CogVideoXTransformer3DModel.load_config(folder / "transformer")
    vae_config: Any = AutoencoderKLCogVideoX.load_config(folder / "vae")
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with without_data:
            text_encoder = text(text.config_class.from_pretrained(folder / "text_encoder"))
            vae: Any = AutoencoderKLCogVideoX.from_config(vae_config)
            transformer: Any = CogVideoXTransformer3DModel.from_config(transformer_config)
    finally:
        torch.set_default_dtype(default_dtype)
    tokenizer, scheduler = _read_tokenizer_and_scheduler(folder)
    return CogVideoXPipeline(tokenizer, text_encoder, vae, transformer, scheduler)


def _read_index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))


def _read_tokenizer_and_scheduler(folder: Path) -> tuple[Any, Any]:
    index = _read_index(folder)
    tokenizer, scheduler = getattr(transformers, index["tokenizer"][-1]), getattr(diffusers, index["scheduler"][-1])
    return tokenizer.from_pretrained(folder / "tokenizer"), scheduler.from_pretrained(folder / "scheduler")
