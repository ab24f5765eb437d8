"""The protocol of a video model: all that the editing above it knows of any family.

Letters: R rows of a lockstep batch (CFG batches x branches), F latent frames, C channels, L text slots, D width.
Rows are evaluated together so that a row's attention may take maps from another row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from v2edit.attention import Replacement
from v2edit.backbones.families import Defaults
from v2edit.prompts.tokens import PromptTokenizer
from v2edit.sampling import Schedule


@dataclass(frozen=True)
class ModelInfo:
    """A model without its weights: its tokenizer, its defaults and its noise levels."""

    tokenizer: PromptTokenizer
    defaults: Defaults
    scheduler: Any  # of diffusers

    def schedule(self, steps: int) -> Schedule:
        """Return the noise levels of `steps` denoising steps."""
        return Schedule.from_diffusers(self.scheduler, steps)


@dataclass(frozen=True)
class Size:
    """A clip's size in frames and pixels."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Text:
    """An encoded prompt: `embedding` [L, D], and the ids of its tokens without padding."""

    embedding: Tensor
    ids: tuple[int, ...]


class Backbone(Protocol):
    """A text-to-video model as a denoiser of latents."""

    name: str
    defaults: Defaults  # of the settings that an edit leaves open
    solver: str  # the solver that the model's own scheduler amounts to
    native_size: Size  # the clip it was trained on
    tokenizer: PromptTokenizer
    text_length: int  # L
    pad_id: int

    @property
    def device(self) -> torch.device:
        """Where latents live and noise is drawn."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        ...

    @property
    def has_rotary_time(self) -> bool:
        """Whether positions in time are rotary, hence relative: what windows on long clips and loops need."""
        ...

    def nearest_size(self, size: Size, loop: bool = False) -> Size:
        """Return the nearest size that the model takes: as many frames or more, the same aspect, the native area.
        Raises `UserError` for a loop where positions in time are not rotary."""
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

    def schedule(self, steps: int) -> Schedule:
        """Return the noise levels of `steps` denoising steps, from the model's own scheduler."""
        ...

    def denoise(
        self,
        latents: Tensor,
        step: int,
        schedule: Schedule,
        text: Tensor,
        replacement: Replacement | None = None,
        loop: bool = False,
    ) -> Tensor:
        """Predict x0 of noisy latents [R, F, C, h, w] at a step, given text [R, L, D]; float32, same shape. Clips
        longer than `native_size`, and loops, use windows where positions in time are rotary (V2Edit Sec. B.3)."""
        ...

    def shrink(self) -> str | None:
        """Go on with less memory on the device and the same results, and describe how; None where no way is left."""
        ...
