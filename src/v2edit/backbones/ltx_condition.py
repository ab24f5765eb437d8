"""LTX-Video 0.9.5 and later in the pipeline of its conditions, of which it is given none.

Letters: H heads, N video tokens, D channels of a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule
from torch import Tensor

from v2edit.attention import RotaryTable
from v2edit.backbones.ltx import LTX
from v2edit.errors import UserError


class LTXCondition(LTX):
    """The `Backbone` of a diffusers `LTXConditionPipeline` (0.9.5 and later), from text alone: more text, a schedule of
    its own, and frames at the times of their first pixels. So a clip's first latent frame, which stands for one frame,
    is nearer to the second than others are to each other; in a window that does not begin the clip, and in a loop, all
    are evenly spaced."""

    @staticmethod
    def text_length_of(config: Mapping[str, Any]) -> int:
        return 256

    @staticmethod
    def schedule_options(scheduler: Any, steps: int, shape: Sequence[int] | None) -> dict[str, Any]:
        if scheduler.config.use_dynamic_shifting:
            raise UserError(
                "the model's scheduler shifts its steps by a clip's size (use_dynamic_shifting), which its pipeline, "
                "LTXConditionPipeline, cannot; is it an LTXPipeline? its model_index.json says which"
            )
        timesteps = linear_quadratic_schedule(steps) * scheduler.config.num_train_timesteps
        return {"timesteps": timesteps, "sigmas": timesteps / scheduler.config.num_train_timesteps}

    def encoder_mask(self, mask: Tensor) -> Tensor:
        return mask.bool().to(self.device)

    def make_rotary(self, frames: int, height: int, width: int) -> RotaryTable:
        indices = self.pipeline._prepare_video_ids(1, frames, height, width, device=self.device)
        places = self.pipeline._scale_video_ids(indices, self.spatial, self.temporal, device=self.device).float()
        places[:, 0] *= 1 / self.positions_rate
        return self.tables_of_heads(video_coords=places)

    make_loop_rotary = LTX.make_rotary
