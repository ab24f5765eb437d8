"""The protocol of a video model: all that the editing above it knows of any family.

Letters: R rows of a lockstep batch (CFG batches x branches), F latent frames, C channels, L text slots, D width.
Rows are evaluated together so that a row's attention may take maps from another row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from v2edit.attention import Replacement
from v2edit.backbones.caching import CachedRows
from v2edit.backbones.families import Defaults
from v2edit.backbones.hub import Checkpoint
from v2edit.backbones.memory import MemoryMode
from v2edit.backbones.options import LoadOptions
from v2edit.prompts.tokens import PromptTokenizer
from v2edit.sampling import Schedule


@dataclass(frozen=True)
class ModelInfo:
    """A model without its weights: its tokenizer, its defaults, by the number of denoising steps the noise levels for a
    clip of its native size, and whether its guidance is classifier-free."""

    tokenizer: PromptTokenizer
    defaults: Defaults
    schedule: Callable[[int], Schedule]
    classifier_free: bool = True


@dataclass(frozen=True)
class Size:
    """A clip's size in frames and pixels."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Text:
    """An encoded prompt: `embedding` [L, D], and the ids of its tokens without padding.

    `present`: the slots that are keys where the model hides its padding; None where all are. `pooled`: what the model
    takes of a prompt as a whole, where it does [D']. `changed`: the slots of words that its partner does not share."""

    embedding: Tensor
    ids: tuple[int, ...]
    present: tuple[int, ...] | None = None
    pooled: Tensor | None = None
    changed: tuple[int, ...] = ()

    def reordered(self, order: Sequence[int]) -> Text:
        """Return the text with slot k holding what slot order[k] held: a model sees its text as a set."""
        embedding = self.embedding[torch.tensor(order, device=self.embedding.device)]
        slots = None if self.present is None else set(self.present)
        present = None if slots is None else tuple(k for k, slot in enumerate(order) if slot in slots)
        changed = tuple(k for k, slot in enumerate(order) if slot in self.changed)
        return replace(self, embedding=embedding, present=present, changed=changed)

    @cached_property
    def with_keys_first(self) -> Text:
        """Return the text with the slots that are keys before the others, both in their order: models that hide their
        padding take it to be at the end."""
        if self.present is None:
            return self
        return self.reordered([*self.present, *sorted(set(range(len(self.embedding))) - set(self.present))])

    def to(self, device: torch.device) -> Text:
        """Return the text on a device."""
        if self.embedding.device == device:
            return self
        pooled = None if self.pooled is None else self.pooled.to(device)
        return replace(self, embedding=self.embedding.to(device), pooled=pooled)

    def lerp(self, other: Text, weight: float) -> Text:
        """Return the text between this one (weight 0) and another (1), slot by slot; a slot that either has is a key
        in between."""
        if weight in (0, 1):
            return other if weight else self
        present, pooled = self.present, self.pooled
        if present is not None and other.present is not None:
            present = tuple(sorted({*present, *other.present}))
        if pooled is not None and other.pooled is not None:
            pooled = torch.lerp(pooled, other.pooled, weight)
        changed = tuple(sorted({*self.changed, *other.changed}))
        return Text(torch.lerp(self.embedding, other.embedding, weight), (), present, pooled, changed)


class Backbone(Protocol):
    """A text-to-video model as a denoiser of latents."""

    name: str
    defaults: Defaults  # of the settings that an edit leaves open
    native_size: Size  # the clip it was trained on
    native_fps: float | None  # frames a second of such clips, where that is known
    tokenizer: PromptTokenizer
    text_length: int  # L
    unit: int  # latent frames of a token
    pad_id: int
    hides_padding: bool  # whether padding is no key of attention, so that prompts cannot share it
    checkpoint: Checkpoint | None  # what it was loaded from, where it was loaded
    load_options: LoadOptions  # and with what
    frame_rate: float  # of the clip, which `set_frame_rate` sets
    classifier_free: bool  # whether guidance needs an unconditional batch; else the network is told each row's scale

    @property
    def replica(self) -> Backbone | None:
        """The same model on a second device, for the unconditional rows of guidance; None where there is one device."""
        ...

    group: int  # frames that the autoencoder takes together, after a first one
    lead_groups: int  # after which an autoencoder that is causal in time has forgotten what was before
    trail_groups: int  # that its decoder looks ahead
    coded_whole: bool  # whether a clip is coded all at once, in memory that grows with it

    @property
    def latent_group(self) -> int:
        """The latent frames that the autoencoder makes together, after a first one."""
        ...

    @property
    def device(self) -> torch.device:
        """Where latents live and noise is drawn."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        ...

    @property
    def solver(self) -> str:
        """The solver that the model's own scheduler amounts to."""
        ...

    @property
    def has_rotary_time(self) -> bool:
        """Whether positions in time are rotary, hence relative: what windows on long clips and loops need."""
        ...

    def set_frame_rate(self, frame_rate: float) -> None:
        """Set the frames a second of the clips to come, `FRAME_RATE` until then: some families place frames by time."""
        ...

    @property
    def loop_obstacle(self) -> str | None:
        """What of the model keeps it from making loops, None where it can."""
        ...

    def nearest_size(self, size: Size, loop: bool = False) -> Size:
        """Return the nearest size that the model takes: as many frames or more, the same aspect, the native area.
        Raises `UserError` for a loop of a model that cannot make one."""
        ...

    def encode(self, frames: np.ndarray, generator: torch.Generator | None = None, loop: bool = False) -> Tensor:
        """Encode uint8 frames [T, H, W, 3] of a valid size to scaled latents [1, F, C, h, w], float32: the posterior's
        mode, or a sample of it with a generator. The device holds only a few frames at a time. A loop's latent frames
        are those of an endless repetition: rolling its frames by a latent group rolls them."""
        ...

    def decode(self, latents: Tensor, loop: bool = False) -> np.ndarray:
        """Decode scaled latents [1, F, C, h, w] to uint8 frames [T, H, W, 3], moved to main memory a few at a time."""
        ...

    def encode_text(self, prompts: Sequence[str]) -> list[Text]:
        """Encode each prompt, padded to L slots; a longer one is cut with a warning."""
        ...

    def free_text_encoders(self) -> None:
        """Free the weights of the text encoders: no prompts can be encoded afterwards."""
        ...

    def schedule(self, steps: int, shape: Sequence[int] | None = None) -> Schedule:
        """Return the noise levels of `steps` denoising steps, from the model's own scheduler, for latents [F, C, h, w]
        of a `shape` (default: the native size's), on which they may depend."""
        ...

    def latent_shape(self, size: Size, loop: bool = False) -> tuple[int, int, int, int]:
        """Return the shape [F, C, h, w] of the latents of a clip of a valid size."""
        ...

    def latent_frame_of(self, frames: int, loop: bool = False) -> np.ndarray:
        """Return the latent frame that holds each of so many frames of a clip of a valid size, int [T]."""
        ...

    def chunk_of(self, frames: int, loop: bool = False) -> np.ndarray:
        """Return the chunk of frames that the autoencoder decodes together for each of so many, int [T]."""
        ...

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
        """Predict x0 of noisy latents [R, F, C, h, w] at a step, given a text for each row; float32, same shape. Where
        guidance is not classifier-free, `guidance` is each row's scale (default: 1), else it has no effect. Clips
        longer than `native_size`, and loops, use windows where positions in time are rotary (V2Edit Sec. B.3).
        `cached` has the layers' part kept for later steps, or taken from an earlier one."""
        ...

    @property
    def video_to_video_pipeline(self) -> str | None:
        """The name of diffusers' own video-to-video pipeline for such models; None where it has none."""
        ...

    def video_to_video(
        self, frames: np.ndarray, prompt: str, steps: int, strength: float, guidance: float, seed: int
    ) -> np.ndarray:
        """Run that pipeline (SDEdit) on the same weights: uint8 frames [T, H, W, 3] of a valid size to the same, noised
        up to `strength` (0 to 1) of the steps. Nothing of this project's attention, schedule or solver takes part."""
        ...

    def place(self, device: torch.device, mode: MemoryMode) -> None:
        """Run on a device in a memory mode; edits start from it. Parts come to the device when they are needed."""
        ...

    @property
    def resident_bytes(self) -> int:
        """The bytes of weights that are on the device now."""
        ...

    @property
    def memory_mode(self) -> MemoryMode:
        """How it keeps to the memory there is, from now on if it is set."""
        ...

    @memory_mode.setter
    def memory_mode(self, mode: MemoryMode) -> None: ...

    def reset_memory_mode(self) -> None:
        """Go back to the memory mode that edits start from, whatever earlier ones ran out of."""
        ...

    def offload_more(self) -> str | None:
        """Go on with less of the model on the device, and describe how; None where no less is possible."""
        ...

    def shrink(self) -> str | None:
        """Go on with less memory on the device and the same results, and describe how; None where no way is left."""
        ...
