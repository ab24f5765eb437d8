"""Trials: tasks times methods over worker processes. Each result is a file, so that a killed benchmark goes on.

A result's name is a checksum of the task, the method's configuration, the model and the kind of device: nothing is
computed twice and nothing stale is taken for new; a sweep shares its folder's results with earlier benchmarks.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from v2edit import backbones
from v2edit.backbones import Backbone, Checkpoint
from v2edit.bench.lossless import read_lossless, write_lossless
from v2edit.bench.methods import MethodConfig, Unedited
from v2edit.bench.tasks import Arrays, Task
from v2edit.errors import UserError
from v2edit.files import atomic_write
from v2edit.host import available_cores, find_device
from v2edit.video.stream import Frames
from v2edit.workers import Executor, ProcessPool, WorkerDied

LOCK = ".bench"
OnProgress = Callable[[int, int, str], None]  # gets the number of results, of how many, and the latest one's name


@dataclass(frozen=True)
class BenchWorker:
    """A worker on one device, whose model is loaded with its first trial; scoring needs none. On a CPU it has one
    thread, so that results are the same for any number of processes."""

    checkpoint: Checkpoint
    device: torch.device

    @cached_property
    def backbone(self) -> Backbone:
        return backbones.load(self.checkpoint, device=str(self.device))

    def load(self) -> tuple[str | None, str]:
        if self.device.type == "cpu":
            torch.set_num_threads(1)
            os.environ["NUMBA_NUM_THREADS"] = "1"  # read when the rasteriser is loaded, which it is not yet
        return str(self.device), ""

    def run(self, job: Any) -> Any:
        """Return what a job's `run` does (`Trial`, `Scoring`), or the exception that it raises."""
        try:
            return job.run(self)
        except Exception as error:
            error.add_note("".join(traceback.format_exception(error)))  # A traceback itself does not travel.
            return error


@dataclass(frozen=True)
class Trial:
    """One method on one task. The file of its result has the task's arrays (`frames` among them unless the task
    is long), `seconds`, and the `code` that made it."""

    task: Task
    title: str
    config: MethodConfig
    path: Path  # of its result
    code: str  # the checksum of today's
    start: Path | None = None  # the result that it starts from, where there is one
    is_given: ClassVar[bool] = False  # whether the result is from elsewhere, and may be no video at all

    def run(self, worker: BenchWorker) -> None:
        """Write the result."""
        call = self.task.prepare(self.config, worker.backbone, self.start)
        # On a CPU other processes' work does not count as the method's; on a GPU only the clock knows.
        clock = time.process_time if worker.device.type == "cpu" else time.perf_counter
        begin = clock()
        arrays = call()
        seconds = clock() - begin
        if self.task.is_long:
            write_lossless(arrays["frames"], self.video, self.task.fps)
            arrays = {name: value for name, value in arrays.items() if name != "frames"}
        content = io.BytesIO()
        np.savez_compressed(content, seconds=seconds, code=self.code, **arrays)  # pyright: ignore[reportArgumentType]
        atomic_write(self.path, content.getvalue())

    @property
    def video(self) -> Path:
        """The file of the edited video, beside the result's, of a task whose results are long."""
        return self.path.with_suffix(".mkv")

    def load(self) -> Arrays:
        """Return the result."""
        return load_result(self.path)


def load_result(path: Path) -> Arrays:
    """Return the arrays of a result's file, `frames` from the video beside it where they are kept there."""
    with np.load(path) as result:
        arrays = dict(result)
    return arrays if "frames" in arrays else arrays | {"frames": read_lossless(path.with_suffix(".mkv"))}


def source_of(trials: Sequence[Trial]) -> Frames:
    """Return the source of one task's trials, uint8 [T, H, W, 3]: of a scene that is the result of `Unedited`."""
    source = trials[0].task.source
    if source is None:
        source = next(trial for trial in trials if isinstance(trial.config, Unedited)).load()["frames"]
    return source


def list_trials(
    tasks: Sequence[Task], methods: dict[str, MethodConfig], model: str, device: torch.device, folder: Path
) -> list[Trial]:
    """Return all trials, task by task, of a model with this identity (`model_identity`) on a device. Methods of equal
    configurations share a result. Where a task has a start, the others start from `Unedited`'s result."""
    trials = []
    for task in tasks:
        for title, config in methods.items():
            name = type(config).__name__
            content = [task.identity, name, asdict(config), model, device.type]  # pyright: ignore[reportArgumentType]
            key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
            path = folder / task.name / f"{name}-{key}.npz"
            trials.append(Trial(task, title, config, path, code_digest(task.code) + own_code(type(config))))
    starts = {one.task: one.path for one in trials if one.task.has_start and isinstance(one.config, Unedited)}
    return [one if starts.get(one.task) in (None, one.path) else replace(one, start=starts[one.task]) for one in trials]


def run_trials(trials: Sequence[Trial], pool: Executor, on_progress: OnProgress) -> None:
    """Run the trials that have no result yet."""
    total = len({trial.path for trial in trials})
    missing = {trial.path: trial for trial in trials if not trial.path.exists()}
    ready: deque[Trial] = deque()
    waiting: dict[Path, list[Trial]] = {}  # by the missing result that they start from
    for path, trial in missing.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if trial.start in missing:
            waiting.setdefault(trial.start, []).append(trial)
        else:
            ready.append(trial)
    done = total - len(missing)
    for trial, _ in pool.imap_unordered(ready):
        done += 1
        on_progress(done, total, f"{trial.task.name} {trial.title}")
        ready.extend(waiting.pop(trial.path, []))


@contextmanager
def open_pool(
    checkpoint: Checkpoint, device: str, processes: int | None, ray: str | None = None
) -> Iterator[tuple[Executor, torch.device]]:
    """A pool of workers and their device, ended when the context is left: `processes` on this machine (default: one a
    core; one on a GPU), or actors of Ray at an address."""
    if ray is not None:
        from v2edit.cluster import RayPool

        pool = RayPool(partial(_worker_on, checkpoint), ray, device, processes)
        place = torch.device(pool.device)
    else:
        place = find_device(device)
        count = processes or (available_cores() if place.type == "cpu" else 1)
        pool = ProcessPool([partial(BenchWorker, checkpoint, place)] * count)
    try:
        yield pool, place
    except WorkerDied as error:
        raise UserError(f"{error}; the same command goes on from here (try fewer --processes)") from error
    finally:
        pool.stop()


def _worker_on(checkpoint: Checkpoint, device: str) -> BenchWorker:
    return BenchWorker(checkpoint, torch.device(device))


def model_identity(checkpoint: Checkpoint) -> str:
    """Return the model's commit on the hub, or a checksum of its folder."""
    return checkpoint.commit or digest_of(Path(checkpoint.source))


def digest_of(folder: Path, files: Sequence[Path] | None = None) -> str:
    """Return a checksum of the names and contents of a folder's files (default: all of them)."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*") if files is None else files):
        if path.is_file():
            with path.open("rb") as file:
                total.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:16]


@cache
def own_code(kind: type) -> str:
    """Return a checksum of the file that a method from outside this package is in; nothing for one from within."""
    file = inspect.getsourcefile(kind)
    if file is None or Path(file).is_relative_to(Path(__file__).parents[1]):
        return ""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


@cache
def code_digest(parts: tuple[str, ...]) -> str:
    """Return a checksum of parts of the package, files or folders: the code that results depend on."""
    package = Path(__file__).parents[1]
    return digest_of(package, [path for part in parts for path in [*(package / part).rglob("*.py"), package / part]])
