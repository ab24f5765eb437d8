"""CogVideoX 1.0 (2b: absolute positions and DDIM; 5b: rotary and DPM) over diffusers, from a hub id or a folder.

Letters: R rows, N text + video tokens, H heads, D channels of a head, T frames, F latent frames.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CogVideoXVideoToVideoPipeline,
)
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXAttnProcessor2_0, CogVideoXBlock
from PIL import Image
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from v2edit.attention import Replacement, Window, replaced_attention, windowed_attention
from v2edit.backbones.base import ModelInfo, Size, Text
from v2edit.backbones.families import PUBLISHED_DEFAULTS, Defaults, Offload
from v2edit.errors import UserError
from v2edit.files import read_json
from v2edit.host import retry_smaller_on_oom
from v2edit.prompts.chat import to_single_line
from v2edit.prompts.tokens import PromptTokenizer
from v2edit.sampling import Schedule, x0_from_epsilon, x0_from_v

log = logging.getLogger(__name__)
MOST_LAYERS, LARGEST_SIDE, LARGEST_NUMBER, LARGEST_TABLE = 100, 4096, 2**24, 2**28  # that a configuration may claim
# What diffusers and transformers raise over settings that make no sense.
CONFIGURING = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, OSError, RuntimeError,
               TypeError, ValueError)  # fmt: skip
X0_FROM = {"v_prediction": x0_from_v, "epsilon": x0_from_epsilon}
Table = tuple[Tensor, Tensor]  # cos and sin, each [video tokens, D]

# The autoencoder is causal and takes frames in groups of 8 (2 latent frames), after a first one (a latent frame of its
# own). So a loop is coded as if it had been playing for a while: its first latent frame then is one like the others.
# After 4 groups the autoencoder of the built-in model has forgotten how it started, to 1 of 255.
LEAD_GROUPS = 4
# The loop is cut open one frame late: where it closes, the last and the first frame then share a latent frame, and
# its later half; between latent frames the autoencoder's steps are the largest.
CUT = 1


@dataclass(frozen=True, eq=False)
class Windowed:
    """How a long or a looping clip is attended: by windows, its frames at their places in the clip when they meet
    each other, at those within their windows when they meet text (see `windowed_attention`)."""

    window: Window
    in_window: Table
    in_clip: Table
    wide: Table  # as in the clip, with what its ends borrow

    def place(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, wide keys and wide values, from those of the clip before they are rotated."""
        wide = self.window.wide
        return rotate(q, self.in_clip), rotate(wide(k), self.wide), wide(v)


class JointAttention:
    """diffusers' `CogVideoXAttnProcessor2_0`, with attention-map replacement (V2Edit Sec. 3.2) and windows (Sec. B.3)
    on request."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Table | None = None,
        replacement: Replacement | None = None,
        windowed: Windowed | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert attention_mask is None
        text_tokens = encoder_hidden_states.shape[1]
        joint = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        q, k, v = (to(joint).unflatten(2, (attn.heads, -1)).transpose(1, 2) for to in (attn.to_q, attn.to_k, attn.to_v))
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        attention_with_lse = F.scaled_dot_product_attention
        if windowed is not None:
            video = windowed.place(*(x[:, :, text_tokens:] for x in (q, k, v)))
            attention_with_lse = partial(
                windowed_attention,
                video=video,
                window=windowed.window,
                text_tokens=text_tokens,
                replacement=replacement,
            )
        elif replacement is not None:
            attention_with_lse = partial(replaced_attention, text_tokens=text_tokens, replacement=replacement)
        if image_rotary_emb is not None:
            q[:, :, text_tokens:] = rotate(q[:, :, text_tokens:], image_rotary_emb)
            k[:, :, text_tokens:] = rotate(k[:, :, text_tokens:], image_rotary_emb)
        out = attention_with_lse(q, k, v)
        out = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
        return out[:, text_tokens:], out[:, :text_tokens]


class RowwiseBlock(CogVideoXBlock):
    """A layer that takes the rows of a batch one at a time: what it holds for a row in passing is most of what a
    network call needs. A row whose maps others take leaves its queries and shared keys behind, for this layer."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Table | None = None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        own = attention_kwargs or {}
        maps: Replacement | None = own.get("replacement")
        kept: list[tuple[Tensor, Tensor]] = []
        for row, (video, text, time) in enumerate(
            zip(hidden_states.split(1), encoder_hidden_states.split(1), temb.split(1), strict=True)
        ):
            if maps is not None:
                own = own | {"replacement": Replacement(maps.shared, (maps.sources[row],), kept)}
            done = super().forward(video, text, time, image_rotary_emb, own)
            if kept and not any(row == taken for later in maps.sources[row + 1 :] for taken, _ in later):  # pyright: ignore[reportOptionalMemberAccess]
                kept[-1] = kept[-1][0][:0].clone(), kept[-1][1][:0].clone()  # of no size: a view would hold it all
            video.copy_(done[0])
            text.copy_(done[1])
        return hidden_states, encoder_hidden_states


class CogVideoX:
    """The `Backbone` of a `CogVideoXPipeline`."""

    def __init__(
        self, pipeline: CogVideoXPipeline, name: str = "CogVideoX", defaults: Defaults = PUBLISHED_DEFAULTS
    ) -> None:
        if pipeline.transformer.config.patch_size_t is not None:
            raise UserError(f"{name} is a CogVideoX 1.5 model; this version edits with CogVideoX 1.0 (2b and 5b)")
        self.name, self.pipeline = name, pipeline
        self.defaults = defaults
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
        self.native_size = Size(
            config.sample_frames, config.sample_height * self.spatial, config.sample_width * self.spatial
        )
        self.offload: Offload = "none"
        # Each network call is told the rotary tables of its grid; clips of one size share them.
        self._rotary = lru_cache(maxsize=4)(self._rotary_of)
        self._windowed = lru_cache(maxsize=4)(self._windowed_of)

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

        def arrive(encoder: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            return ((args[0].to(self.device).float() / 255 * 2 - 1).to(self.vae.dtype),)

        # The autoencoder takes a few frames at a time: only these are brought to the device, and made numbers there.
        hook = self.vae.encoder.register_forward_pre_hook(arrive)
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
        blended = self.vae.use_tiling  # Tiles are blended while they still are numbers.

        def leave(decoder: Any, args: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
            video, cache = output
            return (video if blended else to_uint8(video)).cpu(), cache

        # As it comes out, a few frames at a time: the clip is put together in main memory.
        hook = self.vae.decoder.register_forward_hook(leave)
        try:
            latents = latents.transpose(1, 2) / self.vae.config.scaling_factor
            video = retry_smaller_on_oom(lambda: self.vae.decode(latents.to(self.vae.dtype)), self.offload_more).sample
        finally:
            hook.remove()
        frames = (to_uint8(video) if blended else video)[0, :, lead:].permute(1, 2, 3, 0).numpy()
        return np.roll(frames, CUT, axis=0) if loop else frames

    def _lead(self) -> tuple[int, int]:
        """How many frames, and latent frames, a loop is played before it counts."""
        return 2 * self.temporal * LEAD_GROUPS + 1, 2 * LEAD_GROUPS + 1

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
        loop: bool = False,
    ) -> Tensor:
        rows, frames, _, height, width = latents.shape
        trained = (self.native_size.frames - 1) // self.temporal + 1
        windowed = (
            self._windowed(frames, height, width, loop) if self.has_rotary_time and (loop or frames > trained) else None
        )
        out = self.transformer(
            hidden_states=latents.to(self.transformer.dtype),
            encoder_hidden_states=text,
            timestep=schedule.timesteps[step].to(latents.device).expand(rows),
            image_rotary_emb=windowed.in_window if windowed else self._rotary(frames, height, width),
            attention_kwargs={"replacement": replacement, "windowed": windowed},
            return_dict=False,
        )[0]
        x0_from = X0_FROM[self.pipeline.scheduler.config.prediction_type]
        return x0_from(latents.float(), out.float(), float(schedule.a[step]), float(schedule.s[step]))

    def place(self, device: torch.device, offload: Offload) -> None:
        """Puts the parts on the device or, with an `offload`, has them brought there as they are needed."""
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
        """Brings to the device, from now on, less of the model at a time; None where it is main memory itself, or
        nothing is left to take away."""
        following: dict[Offload, Offload] = {"none": "model", "model": "group"}
        if self.device.type == "cpu" or self.offload not in following:
            return None
        self.place(self.device, following[self.offload])
        return f"--offload {self.offload}"

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

    def _windowed_of(self, frames: int, height: int, width: int, loop: bool) -> Windowed:
        window = Window(frames, min(frames, (self.native_size.frames - 1) // self.temporal + 1), loop)
        wide = self._rotary_of(window.before + frames + window.after, height, width)
        assert wide is not None
        # Rotation is relative: a clip may begin at any index, here at as many as its first frame borrows.
        by_frame = [part.unflatten(0, (window.before + frames + window.after, -1)) for part in wide]
        cos, sin = (part[window.positions()].flatten(0, 1) for part in by_frame)
        clip_cos, clip_sin = (part[window.before : window.before + frames].flatten(0, 1) for part in by_frame)
        return Windowed(window, (cos, sin), (clip_cos, clip_sin), wide)

    def _rotary_of(self, frames: int, height: int, width: int) -> Table | None:
        if not self.transformer.config.use_rotary_positional_embeddings:
            return None
        return self.pipeline._prepare_rotary_positional_embeddings(
            height * self.spatial, width * self.spatial, frames, self.device
        )


def to_uint8(video: Tensor) -> Tensor:
    """What the decoder gives, -1 to 1, as the bytes of frames."""
    return ((video.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def check_config_sizes(folder: Path) -> None:
    """Raises `UserError` where a part of a pipeline folder describes itself as larger than its weights are: it would be
    built, and fill the memory, before anything is compared."""
    for part, (kind, configured) in {
        "transformer": (CogVideoXTransformer3DModel, CogVideoXTransformer3DModel.from_config),
        "vae": (AutoencoderKLCogVideoX, AutoencoderKLCogVideoX.from_config),
        "text_encoder": (T5EncoderModel, lambda facts: T5EncoderModel(T5Config.from_dict(facts))),
    }.items():
        path = folder / part / "config.json"
        try:
            facts = read_json(path)
            if not isinstance(facts, dict):
                raise TypeError(f"it is no object of settings for a {kind.__name__}")
            _check_numbers(facts)
            with torch.device("meta"):
                built = configured(facts)
            if (tables := sum(one.numel() for one in built.buffers())) > LARGEST_TABLE:
                raise ValueError(f"it has tables of {tables:,} numbers")
            claimed = sum(one.numel() for one in built.parameters())
        except CONFIGURING as error:
            reason = to_single_line(str(error))[:160] or type(error).__name__
            raise UserError(f"{path} describes no model that can be built: {reason}") from error
        held = sum(file.stat().st_size for ending in ("safetensors", "bin") for file in path.parent.glob(f"*.{ending}"))
        if claimed > held:  # a weight has a byte at least
            raise UserError(
                f"{path} describes {claimed:,} weights, and the files beside it hold {held:,} bytes: they were cut "
                "off, or are of another model; copy them again"
            )


def _check_numbers(facts: dict[str, Any]) -> None:
    """Raises `ValueError` for a number that no network has, or none that a network takes minutes to be built with."""
    for name, value in facts.items():
        values = value if isinstance(value, list) else [value]
        most = MOST_LAYERS if "layers" in name else LARGEST_SIDE if name.startswith("sample_") else LARGEST_NUMBER
        if len(values) > MOST_LAYERS or any(isinstance(one, int | float) and not abs(one) <= most for one in values):
            raise ValueError(f"{name} is {str(value)[:40]}")


def read_info(folder: Path, defaults: Defaults = PUBLISHED_DEFAULTS) -> ModelInfo:
    """The `ModelInfo` of a pipeline folder, of which the weights may be missing."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    tokenizer, scheduler = getattr(transformers, index["tokenizer"][-1]), getattr(diffusers, index["scheduler"][-1])
    config: Any = CogVideoXTransformer3DModel.load_config(folder / "transformer")
    return ModelInfo(
        PromptTokenizer(tokenizer.from_pretrained(folder / "tokenizer"), config["max_text_seq_length"]),
        defaults,
        scheduler.from_pretrained(folder / "scheduler"),
    )


def fake_pipeline(folder: Path, dtype: torch.dtype, without_data: AbstractContextManager[Any]) -> CogVideoXPipeline:
    """The pipeline of a folder of which the weights may be missing: parts of the same shapes, made in a context that
    gives tensors no data."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    text: Any = getattr(transformers, index["text_encoder"][-1])
    transformer: Any = CogVideoXTransformer3DModel.load_config(folder / "transformer")
    vae: Any = AutoencoderKLCogVideoX.load_config(folder / "vae")
    tokenizer, scheduler = getattr(transformers, index["tokenizer"][-1]), getattr(diffusers, index["scheduler"][-1])
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with without_data:
            encoder = text(text.config_class.from_pretrained(folder / "text_encoder"))
            coder: Any = AutoencoderKLCogVideoX.from_config(vae)
            network: Any = CogVideoXTransformer3DModel.from_config(transformer)
    finally:
        torch.set_default_dtype(usual)
    said, steps = tokenizer.from_pretrained(folder / "tokenizer"), scheduler.from_pretrained(folder / "scheduler")
    return CogVideoXPipeline(said, encoder, coder, network, steps)


def rotate(x: Tensor, table: Table) -> Tensor:
    """Queries or keys [R, H, video tokens, D] rotated to their places."""
    return apply_rotary_emb(x, table)  # pyright: ignore[reportArgumentType, reportReturnType] (diffusers' own hints)
