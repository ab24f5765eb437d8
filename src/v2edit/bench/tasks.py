"""The tasks: edits of the built-in world, each named by its kind and its seed; how one is tried, and how measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from v2edit.bench.methods import Autoencoded, Settings
from v2edit.errors import UserError
from v2edit.primitives.edits import KINDS, Edit, EditTruth, render_truth, sample_edit
from v2edit.prompts import PromptPair

if TYPE_CHECKING:
    from v2edit.backbones import Backbone
    from v2edit.metrics.attributes import Read
    from v2edit.metrics.clip_score import Clip

# Training takes seeds below a billion, and what judges a model in training a few from there on. What is chosen on
# tuning seeds is reported on others. Each kind has a thousand of its own, so that no two kinds share their sources.
FIRST_SEED = {"tuning": 1_900_000_000, "reporting": 2_000_000_000}
SEEDS_A_KIND = 1000
COUNT, QUICK_COUNT = 20, 3


@dataclass(frozen=True)
class Task:
    """One edit to try; `v2edit sample --seed SEED --kind KIND` writes its clips."""

    kind: str
    seed: int
    # The code that results depend on. What only reads or shows them may change.
    code: ClassVar[tuple[str, ...]] = (
        "attention", "backbones", "editing", "prompts", "sampling.py", "bench/baselines.py", "bench/variants.py",
        "primitives/render.py",
    )  # fmt: skip
    prepared: ClassVar[bool] = False
    """Whether all methods start from the result of doing nothing."""

    @property
    def name(self) -> str:
        return f"{self.kind.replace(' ', '-')}-{self.seed}"

    @cached_property
    def edit(self) -> Edit:
        return sample_edit(Random(self.seed), self.kind)

    @property
    def prompts(self) -> PromptPair:
        return PromptPair(self.edit.source_prompt, self.edit.target_prompt)

    @property
    def identity(self) -> str:
        """All that the task is, as text: two tasks of one name differ when the world has changed between them."""
        return json.dumps(asdict(self.edit))

    @property
    def clips(self) -> EditTruth:
        """The true source and target, rendered (and kept while the task is worked on)."""
        return _clips(self)

    def trial(self, settings: Settings, backbone: Backbone, given: Path | None) -> Callable[[], dict[str, np.ndarray]]:
        """A method, made ready to be timed; the call gives `frames`, the edited clip."""
        method, clips = settings.on(backbone), self.clips
        frames = clips.target.frames if isinstance(settings, Autoencoded) else clips.source.frames

        def run() -> dict[str, np.ndarray]:
            edited = method(frames, self.prompts, self.seed)
            assert edited.shape == frames.shape and edited.dtype == np.uint8
            return {"frames": edited}

        return run

    def figures(
        self, result: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray] | None, read: Read, clip: Clip | None
    ) -> dict[str, float]:
        """What a result is measured to be; `given`: the result that it started from."""
        from v2edit.metrics.attributes import measure

        frames, source = result["frames"], self.clips.source.frames
        return asdict(measure(self.edit, self.clips, frames, read)) | similarities(clip, self.prompts, source, frames)


@lru_cache(maxsize=2)
def _clips(task: Task) -> EditTruth:
    return render_truth(task.edit)


def similarities(clip: Clip | None, pair: PromptPair, source: np.ndarray, frames: np.ndarray) -> dict[str, float]:
    """CTIDS and CDC by a CLIP, where there is one."""
    if clip is None:
        return {}
    from v2edit.metrics.clip_score import cdc, ctids

    return {"ctids": ctids(clip, source, frames, pair.source, pair.target), "cdc": cdc(clip, source, frames)}


def primitives(seeds: str, count: int, kinds: Sequence[str] = ()) -> list[Task]:
    """The suite: `count` tasks of each kind (of all, or of those named), from the reporting or the tuning seeds.

    Raises `UserError` for an unknown kind, or for more tasks than there are seeds.
    """
    return [Task(kind, seed) for kind, seed in chosen(seeds, count, kinds)]


def chosen(
    seeds: str, count: int, kinds: Sequence[str] = (), all_kinds: Sequence[str] = KINDS
) -> list[tuple[str, int]]:
    """Kinds and seeds of tasks: `count` of each kind that is named, or of `all_kinds`. A kind's seeds are its own,
    whatever the suite."""
    kinds = [kind.replace("-", " ") for kind in kinds]
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"there is no kind of edit {kind!r}; known are {', '.join(KINDS)}")
    if not 1 <= count <= SEEDS_A_KIND:
        raise UserError(f"--count is {count}, expected 1 to {SEEDS_A_KIND} tasks of each kind")
    wanted = [kind for kind in KINDS if kind in (kinds or all_kinds)]
    first = {kind: FIRST_SEED[seeds] + SEEDS_A_KIND * KINDS.index(kind) for kind in wanted}
    return [(kind, first[kind] + index) for kind in wanted for index in range(count)]
