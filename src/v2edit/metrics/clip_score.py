"""CTIDS and CDC (V2Edit Sec. 4.1) over any CLIP of transformers.

Letters: T frames, N texts, D width of an embedding. Embeddings are L2-normalised.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from v2edit.errors import UserError
from v2edit.host import quiet_libraries

log = logging.getLogger(__name__)
BUILT_IN = "primitives"
WEIGHTS = Path(__file__).parents[1] / "weights/clip"
AT_ONCE = 32  # images or texts in a forward


class Clip:
    """An image tower and a text tower that share a space: CLIP and its kin (SigLIP and others)."""

    def __init__(self, model: torch.nn.Module, processor: object) -> None:
        if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
            raise UserError(f"{type(model).__name__} is no CLIP: it has no common space for images and texts")
        self.model, self.processor = model.eval().requires_grad_(False), processor

    @classmethod
    def load(cls, name: str | Path = BUILT_IN, device: str | torch.device = "cpu", revision: str | None = None) -> Clip:
        """The built-in CLIP, which knows the built-in world alone, a Hugging Face id or a local folder.

        Raises:
            UserError: there is no such model, or it is no CLIP.
        """
        where = WEIGHTS if str(name) == BUILT_IN else name
        try:
            # Weights that are pickles could run code, and every CLIP worth the name has safetensors.
            with quiet_libraries():
                model = AutoModel.from_pretrained(where, revision=revision, use_safetensors=True)
                processor = AutoProcessor.from_pretrained(where, revision=revision)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()
            raise UserError(f"no CLIP called {name}: {reason[0] if reason else type(error).__name__}") from error
        return cls(model.to(device), processor)

    @torch.no_grad()
    def images(self, frames: np.ndarray) -> Tensor:
        """C(.): uint8 frames [T, H, W, 3] to [T, D], float32 on the CPU."""
        parts = []
        for start in range(0, len(frames), AT_ONCE):
            inputs = self.processor.image_processor(list(frames[start : start + AT_ONCE]), return_tensors="pt")  # pyright: ignore
            parts.append(_unit(self.model.get_image_features(inputs["pixel_values"].to(self.model.device))))  # pyright: ignore
        return torch.cat(parts)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """T(.): N texts to [N, D], float32 on the CPU. What is longer than the tower takes (77 tokens for OpenAI's
        CLIPs) is cut, with a note."""
        tokenizer = self.processor.tokenizer  # pyright: ignore
        config: Any = self.model.config
        room: int = getattr(config, "text_config", config).max_position_embeddings
        lengths = [len(tokenizer(prompt, verbose=False).input_ids) for prompt in prompts]
        if cut := [length for length in lengths if length > room]:
            log.warning("CLIP reads %d tokens of a prompt: %d of %d prompts are cut", room, len(cut), len(prompts))
        parts = []
        for start in range(0, len(prompts), AT_ONCE):
            # SigLIPs were trained on, and are only right with, texts padded to the full length.
            inputs = tokenizer(list(prompts[start : start + AT_ONCE]), padding="max_length", max_length=room,
                               truncation=True, return_tensors="pt").to(self.model.device)  # fmt: skip
            parts.append(_unit(self.model.get_text_features(**inputs)))  # pyright: ignore
        return torch.cat(parts)


def ctids(clip: Clip, source: np.ndarray, edited: np.ndarray, source_prompt: str, target_prompt: str) -> float:
    """CLIP text-image directional similarity: mean_i cos(C(e_i) - C(o_i), T(target) - T(source)), -1 to 1.

    Frames are uint8 [T, H, W, 3], edited and source of the same T. A frame that did not change counts 0.
    """
    _same_length(source, edited)
    before, after = clip.texts([source_prompt, target_prompt])
    change = clip.images(edited) - clip.images(source)
    return float(F.cosine_similarity(change, (after - before)[None], dim=1).mean())


def cdc(clip: Clip, source: np.ndarray, edited: np.ndarray) -> float:
    """CLIP direction consistency: mean_i cos(C(o_i+1) - C(o_i), C(e_i+1) - C(e_i)), -1 to 1: whether the edited video
    goes from frame to frame as the source does. Two frames at least."""
    _same_length(source, edited)
    if len(source) < 2:
        raise UserError("CDC compares neighbouring frames: it needs a video of two frames or more")
    before, after = clip.images(source).diff(dim=0), clip.images(edited).diff(dim=0)
    return float(F.cosine_similarity(before, after, dim=1).mean())


def _same_length(source: np.ndarray, edited: np.ndarray) -> None:
    if len(source) != len(edited):
        raise UserError(
            f"the edited video has {len(edited)} frames and the source {len(source)}: they must be the same"
        )


def _unit(features: object) -> Tensor:
    """The projected features, bare or in transformers 5's output class, on the unit sphere."""
    tensor = features if isinstance(features, Tensor) else features.pooler_output  # pyright: ignore
    return F.normalize(tensor.float(), dim=-1).cpu()
