"""The editor: frames and two prompts to edited frames, subtask by subtask, all branches in lockstep.

Letters: T frames, F latent frames, C channels. Indices of steps run from the noisiest (0) to the clean end (N), as in
`sampling.Schedule`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from v2edit.attention import Replacement
from v2edit.backbones import Backbone, Size
from v2edit.backbones.families import FRAME_RATE
from v2edit.backbones.finite import check_finite
from v2edit.backbones.memory import MemoryMode
from v2edit.editing import controls
from v2edit.editing.change import ChangeMap, latent_change, with_words
from v2edit.editing.config import EditConfig, ResolvedConfig
from v2edit.editing.guidance import Branch, denoise_with_guidance
from v2edit.editing.local import EVERYWHERE, LatentBlend, LocalEdit, latent_mask, plan_window
from v2edit.editing.matte import find_share
from v2edit.editing.microbatch import MicroBatcher, unconditional_branches
from v2edit.editing.progression import AlignedText, BranchText, WrittenText, encode_progression
from v2edit.editing.resize import frame_index, resize_clip
from v2edit.editing.skips import StepCaching
from v2edit.editing.state import LOOP, CountedDraws, EditState, noise_stream
from v2edit.host import retry_smaller_on_oom
from v2edit.prompts import PromptPair
from v2edit.runs.snapshots import LoopSnapshot, LoopState, Snapshots
from v2edit.sampling import SOLVERS, Schedule, Solver, add_step_noise, step_mean
from v2edit.video.colour_hold import ColourDrift, estimate_drift, hold_colours
from v2edit.video.composite import composite
from v2edit.video.crop import extract, paste
from v2edit.video.feather import spread_in_time


@dataclass(frozen=True)
class Progress:
    """A finished denoising step: `step` of `steps` in `subtask` of `subtasks`, all counted from 1. Where a video is
    edited with several seeds, also the `seed` and its number among them. Of a long video also what comes after these
    steps is reported, frame by frame: then the `stage` says what that is."""

    subtask: int
    subtasks: int
    step: int
    steps: int
    seed: int | None = None
    seed_number: int = 1
    seeds: int = 1
    stage: str = "editing"

    @property
    def phase(self) -> str:
        seed = "" if self.seed is None else f"seed {self.seed} ({self.seed_number}/{self.seeds}), "
        return seed + (f"subtask {self.subtask}/{self.subtasks}" if self.stage == "editing" else self.stage)


@dataclass(frozen=True)
class EditResult:
    """The video after each subtask, uint8 [T, H, W, 3] at the source's size; an earlier one is a milder edit. `share`:
    how much of the edit each pixel has in the end, float32 [T, H, W]; None where that is all of it everywhere.
    `drift`: of the last one's colours against the source's, before it is taken out, as far as it is known; `joints`:
    the frames with which the autoencoder's later chunks begin; `change`: how far the latents are from the source's
    (`latent_change`)."""

    subtasks: list[np.ndarray]
    share: np.ndarray | None = None
    drift: ColourDrift | None = None
    joints: Sequence[int] = ()
    change: float = math.inf

    @property
    def frames(self) -> np.ndarray:
        return self.subtasks[-1]


class Editor:
    """Edits videos with a backbone (V2Edit Fig. 2 and 3).

    >>> editor = Editor(backbones.load("primitives"))
    >>> editor.edit(frames, PromptPair("a big red ball …", "a big blue ball …")).frames"""

    def __init__(self, backbone: Backbone, single_use: bool = False) -> None:
        """With `single_use` the text encoders are freed once the first edit's prompts are encoded."""
        self.backbone, self.single_use = backbone, single_use
        self.batcher = MicroBatcher(backbone)

    def edit(
        self,
        frames: np.ndarray,
        prompts: PromptPair,
        config: EditConfig = EditConfig(),
        on_progress: Callable[[Progress], None] | None = None,
        snapshots: Snapshots | None = None,
        frame_rate: float = FRAME_RATE,
        local: LocalEdit = EVERYWHERE,
    ) -> EditResult:
        """Edit uint8 frames [T, H, W, 3] of any length and size, at a `frame_rate` in frames a second, which matters to
        models that place frames by seconds; the result has the same. With `snapshots`, an edit that was interrupted
        resumes when it is called again, with the same result. `local`: what the edit may not change, and keeps to the
        last bit. Raises `UserError` for a loop of a model that cannot make one."""
        if (boxes := plan_window(local, self.backbone.native_size)) is not None:
            clip, within = extract(frames, boxes), local.in_window(boxes)
            edited = self.edit(clip, prompts, config, on_progress, snapshots, frame_rate, within)
            assert edited.share is not None
            share = paste(np.zeros(frames.shape[:3], np.float32), edited.share, boxes)
            videos = [paste(frames, video, boxes) for video in edited.subtasks]
            return replace(edited, subtasks=videos, share=share)
        edit = self.begin(prompts, config, on_progress, snapshots, frame_rate, local)
        videos = [edit.next_subtask(frames), *(edit.next_subtask() for _ in range(1, edit.config.subtasks))]
        return EditResult(videos, edit.share, edit.drift, edit.joints, edit.change)

    def begin(
        self,
        prompts: PromptPair,
        config: EditConfig = EditConfig(),
        on_progress: Callable[[Progress], None] | None = None,
        snapshots: Snapshots | None = None,
        frame_rate: float = FRAME_RATE,
        local: LocalEdit = EVERYWHERE,
    ) -> EditSession:
        """Begin an edit that is run one subtask at a time; the arguments are those of `edit`."""
        backbone, config = self.backbone, config.for_prompts(prompts)
        backbone.set_frame_rate(frame_rate)
        backbone.reset_memory_mode()
        encode = partial(encode_progression, backbone, prompts, config.negative_prompt, config.padding_shared)
        text = retry_smaller_on_oom(encode, backbone.offload_more)
        if self.single_use:
            backbone.free_text_encoders()
        return EditSession(self, text, config, on_progress, snapshots, local)

    def subtasks(
        self,
        x0: Tensor,
        text: AlignedText | WrittenText,
        config: EditConfig,
        on_progress: Callable[[Progress], None] | None = None,
        snapshots: Snapshots | None = None,
    ) -> Iterator[Tensor]:
        """Yield the latents [1, F, C, h, w] after each subtask (V2Edit Sec. 3.3)."""
        session = EditSession(self, text, config, on_progress, snapshots)
        for subtask in range(config.subtasks):
            yield session.next_latents(x0 if subtask == 0 else None)

    def subtask(
        self,
        current: Tensor,
        sources: list[controls.Source],
        text: BranchText,
        config: EditConfig,
        draws: Iterator[Tensor],
        report: Callable[[int, int], None] = lambda step, steps: None,
        snapshot: LoopSnapshot = LoopSnapshot(),
        local: LatentBlend | None = None,
    ) -> Tensor:
        """Edit `current` [1, F, C, h, w] into a video of the edit's prompt, controlled by the sources (Sec. 3.2), where
        `local` lets it change, which is narrowed if it says so."""
        schedule = self.backbone.schedule(config.steps, current.shape[1:])
        config = config.resolve(self.backbone.defaults, schedule)
        solver, free_solver = choose_solvers(config, self.backbone.solver)
        start = controls.first_step(schedule, config.alpha, config.inc)
        state, draws, begun = self._begin_loop(
            current, CountedDraws(draws), schedule, start, snapshot, len(sources) + 1
        )
        caching, local = StepCaching(schedule, config), local or LatentBlend(current)
        weights = [source.weight for source in sources]
        local.begin()

        def checked_state() -> LoopState:
            check_finite(state.edit, f"the edit's latents at step {state.k} of {schedule.steps}", self.backbone.dtype)
            loop_state, mode = caching.resumable(state, draws.count), self.backbone.memory_mode
            return replace(loop_state, facts=loop_state.facts | {"memory": asdict(mode), "begun": begun})

        for k in snapshot.steps(state.k, schedule.steps, checked_state):
            cache = caching.begin(state, draws.count)
            controlled = controls.is_controlled(schedule, k, config)
            if not controlled:
                local.narrow(state.changes)
            branches = self._branches(state, sources if controlled else [], text, schedule, config)
            unconditional, replacement = self._replacement(branches, weights, text.shared, config, local.find)
            x0s = denoise_with_guidance(
                self.batcher, branches, text.negative, k, schedule, replacement, config.loop, unconditional, cache
            )
            step = (solver if controlled else free_solver).step(schedule, k, first=k == start)
            previous = state.x0s[-len(branches) :]
            *means, mean = (step_mean(step, b.v, x0, p) for b, x0, p in zip(branches, x0s, previous, strict=True))
            if controlled and config.pnc:
                # Independent draws at each step are what makes the noise between two of them carry structure
                # (Huberman-Spiegelglas et al. 2024); where only maps are taken, the sources keep their first noise.
                state.eps = next(draws)
                next_states = [schedule.add_noise(source.x0, state.eps, k + 1) for source in sources]
                state.edit = controls.per_step_noise_control(mean, next_states, means, weights)
            else:
                state.edit = add_step_noise(step, mean, draws)
            if controlled and local.find:
                state.changes = ChangeMap.of(x0s[0], x0s[-1], replacement and replacement.words).after(state.changes)
            state.edit = local.blend(state.edit, partial(schedule.add_noise, local.original, state.eps, k + 1))
            state.x0s, state.k = list(x0s), k + 1
            report(k - start + 1, schedule.steps - start)
        local.narrow(state.changes)  # where the controls act to the end, or the loop was at its end before
        check_finite(state.edit, "the edit's latents", self.backbone.dtype)
        return state.edit

    def _begin_loop(
        self,
        current: Tensor,
        draws: CountedDraws,
        schedule: Schedule,
        start: int,
        snapshot: LoopSnapshot,
        branches: int,
    ) -> tuple[EditState, CountedDraws, Mapping[str, Any]]:
        """Return the state that a subtask's loop goes on from, its noise from there on, and the memory mode in which
        the subtask was begun, which becomes the backbone's again where a run is resumed."""
        if loop_state := snapshot.load():
            begun = loop_state.facts.get("begun", asdict(self.backbone.memory_mode))
            if mode := MemoryMode.from_record(loop_state.facts.get("memory")):
                self.backbone.memory_mode = mode
            state, drawn = EditState.from_snapshot(loop_state, current)
            return state, draws.after(drawn), begun
        eps = next(draws)
        state = EditState(start, schedule.add_noise(current, eps, start), eps, [None] * branches)
        return state, draws, asdict(self.backbone.memory_mode)

    def _branches(
        self, state: EditState, sources: Sequence[controls.Source], text: BranchText, schedule: Schedule,
        config: ResolvedConfig,
    ) -> list[Branch]:  # fmt: skip
        """Return the branches of a step, those of the sources beside the edit's, which comes last."""
        guidance, source_guidance = config.guidance_at(schedule, state.k, self.backbone.classifier_free)
        noisy = (schedule.add_noise(source.x0, state.eps, state.k) for source in sources)
        beside = (Branch(v, source.prompt, source_guidance) for v, source in zip(noisy, sources, strict=True))
        return [*beside, Branch(state.edit, text.edit, guidance)]

    def _replacement(
        self, branches: Sequence[Branch], weights: Sequence[float], shared: int, config: ResolvedConfig, find: bool
    ) -> tuple[Sequence[int] | None, Replacement | None]:
        """Return which branches have an unconditional row, None for those that guidance needs, and what the rows take
        of each other's maps; with `find` it gathers the attention to the words that change."""
        if len(branches) == 1:
            return None, None
        scales, in_both = [branch.guidance for branch in branches], config.amr and config.amr_unconditional
        unconditional = unconditional_branches(self.backbone.classifier_free, scales, in_both)
        amr = controls.attention_map_replacement
        replacement = amr(weights, shared, unconditional, in_both) if config.amr else None
        if find:
            words = [branch.prompt.with_keys_first.changed for branch in branches]
            replacement = with_words(replacement, [*((),) * len(unconditional), *words])
        return unconditional, replacement


@dataclass
class EditSession:
    """An edit in progress, one subtask at a time (V2Edit Sec. 3.3), with `subtask` of them behind it; `original` and
    `current` are latents [1, F, C, h, w] of the original video and of the last result, `source` is the original video
    `blend` the local edit in latents and `found` the share [T, H, W] that the model finds; `drift` is that of the last
    result's colours, before it is taken out."""

    editor: Editor
    text: AlignedText | WrittenText
    config: EditConfig
    on_progress: Callable[[Progress], None] | None = None
    snapshots: Snapshots | None = None
    local: LocalEdit = EVERYWHERE
    subtask: int = field(default=0, init=False)
    source: np.ndarray = field(init=False)
    fitted: Size = field(init=False)
    blend: LatentBlend | None = field(default=None, init=False)
    drift: ColourDrift | None = field(default=None, init=False)
    found: np.ndarray | None = field(default=None, init=False)
    original: Tensor = field(init=False)
    current: Tensor = field(init=False)

    def next_subtask(self, video: np.ndarray | None = None) -> np.ndarray:
        """Edit one more subtask; return its video, uint8 [T, H, W, 3]. The first call's `video` is the original. A
        later one stands in for the last subtask's result: what a scene shows, say, that was reconstructed from it.
        Without one the subtask starts from the last one's latents."""
        backbone, loop, latents = self.editor.backbone, self.config.loop, None
        if video is not None:
            assert video.dtype == np.uint8 and video.ndim == 4 and video.shape[3] == 3, video.shape
            if self.subtask == 0:
                self.source, self.fitted = video, backbone.nearest_size(Size(*video.shape[:3]), loop)
            self._recall_mode()
            latents = backbone.encode(resize_clip(video, self.fitted, loop), loop=loop)
            if self.subtask == 0:
                self.blend = self._begin_blend(latents)
        edited = self.next_latents(latents)
        self._recall_mode()
        frames = backbone.decode(edited, loop)
        if self.local.find:
            found = self._find_share(frames)
            self.found = found if self.found is None else np.maximum(found, self.found)
        result = resize_clip(frames, Size(*self.source.shape[:3]), loop)
        share = self.share
        self.drift = estimate_drift(self.source, result, None if share is None else spread_in_time(share))
        if self.local.keep_colours:
            result = hold_colours(result, self.drift)
        # Beside a mask that was found, what differs from the source is the edit's own, and no drift to be taken off it.
        seam = None if self.found is None else "feather"
        return result if share is None else composite(self.source, result, share, seam)

    @property
    def joints(self) -> list[int]:
        """The frames of the video with which the autoencoder's later chunks begin: where a long clip may jump."""
        frames, loop = self.fitted.frames, self.config.loop
        chunks = self.editor.backbone.chunk_of(frames, loop)[frame_index(frames, len(self.source), loop)]
        return (np.flatnonzero(np.diff(chunks)) + 1).tolist()

    @property
    def change(self) -> float:
        """How far the last result's latents are from the original's (`latent_change`)."""
        return latent_change(self.original, self.current)

    @property
    def share(self) -> np.ndarray | None:
        """How much of the edit each pixel has so far, float32 [T, H, W] of the video's size; None for all of it
        everywhere."""
        given, found = self.local.share, self.found
        if found is None or found.min() == 1:
            return given
        return found if given is None else np.minimum(given, found)

    def _find_share(self, edited: np.ndarray) -> np.ndarray:
        """Return how much of the edit each pixel takes by what the model changed, float32 [T, H, W] of the video's
        size. `edited`: the decoded frames, uint8 [T', h, w, 3]."""
        assert self.blend is not None
        if (changed := self.blend.changed) is None:  # no step was controlled
            return np.ones(self.source.shape[:3], np.float32)
        loop, autoencode = self.config.loop, partial(self.editor.backbone.decode, self.original, self.config.loop)
        source = partial(resize_clip, self.source, self.fitted, loop)
        return find_share(changed, edited, autoencode, source, *self._frame_indices(), self.source.shape[:3])

    def _begin_blend(self, original: Tensor) -> LatentBlend | None:
        """Return the local edit in latents, which begins with those of the original [1, F, C, h, w]."""
        share, find = self.local.share, self.local.find
        if share is None:
            return LatentBlend(original, find=True) if find else None
        allowed = latent_mask(spread_in_time(share), *self._frame_indices(), original.shape[1:])
        return LatentBlend(original, allowed.to(original), find)

    def _frame_indices(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the video's frame that each frame for the model is, and the latent frame that holds it, int [T']."""
        frames, loop = self.fitted.frames, self.config.loop
        return frame_index(len(self.source), frames, loop), self.editor.backbone.latent_frame_of(frames, loop)

    def next_latents(self, current: Tensor | None = None) -> Tensor:
        """Edit one more subtask; the same on latents [1, F, C, h, w]."""
        if current is not None:
            self.current = current
        if self.subtask == 0:
            self.original = self.current
        self.subtask += 1
        text = self.text.for_subtask(self.subtask, self.config.subtasks)
        sources = controls.mix_sources(self.original, self.current, text, self.config.mixture, self.subtask)
        draws = noise_stream(self.config.seed, self.subtask, self.original)
        snapshot = self._snapshot(self.subtask)
        self.current = self.editor.subtask(
            self.current, sources, text, self.config, draws, self._report, snapshot, self.blend
        )
        return self.current

    def _snapshot(self, subtask: int) -> LoopSnapshot:
        return self.snapshots.loop(f"{LOOP}-{subtask}") if self.snapshots else LoopSnapshot()

    def _recall_mode(self) -> None:
        """Take the memory mode in which an edit that was interrupted began the next subtask, if it did: what it encoded
        and decoded before that was in tiles, which are another result, or not."""
        if (state := self._snapshot(self.subtask + 1).load()) and (begun := state.facts.get("begun")):
            self.editor.backbone.memory_mode = MemoryMode(**begun)

    def _report(self, step: int, steps: int) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(self.subtask, self.config.subtasks, step, steps))


def choose_solvers(config: ResolvedConfig, default: str) -> tuple[Solver, Solver]:
    """Return the solver inside the control window and the one below it; `default` is the model's own."""
    solver = SOLVERS[default if config.solver == "auto" else config.solver]
    return solver, solver if config.ending == "same" else SOLVERS[solver.deterministic]
