"""What a worker is, wherever it runs: a model in memory, and edits with it, one after the other."""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from v2edit.backbones.families import DType, Offload
from v2edit.backbones.hub import Checkpoint
from v2edit.backbones.loading import LoadedModel
from v2edit.batch.state import state_of
from v2edit.batch.tasks import Task
from v2edit.errors import UserError
from v2edit.host import memory_advice, release_memory
from v2edit.jobs.video import edit_video
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.scenes.config import FitConfig

LONGEST_REASON = 500  # characters
NOTES_KEPT = 20


@dataclass(frozen=True)
class Setup:
    """What all workers of a batch have in common."""

    checkpoint: Checkpoint
    dtype: DType
    offload: Offload
    vae_tiling: bool
    lvlm: LVLMConfig
    fit: FitConfig
    command: Sequence[str] | None

    def facts(self, task: Task) -> dict[str, Any]:
        """What makes a task's result, as plain data."""
        own = {"model": self.checkpoint.name, "commit": self.checkpoint.commit, "dtype": self.dtype}
        more = asdict(self.fit) if task.kind == "scene" else {}
        return own | {"lvlm": self.lvlm.model} | more | task.facts


@dataclass(frozen=True)
class Job:
    """A task and the run folder that it is to make."""

    task: Task
    out: Path


@dataclass(frozen=True)
class Outcome:
    """How an attempt went: a `reason` where it failed, and a `trace` where that was no mistake of the user's.

    seconds: how long it took; None where nobody knows.
    suspect: the process may be in no state to go on, as after an error of a GPU.
    """

    reason: str | None
    notes: list[str]
    seconds: float | None
    trace: str | None = None
    suspect: bool = False


class Worker:
    """One worker, in its own process."""

    def __init__(self, setup: Setup, device: str) -> None:
        self.setup, self.device = setup, device
        self.loaded: LoadedModel | None = None

    def load(self) -> tuple[str | None, str]:
        """Loads the model: where the worker is, or no place and the reason why it cannot begin."""
        # Threads of the scenes' rasteriser: as many as torch was given.
        if threads := os.environ.get("OMP_NUM_THREADS"):
            os.environ.setdefault("NUMBA_NUM_THREADS", threads)
        setup = self.setup
        try:
            from v2edit import backbones

            backbone = backbones.load(setup.checkpoint, self.device, setup.dtype, setup.offload, setup.vae_tiling)
            self.loaded = LoadedModel(setup.checkpoint, backbone)
        except Exception as error:
            return None, _reason(error)
        return f"{socket.gethostname()}, {backbone.device}, process {os.getpid()}", ""

    def run(self, job: Job) -> Outcome:
        """One attempt at a task; whatever comes of it is told, not raised."""
        begin = time.perf_counter()
        reason, trace, suspect = None, None, False
        with _noted() as notes:
            try:
                self._edit(job)
            except Exception as error:
                reason = _reason(error)
                if not isinstance(error, (UserError, OSError)) and memory_advice(error) is None:
                    trace, suspect = "".join(traceback.format_exception(error)), True
        if reason is not None:
            release_memory()
        return Outcome(reason, notes, round(time.perf_counter() - begin, 3), trace, suspect)

    def _edit(self, job: Job) -> None:
        task, setup = job.task, self.setup
        if (
            there := state_of(job.out)
        ) == "done":  # An earlier attempt came to its end, and its worker to its own at once.
            return
        if there == "unfinished":  # … or have been ended in the middle, and have left how far it was.
            from v2edit.jobs.resume import resume_run

            resume_run(job.out, command=setup.command, loaded=self.loaded)
            return
        options: dict[str, Any] = {
            "source_prompt": task.source_prompt,
            "target_prompt": task.target_prompt,
            "model": setup.checkpoint.name,
            "out": job.out,
            "device": self.device,
            "dtype": setup.dtype,
            "offload": setup.offload,
            "vae_tiling": setup.vae_tiling,
            "config": task.config,
            "command": setup.command,
            "loaded": self.loaded,
        }
        # Prompts that are given are used; where there are none, a language model writes them.
        options["lvlm"] = LVLMConfig() if task.written else setup.lvlm
        if task.kind == "video":
            run = edit_video(task.path, task.instruction, **options)
        else:
            from v2edit.jobs.scene import edit_scene

            run = edit_scene(task.path, task.instruction, fit=setup.fit, **options)
        if run.folder != job.out:
            raise UserError(f"something else is at {job.out} by now; the run is in {run.folder}")


def _reason(error: BaseException) -> str:
    """One line, of a bounded length."""
    told = memory_advice(error) or " ".join(str(error).split())
    if not isinstance(error, (UserError, OSError)) and memory_advice(error) is None:
        told = f"{type(error).__name__}: {told}" if told else type(error).__name__
    return told if len(told) <= LONGEST_REASON else told[: LONGEST_REASON - 1] + "…"


@contextmanager
def _noted() -> Iterator[list[str]]:
    """What the package logs meanwhile, instead of anything on the terminal."""
    notes: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if len(notes) < NOTES_KEPT:
                notes.append(record.getMessage()[:LONGEST_REASON])

    logger, handler = logging.getLogger("v2edit"), Kept(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)
