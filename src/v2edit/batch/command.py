"""Batches: from a file of tasks to a folder of runs, results and a page. Torch is loaded when work begins."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from v2edit.backbones.families import BUILT_IN
from v2edit.editing.config import EditConfig
from v2edit.errors import UserError
from v2edit.files import lock_folder
from v2edit.host import available_cores, count_devices, find_device
from v2edit.jobs.clip import ClipOptions, FormatOptions
from v2edit.jobs.masks import MaskOptions
from v2edit.jobs.options import OUT, ModelOptions, expect_at_least, expect_folder, job_from_keywords
from v2edit.jobs.progress_bar import count_bar
from v2edit.jobs.shots import ShotOptions
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.scenes.config import FitConfig

if TYPE_CHECKING:
    from v2edit.batch.estimate import BatchEstimate
    from v2edit.batch.state import BatchStatus, TaskResult
    from v2edit.batch.tasks import BatchTask
    from v2edit.batch.worker import WorkerSetup
    from v2edit.workers import WorkerPool

PAGE_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class EditBatch:
    """Edit many videos or scenes, on all devices of this machine or of a Ray cluster."""

    tasks: Annotated[Positional[Path], arg(metavar="TASKS.jsonl")]
    """The file of tasks, which paths in it are relative to."""
    out: Annotated[Path, arg(aliases=OUT, metavar="FOLDER")]
    """The folder of the run folders, results.jsonl and index.html, which shows all edits."""
    ray: Annotated[str | None, arg(metavar="ADDRESS", help_behavior_hint="")] = None
    """Let Ray find the devices: the address of a cluster, auto for the one that this machine belongs to, or local to
    start Ray here."""
    workers: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Edits at a time (default: one for each GPU; on CPUs, one for each machine)."""
    retries: int = 1
    """How often a task that failed is tried again before it is set aside."""
    retry_failed: FlagCreatePairsOff[bool] = False
    """Try tasks again that an earlier call set aside."""
    lvlm: Annotated[OmitArgPrefixes[LVLMConfig], arg(name="language-model")] = LVLMConfig()
    model_options: Annotated[OmitArgPrefixes[ModelOptions], arg(name="model")] = ModelOptions()
    clip_options: Annotated[OmitArgPrefixes[ClipOptions], arg(name="clip")] = ClipOptions()
    format_options: Annotated[OmitArgPrefixes[FormatOptions], arg(name="format")] = FormatOptions()
    mask_options: Annotated[OmitArgPrefixes[MaskOptions], arg(name="mask")] = MaskOptions()
    shot_options: Annotated[OmitArgPrefixes[ShotOptions], arg(name="shots")] = ShotOptions()
    config: Annotated[OmitArgPrefixes[EditConfig], arg(name="edit")] = EditConfig()
    fit: Annotated[OmitArgPrefixes[FitConfig], arg(name="reconstruction")] = FitConfig()

    def __post_init__(self) -> None:
        expect_folder(self.out)
        expect_at_least(1, workers=self.workers)
        expect_at_least(0, retries=self.retries)
        if self.model_options.block_processes > 1:
            raise UserError("--block-processes is for one edit; a batch has several edits side by side (--workers)")

    def run(
        self,
        on_progress: Callable[[int, int, str], None] = lambda ended, total, what: None,
        command: Sequence[str] | None = None,
    ) -> BatchStatus:
        """Run the tasks that are not done; tasks that failed are in the status returned. `on_progress` is called with
        the tasks that ended, of how many, and how the latest ended; `command` is the command line, for the runs'
        run.json. Raises `UserError` for what the user can mend, in one line."""
        from v2edit.batch.layout import LOCK
        from v2edit.batch.page import write_page
        from v2edit.batch.schedule import Scheduler
        from v2edit.batch.state import BatchState, read_status
        from v2edit.batch.worker import Assignment

        folder, (setup, tasks) = Path(os.path.abspath(self.out)), self._read(command)
        # Before any writing: the workers' options may be wrong.
        pool = _open_pool(setup, self.ray, self.model_options.device, self.workers, len(tasks))
        try:
            with lock_folder(folder, LOCK, "batch"):
                state = BatchState(folder)
                selected = state.select_tasks(tasks, setup.facts, self.retry_failed)
                reporter = _Reporter(folder, len(tasks) - len(selected), len(tasks), on_progress)
                try:
                    assignments = [Assignment(task, folder / task.name) for task in selected]
                    Scheduler(pool, self.retries, state, reporter.report).run(assignments)
                finally:
                    write_page(read_status(folder))
        finally:
            pool.stop()
        return read_status(folder)

    def estimate(
        self, timed: bool = False, on_progress: Callable[[int, int, str], None] = lambda ended, total, what: None
    ) -> BatchEstimate:
        """Estimate the tasks that are not done (a dry run), counted or `timed`; nothing is written. Raises `UserError`
        for mistakes in the options or the file of tasks."""
        from v2edit.batch.estimate import estimate_tasks

        return estimate_tasks(*self._read(None), self.out, timed, on_progress)

    def _read(self, command: Sequence[str] | None) -> tuple[WorkerSetup, list[BatchTask]]:
        """Find the model and read the tasks, before any writing."""
        options = self.model_options
        if Path(options.model).is_dir() and options.model != BUILT_IN:
            options = replace(options, model=os.path.abspath(options.model))  # workers run in other folders
        checkpoint = options.find()  # reported before the tasks are read

        from v2edit.batch.tasks import TaskDefaults, read_tasks
        from v2edit.batch.worker import WorkerSetup

        setup = WorkerSetup(checkpoint, options, self.lvlm, self.fit, None if command is None else list(command))
        defaults = TaskDefaults(
            self.config, self.clip_options, self.format_options, self.mask_options, self.shot_options
        )
        # Whether a task's prompts can be found is clear before anything runs.
        return setup, read_tasks(self.tasks, defaults, lambda task: setup.job(task).given_prompts())


def run_batch(
    tasks: str | Path,
    *,
    out: str | Path,
    show_progress: bool = True,
    on_progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> BatchStatus:
    """Edit the videos and scenes of a file of tasks, as `v2edit batch` does.

    Args:
        tasks: The file of tasks, one JSON object a line.
        out: The folder of the run folders.
        show_progress: Show a progress bar of the tasks.
        on_progress: Called with the tasks that ended, of how many, and how the latest ended.
        **options: Any option of `v2edit batch` by its name, with `_` for `-`: ray, workers, retries, retry_failed, and
            the options of `edit_video` on models, prompts by a language model, the edit, and of reconstruction.

    Returns the status of the batch; tasks that failed are in its `failed`. Raises `UserError` for what the user can
    mend, in one line, and `TypeError` for an unknown option."""
    job = job_from_keywords(EditBatch, tasks=Path(tasks), out=Path(out), **options)
    with count_bar(show_progress, on_progress) as report:
        return job.run(report)


def batch_status(folder: str | Path) -> BatchStatus:
    """Return how far the batch in a folder is. Raises `UserError` for a folder that holds none."""
    from v2edit.batch.state import read_status

    return read_status(Path(folder))


@dataclass
class _Reporter:
    """Reports each result of a batch to `on_progress`, and rewrites the page once a minute."""

    folder: Path
    ended: int
    total: int
    on_progress: Callable[[int, int, str], None]
    page_written: float = field(default_factory=time.monotonic)

    def report(self, result: TaskResult) -> None:
        from v2edit.batch.page import write_page
        from v2edit.batch.state import read_status

        self.ended += 1
        self.on_progress(self.ended, self.total, f"{result.name} {result.state}")
        if time.monotonic() - self.page_written > PAGE_EVERY:
            write_page(read_status(self.folder))
            self.page_written = time.monotonic()


def _open_pool(setup: WorkerSetup, ray: str | None, device: str, count: int | None, tasks: int) -> WorkerPool:
    """Return a pool of `count` workers (default: one a device), and no more than there are tasks."""
    from v2edit.batch.worker import EditWorker

    if ray is not None:
        from v2edit.cluster import RayPool

        return RayPool(partial(EditWorker, setup), ray, device, count)

    from v2edit.workers import ProcessPool

    device_type = find_device(device).type
    if device_type == "cpu":
        count = min(count or 1, tasks)
        threads = max(1, available_cores() // count) if count > 1 else None
        return ProcessPool([partial(EditWorker, setup, "cpu")] * count, threads)
    devices = [device]
    if device in ("auto", device_type):
        devices = [f"{device_type}:{k}" for k in range(count_devices(device_type))]
    if count is not None and count > len(devices):
        raise UserError(f"--workers is {count}, and each has a device of its own: expected {len(devices)} or fewer")
    return ProcessPool([partial(EditWorker, setup, name) for name in devices[:count]])
