"""The editor: frames and two prompts to edited frames, subtask by subtask, all branches in lockstep.

Letters: T frames, F latent frames, C channels, R rows of a batch (cfg batches x branches). Indices of steps run
from the noisiest (0) to the clean end (N), as in `sampling.Schedule`.
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
from v2edit.editing.controls import Source, attention_map_replacement, first_step, noise_stream, sources_of
from v2edit.editing.microbatch import MicroBatcher
from v2edit.editing.progression import AlignedText, BranchText, WrittenText, encode_progression
from v2edit.editing.state import LOOP, Draws, EditState
from v2edit.prompts import PromptPair
from v2edit.runs.snapshots import LoopSnapshot, Snapshots
from v2edit.sampling import SOLVERS, Schedule, replay, step_mean

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
        self.calls = MicroBatcher(backbone)

    def edit(
        self,
        frames: np.ndarray,
        prompts: PromptPair,
        config: EditConfig = EditConfig(),  # noqa: B008 (frozen)
        on_progress: Callable[[Progress], None] | None = None,
        rebuild: Callable[[int, np.ndarray], np.ndarray] | None = None,
        snapshots: Snapshots | None = None,
    ) -> EditResult:
        """Edits uint8 frames [T, H, W, 3] of any length and size; what comes back has the same.

        Raises `UserError` where a loop is asked of a model that cannot make one.

        `rebuild` stands between a subtask (its number, its frames) and the next, which starts from the frames that it
        returns: those of a scene, say, that was reconstructed from them. With a `snapshots`, an edit that was ended
        goes on where it stood when it is called again, and comes to the same.
        """
        assert frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3, frames.shape
        own, loop, config = Size(*frames.shape[:3]), config.loop, config.for_prompts(prompts)
        fitted = self.backbone.nearest_size(own, loop)
        x0 = self.backbone.encode(resize_clip(frames, fitted, loop), loop=loop)
        text = encode_progression(self.backbone, prompts, config.negative_prompt, config.padding_shared)

        def rebuilt(subtask: int, latents: Tensor) -> Tensor:
            if rebuild is None:
                return latents
            frames = rebuild(subtask, resize_clip(self.backbone.decode(latents, loop), own, loop))
            return self.backbone.encode(resize_clip(frames, fitted, loop), loop=loop)

        latents = self.subtasks(x0, text, config, on_progress, rebuilt, snapshots)
        return EditResult([resize_clip(self.backbone.decode(one, loop), own, loop) for one in latents])

    def subtasks(
        self,
        x0: Tensor,
        text: AlignedText | WrittenText,
        config: EditConfig,
        on_progress: Callable[[Progress], None] | None = None,
        rebuilt: Callable[[int, Tensor], Tensor] = lambda subtask, latents: latents,
        snapshots: Snapshots | None = None,
    ) -> Iterator[Tensor]:
        """The latents [1, F, C, h, w] after each subtask, one at a time (V2Edit Sec. 3.3); the next subtask starts
        from what `rebuilt` makes of them."""
        current = x0
        for subtask in range(1, config.subtasks + 1):
            current = rebuilt(subtask - 1, current) if subtask > 1 else x0
            said = text.for_subtask(subtask, config.subtasks)
            sources = sources_of(x0, current, said.original, said.current, config.mixture, subtask)

            def report(step: int, steps: int, subtask: int = subtask) -> None:
                if on_progress is not None:
                    on_progress(Progress(subtask, config.subtasks, step, steps))

            draw = noise_stream(config.seed, subtask, x0)
            snapshot = snapshots.loop(f"{LOOP}-{subtask}") if snapshots else LoopSnapshot()
            current = self.subtask(current, sources, said.edit, said, config, draw, report, snapshot)
            yield current

    def subtask(
        self,
        current: Tensor,
        sources: list[Source],
        prompt: Tensor,
        text: AlignedText | BranchText,
        config: EditConfig,
        draw: Iterator[Tensor],
        report: Callable[[int, int], None] = lambda step, steps: None,
        snapshot: LoopSnapshot = LoopSnapshot(),  # noqa: B008 (frozen)
    ) -> Tensor:
        """One mild edit: `current` becomes a video of `prompt`, held by the sources' noise and attention maps."""
        config = config.resolve(self.backbone.defaults)
        schedule = self.backbone.schedule(config.steps)
        solver = SOLVERS[self.backbone.solver if config.solver == "auto" else config.solver]
        ending = solver if config.ending == "same" else SOLVERS[solver.deterministic]
        start = first_step(schedule, config.alpha, config.inc)

        if kept := snapshot.load():
            at, drawn = EditState.of(kept, current)
            draw = Draws(draw, drawn)
        else:
            draw = Draws(draw)
            eps = next(draw)
            # The edit starts from its own v_k, initial noise control; no branch has an x0 of a step before.
            at = EditState(start, schedule.add_noise(current, eps, start), eps, [None] * (len(sources) + 1))
        noisy = [schedule.add_noise(source.x0, at.eps, at.k) for source in sources]  # the sources' v_k
        cfg_batches = 1 + (max(config.guidance, config.source_guidance) > 1)
        replacement = attention_map_replacement(sources, text.shared, cfg_batches, config.amr_unconditional)

        for k in snapshot.steps(at.k, schedule.steps, lambda: at.kept(draw.drawn)):
            if (config.pnc or config.amr) and schedule.controlled(k, config.beta):
                step = solver.step(schedule, k, first=k == start)
                branches = [
                    *(Branch(v, one.prompt, config.source_guidance) for v, one in zip(noisy, sources, strict=True)),
                    Branch(at.edit, prompt, config.guidance),
                ]
                maps = replacement if config.amr else None
                x0s = denoise_with_guidance(self.calls, branches, text.negative, k, schedule, maps, config.loop)
                means = [step_mean(step, one.v, x0, old) for one, x0, old in zip(branches, x0s, at.memory, strict=True)]
                # Independent draws at each step are what makes the noise between two of them carry structure
                # (Huberman-Spiegelglas et al. 2024); where only maps are taken, the source keeps its first noise.
                at.eps = next(draw) if config.pnc else at.eps
                noisy = [schedule.add_noise(source.x0, at.eps, k + 1) for source in sources]
                if config.pnc:
                    held = [(s.weight, v, m) for s, v, m in zip(sources, noisy, means, strict=False)]
                    at.edit = replay(means[-1], held)
                else:
                    at.edit = means[-1] + step.std * next(draw) if step.std else means[-1]
                at.memory = list(x0s)
            else:
                step = ending.step(schedule, k, first=k == start)
                alone = [Branch(at.edit, prompt, config.guidance)]
                (x0,) = denoise_with_guidance(self.calls, alone, text.negative, k, schedule, loop=config.loop)
                at.edit = step_mean(step, at.edit, x0, at.memory[-1])
                at.edit = at.edit + step.std * next(draw) if step.std else at.edit
                at.memory = [x0]
            at.k = k + 1
            report(k - start + 1, schedule.steps - start)
        return at.edit


@dataclass(frozen=True)
class Branch:
    """A row of the lockstep batch: noisy latents `v` [1, F, C, h, w], a prompt [L, D] and how strongly it pulls."""

    v: Tensor
    prompt: Tensor
    guidance: float


def denoise_with_guidance(
    calls: MicroBatcher,
    branches: list[Branch],
    negative: Tensor,
    k: int,
    schedule: Schedule,
    replacement: Replacement | None = None,
    loop: bool = False,
) -> list[Tensor]:
    """The guided x0 of each branch at step k: rows [half][branch], all in one batch where memory allows."""
    latents = torch.cat([one.v for one in branches])
    prompts = torch.stack([one.prompt for one in branches])
    if all(one.guidance == 1 for one in branches):
        return list(calls.denoise(latents, k, schedule, prompts, replacement, loop, cfg_batches=1).split(1))
    rows, latents = torch.cat([negative.expand_as(prompts), prompts]), latents.repeat(2, 1, 1, 1, 1)
    uncond, cond = calls.denoise(latents, k, schedule, rows, replacement, loop, cfg_batches=2).chunk(2)
    pulls = (one.guidance for one in branches)
    return [guide(*cfg_batches) for cfg_batches in zip(uncond.split(1), cond.split(1), pulls, strict=True)]


def guide(uncond: Tensor, cond: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance on x0: the same as on the network's output, since x0 is linear in it."""
    return uncond + guidance * (cond - uncond)


def resize_clip(frames: np.ndarray, size: Size, loop: bool = False) -> np.ndarray:
    """uint8 frames [T, H, W, 3] at another size: the last frame repeated or frames cut, pixels resampled.

    In a loop frames are repeated all over it, evenly, and these are the ones that are cut again: a pause where it
    closes would be seen as one.
    """
    count, height, width = frames.shape[:3]
    if count != size.frames:
        place = np.arange(size.frames)
        if loop:  # Ups round down and downs up: what was repeated is cut to the very frames it was made from.
            place = place * count // size.frames if count < size.frames else -(-place * count // size.frames)
        frames = frames[np.minimum(place, count - 1)]
    if (height, width) == (size.height, size.width):
        return np.ascontiguousarray(frames)
    resized = np.empty((size.frames, size.height, size.width, 3), np.uint8)
    for k in range(0, size.frames, RESIZED_AT_ONCE):
        video = torch.from_numpy(frames[k : k + RESIZED_AT_ONCE]).permute(0, 3, 1, 2).float()
        video = F.interpolate(video, (size.height, size.width), mode="bicubic", antialias=True)
        resized[k : k + RESIZED_AT_ONCE] = video.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return resized
