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
from v2edit.backbones import Size
from v2edit.bench.methods import UNEDITED
from v2edit.bench.tasks import Arrays, Task
from v2edit.bench.trials import BenchWorker, OnProgress, Trial, load_result, source_of
from v2edit.editing.resize import resize_clip
from v2edit.errors import UserError
from v2edit.files import atomic_write
from v2edit.metrics.attributes import Classify
from v2edit.metrics.registry import Measure, Measures, MetricOptions, find_metrics
from v2edit.primitives.classifier import SceneClassifier
from v2edit.workers import ProcessPool

if TYPE_CHECKING:
    from v2edit.metrics.clip_score import ClipEncoder

CRF = 20  # of the page's films
PAGE_WIDTH, FILM_WIDTH = 320, 4096  # pixels: of one clip, and of a film, which decoders of browsers are limited to


@dataclass(frozen=True)
class MetricModels:
    """What measures: a classifier of scenes (default: the built-in world's), the names of metrics (`registry`), and
    what they load, a CLIP for CTIDS and CDC among them."""

    classify: Classify | None = None
    options: MetricOptions = MetricOptions()
    names: tuple[str, ...] = ()

    def load(self) -> Measures:
        """Return them, loaded once in a process; raises `UserError` for what is not there."""
        encoder = _clip_encoder(self.options.clip) if self.options.clip else None
        measures = _load_metrics(self.options, self.names) if self.names else []
        return Measures(self.classify or SceneClassifier.load().classify, encoder, measures)


@dataclass(frozen=True)
class Row:
    """The figures of one method on one task, by name (nan where one is undefined); `task` is the task's name."""

    kind: str
    task: str
    method: str
    figures: dict[str, float]


@dataclass(frozen=True)
class ScoredTask:
    """A task with its rows and its film: an MP4 file of the true clips and the edits side by side, in the order of
    `titles`, each of `size` (width, height). `path` is the file where it is kept in one."""

    task: Task
    rows: list[Row]
    titles: list[str]
    video: bytes
    other_code: int  # how many of its results were made by other code than today's
    size: tuple[int, int] = (64, 64)
    frames: int = 9
    path: Path | None = None
    fitted: Sequence[tuple[str, str]] = ()  # (title, what was done to another tool's result)


@dataclass(frozen=True)
class Scoring:
    """The job of scoring all trials of one task; contact sheets go to the folder `sheets`, films of long tasks to
    `films`."""

    trials: list[Trial]
    models: MetricModels
    sheets: Path | None
    films: Path | None = None

    def run(self, worker: BenchWorker) -> ScoredTask:
        task = self.trials[0].task
        measures, truth = self.models.load(), task.truth
        rows, other_code, fitted = [], 0, []
        source = source_of(self.trials)
        shown = _shown_size(source, len(self.trials) + 2) if task.is_long else None
        columns = {UNEDITED: _shrink(source, shown)}
        if truth is not None:
            columns["truth"] = _shrink(truth, shown)
        for trial in self.trials:
            try:
                result = trial.load()
            except UserError as error:
                if not trial.is_given:
                    raise
                fitted.append((trial.title, f"left out, {error}"))
                continue
            other_code += str(result["code"]) != trial.code
            if text := str(result.get("fitted", "")):
                fitted.append((trial.title, text))
            figures = task.measure(result, trial.start and _load_start(trial.start), measures)
            rows.append(Row(task.kind, task.name, trial.title, figures | {"seconds": float(result["seconds"])}))
            columns[trial.title] = _shrink(result["frames"], shown)
        if self.sheets is not None:
            labels = {"truth" if truth is not None else UNEDITED: task.instruction}
            sheet = {f"{title}: {labels[title]}" if title in labels else title: one for title, one in columns.items()}
            video.contact_sheet(sheet, self.sheets / f"{task.name}.png")
        frames = np.concatenate(list(columns.values()), axis=2)
        with tempfile.TemporaryDirectory() as folder:
            path = video.write(frames, Path(folder) / "columns.mp4", fps=task.fps, crf=CRF)
            film, path = path.read_bytes(), None
        if task.is_long and self.films is not None:
            atomic_write(path := self.films / f"{task.name}.mp4", film)
            film = b""
        size = frames.shape[2] // len(columns), frames.shape[1]
        return ScoredTask(task, rows, list(columns), film, other_code, size, len(frames), path, fitted)


def _shown_size(frames: np.ndarray, columns: int) -> Size:
    """Return the size at which so many clips fit side by side into one film that browsers play."""
    count, height, width = frames.shape[:3]
    share = min(1.0, PAGE_WIDTH / width, FILM_WIDTH / (columns * width))
    return Size(count, *(max(2, round(side * share / 2) * 2) for side in (height, width)))


def _shrink(frames: np.ndarray, size: Size | None) -> np.ndarray:
    return frames if size is None else resize_clip(frames, size)


def score_trials(
    trials: Sequence[Trial],
    models: MetricModels,
    pool: ProcessPool,
    sheets: Path | None,
    films: Path,
    on_progress: OnProgress,
) -> list[ScoredTask]:
    """Return every task's rows and film, in the tasks' order; contact sheets go to `sheets`, films of long tasks to
    `films`."""
    for folder in (sheets, films if any(trial.task.is_long for trial in trials) else None):
        if folder is not None:
            folder.mkdir(exist_ok=True)
    by_task: dict[Task, list[Trial]] = {}
    for trial in trials:
        by_task.setdefault(trial.task, []).append(trial)
    scored: dict[Task, ScoredTask] = {}
    for _, result in pool.imap_unordered(deque(Scoring(group, models, sheets, films) for group in by_task.values())):
        scored[result.task] = result
        on_progress(len(scored), len(by_task), f"scoring {result.task.name}")
    return [scored[task] for task in by_task]


@lru_cache(maxsize=1)
def _load_metrics(options: MetricOptions, names: tuple[str, ...]) -> list[Measure]:
    encoder = _clip_encoder(options.clip) if options.clip else None
    return [metric.load(options, encoder) for metric in find_metrics(names, encoder is not None)]


@lru_cache(maxsize=1)
def _clip_encoder(name: str) -> ClipEncoder:
    from v2edit.metrics.clip_score import ClipEncoder

    return ClipEncoder.load(name)


@lru_cache(maxsize=1)  # all methods of a task start from the same one
def _load_start(path: Path) -> Arrays:
    return load_result(path)
