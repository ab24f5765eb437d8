"""The worker of the edits: it keeps a model in memory between jobs that load the same, and reports as it works."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2edit.batch.state import run_folder_state
from v2edit.batch.worker import AttemptOutcome, describe_error, make_attempt
from v2edit.errors import UserError
from v2edit.host import release_memory
from v2edit.jobs.options import ModelOptions
from v2edit.jobs.progress import Update, describe_edit_step, describe_scene_step
from v2edit.runs import Pace, read_run_state
from v2edit.runs.lock import is_state_locked
from v2edit.runs.manifest import read_request
from v2edit.runs.naming import STATE_DIR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from v2edit.backbones.loading import LoadedModel
    from v2edit.jobs.scene import SceneEdit
    from v2edit.jobs.video import VideoEdit

REPORT_EVERY = 0.25  # seconds
LOCK_PATIENCE = 60.0  # seconds in which an earlier worker, whose server was killed, ends


@dataclass(frozen=True)
class EditTask:
    """A job for a worker: the edit, None for a run that is only gone on with, with its run folder, and the command line
    that makes the same."""

    job: VideoEdit | SceneEdit | None
    out: Path
    command: tuple[str, ...]


@dataclass(frozen=True)
class Note:
    """A line of a job's log: of its plan, or a note that the user should see."""

    text: str
    is_plan: bool


class StudioWorker:
    """A worker of the pool of edits, on one device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._loaded: LoadedModel | None = None
        self._options: ModelOptions | None = None  # that it was loaded by,
        self._recorded: ModelOptions | None = None  # as run.json has them
        self._report: Callable[[Any], None] = lambda update: None

    def connect(self, report: Callable[[Any], None]) -> None:
        self._report = report

    def load(self) -> tuple[str | None, str]:
        """Find the device; return where the worker is, or None and the reason why it cannot start. The model is loaded
        with the first job."""
        from v2edit.host import find_device, use_expandable_segments

        if threads := os.environ.get("OMP_NUM_THREADS"):
            os.environ.setdefault("NUMBA_NUM_THREADS", threads)
        use_expandable_segments()
        try:
            return f"{find_device(self.device)}, process {os.getpid()}", ""
        except Exception as error:
            return None, describe_error(error)

    def run(self, job: EditTask) -> AttemptOutcome:
        """Make one attempt at a job; its error is returned, not raised."""
        with _forwarded_log(self._report):
            return make_attempt(partial(self._edit, job))

    def _edit(self, task: EditTask) -> None:
        from v2edit.jobs.resume import resume

        deadline = time.monotonic() + LOCK_PATIENCE
        while is_state_locked(task.out / STATE_DIR) and time.monotonic() < deadline:
            time.sleep(0.1)
        state = run_folder_state(task.out)
        if state == "done":  # by an earlier attempt, whose worker ended before it could report that
            return
        if state == "unfinished":
            progress = _Throttle(self._report, read_run_state(task.out).kind == "scene")
            record = read_request(task.out / STATE_DIR).facts
            loaded = self._model(ModelOptions.from_record(record), record)
            resume(task.out, progress, loaded, task.command)
            return
        if task.job is None:
            raise UserError("the run is gone, or cannot be read")
        progress = _Throttle(self._report, task.job.kind == "scene")
        run = task.job.run(progress, self._model(task.job.model_options, None), task.command)
        if run.folder != task.out:
            raise UserError(f"something else is at {task.out} by now; the run is in {run.folder}")

    def _model(self, options: ModelOptions, record: dict[str, Any] | None) -> LoadedModel:
        """Return the model that options ask for, or that the `record` of a run describes: the one in memory where it is
        the same."""
        from v2edit.backbones.loading import LoadedModel

        wanted = options if record is not None else replace(options, device=self.device)
        if self._loaded is not None and wanted == (self._options if record is None else self._recorded):
            return self._loaded
        self._loaded = self._options = self._recorded = None
        release_memory()
        checkpoint = wanted.find()
        if record is not None:
            wanted.check_weight_files(record)
        backbone = wanted.load(checkpoint)
        self._loaded = LoadedModel(checkpoint, backbone)
        self._options = wanted if record is None else None
        self._recorded = ModelOptions.from_record(wanted.record(checkpoint, backbone))
        return self._loaded


class _Throttle:
    """The callback for the steps of a job: reports the first and the last of a phase, and some between."""

    def __init__(self, report: Callable[[Any], None], is_scene: bool) -> None:
        self._report, self._is_scene, self._pace = report, is_scene, Pace()
        self._phase, self._last = "", 0.0
        self._share = 0.0

    def __call__(self, progress: Any) -> None:
        update = (describe_scene_step if self._is_scene else describe_edit_step)(progress)
        left, then = update.time_left(self._pace)
        now = time.monotonic()
        if update.phase == self._phase and now - self._last < REPORT_EVERY and update.done < update.total:
            return
        self._phase, self._last = update.phase, now
        self._report(self._facts(progress, update) | update.facts(left, then))

    def _facts(self, progress: Any, update: Update) -> dict[str, Any]:
        if not self._is_scene:
            self._share = max(self._share, edit_share(progress))
        return {
            "text": update.text,
            "stage": getattr(progress, "stage", None) or progress.phase,
            "done": None if self._is_scene else round(self._share, 4),
            "then": [],
        }


def edit_share(progress: Any) -> float:
    """Return how much of an edit of a video is made, 0 to 1, by its progress: the denoising steps' share."""
    if progress.stage == "writing":
        return (progress.seed_number - 1 + 0.99) / progress.seeds
    if progress.stage != "editing":
        return 0.0
    shots = (progress.seed_number - 1) * progress.shots + progress.shot_number - 1
    subtasks = shots * progress.subtasks + progress.subtask - 1 + progress.step / progress.steps
    return 0.99 * subtasks / (progress.seeds * progress.shots * progress.subtasks)


@contextmanager
def _forwarded_log(report: Callable[[Any], None]) -> Iterator[None]:
    """Report the package's log messages."""

    class Forwarder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            report(Note(record.getMessage()[:2000], record.levelno < logging.WARNING))

    logger, handler = logging.getLogger("v2edit"), Forwarder(logging.INFO)
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
