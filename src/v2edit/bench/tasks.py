"""The tasks: edits of clips of the built-in world, whose true results are known, by kind and seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from v2edit.bench.methods import Autoencoded, MethodConfig
from v2edit.errors import UserError
from v2edit.metrics.registry import EditedClip, Measures
from v2edit.primitives.edits import KINDS, Edit, EditTruth, render_truth, sample_edit
from v2edit.primitives.scene import FPS
from v2edit.prompts import PromptPair
from v2edit.video.stream import Frames

if TYPE_CHECKING:
    from v2edit.backbones import Backbone
    from v2edit.metrics.attributes import AskedAnswers, Read

# Training takes seeds below a billion, and its validation a few from there on. Settings are chosen on tuning seeds and
# reported on others. Each kind has a thousand seeds of its own, so that no two kinds share their sources.
FIRST_SEED = {"tuning": 1_900_000_000, "reporting": 2_000_000_000}
SEEDS_A_KIND = 1000
# A kind's place among the seeds, by its name: a kind that is added takes the next, wherever it stands in `KINDS`.
SEED_BLOCK = {
    "recolour": 0, "reshape": 1, "resize": 2, "insert": 3, "remove": 4, "floor": 5, "sky": 6, "reshape and recolour": 7,
    "outline": 8, "wear": 9, "air": 10, "behind": 11, "exchange": 12, "multiply": 13, "motion": 14, "material": 15,
    "style": 16, "uncover": 17,
}  # fmt: skip
# An edit takes a core 6 to 9 seconds. 18 kinds by nine methods that differ are 162 edits a task of each kind: ten
# minutes of two cores, and those of ten tasks a little less than two hours.
COUNT, QUICK_COUNT = 10, 1
Arrays = Mapping[str, Any]  # a result's, by name; the `frames` of a long one may be a stream


class Task(Protocol):
    """An edit that methods are compared on: `source` (None where it is the result of `Unedited`) and
    `truth` (None where nobody knows it) are uint8 [T, H, W, 3].

    `code` is what results depend on, in the package; code that only measures or presents results may change. Where
    `has_start`, all other methods start from the result of `Unedited`. Results that are `is_long` are kept as videos.
    `identity` is the task's content as text, by which stored results are known; `measured_with` is what its figures
    depend on besides."""

    code: ClassVar[tuple[str, ...]]
    has_start: ClassVar[bool]
    is_long: ClassVar[bool]

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def instruction(self) -> str: ...
    @property
    def prompts(self) -> PromptPair: ...
    @property
    def identity(self) -> str: ...
    @property
    def measured_with(self) -> str: ...
    @property
    def source(self) -> Frames | None: ...
    @property
    def truth(self) -> Frames | None: ...
    @property
    def fps(self) -> Fraction: ...

    def prepare(self, config: MethodConfig, backbone: Backbone, start: Path | None) -> Callable[[], Arrays]: ...
    def measure(self, result: Arrays, start: Arrays | None, measures: Measures) -> dict[str, float]: ...


@dataclass(frozen=True)
class BenchTask:
    """An edit of a clip with its true result; `v2edit sample --seed SEED --kind KIND` writes both."""

    kind: str
    seed: int
    code: ClassVar[tuple[str, ...]] = (
        "attention", "backbones", "editing", "prompts", "sampling.py", "bench/baselines.py", "bench/methods.py",
        "primitives/render.py", "primitives/scene.py", "primitives/shapes.py",
    )  # fmt: skip
    has_start: ClassVar[bool] = False
    is_long: ClassVar[bool] = False

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
        """The task's whole content as text: tasks of one name differ in it where the built-in world has changed."""
        return json.dumps(asdict(self.edit), default=sorted)  # sets, whose own order changes with the process

    @property
    def measured_with(self) -> str:
        """The task's name: all else is in its identity."""
        return self.name

    @property
    def clips(self) -> EditTruth:
        """The true source and target clip, rendered and cached."""
        return _clips(self)

    @property
    def instruction(self) -> str:
        return self.edit.instruction

    @property
    def source(self) -> np.ndarray:
        return self.clips.source.frames

    @property
    def truth(self) -> np.ndarray:
        return self.clips.target.frames

    @property
    def fps(self) -> Fraction:
        return Fraction(FPS)

    def prepare(self, config: MethodConfig, backbone: Backbone, start: Path | None) -> Callable[[], Arrays]:
        """Return the call of a method on this task, ready to be timed, which returns `frames`, the edited clip; `start`
        is the result that the method starts from, where the task has one (`has_start`)."""
        method, clips = config.build(backbone), self.clips
        frames = clips.target.frames if isinstance(config, Autoencoded) else clips.source.frames

        def run() -> Arrays:
            edited = method(frames, self.prompts, self.seed)
            assert edited.shape == frames.shape and edited.dtype == np.uint8
            return {"frames": edited}

        return run

    def measure(self, result: Arrays, start: Arrays | None, measures: Measures) -> dict[str, float]:
        """Return a result's figures by name; `start` is the result that it started from."""
        from v2edit.metrics.attributes import measure

        assert measures.read is not None
        frames, clip = result["frames"], measures.clip
        figures = asdict(measure(self.edit, self.clips, frames, measures.read, asked_of(self, measures.read)))
        figures |= clip.score_edit(self.prompts, self.source, frames) if clip else {}
        edited = EditedClip(self.source, frames, self.prompts, self.instruction, self.clips.changed, self.truth)
        return measures.of(edited) | figures


@lru_cache(maxsize=2)
def _clips(task: BenchTask) -> EditTruth:
    return render_truth(task.edit)


@lru_cache(maxsize=2)
def asked_of(task: BenchTask, read: Read) -> AskedAnswers:
    """Return what a task asks for, of what is read rightly off its true clips: the same for all methods."""
    from v2edit.metrics.attributes import readable_answers

    return readable_answers(task.edit, task.clips, read)


def primitives_tasks(seeds: str, count: int, kinds: Sequence[str] = ()) -> list[BenchTask]:
    """Return the suite of clips: `count` tasks of each kind (default: of all) from the "reporting" or "tuning" seeds.
    Raises `UserError` for an unknown kind, or for more tasks than there are seeds."""
    return [BenchTask(kind, seed) for kind, seed in select_seeds(seeds, count, kinds)]


def select_seeds(
    seeds: str, count: int, kinds: Sequence[str] = (), known: Sequence[str] = (), usual: Sequence[str] = ()
) -> list[tuple[str, int]]:
    """Return kinds and seeds of tasks: `count` of each of these kinds (default: of the `usual` ones, else of all that a
    suite has `known`). A kind has the same seeds in each suite."""
    kinds, known = [kind.replace("-", " ") for kind in kinds], known or KINDS
    for kind in kinds:
        if kind not in known:
            raise UserError(f"there is no kind of edit {kind!r} here; known are {', '.join(known)}")
    if not 1 <= count <= SEEDS_A_KIND:
        raise UserError(f"--count is {count}, expected 1 to {SEEDS_A_KIND} tasks of each kind")
    wanted = [kind for kind in KINDS if kind in (kinds or usual or known)]
    first = {kind: FIRST_SEED[seeds] + SEEDS_A_KIND * SEED_BLOCK[kind] for kind in wanted}
    return [(kind, first[kind] + index) for kind in wanted for index in range(count)]
