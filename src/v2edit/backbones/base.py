"""The protocol of a video model: all that the editing above it knows of any family.

Letters: R rows of a lockstep batch (branches x guidance halves), F latent frames, C channels, L text slots, D width.
Rows are evaluated together so that a row's attention may take maps from another row.
"""

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
    """What is known of a model without its weights: how it reads prompts, and what its edits cost."""

    tokenizer: PromptTokenizer
    defaults: Defaults
    scheduler: Any  # of diffusers

    def schedule(self, steps: int) -> Schedule:
        """As `Backbone.schedule`."""
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
    defaults: Defaults  # what an edit does where its settings leave it open
    solver: str  # the solver that the model's own scheduler amounts to
    native_size: Size  # the clip it was trained on
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
        """Whether positions in time are relative, so that there can be windows on long clips, and loops."""
        ...

    def nearest_size(self, size: Size, loop: bool = False) -> Size:
        """The nearest size that the model takes: as many frames or more, the aspect kept, the trained area.

        Raises `UserError` for a loop where positions are not relative.
        """
        ...

    def encode(self, frames: np.ndarray, generator: torch.Generator | None = None, loop: bool = False) -> Tensor:
        """uint8 [T, H, W, 3] of a valid size to scaled latents [1, F, C, h, w], float32: the posterior's mode,
        or a sample of it where a generator is given. The frames stay in main memory, the device has a few at a time.

        A loop's latent frames are those of an endless repetition: rolling its frames by a latent group rolls them."""
        ...

    def decode(self, latents: Tensor, loop: bool = False) -> np.ndarray:
        """Scaled latents [1, F, C, h, w] to uint8 [T, H, W, 3], which go to main memory a few at a time."""
        ...

    def encode_text(self, prompts: Sequence[str]) -> list[Text]:
        """Each prompt padded to L slots and encoded; what is longer is cut, with one warning."""
        ...

    def schedule(self, steps: int) -> Schedule:
        """The noise levels of `steps` denoising steps, from the model's own scheduler."""
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
        """The network's x0 of noisy latents [R, F, C, h, w] at a step, given text [R, L, D]; float32, same shape.

        Clips longer than `trained`, and loops, are attended by windows where positions are relative (V2Edit Sec. B.3).
        """
        ...

    def shrink(self) -> str | None:
        """Takes the next way to need less memory on the device, results being the same, and says in words what it is;
        None where none is left. What was taken stays."""
        ...
