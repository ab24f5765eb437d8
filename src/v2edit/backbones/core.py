"""What all families share: a diffusers pipeline as a `Backbone`, but for what a family's networks differ in.

Letters: R rows, L text slots, T frames, F latent frames."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from v2edit.attention import AttentionCall, Replacement, RotaryTable, Window, attention_with_lse
from v2edit.attention.kernels import prefer_kernel
from v2edit.attention.sites import WindowTables
from v2edit.backbones.base import Size, Text
from v2edit.backbones.caching import CachedRows
from v2edit.backbones.coding import VideoCoding
from v2edit.backbones.compiled import compiled_class
from v2edit.backbones.families import FRAME_RATE, PUBLISHED_DEFAULTS, Defaults, DType, family_of
from v2edit.backbones.hub import Checkpoint
from v2edit.backbones.modes import MemoryModes
from v2edit.backbones.options import LoadOptions
from v2edit.backbones.placement import Placement, tensors_of
from v2edit.backbones.rowwise import plain_class
from v2edit.errors import UserError
from v2edit.prompts.tokens import PromptTokenizer
from v2edit.sampling import Schedule, is_flow, prediction_of, with_flow_shift, x0_from_flow

TYPICAL_TOKENS = 140  # of a prompt as the styles have them written


class PipelineBackbone(MemoryModes, VideoCoding):
    """The `Backbone` of a diffusers pipeline. A family is a subclass: it sets the attributes and writes the methods
    that raise `NotImplementedError`, and more where its models differ (docs/extending.md)."""

    # Of a family; `configure` may set them.
    side: int  # pixels that a clip's sides are multiples of
    hides_padding = False
    classifier_free = True
    shares_tokens = False  # whether its layers take any share of the video's tokens: all but attention is by token
    float32_parts: ClassVar[tuple[str, ...]] = ()  # whatever the dtype
    # What its networks may predict, and x0 from that.
    predictions: ClassVar[Mapping[str, Callable[[Tensor, Tensor, float, float], Tensor]]] = {
        "flow_prediction": x0_from_flow
    }
    frame_rate: float = FRAME_RATE  # of the clip
    native_fps: float | None = None
    own_device: torch.device | None = None  # of a replica, which shares its pipeline's other parts
    replica: PipelineBackbone | None = None
    checkpoint: Checkpoint | None = None
    load_options = LoadOptions(offload="none")

    def __init__(self, pipeline: Any, name: str | None = None, defaults: Defaults | None = None) -> None:
        self.name, self.pipeline = name or type(self).__name__, pipeline
        family = family_of(type(pipeline).__name__)
        defaults = defaults or (family.defaults if family else PUBLISHED_DEFAULTS)
        self.defaults = self.defaults_of(pipeline.config, defaults)
        self.vae = pipeline.vae
        self.check_scheduler(pipeline.scheduler)
        self.native_size = self.configure(pipeline)
        if any(self.wants_picture(network.config) for network in self.networks):
            raise UserError(
                f"{self.name} wants a picture beside the video (image to video); take a text-to-video model"
            )
        self.text_length = self.text_length_of(self.networks[0].config)
        self.tokenizer = self.prompt_tokenizer(pipeline.tokenizer, self.networks[0].config)
        self.pad_id = pipeline.tokenizer.pad_token_id
        self.call = AttentionCall(self.rotate)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        for network in self.networks:
            self.install(network, self.call)
            for layer in self.layers(network):
                layer.attention_call = self.call
        parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
        self.placement = Placement(parts, self.networks, self.vae)
        # Every network call takes the rotary tables of its grid; clips of one size share them.
        self._rotary = lru_cache(maxsize=4)(self.make_rotary)
        self._windows = lru_cache(maxsize=4)(self._make_windows)

    def configure(self, pipeline: Any) -> Size:
        """Set what depends on a model's configuration, and return its native size. Raises `UserError` for a model that
        cannot be edited with."""
        raise NotImplementedError

    @staticmethod
    def text_length_of(config: Mapping[str, Any]) -> int:
        """Return the number of text slots L of a transformer's configuration."""
        raise NotImplementedError

    @classmethod
    def prompt_tokenizer(cls, tokenizer: Any, config: Mapping[str, Any]) -> PromptTokenizer:
        """Return the tokenizer that prompts are aligned by."""
        return PromptTokenizer(tokenizer, cls.text_length_of(config))

    @classmethod
    def published_dtype(cls, config: Mapping[str, Any]) -> DType:
        """Return the 16-bit format that a transformer of a configuration was published in."""
        return "bfloat16"

    @property
    def networks(self) -> list[Any]:
        """The transformers, one for each expert."""
        return [self.pipeline.transformer]

    def layers(self, network: Any) -> list[Any]:
        """Return a network's layers in their order."""
        return [layer for stack in self.stacks(network) for layer in stack]

    def stacks(self, network: Any) -> list[nn.ModuleList]:
        """Return the lists of layers of a network; those of one list are alike."""
        return [network.transformer_blocks]

    def install(self, network: Any, call: AttentionCall) -> None:
        """Give a network's layers attention processors that read `call`."""
        raise NotImplementedError

    def uninstall(self, network: Any) -> None:
        """Give a network's layers diffusers' own attention processors back."""
        raise NotImplementedError

    def predict(
        self, network: Any, latents: Tensor, timestep: Tensor, text: Sequence[Text], guidance: Tensor
    ) -> Tensor:
        """Return the network's output for latents [R, F, C, h, w] and timesteps [R], of the latents' shape; `guidance`
        [R] is for networks that are told their scale. Text has its keys first where padding is hidden."""
        raise NotImplementedError

    def make_rotary(self, frames: int, height: int, width: int) -> RotaryTable | None:
        """Make the rotary tables of latents of F frames, from time 0 on."""
        raise NotImplementedError

    def make_loop_rotary(self, frames: int, height: int, width: int) -> RotaryTable | None:
        """Make those of F frames in a loop, evenly spaced."""
        return self.make_rotary(frames, height, width)

    @staticmethod
    def rotate(x: Tensor, table: RotaryTable) -> Tensor:
        """Apply rotary positions to queries or keys [R, H, video tokens, D]."""
        raise NotImplementedError

    def encode_text(self, prompts: Sequence[str]) -> list[Text]:
        raise NotImplementedError

    @property
    def text_width(self) -> int:
        """The width D of an encoded token."""
        raise NotImplementedError

    # What most families do alike.
    @property
    def solver(self) -> str:
        """The solver that the model's own scheduler amounts to."""
        return "ddim" if isinstance(self.pipeline.scheduler, diffusers.FlowMatchEulerDiscreteScheduler) else "dpm-ode"

    @property
    def has_rotary_time(self) -> bool:
        return True

    @property
    def loop_obstacle(self) -> str | None:
        """What of the model keeps it from making loops, None where it can."""
        return None if self.has_rotary_time else "gives frames absolute positions, which have a first and a last one"

    def set_frame_rate(self, frame_rate: float) -> None:
        if frame_rate != self.frame_rate:
            self.frame_rate = frame_rate
            self._rotary.cache_clear()
            self._windows.cache_clear()
            if self.replica is not None:
                self.replica.set_frame_rate(frame_rate)

    def x0_from(self, v: Tensor, out: Tensor, a: float, s: float) -> Tensor:
        """Return x0 from noisy latents and the network's output."""
        return self.predictions[prediction_of(self.pipeline.scheduler)](v, out, a, s)

    @staticmethod
    def defaults_of(index: Mapping[str, Any], defaults: Defaults) -> Defaults:
        """Return the defaults of a model from those of its family and its pipeline's index."""
        return defaults

    @staticmethod
    def schedule_options(scheduler: Any, steps: int, shape: Sequence[int] | None) -> dict[str, Any]:
        """Return the options of a scheduler's `set_timesteps` for latents of a shape [F, C, h, w] (default: the native
        size's), as the model's pipeline gives them."""
        return {}

    @classmethod
    def with_flow_shift(cls, scheduler: Any, shift: float | None) -> Any:
        """Return a model's scheduler with another shift of its noise levels; None: as it is. Raises `UserError` where
        it has none."""
        if shift is not None and "timesteps" in cls.schedule_options(scheduler, 2, None):
            raise UserError(
                "--flow-shift: the model's pipeline sets its steps by itself, and shifts none; leave it out"
            )
        return with_flow_shift(scheduler, shift)

    @classmethod
    def check_scheduler(cls, scheduler: Any) -> None:
        """Raise `UserError` for a model whose scheduler is set to what its family does not do."""
        if (prediction := prediction_of(scheduler)) not in cls.predictions:
            known = " and ".join(cls.predictions)
            raise UserError(f"the model's scheduler is set to predict {prediction!r:.40}; known are {known}")
        if "flow_prediction" in cls.predictions and not is_flow(scheduler):
            raise UserError(
                "the model's scheduler lacks the noise levels of a flow, which its network predicts: use_flow_sigmas"
            )
        if scheduler.config.get("use_dynamic_shifting") and "mu" not in cls.schedule_options(scheduler, 2, None):
            raise UserError("the model's scheduler has use_dynamic_shifting, and its pipeline tells it no shift (mu)")

    def wants_picture(self, config: Mapping[str, Any]) -> bool:
        """Whether a network of a configuration takes a picture beside the video."""
        told = any(config.get(name) is not None for name in ("image_dim", "image_condition_type"))
        return told or self.channels != (config.get("out_channels") or self.channels)

    @classmethod
    def schedule_of(
        cls, scheduler: Any, index: Mapping[str, Any], steps: int, shape: Sequence[int] | None = None
    ) -> Schedule:
        """Return the noise levels of a model's scheduler; `index` is that of its pipeline."""
        return Schedule.from_diffusers(scheduler, steps, **cls.schedule_options(scheduler, steps, shape))

    # The protocol.
    @property
    def device(self) -> torch.device:
        return self.own_device or self.placement.device

    @property
    def dtype(self) -> torch.dtype:
        return self.networks[0].dtype

    def nearest_size(self, size: Size, loop: bool = False) -> Size:
        if loop and self.loop_obstacle:
            raise UserError(f"--loop: {self.name} {self.loop_obstacle}; zai-org/CogVideoX-5b, for one, makes loops")
        # The decoder gives every frame back only for whole groups after a first frame; a loop has no first one.
        first = 0 if loop else 1
        frames = math.ceil((size.frames - first) / self.group) * self.group + first
        scale = math.sqrt(self.native_size.height * self.native_size.width / (size.height * size.width))
        height, width = (max(self.side, round(x * scale / self.side) * self.side) for x in (size.height, size.width))
        return Size(frames, height, width)

    def latent_shape(self, size: Size, loop: bool = False) -> tuple[int, int, int, int]:
        frames = size.frames // self.temporal if loop else (size.frames - 1) // self.temporal + self.unit
        return frames, self.channels, size.height // self.spatial, size.width // self.spatial

    @property
    def channels(self) -> int:
        """The channels C of a latent."""
        return self.networks[0].config.in_channels

    def schedule(self, steps: int, shape: Sequence[int] | None = None) -> Schedule:
        return self.schedule_of(self.pipeline.scheduler, self.pipeline.config, steps, shape)

    @property
    def typical_keys(self) -> int:
        """The number of text slots that are keys for a prompt of the usual length."""
        return min(TYPICAL_TOKENS, self.text_length) if self.hides_padding else self.text_length

    def blank_text(self) -> Text:
        """Return a text of the usual shapes and no meaning."""
        embedding = torch.zeros(self.text_length, self.text_width, dtype=self.dtype).to(self.device)
        return Text(embedding, (), tuple(range(self.typical_keys)) if self.hides_padding else None)

    @torch.no_grad()
    def denoise(
        self,
        latents: Tensor,
        step: int,
        schedule: Schedule,
        text: Sequence[Text],
        replacement: Replacement | None = None,
        loop: bool = False,
        guidance: Sequence[float] | None = None,
        cached: CachedRows | None = None,
    ) -> Tensor:
        rows, frames, _, height, width = latents.shape
        assert len(text) == rows, (len(text), rows)
        windows = self._windows(frames, height, width, loop) if self._in_windows(frames, loop) else None
        rotary = windows.in_window if windows else self._rotary(frames, height, width)
        text = [one.with_keys_first for one in text]
        present = [one.present or () for one in text] if self.hides_padding else None
        network = self.networks[schedule.expert(step)]
        # Made on the device: a copy to it would wait until it has done all work before.
        scales = torch.cat([latents.new_full((1,), one, dtype=network.dtype) for one in guidance or [1.0] * rows])
        timestep = schedule.timesteps[step]
        timestep = latents.new_full((rows,), timestep.item(), dtype=timestep.dtype)
        caching = cached.around(self.stacks(network)) if cached else nullcontext()
        with self.call.during(rotary, windows, replacement, present), caching:
            out = self.predict(network, latents.to(network.dtype), timestep, text, scales)
        return self.x0_from(latents.float(), out.float(), *schedule.level(step))

    def check_attention(self) -> None:
        """Check the kernels of attention that a call takes: what is wrong is logged now, and no step waits for it."""
        for network in self.networks:
            q = torch.zeros(1, 1, 2, network.config.attention_head_dim, dtype=self.dtype, device=self.device)
            with prefer_kernel(self.call.kernel):
                for keys in (1, 2):
                    attention_with_lse(q, q[:, :, :keys], q[:, :, :keys])

    def compile_layers(self, backend: str = "inductor") -> None:
        """Compile the layers by a backend of torch.compile, when they first run."""
        for network in self.networks:
            for layer in self.layers(network):
                layer.__class__ = compiled_class(type(layer), backend)

    def video_to_video(
        self, frames: np.ndarray, prompt: str, steps: int, strength: float, guidance: float, seed: int
    ) -> np.ndarray:
        """Run diffusers' own video-to-video pipeline (SDEdit) on the same weights, for comparison: uint8 frames
        [T, H, W, 3] of a valid size to the same, noised up to `strength` (0 to 1) of the steps."""
        video = self._video_to_video(
            video=[Image.fromarray(frame) for frame in frames],
            height=frames.shape[1],
            width=frames.shape[2],
            num_inference_steps=steps,
            strength=strength,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            **self.video_to_video_options(prompt),
        ).frames[0]
        return (video * 255).round().astype(np.uint8)

    @property
    def video_to_video_pipeline(self) -> str | None:
        """The name of diffusers' own video-to-video pipeline, the peer of the SDEdit baseline; None without one."""
        return None

    def video_to_video_options(self, prompt: str) -> dict[str, Any]:
        """Return the options of diffusers' video-to-video pipeline that tell it the prompt."""
        return {"prompt": prompt, "max_sequence_length": self.text_length}

    @cached_property
    def _video_to_video(self) -> Any:
        """diffusers' pipeline on these weights: its own modules and processors around the same tensors."""
        network = self.pipeline.transformer
        with self.placement.without_hooks():
            transformer = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors_of(network)})
        for layer in self.layers(transformer):
            layer.__class__ = plain_class(type(layer))
        self.uninstall(transformer)
        self.placement.hook_network("transformer", transformer)
        parts = self.pipeline.components | {"transformer": transformer}
        parts["scheduler"] = type(parts["scheduler"]).from_config(parts["scheduler"].config)
        kind: Any = getattr(diffusers, str(self.video_to_video_pipeline))
        if self.placement.moves:  # a pipeline cannot tell its device from theirs
            kind = type(kind.__name__, (kind,), {"_execution_device": self.device})
        wanted, _ = kind._get_signature_keys(kind)
        pipeline = kind(**{name: part for name, part in parts.items() if name in wanted})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _in_windows(self, frames: int, loop: bool) -> bool:
        return self.has_rotary_time and (loop or frames > self.latent_shape(self.native_size)[0])

    def _make_windows(self, frames: int, height: int, width: int, loop: bool) -> WindowTables:
        native = self.latent_shape(self.native_size)[0] // self.unit
        frames = frames // self.unit
        window = Window(frames, min(frames, native), loop)
        before, all_frames = window.halo_before, window.halo_before + frames + window.halo_after
        make_rotary = self.make_loop_rotary if loop else self.make_rotary
        with_halo = make_rotary(all_frames * self.unit, height, width)
        assert with_halo is not None
        # Rotation is relative: the clip may begin at any index, here after the halo before it.
        by_frame = [part.unflatten(-2, (all_frames, -1)) for part in with_halo]
        in_window = tuple(part[..., window.positions(), :, :].flatten(-3, -2) for part in by_frame)
        in_clip = tuple(part[..., before : before + frames, :, :].flatten(-3, -2) for part in by_frame)
        return WindowTables(window, in_window, in_clip, with_halo)
