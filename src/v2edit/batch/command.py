"""`v2edit batch`: from a file of tasks to a folder of runs, results and a page. Torch is loaded when work begins."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
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
    from v2edit.batch.state import Result, Status
    from v2edit.batch.tasks import Task
    from v2edit.batch.worker import Setup
    from v2edit.workers import WorkerPool
else:
    Status = Any  # Its module loads pydantic; the command line that is made from the signatures needs no more.

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
) -> Status:
    """Edit many videos or scenes, on all devices of this machine or of a Ray cluster.

    Each line of TASKS.jsonl is a task: {"video": "a.mp4", "instruction": "make the ball blue"}, or "scene" instead of
    "video", and if need be "source_prompt", "target_prompt", "name" and settings such as "subtasks": 3. Stopped, the
    same command goes on; what is done is never done again. v2edit batch-status tells how far it is.

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
        on_progress: Called with how many tasks came to their end, of how many, and what became of the latest.
        command: The command line to note in the manifests.

    Raises:
        UserError: for what the user can mend, in one line. Tasks that failed are told in what is returned.
    """
    for name, value, least in (("workers", workers, 1), ("retries", retries, 0)):
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}, expected {least} or more")
    folder = Path(os.path.abspath(out))
    if Path(model).is_dir() and model != BUILT_IN:
        model = os.path.abspath(model)  # workers stand elsewhere
    checkpoint = find(model, revision, allow_pickle)

    from v2edit.batch.page import write_page
    from v2edit.batch.schedule import work_through
    from v2edit.batch.state import LOCK, Ledger, read_status
    from v2edit.batch.tasks import read_tasks
    from v2edit.batch.worker import Job, Setup

    listed = read_tasks(Path(tasks), config, lambda task: _check_prompts(task, lvlm, model))
    setup = Setup(checkpoint, dtype, offload, vae_tiling, lvlm, fit, None if command is None else list(command))
    at_work = _workers(setup, ray, device, workers, len(listed))  # What is wrong with them is said before any writing.
    try:
        with lock_folder(folder, LOCK, "batch"):
            ledger = Ledger(folder)
            todo = ledger.plan(listed, setup.facts, retry_failed)
            ended, written = len(listed) - len(todo), time.monotonic()

            def tell(result: Result) -> None:
                nonlocal ended, written
                ended += 1
                if on_progress:
                    on_progress(ended, len(listed), f"{result.name} {result.state}")
                if time.monotonic() - written > PAGE_EVERY:
                    write_page(read_status(folder))
                    written = time.monotonic()

            try:
                work_through([Job(task, folder / task.name) for task in todo], at_work, retries, ledger, tell)
            finally:
                write_page(read_status(folder))
    finally:
        at_work.stop()
    return read_status(folder)


def batch_status(folder: Annotated[Path, Positional, arg(metavar="FOLDER")]) -> Status:
    """Tell how far a batch is: what is done, running, waiting and failed, and why.

    Args:
        folder: The folder that v2edit batch was given as -o.

    Raises:
        UserError: it holds no batch.
    """
    from v2edit.batch.state import read_status

    return read_status(folder)


def _check_prompts(task: Task, lvlm: LVLMConfig, model: str) -> None:
    """Raises `UserError` where it is clear before anything runs that a task's prompts cannot be found."""
    lvlm = LVLMConfig() if task.written else lvlm
    beside = prompt_beside if task.kind == "video" else find_prompt
    given_prompts(task.path, task.instruction, task.source_prompt, task.target_prompt, None, lvlm, model, beside)


def _workers(setup: Setup, ray: str | None, device: str, count: int | None, tasks: int) -> WorkerPool:
    """As many workers as there are devices, or were asked for, and no more than there are tasks."""
    if ray is not None:
        from v2edit.batch.cluster import Actors

        return Actors(setup, ray, device, count)

    import torch

    from v2edit.batch.worker import Worker
    from v2edit.workers import ProcessPool

    on = find_device(device)
    if on.type == "cpu":
        count = min(count or 1, tasks)
        threads = max(1, available_cores() // count) if count > 1 else None
        return ProcessPool([partial(Worker, setup, "cpu")] * count, threads)
    devices = [device]
    if on.type == "cuda" and device in ("auto", "cuda"):
        devices = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    if count is not None and count > len(devices):
        raise UserError(f"--workers is {count}, and each has a device of its own: expected {len(devices)} or fewer")
    return ProcessPool([partial(Worker, setup, one) for one in devices[:count]])
