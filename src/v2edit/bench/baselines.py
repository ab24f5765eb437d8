"""Baselines on the same weights: diffusers' video-to-video (SDEdit), FlowEdit, prompt-to-prompt with DDIM inversion.

Letters: F latent frames, C channels, L text slots, D width; v_k, a_k, s_k, x0 as in `sampling`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from v2edit.backbones import Backbone, Size, Text
from v2edit.bench.methods import Method
from v2edit.editing import EditConfig, Editor
from v2edit.editing.controls import attention_map_replacement, first_step
from v2edit.editing.guidance import Branch, denoise_with_guidance
from v2edit.editing.microbatch import MicroBatcher, unconditional_branches
from v2edit.editing.progression import AlignedText, aligned_text
from v2edit.editing.resize import resize_clip
from v2edit.editing.state import noise_stream
from v2edit.errors import UserError
from v2edit.prompts import PromptPair
from v2edit.sampling import SOLVERS, Schedule, step_mean

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoToVideo:
    """SDEdit (Meng et al. 2022) as diffusers ships it for the model's family: CogVideoX-V2V in the paper. Where it has
    none, this project's own loop without controls, which is the same (tests/test_editor.py, tests/test_wan.py)."""

    steps: int = 50
    strength: float = 0.8  # share of the steps that the source is noised up to; diffusers' own default
    guidance: float | None = None  # classifier-free guidance (default: the model's own)

    def __post_init__(self) -> None:
        _check_shares(self, "strength")
        if int(self.steps * self.strength) < 1:
            raise UserError(f"strength {self.strength} is less than one of {self.steps} steps, expected more")

    def build(self, backbone: Backbone) -> Method:
        guidance = backbone.defaults.guidance if self.guidance is None else self.guidance
        if backbone.video_to_video_pipeline is None:
            log.info("diffusers has no video-to-video pipeline for %s: SDEdit by this project's loop", backbone.name)
            return self._build_own(backbone, guidance)

        def edit(frames: np.ndarray, pair: PromptPair, seed: int) -> np.ndarray:
            size = Size(*frames.shape[:3])
            fitted = resize_clip(frames, backbone.nearest_size(size))
            edited = backbone.video_to_video(fitted, pair.target, self.steps, self.strength, guidance, seed)
            return resize_clip(edited, size)

        return edit

    def _build_own(self, backbone: Backbone, guidance: float) -> Method:
        config = EditConfig(self.steps, self.strength, beta=0.0, guidance=guidance, pnc=False, amr=False, ending="same")

        def edit(frames: np.ndarray, pair: PromptPair, seed: int) -> np.ndarray:
            return np.asarray(Editor(backbone).edit(frames, pair, replace(config, seed=seed)).frames)

        return edit


@dataclass(frozen=True)
class FlowEdit:
    """FlowEdit (Kulikov et al. 2025, Alg. 1): an ordinary differential equation from the source to the edit, along the
    difference of two velocities, without inversion. The values are the paper's for Stable Diffusion 3."""

    steps: int = 50
    n_max: float = 0.66  # share of the steps, counted from the clean end, that the edit runs
    n_min: float = 0.0  # share of the steps, at the clean end, that are ordinary sampling with the target prompt
    n_avg: int = 1  # velocity differences that are averaged at each step, each for a noise of its own
    source_guidance: float = 3.5
    guidance: float = 13.5

    def __post_init__(self) -> None:
        _check_shares(self, "n_max", "n_min")
        if self.n_avg < 1:
            raise UserError(f"n_avg is {self.n_avg}, expected 1 or more")

    def build(self, backbone: Backbone) -> Method:
        return _latent_method(
            backbone, lambda x0, text, seed: flow_edit(backbone, x0, text, self, noise_stream(seed, 1, x0))
        )


@dataclass(frozen=True)
class PromptToPrompt:
    """Prompt-to-prompt (Hertz et al. 2023) on a real video: DDIM inversion with the source prompt and no guidance, then
    both prompts from the noise found, the edit with the source's maps of the shared words in the first steps."""

    steps: int = 50
    alpha: float = 1.0  # share of the model's timesteps up to which the source is inverted
    replaced: float = 0.8  # share of the steps, the first ones, with the source's maps of the shared words
    guidance: float | None = None  # classifier-free guidance of the edit (default: the model's own)
    source_guidance: float = 1.0  # of the source's replay; 1, that of its inversion, comes nearest to the source

    def __post_init__(self) -> None:
        _check_shares(self, "alpha", "replaced")

    def build(self, backbone: Backbone) -> Method:
        return _latent_method(backbone, lambda x0, text, seed: prompt_to_prompt(backbone, x0, text, self))


def _check_shares(settings: object, *names: str) -> None:
    """Raise `UserError` where one of these fields is not from 0 to 1."""
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise UserError(f"{name} is {getattr(settings, name)}, expected 0 to 1")


def _latent_method(backbone: Backbone, edit: Callable[[Tensor, AlignedText, int], Tensor]) -> Method:
    """Return the method of frames that encodes, edits latents [1, F, C, h, w] and decodes, at the model's size."""

    def method(frames: np.ndarray, pair: PromptPair, seed: int) -> np.ndarray:
        size = Size(*frames.shape[:3])
        x0 = backbone.encode(resize_clip(frames, backbone.nearest_size(size)))
        return resize_clip(backbone.decode(edit(x0, aligned_text(backbone, pair), seed)), size)

    return method


def flow_edit(backbone: Backbone, x0: Tensor, text: AlignedText, settings: FlowEdit, draw: Iterator[Tensor]) -> Tensor:
    """Return latents edited by FlowEdit's Algorithm 1, on any diffusion by its coordinates as a flow:

        z = v / (a + s) = (1 - sigma) x0 + sigma eps   with sigma = s / (a + s),   velocity (z - x0(v)) / sigma

    The change of coordinates is exact: the network is called with v = (a + s) z at its own timestep. Equal prompts and
    guidances have equal velocities, and give x0 back."""
    schedule, calls = backbone.schedule(settings.steps, x0.shape[1:]), MicroBatcher(backbone)
    first, free = (schedule.steps - round(share * schedule.steps) for share in (settings.n_max, settings.n_min))
    edit = x0
    for k in range(first, free):
        (scale, sigma), (_, after) = flow(schedule, k), flow(schedule, k + 1)
        change = torch.zeros_like(x0)
        for _ in range(settings.n_avg):
            source = (1 - sigma) * x0 + sigma * next(draw)
            target = source + (edit - x0)
            branches = [
                Branch(scale * source, text.source, settings.source_guidance),
                Branch(scale * target, text.target, settings.guidance),
            ]
            clean_source, clean_target = denoise_with_guidance(calls, branches, text.negative, k, schedule)
            change += ((target - source) - (clean_target - clean_source)) / (sigma * settings.n_avg)
        edit = edit + (after - sigma) * change
    if free < schedule.steps:
        _, sigma = flow(schedule, free)
        edit = (1 - sigma) * x0 + sigma * next(draw) + (edit - x0)
    for k in range(free, schedule.steps):
        (scale, sigma), (_, after) = flow(schedule, k), flow(schedule, k + 1)
        branch = Branch(scale * edit, text.target, settings.guidance)
        (clean,) = denoise_with_guidance(calls, [branch], text.negative, k, schedule)
        edit = edit + (after - sigma) * (edit - clean) / sigma
    return edit


def flow(schedule: Schedule, k: int) -> tuple[float, float]:
    """Return (a + s, sigma) of a level: v = (a + s) z, and sigma is the noise's share of z."""
    a, s = schedule.level(k)
    return a + s, s / (a + s)


def prompt_to_prompt(backbone: Backbone, x0: Tensor, text: AlignedText, settings: PromptToPrompt) -> Tensor:
    """Return latents edited by prompt-to-prompt, both branches from the source's inverted noise, with none added."""
    schedule, solver, calls = backbone.schedule(settings.steps, x0.shape[1:]), SOLVERS["ddim"], MicroBatcher(backbone)
    start = first_step(schedule, settings.alpha)
    source = edit = ddim_inversion(backbone, x0, text.source, schedule, start)
    guidance = backbone.defaults.guidance if settings.guidance is None else settings.guidance
    unconditional = unconditional_branches(backbone.classifier_free, [settings.source_guidance, guidance])
    replacement = attention_map_replacement([1.0], text.shared, unconditional)
    replaced = start + round(settings.replaced * (schedule.steps - start))
    for k in range(start, schedule.steps):
        step = solver.step(schedule, k, first=True)
        branches = [Branch(edit, text.target, guidance)]
        if k < replaced:
            branches.insert(0, Branch(source, text.source, settings.source_guidance))
            clean_source, clean = denoise_with_guidance(calls, branches, text.negative, k, schedule, replacement)
            source = step_mean(step, source, clean_source)
        else:
            (clean,) = denoise_with_guidance(calls, branches, text.negative, k, schedule)
        edit = step_mean(step, edit, clean)
    return edit


def ddim_inversion(backbone: Backbone, x0: Tensor, prompt: Text, schedule: Schedule, start: int) -> Tensor:
    """Return the noisy state v_start from which DDIM comes back to x0, approximately: each step's noise is predicted
    from the state at its clean end with the timestep of its noisy end (as is usual; the clean end of the last step has
    no timestep of its own)."""
    v = x0
    for k in reversed(range(start, schedule.steps)):
        (a, s), (a_clean, s_clean) = schedule.level(k), schedule.level(k + 1)
        eps = (v - a * backbone.denoise(v, k, schedule, [prompt])) / s
        v = a * (v - s_clean * eps) / a_clean + s * eps
    return v
