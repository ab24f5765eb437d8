"""From results to rows of figures, and the little films that go with them: nothing here is kept, so that a better
reader, another CLIP or a new measure needs no edit to be run again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from v2edit import video
from v2edit.bench.run import Job, code_digest
from v2edit.bench.tasks import Task
from v2edit.metrics.attributes import Read
from v2edit.primitives.scene import FPS

if TYPE_CHECKING:
    from v2edit.metrics.clip_score import Clip

CRF = 20  # of the page's films


@dataclass(frozen=True)
class Judges:
    """Who measures beside the truth: what tells the scene that a clip shows (the world's own reader where none is
    given), and a CLIP by name, for CTIDS and CDC."""

    read: Read | None = None
    clip: str | None = None

    def prepare(self) -> None:
        """Loads what will be needed, to hear early of what is missing."""
        _ = self.read or _scene_classifier()
        _ = self.clip and _clip(self.clip)


@dataclass(frozen=True)
class Row:
    """One method on one task: its figures by name (nan where one says nothing of this task)."""

    kind: str
    seed: int
    method: str
    figures: dict[str, float]


@dataclass(frozen=True)
class Scored:
    """A task with all of its rows, and its film: an MP4 file of the true clips and the edits side by side, in the
    order of `columns`, each as wide as the clips are."""

    task: Task
    rows: list[Row]
    columns: list[str]
    film: bytes
    other_code: int  # how many of its results were made by other code than today's


def score(
    jobs: Sequence[Job],
    judges: Judges,
    pool: ProcessPoolExecutor,
    on_progress: Callable[[int, int, str], None],
    sheets: Path | None = None,
) -> list[Scored]:
    """Every task's rows and film, in the tasks' order; contact sheets go to `sheets`."""
    if sheets is not None:
        sheets.mkdir(exist_ok=True)
    by_task: dict[Task, list[Job]] = {}
    for job in jobs:
        by_task.setdefault(job.task, []).append(job)
    scored = []
    for one in pool.map(partial(_score, judges=judges, sheets=sheets), by_task.values()):
        scored.append(one)
        on_progress(len(scored), len(by_task), f"scoring {one.task.name}")
    return scored


def _score(jobs: list[Job], judges: Judges, sheets: Path | None) -> Scored:
    task = jobs[0].task
    edit, clips, code = task.edit, task.clips, code_digest(task.code)
    read, clip = judges.read or _scene_classifier(), judges.clip and _clip(judges.clip)
    rows, other_code = [], 0
    shown = {"source": clips.source.frames, "truth": clips.target.frames}
    for job in jobs:
        result = _loaded(job.path)
        other_code += str(result["code"]) != code
        figures = task.figures(result, job.given and _given(job.given), read, clip or None)
        rows.append(Row(task.kind, task.seed, job.title, figures | {"seconds": float(result["seconds"])}))
        shown[job.title] = result["frames"]
    if sheets is not None:
        labels = {"truth": f"truth: {edit.instruction}"}
        video.contact_sheet({labels.get(k, k): clip for k, clip in shown.items()}, sheets / f"{task.name}.png")
    film = np.concatenate(list(shown.values()), axis=2)
    with tempfile.TemporaryDirectory() as folder:
        path = video.write(film, Path(folder) / "film.mp4", fps=FPS, crf=CRF)
        return Scored(task, rows, list(shown), path.read_bytes(), other_code)


@lru_cache(maxsize=1)
def _scene_classifier() -> Read:
    from v2edit.primitives.classifier import SceneClassifier

    return SceneClassifier.load().classify


@lru_cache(maxsize=1)  # all methods of a task start from the same one
def _given(path: Path) -> Mapping[str, np.ndarray]:
    return _loaded(path)


def _loaded(path: Path) -> Mapping[str, np.ndarray]:
    with np.load(path) as result:
        return dict(result)


@lru_cache(maxsize=1)
def _clip(name: str) -> Clip:
    from v2edit.metrics.clip_score import Clip

    return Clip.load(name)
