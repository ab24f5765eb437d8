"""The built-in CLIP: frames of the built-in world and captions of them in one space, for CTIDS and CDC.

Its frames are seen through the scene classifier's eyes: an image tower of its own had not learnt shapes by the time
that colours, floors and light were known (recipes/primitives/LOG.md). So where the classifier misreads a picture, this
CLIP is likely to err, too.

Letters: B frames or captions, L tokens, D width of an embedding.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from v2edit.primitives.classifier import SceneClassifier

IMAGE_FILE = "image.safetensors"


class ImageHead(nn.Module):
    """A network from what the classifier's queries read to an embedding: of each query alike, then their sum, as a
    caption is about some of the objects."""

    def __init__(self, projection: int, width: int = SceneClassifier.WIDTH) -> None:
        super().__init__()
        self.each = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, 2 * width)
        )
        self.all = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, projection))

    def forward(self, queries: Tensor) -> Tensor:
        """Map queries [B, queries, width] to embeddings [B, D]."""
        return self.all(self.each(queries).sum(1))


class PrimitivesClip(nn.Module):
    """A CLIP of the built-in world: CLIP's own text tower beside what the classifier sees of a frame, which stays as it
    is."""

    def __init__(self, text: CLIPTextModelWithProjection) -> None:
        super().__init__()
        config: Any = text.config
        self.text, self.image = text, ImageHead(config.projection_dim)
        self.classifier = copy.deepcopy(SceneClassifier.load())

    @classmethod
    def new(cls, config: CLIPTextConfig) -> PrimitivesClip:
        """Return one with random weights beside the classifier's."""
        return cls(CLIPTextModelWithProjection(config))

    @classmethod
    def load(cls, folder: Path) -> PrimitivesClip:
        """Load what `save` wrote."""
        clip = cls(CLIPTextModelWithProjection.from_pretrained(folder, dtype=torch.float32))
        clip.image.load_state_dict(load_file(folder / IMAGE_FILE))
        return clip

    def save(self, folder: Path) -> None:
        """Write the text tower as transformers does and the image's head beside it, in half precision."""
        copy.deepcopy(self.text).half().save_pretrained(folder)
        state = {name: tensor.half().contiguous() for name, tensor in self.image.state_dict().items()}
        save_file(state, folder / IMAGE_FILE)

    def train(self, mode: bool = True) -> PrimitivesClip:
        """Turn training on or off for all but the classifier, which stays as it is."""
        super().train(mode)
        self.classifier.eval()
        return self

    @property
    def config(self) -> Any:
        """The text tower's, as of any CLIP that has no other."""
        return self.text.config

    @property
    def device(self) -> torch.device:
        return self.text.device

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Return embeddings [B, D] of frames, float [B, 3, 64, 96] in -1..1."""
        return self.image(self.classifier.look(pixel_values[:, None])[:, 0])

    def get_text_features(self, **tokens: Tensor) -> Tensor:
        """Return embeddings [B, D] of tokenised captions [B, L]."""
        return self.text(**tokens).text_embeds
