"""Tasks times methods over worker processes; every result is a file, so that a killed run goes on where it stood.

A result's name says what it is (task, method with all its settings, model, kind of device), so nothing is redone and
nothing stale is taken for new; a sweep shares its folder's results with what ran there before.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from v2edit import backbones
from v2edit.backbones import Backbone, Checkpoint
from v2edit.bench.methods import Settings, Unedited
from v2edit.bench.tasks import Task
from v2edit.errors import UserError
from v2edit.files import atomic_write

LOCK = ".bench"


@dataclass(frozen=True)
class Job:
    """One method on one task, and the file that its result goes to: the task's arrays (`frames` among them), `seconds`,
    and the `code` it came from. `given`: the result that it starts from, where there is one."""

    task: Task
    title: str
    settings: Settings
    path: Path
    given: Path | None = None


@dataclass(frozen=True)
class Workers:
    """Where jobs run: a model on a device, in so many processes."""

    model: Checkpoint
    device: str
    processes: int

    @cached_property
    def model_identity(self) -> str:
        """A commit of the hub, or a checksum over a folder's files."""
        return self.model.commit or digest_of(Path(self.model.source))


def jobs_of(tasks: Sequence[Task], methods: dict[str, Settings], workers: Workers, folder: Path) -> list[Job]:
    """All jobs, task by task; methods of equal settings share a result, and where a task is to be prepared once, all
    the others start from the result of doing nothing."""
    model, kind = workers.model_identity, torch.device(workers.device).type
    jobs = []
    for task in tasks:
        for title, settings in methods.items():
            what = [task.identity, type(settings).__name__, asdict(settings), model, kind]  # pyright: ignore[reportArgumentType]
            key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
            name = f"{type(settings).__name__}-{key}.npz"
            jobs.append(Job(task, title, settings, folder / task.name / name))
    prepared = {job.task: job.path for job in jobs if job.task.prepared and isinstance(job.settings, Unedited)}
    starts = (prepared.get(job.task) for job in jobs)
    return [
        job if start in (None, job.path) else replace(job, given=start) for job, start in zip(jobs, starts, strict=True)
    ]


def run(jobs: Sequence[Job], pool: ProcessPoolExecutor, on_progress: Callable[[int, int, str], None]) -> None:
    """Does what is not done yet. `on_progress` is told how many of all results are there, and the latest one's name."""
    total = len({job.path for job in jobs})
    missing = {job.path: job for job in jobs if not job.path.exists()}
    for path in missing:
        path.parent.mkdir(parents=True, exist_ok=True)
    waiting: dict[Path, list[Job]] = {}
    running: dict[Future[None], Job] = {}

    def submit(job: Job) -> None:
        running[pool.submit(_work, job, code_digest(job.task.code))] = job

    for job in missing.values():
        if job.given in missing:
            waiting.setdefault(job.given, []).append(job)
        else:
            submit(job)
    done = total - len(missing)
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            future.result()
            job, done = running.pop(future), done + 1
            on_progress(done, total, f"{job.task.name} {job.title}")
            for next_one in waiting.pop(job.path, []):
                submit(next_one)


@contextmanager
def started(workers: Workers) -> Iterator[ProcessPoolExecutor]:
    """A pool of workers, each with a model of its own (loaded with its first job) and, on a CPU, one thread: results
    are the same for any number of processes. Leaving it with an error ends them at once."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers.processes, context, initializer=_start, initargs=(workers,))
    try:
        yield pool
    except BaseException as error:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a worker process ended without a word, for want of memory perhaps; the same command goes on from here"
                " (try fewer --processes)"
            ) from error
        raise
    pool.shutdown()


def digest_of(folder: Path, files: Sequence[Path] | None = None) -> str:
    """A checksum over a folder's files (all of them, or those given): their names and contents."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*") if files is None else files):
        if path.is_file():
            with path.open("rb") as file:
                total.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:16]


@cache
def code_digest(parts: tuple[str, ...]) -> str:
    """A checksum over parts of the package: the code that results depend on."""
    package = Path(__file__).parents[1]
    return digest_of(package, [path for part in parts for path in [*(package / part).rglob("*.py"), package / part]])


# --- in a worker ----------------------------------------------------------------------------------

_workers: Workers  # set when a worker starts


def _start(workers: Workers) -> None:
    global _workers
    _workers = workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent ends its workers itself.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)  # Killed, it could not say so; its workers would wait for ever.

    threading.Thread(target=follow, daemon=True).start()
    # The libraries' bars share a lock that is a semaphore of the system, and left behind by a worker that is ended.
    tqdm.set_lock(threading.RLock())
    if torch.device(workers.device).type == "cpu":
        torch.set_num_threads(1)
        os.environ["NUMBA_NUM_THREADS"] = "1"  # read when the rasteriser is loaded, which it is not yet


@lru_cache(maxsize=1)
def _backbone() -> Backbone:
    return backbones.load(_workers.model, _workers.device)


def _work(job: Job, code: str) -> None:
    trial = job.task.trial(job.settings, _backbone(), job.given)
    # What other work the machine does is no matter of the method's; on a GPU only the clock knows.
    clock = time.process_time if torch.device(_workers.device).type == "cpu" else time.perf_counter
    begin = clock()
    made = trial()
    seconds = clock() - begin
    content = io.BytesIO()
    np.savez_compressed(content, seconds=seconds, code=code, **made)  # pyright: ignore[reportArgumentType]
    atomic_write(job.path, content.getvalue())
