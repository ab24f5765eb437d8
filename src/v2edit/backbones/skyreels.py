"""SkyReels-V2, text to video: Wan's architecture with classes of its own in diffusers. Its diffusion-forcing models, of
which each frame has its own timestep, are another pipeline."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2AttnProcessor

from v2edit.backbones.base import Size
from v2edit.backbones.wan import Wan


class SkyReels(Wan):
    """The `Backbone` of a diffusers `SkyReelsV2Pipeline`."""

    stock_processor = SkyReelsV2AttnProcessor
    native_fps = 24.0

    def configure(self, pipeline: Any) -> Size:
        super().configure(pipeline)
        return Size(97, 544, 960)

    @property
    def video_to_video_pipeline(self) -> None:
        return None  # diffusers' is of the diffusion-forcing models
