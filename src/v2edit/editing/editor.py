"""The editor: frames and two prompts to edited frames, subtask by subtask, all branches in lockstep.

Letters: T frames, F latent frames, C channels, R rows of a batch (guidance halves x branches). Indices of steps run
from the noisiest (0) to the clean end (N), as in `noise.Schedule`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.attention import Replacement
from v2edit.backbones import Backbone, Size
from v2edit.editing.config import EditConfig
from v2edit.editing.controls import Source, first_step, map_replacement, noises, sources_of
from v2edit.editing.progression import AlignedText, aligned_text, subtask_prompt
from v2edit.noise import SOLVERS, Schedule, mean, replay
from v2edit.prompts import PromptPair

RESIZED_AT_ONCE = 8  # frames: in float32 a long clip would be four times its size, several times over


@dataclass(frozen=True)
class Progress:
    """One denoising step done: `step` of `steps` in `subtask` of `subtasks`, all counted from 1."""

    subtask: int
    subtasks: int
    step: int
    steps: int


@dataclass(frozen=True)
class EditResult:
    """The video after each subtask, uint8 [T, H, W, 3] at the source's size; an earlier one is a milder edit."""

    subtasks: list[np.ndarray]

    @property
    def frames(self) -> np.ndarray:
        return self.subtasks[-1]


class Editor:
    """Edits videos with a backbone (V2Edit Fig. 2 and 3).

    >>> editor = Editor(backbones.load("primitives"))
    >>> editor.edit(frames, PromptPair("a big red ball …", "a big blue ball …")).frames
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def edit(
        self,
        frames: np.ndarray,
        prompts: PromptPair,
        config: EditConfig = EditConfig(),  # noqa: B008 (frozen)
        on_progress: Callable[[Progress], None] | None = None,
        rebuild: Callable[[int, np.ndarray], np.ndarray] | None = None,
    ) -> EditResult:
        """Edits uint8 frames [T, H, W, 3] of any length and size; what comes back has the same.

        `rebuild` stands between a subtask (its number, its frames) and the next, which starts from the frames that it
        returns: those of a scene, say, that was reconstructed from them.
        """
        assert frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3, frames.shape
        own = Size(*frames.shape[:3])
        x0 = self.backbone.encode(to_size(frames, self.backbone.fit(own)))
        text = aligned_text(self.backbone, prompts, config.negative_prompt, config.padding_shared)

        def rebuilt(subtask: int, latents: Tensor) -> Tensor:
            if rebuild is None:
                return latents
            frames = rebuild(subtask, to_size(self.backbone.decode(latents), own))
            return self.backbone.encode(to_size(frames, self.backbone.fit(own)))

        latents = self.subtasks(x0, text, config, on_progress, rebuilt)
        return EditResult([to_size(self.backbone.decode(one), own) for one in latents])

    def subtasks(
        self,
        x0: Tensor,
        text: AlignedText,
        config: EditConfig,
        on_progress: Callable[[Progress], None] | None = None,
        rebuilt: Callable[[int, Tensor], Tensor] = lambda subtask, latents: latents,
    ) -> Iterator[Tensor]:
        """The latents [1, F, C, h, w] after each subtask, one at a time (V2Edit Sec. 3.3); the next subtask starts
        from what `rebuilt` makes of them."""
        current = x0
        for subtask in range(1, config.subtasks + 1):
            current = rebuilt(subtask - 1, current) if subtask > 1 else x0
            p_original, p_current, p_edit = (
                subtask_prompt(text, s, config.subtasks) for s in (0, subtask - 1, subtask)
            )
            sources = sources_of(x0, current, p_original, p_current, config.mixture, subtask)

            def report(step: int, steps: int, subtask: int = subtask) -> None:
                if on_progress is not None:
                    on_progress(Progress(subtask, config.subtasks, step, steps))

            draw = noises(config.seed, subtask, x0)
            current = self.subtask(current, sources, p_edit, text, config, draw, report)
            yield current

    def subtask(
        self,
        current: Tensor,
        sources: list[Source],
        prompt: Tensor,
        text: AlignedText,
        config: EditConfig,
        draw: Iterator[Tensor],
        report: Callable[[int, int], None] = lambda step, steps: None,
    ) -> Tensor:
        """One mild edit: `current` becomes a video of `prompt`, held by the sources' noise and attention maps."""
        schedule = self.backbone.schedule(config.steps)
        solver = SOLVERS[self.backbone.solver if config.solver == "auto" else config.solver]
        ending = solver if config.ending == "same" else SOLVERS[solver.deterministic]
        start = first_step(schedule, config.alpha, config.inc)

        eps = next(draw)
        noisy = [schedule.add_noise(source.x0, eps, start) for source in sources]  # the sources' v_k
        edit = schedule.add_noise(current, eps, start)  # the edit's v_k: initial noise control
        memory: list[Tensor | None] = [None] * (len(sources) + 1)  # each branch's x0 of the step before
        guidance = self.backbone.guidance if config.guidance is None else config.guidance
        replacement = map_replacement(sources, text.shared, 1 + (guidance > 1), config.amr_unconditional)

        for k in range(start, schedule.steps):
            if (config.pnc or config.amr) and schedule.controlled(k, config.beta):
                step = solver.step(schedule, k, first=k == start)
                branches = [
                    *((v, source.prompt) for v, source in zip(noisy, sources, strict=True)),
                    (edit, prompt),
                ]
                x0s = self._denoise(branches, text.negative, guidance, k, schedule, replacement if config.amr else None)
                means = [mean(step, v, x0, old) for (v, _), x0, old in zip(branches, x0s, memory, strict=True)]
                memory = list(x0s)
                # Independent draws at each step are what makes the noise between two of them carry structure
                # (Huberman-Spiegelglas et al. 2024); where only maps are taken, the source keeps its first noise.
                eps = next(draw) if config.pnc else eps
                noisy = [schedule.add_noise(source.x0, eps, k + 1) for source in sources]
                if config.pnc:
                    edit = replay(means[-1], [(s.weight, v, m) for s, v, m in zip(sources, noisy, means, strict=False)])
                else:
                    edit = means[-1] + step.std * next(draw) if step.std else means[-1]
            else:
                step = ending.step(schedule, k, first=k == start)
                (x0,) = self._denoise([(edit, prompt)], text.negative, guidance, k, schedule, None)
                edit = mean(step, edit, x0, memory[-1])
                edit = edit + step.std * next(draw) if step.std else edit
                memory = [x0]
            report(k - start + 1, schedule.steps - start)
        return edit

    def _denoise(
        self,
        branches: list[tuple[Tensor, Tensor]],
        negative: Tensor,
        guidance: float,
        k: int,
        schedule: Schedule,
        replacement: Replacement | None,
    ) -> tuple[Tensor, ...]:
        """The guided x0 of each branch (latents, prompt), all in one batch: rows [half][branch]."""
        latents = torch.cat([v for v, _ in branches])
        prompts = torch.stack([p for _, p in branches])
        if guidance == 1:
            return self.backbone.denoise(latents, k, schedule, prompts, replacement).split(1)
        rows = torch.cat([negative.expand_as(prompts), prompts])
        without, within = self.backbone.denoise(latents.repeat(2, 1, 1, 1, 1), k, schedule, rows, replacement).chunk(2)
        return guide(without, within, guidance).split(1)


def guide(without: Tensor, within: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance on x0: the same as on the network's output, since x0 is linear in it."""
    return without + guidance * (within - without)


def to_size(frames: np.ndarray, size: Size) -> np.ndarray:
    """uint8 frames [T, H, W, 3] at another size: the last frame repeated or frames cut, pixels resampled."""
    count, height, width = frames.shape[:3]
    frames = frames[: size.frames]
    if count < size.frames:
        frames = np.concatenate([frames, np.repeat(frames[-1:], size.frames - count, axis=0)])
    if (height, width) == (size.height, size.width):
        return np.ascontiguousarray(frames)
    resized = np.empty((size.frames, size.height, size.width, 3), np.uint8)
    for k in range(0, size.frames, RESIZED_AT_ONCE):
        video = torch.from_numpy(frames[k : k + RESIZED_AT_ONCE]).permute(0, 3, 1, 2).float()
        video = F.interpolate(video, (size.height, size.width), mode="bicubic", antialias=True)
        resized[k : k + RESIZED_AT_ONCE] = video.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return resized
