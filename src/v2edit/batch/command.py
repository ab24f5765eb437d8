"""`v2edit batch`: from a file of tasks to a folder of runs, results and a page. Importing it does not load torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, Suppress, arg

from v2edit.backbones.families import BUILT_IN, DType, Offload
from v2edit.backbones.hub import find
from v2edit.editing.config import EditConfig
from v2edit.errors import UserError
from v2edit.files import lock_folder
from v2edit.host import available_cores, find_device
from v2edit.jobs.video import given_prompts, prompt_beside
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.scenes.config import FitConfig
from v2edit.scenes.prompt import find_prompt

if TYPE_CHECKING:
    from v2edit.batch.state import BatchStatus, TaskResult
    from v2edit.batch.tasks import BatchTask
    from v2edit.batch.worker import WorkerSetup
    from v2edit.workers import WorkerPool
else:
    BatchStatus = Any  # Its module loads pydantic; the command line that is made from the signatures needs no more.

PAGE_EVERY = 60.0  # seconds


def run_batch(
    tasks: Annotated[str | Path, Positional, arg(metavar="TASKS.jsonl")],
    *,
    out: Annotated[str | Path, arg(aliases=["-o"], metavar="FOLDER")],
    ray: Annotated[str | None, arg(metavar="ADDRESS", help_behavior_hint="")] = None,
    workers: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
    retries: int = 1,
    retry_failed: bool = False,
    lvlm: OmitArgPrefixes[LVLMConfig] = LVLMConfig(),  # noqa: B008 (frozen)
    model: Annotated[str, arg(metavar="MODEL")] = BUILT_IN,
    device: Annotated[str, arg(metavar="DEVICE")] = "auto",
    dtype: DType = "auto",
    offload: Offload = "none",
    vae_tiling: bool = False,
    revision: Annotated[str | None, arg(metavar="REVISION", help_behavior_hint="")] = None,
    allow_pickle: bool = False,
    config: OmitArgPrefixes[EditConfig] = EditConfig(),  # noqa: B008 (frozen)
    fit: OmitArgPrefixes[FitConfig] = FitConfig(),  # noqa: B008 (frozen)
    on_progress: Annotated[Callable[[int, int, str], None] | None, Suppress] = None,
    command: Annotated[Sequence[str] | None, Suppress] = None,
) -> BatchStatus:
    """Edit many videos or scenes, on all devices of this machine or of a Ray cluster.

    Each line of TASKS.jsonl is a task: {"video": "a.mp4", "instruction": "make the ball blue"}, or "scene" instead of
    "video", and if need be "source_prompt", "target_prompt", "name" and settings such as "subtasks": 3. The same
    command resumes a batch that was stopped; what is done is never done again. v2edit batch-status shows its progress.

    Args:
        tasks: The file of tasks, which paths in it are relative to.
        out: The folder of the run folders, results.jsonl and index.html, which shows all edits.
        ray: Let Ray find the devices: the address of a cluster, auto for the one that this machine belongs to, or
            local to start Ray here.
        workers: Edits at a time (default: one for each GPU; on CPUs, one for each machine).
        retries: How often a task that failed is tried again before it is set aside.
        retry_failed: Try tasks again that an earlier call set aside.
        lvlm: Let a language model that sees the video write the prompts, where a task has none.
        model: The built-in model, a Hugging Face id or a local diffusers folder.
        device: auto takes all GPUs there are, else the CPU; cuda:1 or cpu that one alone.
        dtype: Number format; auto is what suits the device.
        offload: Bring whole parts (model) or single layers (group) to the device as needed: smaller, slower.
        vae_tiling: Encode and decode in tiles: smaller, slower.
        revision: Branch, tag or commit of a Hugging Face model.
        allow_pickle: Take weights that are pickles (.bin), too, where a model has no others; no code in them is run.
        config: How to edit, where a task says nothing else.
        fit: How to reconstruct scenes.
        on_progress: Called with the number of tasks that ended, the number of all, and the latest one's name and state.
        command: The command line to note in the manifests.

    Raises:
        UserError: for mistakes of the user, in one line. Tasks that failed are in the returned status.
    """
    for name, value, least in (("workers", workers, 1), ("retries", retries, 0)):
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}, expected {least} or more")
    folder = Path(os.path.abspath(out))
    if Path(model).is_dir() and model != BUILT_IN:
        model = os.path.abspath(model)  # workers may have another current folder
    checkpoint = find(model, revision, allow_pickle)

    from v2edit.batch.layout import LOCK
    from v2edit.batch.page import write_page
    from v2edit.batch.schedule import Scheduler
    from v2edit.batch.state import BatchState, read_status
    from v2edit.batch.tasks import read_tasks
    from v2edit.batch.worker import Assignment, WorkerSetup

    batch_tasks = read_tasks(Path(tasks), config, lambda task: _check_prompts(task, lvlm, model))
    setup = WorkerSetup(checkpoint, dtype, offload, vae_tiling, lvlm, fit, None if command is None else list(command))
    pool = _open_pool(setup, ray, device, workers, len(batch_tasks))  # before any writing: its options may be wrong
    try:
        with lock_folder(folder, LOCK, "batch"):
            state = BatchState(folder)
            selected = state.select_tasks(batch_tasks, setup.facts, retry_failed)
            reporter = _Reporter(folder, len(batch_tasks) - len(selected), len(batch_tasks), on_progress)
            try:
                assignments = [Assignment(task, folder / task.name) for task in selected]
                Scheduler(pool, retries, state, reporter.report).run(assignments)
            finally:
                write_page(read_status(folder))
    finally:
        pool.stop()
    return read_status(folder)


def batch_status(folder: Annotated[Path, Positional, arg(metavar="FOLDER")]) -> BatchStatus:
    """Show the progress of a batch: what is done, running, waiting and failed, and why.

    Args:
        folder: The folder that v2edit batch was given as -o.

    Raises:
        UserError: it holds no batch.
    """
    from v2edit.batch.state import read_status

    return read_status(folder)


@dataclass
class _Reporter:
    """Reports each result of a batch to `on_progress`, and rewrites the page once a minute."""

    folder: Path
    ended: int
    total: int
    on_progress: Callable[[int, int, str], None] | None
    page_written: float = field(default_factory=time.monotonic)

    def report(self, result: TaskResult) -> None:
        from v2edit.batch.page import write_page
        from v2edit.batch.state import read_status

        self.ended += 1
        if self.on_progress:
            self.on_progress(self.ended, self.total, f"{result.name} {result.state}")
        if time.monotonic() - self.page_written > PAGE_EVERY:
            write_page(read_status(self.folder))
            self.page_written = time.monotonic()


def _check_prompts(task: BatchTask, lvlm: LVLMConfig, model: str) -> None:
    """Raise `UserError` where it is clear before anything runs that a task has no prompts."""
    lvlm = LVLMConfig() if task.has_prompts else lvlm
    beside = prompt_beside if task.kind == "video" else find_prompt
    given_prompts(task.path, task.instruction, task.source_prompt, task.target_prompt, None, lvlm, model, beside)


def _open_pool(setup: WorkerSetup, ray: str | None, device: str, count: int | None, tasks: int) -> WorkerPool:
    """Return a pool of `count` workers (default: one a device), and no more than there are tasks."""
    if ray is not None:
        from v2edit.batch.cluster import RayPool

        return RayPool(setup, ray, device, count)

    import torch

    from v2edit.batch.worker import EditWorker
    from v2edit.workers import ProcessPool

    device_type = find_device(device).type
    if device_type == "cpu":
        count = min(count or 1, tasks)
        threads = max(1, available_cores() // count) if count > 1 else None
        return ProcessPool([partial(EditWorker, setup, "cpu")] * count, threads)
    devices = [device]
    if device_type == "cuda" and device in ("auto", "cuda"):
        devices = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    if count is not None and count > len(devices):
        raise UserError(f"--workers is {count}, and each has a device of its own: expected {len(devices)} or fewer")
    return ProcessPool([partial(EditWorker, setup, name) for name in devices[:count]])
