"""Calibrate a model for step caching: generate clips, and measure what the network's layers add at each noise level."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from v2edit.backbones import Backbone
from v2edit.backbones.caching import StepCache
from v2edit.backbones.magnitudes import Magnitudes
from v2edit.editing.config import EditConfig
from v2edit.editing.guidance import Branch, denoise_with_guidance
from v2edit.editing.microbatch import MicroBatcher
from v2edit.editing.state import noise_stream
from v2edit.sampling import SOLVERS, step_mean


def measure_magnitudes(
    backbone: Backbone, prompts: Sequence[str], steps: int, on_step: Callable[[int, int], None] = lambda done, of: None
) -> Magnitudes:
    """Return the noise's share at each step, and the magnitude of what the layers add there to the hidden states: the
    geometric mean of its norms over all tokens, of clips of the native size generated with each of the prompts. The
    ratio of two is what MagCache calls the magnitude ratio, between any two levels. `on_step` gets the steps done."""
    shape = backbone.latent_shape(backbone.native_size)
    schedule, batcher = backbone.schedule(steps, shape), MicroBatcher(backbone)
    config, solver = EditConfig(steps=steps).resolve(backbone.defaults, schedule), SOLVERS["ddim"]
    *texts, negative = backbone.encode_text([*prompts, ""])
    logarithms = torch.zeros(steps, dtype=torch.float64)
    for number, text in enumerate(texts):
        nothing = torch.zeros(1, *shape, device=backbone.device)
        v = schedule.add_noise(nothing, next(noise_stream(0, number, nothing)), 0)
        for k in range(steps):
            cache = StepCache()
            guidance, _ = config.guidance_at(schedule, k, backbone.classifier_free)
            (x0,) = denoise_with_guidance(batcher, [Branch(v, text, guidance)], negative, k, schedule, cache=cache)
            norms = torch.stack([added.float().norm(dim=-1).log().mean() for added in cache.added.values()])
            logarithms[k] += norms.mean().double().cpu() / len(texts)
            v = step_mean(solver.step(schedule, k, first=True), v, x0)
            on_step(number * steps + k + 1, len(texts) * steps)
    return tuple((schedule.noise(k), value) for k, value in enumerate(logarithms.exp().tolist()))
