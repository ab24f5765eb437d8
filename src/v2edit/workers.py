"""Worker processes of this machine: each holds a worker object, which loads once and then does one job at a time.

`WorkerPool` is the protocol of a pool; `ProcessPool` is the one of processes, which batch, bench and studio use.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, runtime_checkable

from v2edit.errors import UserError

GRACE = 20.0  # seconds that a worker has to clean up after itself
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Worker(Protocol):
    """The object in a worker process."""

    def load(self) -> tuple[str | None, str]:
        """Load what the jobs need; return where the worker is, or None and the reason why it cannot start."""
        ...

    def run(self, job: Any) -> Any:
        """Do one job and return its outcome; an exception ends the process."""
        ...


@runtime_checkable
class ReportingWorker(Worker, Protocol):
    """A worker that reports while it works."""

    def connect(self, report: Callable[[Any], None]) -> None:
        """Take what reports to the pool: each object that it is called with becomes a `Reported`."""
        ...


@dataclass(frozen=True)
class Started:
    """A worker has loaded and can take jobs. `place` is its machine, device and process."""

    worker: int
    place: str


@dataclass(frozen=True)
class Refused:
    """A worker cannot start, because what it needs could not be loaded."""

    worker: int
    reason: str


@dataclass(frozen=True)
class Ended:
    """A job has ended. `outcome` is what `Worker.run` returned."""

    worker: int
    outcome: Any


@dataclass(frozen=True)
class Died:
    """A worker's process is gone, and its job, if it had one, with it."""

    worker: int
    reason: str


@dataclass(frozen=True)
class Reported:
    """What a worker that reports has said of its job."""

    worker: int
    update: Any


Event = Started | Refused | Ended | Died | Reported


class WorkerDied(UserError):
    """A worker's process ended by itself, or was killed."""


class WorkerPool(Protocol):
    """Workers in processes of their own, numbered from 0 to `count` - 1."""

    count: int

    def start(self, worker: int) -> None:
        """Start a worker, ending an earlier process of that number first; `wait` reports when it can begin."""

    def submit(self, worker: int, job: Any) -> None:
        """Give a job to a worker that has none."""

    def wait(self) -> list[Event]:
        """Wait until something has happened and return it."""
        ...

    def stop(self) -> None:
        """End all workers and wait for their ends."""


class Executor:
    """What gives jobs to the workers of a pool: `count`, `start`, `submit` and `wait` are those of `WorkerPool`."""

    count: int

    def start(self, worker: int) -> None: ...
    def submit(self, worker: int, job: Any) -> None: ...
    def wait(self) -> list[Event]: ...
    def is_started(self, worker: int) -> bool:
        """Return whether a worker has a process."""
        ...

    def imap_unordered(self, jobs: deque[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield each job with its outcome as it ends, starting workers as needed; jobs may be appended meanwhile.
        Raises an outcome that is an exception, `WorkerDied` where a worker died, `UserError` where one cannot start."""
        busy: dict[int, Any] = {}
        while jobs or busy:
            for worker in set(range(self.count)) - set(busy):
                if jobs:
                    if not self.is_started(worker):
                        self.start(worker)
                    busy[worker] = jobs.popleft()
                    self.submit(worker, busy[worker])
            for event in self.wait():
                match event:
                    case Ended(_, Exception() as error):
                        raise error
                    case Ended(worker, outcome):
                        yield busy.pop(worker), outcome
                    case Died(_, reason):
                        raise WorkerDied(reason)
                    case Refused(_, reason):
                        raise UserError(reason)


class ProcessPool(Executor):
    """A `WorkerPool` of spawned processes, one for each factory, which is called in the process to make its worker. The
    processes ignore Ctrl-C, which is for their parent, clean up when they are stopped, and end with their parent even
    where that is killed. `threads` is the number of CPU threads of each (default: the libraries' own)."""

    def __init__(self, factories: Sequence[Callable[[], Worker]], threads: int | None = None) -> None:
        self.count = len(factories)
        self._factories, self._threads = factories, threads
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, tuple[BaseProcess, Connection]] = {}

    def start(self, worker: int) -> None:
        if worker in self._processes:
            self._end([worker])
        ours, theirs = self._context.Pipe()
        args = (theirs, worker, self._factories[worker], self._threads)
        process = self._context.Process(target=_serve, args=args, name=f"v2edit-worker-{worker}", daemon=True)
        with _no_interrupts_for_children():
            process.start()
        theirs.close()  # so that its end is seen when it dies
        self._processes[worker] = process, ours

    def submit(self, worker: int, job: Any) -> None:
        with suppress(OSError):  # Then it is dead, and `wait` reports it.
            self._processes[worker][1].send(job)

    def wait(self, timeout: float | None = None, also: Sequence[Connection] = ()) -> list[Event]:
        """Wait until something has happened and return it, or nothing after `timeout` seconds, or once one of the
        connections in `also` can be read."""
        workers = {pipe: worker for worker, (_, pipe) in self._processes.items()}
        ready = connection.wait([*workers, *also], timeout)
        return [self._receive(workers[pipe]) for pipe in ready if pipe not in also]  # pyright: ignore[reportArgumentType]

    def is_started(self, worker: int) -> bool:
        return worker in self._processes

    def interrupt(self, worker: int, kill: bool = False) -> None:
        """Ask a worker to end, as Ctrl-C would, or `kill` it; `wait` reports that it died once it has."""
        if worker in self._processes:
            process, _ = self._processes[worker]
            process.kill() if kill else process.terminate()

    def end(self, worker: int) -> None:
        """End one worker and wait for its end."""
        self._end([worker])

    def stop(self) -> None:
        self._end(list(self._processes))

    def _receive(self, worker: int) -> Event:
        process, pipe = self._processes[worker]
        try:
            event = pipe.recv()
        except (EOFError, OSError):
            _reap(process, pipe)
            del self._processes[worker]
            return Died(worker, _cause(process.exitcode or 0))
        if isinstance(event, Refused):
            self._end([worker])
        return event

    def _end(self, workers: Sequence[int]) -> None:
        ending = [self._processes.pop(worker) for worker in workers]
        for process, _ in ending:
            process.terminate()
        for process, pipe in ending:
            _reap(process, pipe)


def _reap(process: BaseProcess, pipe: Connection) -> None:
    process.join(GRACE)
    process.kill()
    process.join()
    pipe.close()


def _cause(code: int) -> str:
    """Return why a process is gone, by its exit code."""
    if code >= 0:
        return f"its worker process ended without a word (exit code {code})"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    because = ": for want of memory, perhaps" if name == "SIGKILL" else ""
    return f"its worker process was ended by {name}{because}"


@contextmanager
def _no_interrupts_for_children() -> Iterator[None]:
    """Ignore Ctrl-C while a process is started, which inherits that: its parent ends it."""
    if threading.current_thread() is not threading.main_thread():
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            yield
            return
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- in a worker's process ------------------------------------------------------------------------


def _serve(pipe: Connection, number: int, factory: Callable[[], Worker], threads: int | None) -> None:
    """Do jobs until the pipe's other end is closed or the process is terminated."""
    from tqdm import tqdm

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # where a thread of the parent started this
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that half-written files are removed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The libraries' bars share a lock that is a semaphore of the system, and left behind by a process that is killed.
    tqdm.set_lock(threading.RLock())
    if threads is not None:
        for name in THREADS:
            os.environ.setdefault(name, str(threads))
    try:
        worker = factory()
        if isinstance(worker, ReportingWorker):
            worker.connect(lambda update: pipe.send(Reported(number, update)))
        place, reason = worker.load()
        pipe.send(Refused(number, reason) if place is None else Started(number, place))
        while place is not None:
            pipe.send(Ended(number, worker.run(pipe.recv())))
    except (KeyboardInterrupt, EOFError, OSError):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # It is ending, and is not to be interrupted at that.


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # A parent that is killed cannot end its workers.
