"""The worker of a batch, in whatever process: it loads a model once and makes edits with it, one after the other."""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from v2edit.backbones.hub import Checkpoint
from v2edit.backbones.loading import LoadedModel
from v2edit.batch.state import run_folder_state
from v2edit.batch.tasks import BatchTask
from v2edit.errors import UserError
from v2edit.host import memory_advice, release_memory
from v2edit.jobs.options import ModelOptions, PromptOptions, RunOptions
from v2edit.jobs.resume import resume
from v2edit.jobs.scene import SceneEdit
from v2edit.jobs.video import VideoEdit
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.scenes.config import FitConfig

MAX_REASON_LENGTH = 500  # characters
MAX_NOTES = 20


@dataclass(frozen=True)
class WorkerSetup:
    """The options that all workers of a batch share."""

    checkpoint: Checkpoint
    model_options: ModelOptions
    lvlm: LVLMConfig
    fit: FitConfig
    command: Sequence[str] | None

    def facts(self, task: BatchTask) -> dict[str, Any]:
        """Return all that decides a task's result, as plain data."""
        own: dict[str, Any] = {"model": self.checkpoint.name, "commit": self.checkpoint.commit}
        own |= {"revision": self.model_options.revision, "dtype": self.model_options.dtype}
        more = asdict(self.fit) if task.kind == "scene" else {}
        options = self.model_options
        more |= {"resolution": options.resolution} if options.resolution is not None else {}
        more |= {"weight_files": [file.absolute for file in options.weight_files], "quantize": options.quantize}
        more |= {"flow_shift": options.flow_shift, "attention": options.attention}
        return own | {"lvlm": self.lvlm.model} | more | task.facts

    def job(self, task: BatchTask, out: Path | None = None) -> VideoEdit | SceneEdit:
        """Return the job that does a task: the same that `v2edit edit` and `v2edit scene` run."""
        prompts = PromptOptions(task.source_prompt, task.target_prompt)
        # A target prompt that is given is used; where there is none, a language model writes it.
        lvlm = self.lvlm if task.target_prompt is None else LVLMConfig()
        options = {"prompt_options": prompts, "lvlm": lvlm, "model_options": self.model_options, "config": task.config}
        if task.kind == "scene":
            options |= {"fit": self.fit, "region": task.region}
            return SceneEdit(task.path, task.instruction, **options, run_options=RunOptions(out))
        options |= {"clip_options": task.clip, "format_options": task.output, "mask_options": task.masks}
        options |= {"shot_options": task.shots}
        return VideoEdit(task.path, task.instruction, **options, run_options=RunOptions(out))


@dataclass(frozen=True)
class Assignment:
    """A task and the run folder to make."""

    task: BatchTask
    out: Path


@dataclass(frozen=True)
class AttemptOutcome:
    """The outcome of an attempt: a `reason` if it failed, and a `trace` where that was no mistake of the user's."""

    reason: str | None
    notes: list[str]
    seconds: float | None  # its duration, where that is known
    trace: str | None = None
    suspect: bool = False  # the process may be unusable, as after an error of a GPU


class EditWorker:
    """A worker of a `WorkerPool` that makes edits."""

    def __init__(self, setup: WorkerSetup, device: str) -> None:
        self.setup, self.device = setup, device
        self.loaded: LoadedModel | None = None

    def load(self) -> tuple[str | None, str]:
        """Load the model; return where the worker is, or None and the reason why it cannot start."""
        # Threads of the scenes' rasteriser: as many as torch was given.
        if threads := os.environ.get("OMP_NUM_THREADS"):
            os.environ.setdefault("NUMBA_NUM_THREADS", threads)
        setup = self.setup
        try:
            backbone = replace(setup.model_options, device=self.device).load(setup.checkpoint)
            self.loaded = LoadedModel(setup.checkpoint, backbone)
        except Exception as error:
            return None, describe_error(error)
        return f"{socket.gethostname()}, {backbone.device}, process {os.getpid()}", ""

    def run(self, job: Assignment) -> AttemptOutcome:
        """Make one attempt at a task; its error is returned, not raised."""
        return make_attempt(partial(self._edit, job))

    def _edit(self, job: Assignment) -> None:
        task, setup = job.task, self.setup
        state = run_folder_state(job.out)
        if state == "done":  # by an earlier attempt, whose worker ended before it could report that
            return
        if state == "unfinished":  # by one that was ended in the middle
            resume(job.out, loaded=self.loaded, command=setup.command)
            return
        run = setup.job(task, job.out).run(loaded=self.loaded, command=setup.command)
        if run.folder != job.out:
            raise UserError(f"something else is at {job.out} by now; the run is in {run.folder}")


def make_attempt(edit: Callable[[], None]) -> AttemptOutcome:
    """Make one attempt at an edit; its error is returned, not raised."""
    begin = time.perf_counter()
    reason, trace, suspect = None, None, False
    with captured_log() as notes:
        try:
            edit()
        except Exception as error:
            reason = describe_error(error)
            if not isinstance(error, (UserError, OSError)) and memory_advice(error) is None:
                trace, suspect = "".join(traceback.format_exception(error)), True
    if reason is not None:
        release_memory()
    return AttemptOutcome(reason, notes, round(time.perf_counter() - begin, 3), trace, suspect)


def describe_error(error: BaseException) -> str:
    """Return an error's text as one line of a bounded length."""
    advice = memory_advice(error)
    text = advice or " ".join(str(error).split())
    if advice is None and not isinstance(error, (UserError, OSError)):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= MAX_REASON_LENGTH else text[: MAX_REASON_LENGTH - 1] + "…"


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collect the package's log messages in a list, instead of printing them on the terminal."""
    notes: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if len(notes) < MAX_NOTES:
                notes.append(record.getMessage()[:MAX_REASON_LENGTH])

    logger, handler = logging.getLogger("v2edit"), Collector(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)
