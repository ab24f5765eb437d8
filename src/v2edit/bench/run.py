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
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from v2edit import backbones
from v2edit.backbones import Backbone, Checkpoint
from v2edit.bench.methods import Autoencoded, Settings
from v2edit.bench.tasks import Task
from v2edit.errors import UserError
from v2edit.journal import write_whole

# The code that results depend on. What only reads or shows them may change.
CODE = ("attention", "backbones", "editing", "prompts", "noise.py", "bench/baselines.py", "bench/variants.py",
        "world/render.py")  # fmt: skip
LOCK = ".bench"


@dataclass(frozen=True)
class Job:
    """One method on one task, and the file that its result goes to: `frames`, `seconds`, and `code` it came from."""

    task: Task
    title: str
    settings: Settings
    path: Path


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
    """All jobs, task by task; methods of equal settings share a result."""
    model, kind = workers.model_identity, torch.device(workers.device).type
    jobs = []
    for task in tasks:
        for title, settings in methods.items():
            what = [task.identity, type(settings).__name__, asdict(settings), model, kind]  # pyright: ignore[reportArgumentType]
            key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
            name = f"{type(settings).__name__}-{key}.npz"
            jobs.append(Job(task, title, settings, folder / task.name / name))
    return jobs


def run(jobs: Sequence[Job], pool: ProcessPoolExecutor, on_progress: Callable[[int, int, str], None]) -> None:
    """Does what is not done yet. `on_progress` is told how many of all results are there, and the latest one's name."""
    total = len({job.path for job in jobs})
    missing = {job.path: job for job in jobs if not job.path.exists()}
    code = code_digest()
    for path in missing:
        path.parent.mkdir(parents=True, exist_ok=True)
    futures = {pool.submit(_work, job, code): job for job in missing.values()}
    for done, future in enumerate(as_completed(futures), start=total - len(missing) + 1):
        future.result()
        job = futures[future]
        on_progress(done, total, f"{job.task.name} {job.title}")


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


@contextmanager
def opened(folder: Path) -> Iterator[None]:
    """A benchmark's folder, made if need be, for this run alone; the system lets go of it however the run ends.

    Raises `UserError` where another run works in it, or where something else lies.
    """
    import fcntl

    if folder.exists() and not (folder / LOCK).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and holds no benchmark; choose another -o")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another -o") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another benchmark is running in {folder}; wait for it or choose another -o") from error
        yield


def digest_of(folder: Path, files: Sequence[Path] | None = None) -> str:
    """A checksum over a folder's files (all of them, or those given): their names and contents."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*") if files is None else files):
        if path.is_file():
            with path.open("rb") as file:
                total.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:16]


@lru_cache(maxsize=1)
def code_digest() -> str:
    """A checksum over the code that results depend on."""
    package = Path(__file__).parents[1]
    return digest_of(package, [path for part in CODE for path in [*(package / part).rglob("*.py"), package / part]])


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


@lru_cache(maxsize=1)
def _backbone() -> Backbone:
    return backbones.load(_workers.model, _workers.device)


def _work(job: Job, code: str) -> None:
    backbone, clips = _backbone(), job.task.clips
    method = job.settings.on(backbone)
    frames = clips.target.frames if isinstance(job.settings, Autoencoded) else clips.source.frames
    # What other work the machine does is no matter of the method's; on a GPU only the clock knows.
    clock = time.process_time if torch.device(_workers.device).type == "cpu" else time.perf_counter
    begin = clock()
    edited = method(frames, job.task.prompts, job.task.seed)
    seconds = clock() - begin
    assert edited.shape == frames.shape and edited.dtype == np.uint8
    content = io.BytesIO()
    np.savez_compressed(content, frames=edited, seconds=seconds, code=code)
    write_whole(job.path, content.getvalue())
