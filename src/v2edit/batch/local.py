"""Workers that are processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from v2edit.batch.worker import Died, Ended, Event, Job, Outcome, Refused, Setup, Started, Worker

GRACE = 20.0  # seconds that a worker has to clean up after itself
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Processes:
    """A process for each device; on a CPU, which some share, each has its share of the cores."""

    def __init__(self, setup: Setup, devices: Sequence[str], threads: int | None = None) -> None:
        self.count = len(devices)
        self._setup, self._devices, self._threads = setup, devices, threads
        self._context = multiprocessing.get_context("spawn")
        self._at_work: dict[int, tuple[BaseProcess, Connection]] = {}

    def start(self, worker: int) -> None:
        if worker in self._at_work:
            self._end([worker])
        ours, theirs = self._context.Pipe()
        words = (theirs, self._setup, self._devices[worker], self._threads)
        process = self._context.Process(target=_serve, args=words, name=f"v2edit-batch-{worker}", daemon=True)
        with _no_interrupts_for_children():
            process.start()
        theirs.close()  # so that its end is seen when it dies
        self._at_work[worker] = process, ours

    def submit(self, worker: int, job: Job) -> None:
        with suppress(OSError):  # Then it is dead, and `wait` says so.
            self._at_work[worker][1].send(job)

    def wait(self) -> list[Event]:
        ends = {pipe: worker for worker, (_, pipe) in self._at_work.items()}
        return [self._heard(ends[pipe]) for pipe in connection.wait(list(ends))]  # pyright: ignore[reportArgumentType]

    def _heard(self, worker: int) -> Event:
        process, pipe = self._at_work[worker]
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            process.join(GRACE)
            process.kill()
            process.join()
            pipe.close()
            del self._at_work[worker]
            return Died(worker, _cause(process.exitcode or 0))
        if isinstance(message, Outcome):
            return Ended(worker, message)
        place, reason = message
        if place is not None:
            return Started(worker, place)
        self._end([worker])
        return Refused(worker, reason)

    def stop(self) -> None:
        self._end(list(self._at_work))

    def _end(self, workers: Sequence[int]) -> None:
        ended = [self._at_work.pop(worker) for worker in workers]
        for process, _ in ended:
            process.terminate()
        for process, pipe in ended:
            process.join(GRACE)
            process.kill()
            process.join()
            pipe.close()


def _cause(code: int) -> str:
    if code >= 0:
        return f"its worker process ended without a word (exit code {code})"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    because = ": for want of memory, perhaps" if name == "SIGKILL" else ""
    return f"its worker process was ended by {name}{because}"


@contextmanager
def _no_interrupts_for_children() -> Iterator[None]:
    """Ctrl-C is for the parent, which ends its workers itself; they inherit what it ignores."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- in a worker ----------------------------------------------------------------------------------


def _serve(pipe: Connection, setup: Setup, device: str, threads: int | None) -> None:
    """Jobs in, outcomes out, until the pipe's other end is closed or the process is asked to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what is in the making is cleared away
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)  # Killed, it could not say so; its workers would go on for ever.

    threading.Thread(target=follow, daemon=True).start()
    if threads is not None:
        for name in THREADS:
            os.environ.setdefault(name, str(threads))
    try:
        worker = Worker(setup, device)
        loaded = worker.load()
        pipe.send(loaded)
        while loaded[0] is not None:
            pipe.send(worker.run(pipe.recv()))
    except (KeyboardInterrupt, EOFError, OSError):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # It is ending, and is not to be interrupted at that.
