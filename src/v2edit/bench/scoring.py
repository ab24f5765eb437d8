"""From results to figures and side-by-side videos. None of this is stored: a better classifier, another CLIP or a new
measure needs no edit to be repeated."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from v2edit import video
from v2edit.bench.methods import UNEDITED
from v2edit.bench.tasks import Arrays, BenchTask
from v2edit.bench.trials import BenchWorker, OnProgress, Trial
from v2edit.metrics.attributes import Classify
from v2edit.primitives.classifier import SceneClassifier
from v2edit.primitives.scene import FPS
from v2edit.workers import ProcessPool

if TYPE_CHECKING:
    from v2edit.metrics.clip_score import ClipEncoder

CRF = 20  # of the page's videos


@dataclass(frozen=True)
class MetricModels:
    """The models that measure: a classifier of scenes (default: the built-in world's) and the name of a CLIP, for CTIDS
    and CDC."""

    classify: Classify | None = None
    clip: str | None = None

    def load(self) -> tuple[Classify, ClipEncoder | None]:
        """Return both, loaded once in a process; raises `UserError` for a CLIP that is not there."""
        return self.classify or SceneClassifier.load().classify, _clip_encoder(self.clip) if self.clip else None


@dataclass(frozen=True)
class Row:
    """The figures of one method on one task, by name (nan where one is undefined)."""

    kind: str
    seed: int
    method: str
    figures: dict[str, float]


@dataclass(frozen=True)
class ScoredTask:
    """A task with its rows and its video: an MP4 file of the true clips and the edits side by side, in the order of
    `titles`, each as wide as the clips are."""

    task: BenchTask
    rows: list[Row]
    titles: list[str]
    video: bytes
    other_code: int  # how many of its results were made by other code than today's


@dataclass(frozen=True)
class Scoring:
    """The job of scoring all trials of one task; contact sheets go to the folder `sheets`."""

    trials: list[Trial]
    models: MetricModels
    sheets: Path | None

    def run(self, worker: BenchWorker) -> ScoredTask:
        task = self.trials[0].task
        classify, clip = self.models.load()
        rows, other_code = [], 0
        columns = {UNEDITED: task.clips.source.frames, "truth": task.clips.target.frames}
        for trial in self.trials:
            result = _load_result(trial.path)
            other_code += str(result["code"]) != trial.code
            figures = task.measure(result, trial.start and _load_start(trial.start), classify, clip)
            rows.append(Row(task.kind, task.seed, trial.title, figures | {"seconds": float(result["seconds"])}))
            columns[trial.title] = result["frames"]
        if self.sheets is not None:
            labels = {"truth": f"truth: {task.edit.instruction}"}
            sheet = {labels.get(title, title): frames for title, frames in columns.items()}
            video.contact_sheet(sheet, self.sheets / f"{task.name}.png")
        frames = np.concatenate(list(columns.values()), axis=2)
        with tempfile.TemporaryDirectory() as folder:
            path = video.write(frames, Path(folder) / "columns.mp4", fps=FPS, crf=CRF)
            return ScoredTask(task, rows, list(columns), path.read_bytes(), other_code)


def score_trials(
    trials: Sequence[Trial], models: MetricModels, pool: ProcessPool, sheets: Path | None, on_progress: OnProgress
) -> list[ScoredTask]:
    """Return every task's rows and video, in the tasks' order; contact sheets go to `sheets`."""
    if sheets is not None:
        sheets.mkdir(exist_ok=True)
    by_task: dict[BenchTask, list[Trial]] = {}
    for trial in trials:
        by_task.setdefault(trial.task, []).append(trial)
    scored: dict[BenchTask, ScoredTask] = {}
    for _, result in pool.imap_unordered(deque(Scoring(group, models, sheets) for group in by_task.values())):
        scored[result.task] = result
        on_progress(len(scored), len(by_task), f"scoring {result.task.name}")
    return [scored[task] for task in by_task]


@lru_cache(maxsize=1)
def _clip_encoder(name: str) -> ClipEncoder:
    from v2edit.metrics.clip_score import ClipEncoder

    return ClipEncoder.load(name)


def _load_result(path: Path) -> Arrays:
    with np.load(path) as result:
        return dict(result)


_load_start = lru_cache(maxsize=1)(_load_result)  # all methods of a task start from the same one
