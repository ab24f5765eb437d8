"""A subtask's denoising loop: all branches in lockstep, the whole clip at every step (V2Edit Sec. 3.2).

Letters: F latent frames, C channels. Indices of steps run from the noisiest (0) to the clean end (N), as in
`sampling.Schedule`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from v2edit.attention import Replacement
from v2edit.attention.words import WordShare
from v2edit.backbones import Backbone
from v2edit.backbones.caching import StepCache
from v2edit.backbones.finite import check_finite
from v2edit.backbones.memory import MemoryMode
from v2edit.editing import controls
from v2edit.editing.change import ChangeMap, with_words
from v2edit.editing.config import EditConfig, ResolvedConfig
from v2edit.editing.guidance import Branch, denoise_with_guidance
from v2edit.editing.local import LatentBlend
from v2edit.editing.microbatch import MicroBatcher, unconditional_branches
from v2edit.editing.progression import BranchText
from v2edit.editing.skips import StepCaching
from v2edit.editing.state import CountedDraws, EditState
from v2edit.runs.snapshots import LoopSnapshot, LoopState
from v2edit.sampling import SOLVERS, Schedule, Solver, add_step_noise, step_mean

ReportStep = Callable[[int, int], None]  # the steps that are done, of how many
Watch = Callable[[slice, Tensor], None]  # the edit's x0 [1, F, C, h, w] in some frames


@dataclass(frozen=True, eq=False)
class Subtask:
    """A subtask's steps on a clip, or on some of its frames: what they denoise, and how. With `find` they gather the
    attention to the words that change."""

    batcher: MicroBatcher
    sources: Sequence[controls.Source]
    text: BranchText
    schedule: Schedule
    config: ResolvedConfig
    find: bool = False

    @classmethod
    def of(
        cls,
        batcher: MicroBatcher,
        sources: Sequence[controls.Source],
        text: BranchText,
        config: EditConfig,
        shape: Sequence[int],
        find: bool = False,
    ) -> Subtask:
        """Return a subtask of which the network sees latents of a `shape` [F, C, h, w]."""
        schedule = batcher.backbone.schedule(config.steps, shape)
        return cls(batcher, sources, text, schedule, config.resolve(batcher.backbone.defaults, schedule), find)

    @property
    def backbone(self) -> Backbone:
        return self.batcher.backbone

    @property
    def start(self) -> int:
        """The first step."""
        return controls.first_step(self.schedule, self.config.alpha, self.config.inc)

    @property
    def weights(self) -> list[float]:
        """The weights of the sources."""
        return [source.weight for source in self.sources]

    def is_controlled(self, k: int) -> bool:
        """Whether the sources run beside the edit at step k."""
        return controls.is_controlled(self.schedule, k, self.config)

    @property
    def keeps_x0(self) -> bool:
        """Whether some steps take the x0 of the step before."""
        return any(solver.second_order for solver in choose_solvers(self.config, self.backbone.solver))

    def branches(self, edit: Tensor, eps: Tensor, k: int) -> list[Branch]:
        """Return the branches of step k, those of the sources beside the edit's, which comes last."""
        guidance, source_guidance = self.config.guidance_at(self.schedule, k, self.backbone.classifier_free)
        sources = self.sources if self.is_controlled(k) else []
        noisy = (self.schedule.add_noise(source.x0, eps, k) for source in sources)
        beside = (Branch(v, source.prompt, source_guidance) for v, source in zip(noisy, sources, strict=True))
        return [*beside, Branch(edit, self.text.edit, guidance)]

    def denoise(
        self, branches: list[Branch], k: int, cache: StepCache | None = None
    ) -> tuple[list[Tensor], WordShare | None]:
        """Return the x0 of each branch at step k, and the attention to the words that change, where it is gathered."""
        unconditional, replacement = self._replacement(branches)
        x0s = denoise_with_guidance(
            self.batcher, branches, self.text.negative, k, self.schedule, replacement, self.config.loop, unconditional,
            cache,
        )  # fmt: skip
        return x0s, replacement and replacement.words

    def advance(
        self,
        branches: Sequence[Branch],
        x0s: Sequence[Tensor],
        previous: Sequence[Tensor | None],
        k: int,
        eps: Tensor,
        draws: Iterator[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Take step k from the branches, their x0 and that of the step before: return the edit's next latents, and the
        noise in the sources' next ones."""
        controlled = self.is_controlled(k)
        solver, free_solver = choose_solvers(self.config, self.backbone.solver)
        step = (solver if controlled else free_solver).step(self.schedule, k, first=k == self.start)
        previous = previous[-len(branches) :]
        *means, mean = (step_mean(step, b.v, x0, p) for b, x0, p in zip(branches, x0s, previous, strict=True))
        if not (controlled and self.config.pnc):
            return add_step_noise(step, mean, draws), eps
        # Independent draws at each step are what makes the noise between two of them carry structure
        # (Huberman-Spiegelglas et al. 2024); where only maps are taken, the sources keep their first noise.
        eps = next(draws)
        next_states = [self.schedule.add_noise(source.x0, eps, k + 1) for source in self.sources]
        return controls.per_step_noise_control(mean, next_states, means, self.weights), eps

    def check(self, edit: Tensor, k: int | None = None) -> None:
        """Raise `UserError` where the edit's latents before step k, or at the end, are not finite."""
        at = "" if k is None else f" at step {k} of {self.schedule.steps}"
        check_finite(edit, f"the edit's latents{at}", self.backbone.dtype)

    def _replacement(self, branches: Sequence[Branch]) -> tuple[Sequence[int] | None, Replacement | None]:
        """Return which branches have an unconditional row, None for those that guidance needs, and what the rows take
        of each other's maps; with `find` it gathers the attention to the words that change."""
        if len(branches) == 1:
            return None, None
        config = self.config
        scales, in_both = [branch.guidance for branch in branches], config.amr and config.amr_unconditional
        unconditional = unconditional_branches(self.backbone.classifier_free, scales, in_both)
        amr = controls.attention_map_replacement
        replacement = amr(self.weights, self.text.shared, unconditional, in_both) if config.amr else None
        if self.find:
            words = [branch.prompt.with_keys_first.changed for branch in branches]
            replacement = with_words(replacement, [*((),) * len(unconditional), *words])
        return unconditional, replacement


def edit_whole(
    subtask: Subtask,
    current: Tensor,
    draws: Iterator[Tensor],
    local: LatentBlend,
    snapshot: LoopSnapshot = LoopSnapshot(),
    report: ReportStep = lambda step, steps: None,
    watch: Watch = lambda rows, x0: None,
) -> Tensor:
    """Edit `current` [1, F, C, h, w] into a video of the edit's prompt, controlled by the sources, where `local` lets
    it change, which is narrowed if it says so."""
    schedule, config, start = subtask.schedule, subtask.config, subtask.start
    backbone, branches = subtask.backbone, len(subtask.sources) + 1
    state, draws, begun = _begin_loop(backbone, current, CountedDraws(draws), schedule, start, snapshot, branches)
    caching = StepCaching(schedule, config)
    local.begin()

    def checked_state() -> LoopState:
        subtask.check(state.edit, state.k)
        loop_state, mode = caching.resumable(state, draws.count), backbone.memory_mode
        return replace(loop_state, facts=loop_state.facts | {"memory": asdict(mode), "begun": begun})

    for k in snapshot.steps(state.k, schedule.steps, checked_state):
        cache = caching.begin(state, draws.count)
        controlled = subtask.is_controlled(k)
        if not controlled:
            local.narrow(state.changes)
        branches = subtask.branches(state.edit, state.eps, k)
        x0s, words = subtask.denoise(branches, k, cache)
        state.edit, state.eps = subtask.advance(branches, x0s, state.x0s, k, state.eps, draws)
        if controlled and local.find:
            state.changes = ChangeMap.of(x0s[0], x0s[-1], words).after(state.changes)
        state.edit = local.blend(state.edit, partial(schedule.add_noise, local.original, state.eps, k + 1))
        state.x0s, state.k = list(x0s), k + 1
        watch(slice(None), x0s[-1])
        report(k - start + 1, schedule.steps - start)
    local.narrow(state.changes)  # where the controls act to the end, or the loop was at its end before
    subtask.check(state.edit)
    return state.edit


def recall_mode(backbone: Backbone, loop_state: LoopState) -> Mapping[str, Any]:
    """Give a backbone the memory mode of a run that is resumed, and return that in which its subtask was begun."""
    begun = loop_state.facts.get("begun", asdict(backbone.memory_mode))
    if mode := MemoryMode.from_record(loop_state.facts.get("memory")):
        backbone.memory_mode = mode
    return begun


def _begin_loop(
    backbone: Backbone, current: Tensor, draws: CountedDraws, schedule: Schedule, start: int, snapshot: LoopSnapshot,
    branches: int,
) -> tuple[EditState, CountedDraws, Mapping[str, Any]]:  # fmt: skip
    """Return the state that a subtask's loop goes on from, its noise from there on, and the memory mode in which the
    subtask was begun, which becomes the backbone's again where a run is resumed."""
    if loop_state := snapshot.load():
        begun = recall_mode(backbone, loop_state)
        state, drawn = EditState.from_snapshot(loop_state, current)
        return state, draws.after(drawn), begun
    eps = next(draws)
    state = EditState(start, schedule.add_noise(current, eps, start), eps, [None] * branches)
    return state, draws, asdict(backbone.memory_mode)


def choose_solvers(config: ResolvedConfig, default: str) -> tuple[Solver, Solver]:
    """Return the solver inside the control window and the one below it; `default` is the model's own."""
    solver = SOLVERS[default if config.solver == "auto" else config.solver]
    return solver, solver if config.ending == "same" else SOLVERS[solver.deterministic]
