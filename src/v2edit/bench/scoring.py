"""From results to figures and side-by-side videos: a better classifier, another CLIP or a new measure needs no edit to
be repeated, and what nothing has changed for is taken from the cache of scores."""

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
from v2edit.bench.score_cache import Film, ScoreCache, Scores, checksum_of
from v2edit.bench.tasks import Arrays, Task
from v2edit.bench.trials import BenchWorker, OnProgress, Trial, load_result, source_of
from v2edit.editing.resize import resize_clip
from v2edit.errors import UserError
from v2edit.metrics.attributes import Read
from v2edit.metrics.registry import Measure, Measures, MetricOptions, find_metrics
from v2edit.primitives.classifier import SceneClassifier
from v2edit.video.stream import Frames, map_frames
from v2edit.workers import Executor

if TYPE_CHECKING:
    from v2edit.metrics.clip_score import ClipEncoder

CRF = 20  # of the page's films
PAGE_WIDTH, FILM_WIDTH = 320, 4096  # pixels: of one clip, and of a film, which decoders of browsers are limited to


@dataclass(frozen=True)
class MetricModels:
    """What measures: what reads the answers off a clip (default: the built-in world's classifier), the names of metrics
    (`registry`), and what they load, a CLIP for CTIDS and CDC among them."""

    read: Read | None = None
    options: MetricOptions = MetricOptions()
    names: tuple[str, ...] = ()

    def load(self) -> Measures:
        """Return them, loaded once in a process; raises `UserError` for what is not there."""
        encoder = _clip_encoder(self.options.clip) if self.options.clip else None
        measures = _load_metrics(self.options, self.names) if self.names else []
        return Measures(self.read or SceneClassifier.load().read, encoder, measures)


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
    size: tuple[int, int] = (96, 64)
    frames: int = 9
    path: Path | None = None
    fitted: Sequence[tuple[str, str]] = ()  # (title, what was done to another tool's result)


@dataclass(frozen=True)
class Scoring:
    """The job of scoring all trials of one task; contact sheets go to the folder `sheets`, films of long tasks to
    `films`. What `cache` keeps is not measured again."""

    trials: list[Trial]
    models: MetricModels
    sheets: Path | None
    films: Path
    cache: ScoreCache | None = None

    def load(self) -> ScoredTask | None:
        """Return what is kept of the task, or None where something is missing, or a contact sheet is wanted."""
        if self.cache is None or self.sheets is not None:
            return None
        kept = [self.cache.read_scores(self.cache.scores_path(trial)) for trial in self.trials]
        film = self.cache.read_film(self.cache.film_path(self.trials), self._film_file())
        known = [one for one in kept if one is not None]
        return self._scored(known, film) if film is not None and len(known) == len(kept) else None

    def run(self, worker: BenchWorker) -> ScoredTask:
        cache, kept = self.cache, []
        for trial in self.trials:
            path = cache and cache.scores_path(trial)
            scores = cache.read_scores(path) if cache and path else None
            if scores is None:
                scores = self._measure(trial)
                if cache and path:
                    cache.write(path, scores)
            kept.append(scores)
        with tempfile.TemporaryDirectory() as folder:
            file = self._film_file() if cache or self.trials[0].task.is_long else Path(folder) / "columns.mp4"
            film = self._write_film([one.is_left_out for one in kept], file)
            if cache:
                cache.write(cache.film_path(self.trials), film)
            return self._scored(kept, film, file)

    def _measure(self, trial: Trial) -> Scores:
        try:
            result = trial.load()
        except UserError as error:
            if not trial.is_given:
                raise
            return Scores({}, f"left out, {error}", is_left_out=True)
        start = trial.start and _load_start(trial.start)
        figures = trial.task.measure(result, start, self.models.load()) | {"seconds": float(result["seconds"])}
        return Scores(figures, str(result.get("fitted", "")), str(result["code"]))

    def _write_film(self, left_out: Sequence[bool], file: Path) -> Film:
        task, source = self.trials[0].task, source_of(self.trials)
        shown = _shown_size(source, len(self.trials) + 2) if task.is_long else None
        columns = {UNEDITED: _shrink(source, shown)}
        if task.truth is not None:
            columns["truth"] = _shrink(task.truth, shown)
        for trial, is_left_out in zip(self.trials, left_out, strict=True):
            if not is_left_out:
                columns[trial.title] = _shrink(trial.load()["frames"], shown)
        if self.sheets is not None:
            labels = {"truth" if task.truth is not None else UNEDITED: task.instruction}
            sheet = {f"{title}: {labels[title]}" if title in labels else title: one for title, one in columns.items()}
            video.contact_sheet(sheet, self.sheets / f"{task.name}.png")
        height, width = columns[UNEDITED].shape[1:3]
        shape = (height, width * len(columns), 3)
        frames = map_frames(lambda _, *parts: np.concatenate(parts, axis=1), list(columns.values()), shape)
        file.parent.mkdir(exist_ok=True)
        video.write(frames, file, fps=task.fps, crf=CRF)
        return Film(list(columns), (width, height), len(frames), checksum_of(file))

    def _film_file(self) -> Path:
        """Return where the film is kept: beside the page that shows it, or in the cache if it will be in the page."""
        task = self.trials[0].task
        if task.is_long or self.cache is None:
            return self.films / f"{task.name}.mp4"
        return self.cache.film_path(self.trials).with_suffix(".mp4")

    def _scored(self, kept: Sequence[Scores], film: Film, file: Path | None = None) -> ScoredTask:
        task, file, found = self.trials[0].task, file or self._film_file(), list(zip(self.trials, kept, strict=True))
        rows = [Row(task.kind, task.name, one.title, dict(s.figures)) for one, s in found if not s.is_left_out]
        other_code = sum(scores.code != trial.code for trial, scores in found if not scores.is_left_out)
        fitted = [(trial.title, scores.fitted) for trial, scores in found if scores.fitted]
        content = b"" if task.is_long else file.read_bytes()
        path = file if task.is_long else None
        return ScoredTask(task, rows, film.titles, content, other_code, film.size, film.frames, path, fitted)


def _shown_size(frames: Frames, columns: int) -> Size:
    """Return the size at which so many clips fit side by side into one film that browsers play."""
    count, height, width = frames.shape[:3]
    share = min(1.0, PAGE_WIDTH / width, FILM_WIDTH / (columns * width))
    return Size(count, *(max(2, round(side * share / 2) * 2) for side in (height, width)))


def _shrink(frames: Frames, size: Size | None) -> Frames:
    return frames if size is None else resize_clip(frames, size)


def score_trials(
    trials: Sequence[Trial],
    models: MetricModels,
    pool: Executor,
    sheets: Path | None,
    films: Path,
    cache: ScoreCache | None,
    on_progress: OnProgress,
) -> list[ScoredTask]:
    """Return every task's rows and film, in the tasks' order; contact sheets go to `sheets`, films of long tasks to
    `films`. What is in the cache is taken from there."""
    if sheets is not None:
        sheets.mkdir(exist_ok=True)
    by_task: dict[Task, list[Trial]] = {}
    for trial in trials:
        by_task.setdefault(trial.task, []).append(trial)
    jobs = [Scoring(group, models, sheets, films, cache) for group in by_task.values()]
    scored = {result.task: result for job in jobs if (result := job.load()) is not None}
    missing = deque(job for job in jobs if job.trials[0].task not in scored)
    for _, result in pool.imap_unordered(missing):
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
