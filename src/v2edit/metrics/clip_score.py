"""CTIDS and CDC (V2Edit Sec. 4.1), on any CLIP of transformers.

Letters: T frames, N texts, D width of an embedding. Embeddings are L2-normalised.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from v2edit.backbones.families import BUILT_IN
from v2edit.errors import UserError
from v2edit.host import quiet_libraries
from v2edit.primitives.clip import PrimitivesClip
from v2edit.prompts import PromptPair
from v2edit.video.stream import Frames, FrameStream, in_chunks

log = logging.getLogger(__name__)
WEIGHTS = Path(__file__).parents[1] / "weights/clip"
BATCH = 32  # images or texts in a forward pass
KEPT = 8  # embeddings of clips and texts
STILL = 4.0  # levels of 255, of 4x4 pixels: what changes by less from frame to frame is a lossy file's noise


class ClipEncoder:
    """CLIP or a relative, such as SigLIP: an image and a text encoder into a common space."""

    def __init__(self, model: torch.nn.Module, processor: object) -> None:
        if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
            raise UserError(f"{type(model).__name__} is no CLIP: it has no common space for images and texts")
        self.model, self.processor = model.eval().requires_grad_(False), processor
        self._known: dict[Any, tuple[Frames | None, Tensor]] = {}

    @classmethod
    def load(
        cls, name: str | Path = BUILT_IN, device: str | torch.device = "cpu", revision: str | None = None
    ) -> ClipEncoder:
        """Load the built-in CLIP, which knows the built-in world alone, a Hugging Face id or a local folder. Raises
        `UserError` where there is no such model, or it is no CLIP."""
        try:
            with quiet_libraries():
                if str(name) == BUILT_IN:
                    return cls(PrimitivesClip.load(WEIGHTS).to(device), AutoProcessor.from_pretrained(WEIGHTS))
                # Weights that are pickles could run code, and every CLIP worth the name has safetensors.
                model = AutoModel.from_pretrained(name, revision=revision, use_safetensors=True)
                processor = AutoProcessor.from_pretrained(name, revision=revision)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()
            raise UserError(f"no CLIP called {name}: {reason[0] if reason else type(error).__name__}") from error
        return cls(model.to(device), processor)

    def encode_images(self, frames: Frames) -> Tensor:
        """Return C(.), embeddings [T, D] of uint8 frames [T, H, W, 3], float32 on the CPU. Those of the last few clips
        are kept: the figures of an edit are of the same frames, and all edits of a video have one source."""
        if isinstance(frames, FrameStream):
            return self._remember(id(frames), frames, lambda: self._encode_images(frames))
        content = hashlib.blake2b(np.ascontiguousarray(frames).data).digest()
        return self._remember((frames.shape, content), None, lambda: self._encode_images(frames))

    def _remember(self, key: Any, held: Frames | None, encode: Callable[[], Tensor]) -> Tensor:
        """Return what is kept under a key, or else what `encode` returns, which is kept; `held` lives as long."""
        found = self._known.pop(key, None) or (held, encode())
        self._known[key] = found  # the latest one last
        if len(self._known) > KEPT:
            del self._known[next(iter(self._known))]
        return found[1]

    @torch.no_grad()
    def _encode_images(self, frames: Frames) -> Tensor:
        parts = []
        for _, images in in_chunks(frames, BATCH):
            inputs = self.processor.image_processor(list(images), return_tensors="pt")  # pyright: ignore
            parts.append(_unit(self.model.get_image_features(inputs["pixel_values"].to(self.model.device))))  # pyright: ignore
        return torch.cat(parts)

    def encode_texts(self, prompts: Sequence[str]) -> Tensor:
        """Return T(.), embeddings [N, D] of N texts, float32 on the CPU. Texts that are longer than the encoder takes
        (77 tokens for OpenAI's CLIPs) are cut, with a warning."""
        return self._remember(tuple(prompts), None, lambda: self._encode_texts(prompts))

    @torch.no_grad()
    def _encode_texts(self, prompts: Sequence[str]) -> Tensor:
        tokenizer = self.processor.tokenizer  # pyright: ignore
        config: Any = self.model.config
        limit: int = getattr(config, "text_config", config).max_position_embeddings
        lengths = [len(tokenizer(prompt, verbose=False).input_ids) for prompt in prompts]
        if cut := [length for length in lengths if length > limit]:
            log.warning("CLIP reads %d tokens of a prompt: %d of %d prompts are cut", limit, len(cut), len(prompts))
        parts = []
        for start in range(0, len(prompts), BATCH):
            # SigLIPs were trained on, and are only right with, texts padded to the full length.
            inputs = tokenizer(list(prompts[start : start + BATCH]), padding="max_length", max_length=limit,
                               truncation=True, return_tensors="pt").to(self.model.device)  # fmt: skip
            parts.append(_unit(self.model.get_text_features(**inputs)))  # pyright: ignore
        return torch.cat(parts)

    def score_edit(self, pair: PromptPair, source: Frames, edited: Frames) -> dict[str, float]:
        """Return the CTIDS and the CDC (nan where undefined) of edited frames, uint8 [T, H, W, 3] as the source's."""
        return {
            "ctids": ctids(self, source, edited, pair.source, pair.target),
            "cdc": cdc(self, source, edited) if len(source) > 1 else math.nan,
        }

    def text_similarity(self, prompt: str, frames: Frames) -> float:
        """Return 100 times the mean cosine between frames, uint8 [T, H, W, 3], and a prompt (the CLIP score)."""
        return 100 * float((self.encode_images(frames) @ self.encode_texts([prompt]).T).mean())

    def frame_consistency(self, frames: Frames) -> float:
        """Return 100 times the mean cosine between all pairs of frames, uint8 [T, H, W, 3]; nan of a single one."""
        if (count := len(frames)) < 2:
            return math.nan
        embeddings = self.encode_images(frames)
        return 100 * float(((embeddings @ embeddings.T).sum() - count) / (count * (count - 1)))

    def preference(self, pair: PromptPair, frames: Frames) -> float:
        """Return the share of frames, uint8 [T, H, W, 3], that are nearer to the target prompt than to the source's."""
        likeness = self.encode_images(frames) @ self.encode_texts([pair.source, pair.target]).T
        return float((likeness[:, 1] > likeness[:, 0]).float().mean())


def ctids(clip: ClipEncoder, source: Frames, edited: Frames, source_prompt: str, target_prompt: str) -> float:
    """Return CTIDS, the CLIP text-image directional similarity, -1 to 1 (V2Edit Sec. 4.1): whether frames change from
    source o to edit e as the prompts do.

        CTIDS = mean_i cos(C(e_i) - C(o_i), T(target) - T(source))

    Frames are uint8 [T, H, W, 3], edited and source of the same T. A frame that did not change counts 0."""
    _same_length(source, edited)
    before, after = clip.encode_texts([source_prompt, target_prompt])
    change = clip.encode_images(edited) - clip.encode_images(source)
    return float(F.cosine_similarity(change, (after - before)[None], dim=1).mean())


def cdc(clip: ClipEncoder, source: Frames, edited: Frames) -> float:
    """Return CDC, the CLIP direction consistency, -1 to 1 (V2Edit Sec. 4.1): whether the edited video e changes from
    frame to frame as the source o does.

        CDC = mean_i cos(C(o_i+1) - C(o_i), C(e_i+1) - C(e_i))

    Frames are uint8 [T, H, W, 3], T >= 2. nan of a source that stands still, which has no direction. Raises `UserError`
    for another number of frames, or for two."""
    _same_length(source, edited)
    if len(source) < 2:
        raise UserError("CDC compares neighbouring frames: it needs a video of two frames or more")
    if _stands_still(source):
        return math.nan
    before, after = clip.encode_images(source).diff(dim=0), clip.encode_images(edited).diff(dim=0)
    return float(F.cosine_similarity(before, after, dim=1).mean())


def _stands_still(frames: Frames) -> bool:
    """Return whether no frame differs from the one before it by more than noise."""
    images = (torch.tensor(frame).permute(2, 0, 1).float() for frame in frames)
    blocks = (F.avg_pool2d(image, 4, ceil_mode=True) for image in images)
    return all((after - before).abs().max() < STILL for before, after in pairwise(blocks))


def _same_length(source: Frames, edited: Frames) -> None:
    if len(source) != len(edited):
        raise UserError(
            f"the edited video has {len(edited)} frames and the source {len(source)}: they must be the same"
        )


def _unit(features: object) -> Tensor:
    """Return the projected features, bare or in transformers 5's output class, normalised."""
    tensor = features if isinstance(features, Tensor) else features.pooler_output  # pyright: ignore
    return F.normalize(tensor.float(), dim=-1).cpu()
