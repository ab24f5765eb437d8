"""The tools: short work in processes beside the server, each piece bounded in time, and in memory where it reads
foreign files. What such a file does to a process ends with it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import Pipe
from typing import Any

from v2edit.errors import UserError
from v2edit.workers import Died, Ended, Event, ProcessPool, Refused, Started, Worker

log = logging.getLogger(__name__)
READER, THINKER = 0, 1  # the two processes: one for foreign files, and one that loads torch
IDLE_SECONDS = 120.0  # after which a process without work is ended
WORK: dict[str, str] = {
    "probe": "reading", "write_frame": "reading", "describe_run": "reading", "transcode": "reading",
    "zip_files": "reading", "draw_mask": "masks", "preview_prompts": "previews", "estimate": "previews",
    "caption": "previews", "describe_machine": "previews", "summarise_study": "study_results",
}  # fmt: skip


class ToolsBusy(Exception):
    """Too much waits for the tools."""


@dataclass(frozen=True)
class Task:
    """A function of `WORK` and its arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass
class _Waiting:
    task: Task
    seconds: float
    future: Future[dict[str, Any]] = field(default_factory=Future)


class ToolWorker:
    """The object in a process of the tools; `memory` bounds its address space in bytes."""

    def __init__(self, memory: int | None) -> None:
        self.memory = memory

    def load(self) -> tuple[str | None, str]:
        """Bound the process; return where it is."""
        if self.memory is not None:
            with suppress(ImportError, ValueError, OSError):  # Windows has no such bounds.
                import resource

                _, hard = resource.getrlimit(resource.RLIMIT_AS)
                bound = self.memory if hard == resource.RLIM_INFINITY else min(self.memory, hard)
                resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        return "here", ""

    def run(self, job: Task) -> dict[str, Any] | UserError:
        """Do a task; its error is returned, in one line."""
        import importlib

        from v2edit.batch.worker import describe_error
        from v2edit.host import quiet_log

        module = importlib.import_module(f"v2edit.studio.{WORK[job.name]}")
        try:
            with quiet_log("v2edit"):
                return getattr(module, job.name)(**job.arguments)
        except Exception as error:
            return UserError(describe_error(error))


class Tools:
    """The two processes, started when there is work, and the thread that minds them."""

    def __init__(self, memory: int, most: int, pool: Callable[..., ProcessPool] = ProcessPool) -> None:
        factories: list[Callable[[], Worker]] = [partial(ToolWorker, memory), partial(ToolWorker, None)]
        self._pool, self._most = pool(factories), most
        self._lock = threading.Lock()
        self._waiting: tuple[deque[_Waiting], ...] = (deque(), deque())
        self._running: dict[int, tuple[_Waiting, float]] = {}  # with the time at which it is killed
        self._started: dict[int, bool] = {}  # whether it is ready
        self._idle_since: dict[int, float] = {}
        self._reader, self._writer = Pipe(duplex=False)
        self._ends = False
        self._thread = threading.Thread(target=self._work, name="v2edit-studio-tools", daemon=True)
        self._thread.start()

    def call(self, name: str, lane: int, seconds: float, **arguments: Any) -> Future[dict[str, Any]]:
        """Do a task in one of the processes, in so many seconds at most. The future raises `UserError`, in one line,
        for what went wrong. Raises `ToolsBusy` where too much waits."""
        waiting = _Waiting(Task(name, arguments), seconds)
        with self._lock:
            if self._ends or len(self._waiting[lane]) >= self._most:
                raise ToolsBusy("too much is waiting: try again in a moment")
            self._waiting[lane].append(waiting)
        self._wake()
        return waiting.future

    def begin_to_close(self) -> None:
        self._ends = True
        self._wake()

    def close(self) -> None:
        self.begin_to_close()
        self._thread.join()

    def _wake(self) -> None:
        with suppress(OSError, ValueError):
            self._writer.send_bytes(b"1")

    def _work(self) -> None:
        try:
            while not self._ends:
                with self._lock:
                    starting = self._assign()
                    times = [end for _, end in self._running.values()]
                for lane in starting:  # outside the lock, which the server's event loop takes: a start takes long
                    self._pool.start(lane)
                timeout = max(0.0, min(times) - time.monotonic()) + 0.01 if times else 30.0
                events = self._pool.wait(timeout, [self._reader])
                while self._reader.poll():
                    self._reader.recv_bytes()
                for event in events:
                    self._handle(event)
                self._mind_time()
        finally:
            self._ends = True
            self._pool.stop()
            with self._lock:
                left = [one for lane in self._waiting for one in lane]
            for waiting in [*left, *(one for one, _ in self._running.values())]:
                _fail(waiting, "the studio is ending")

    def _assign(self) -> list[int]:
        """Give work to the processes that are ready, and return those to start."""
        starting = []
        for lane, waiting in enumerate(self._waiting):
            while waiting and waiting[0].future.cancelled():
                waiting.popleft()
            if not waiting or lane in self._running:
                continue
            if lane not in self._started:
                self._started[lane] = False
                starting.append(lane)
            elif self._started[lane]:
                one = waiting.popleft()
                self._running[lane] = one, time.monotonic() + one.seconds
                self._pool.submit(lane, one.task)
        return starting

    def _handle(self, event: Event) -> None:
        lane = event.worker
        match event:
            case Started():
                self._started[lane] = True
                self._idle_since[lane] = time.monotonic()
            case Ended(_, outcome):
                waiting, _ = self._running.pop(lane)
                self._idle_since[lane] = time.monotonic()
                if isinstance(outcome, UserError):
                    _fail(waiting, str(outcome))
                elif not waiting.future.cancelled():
                    with suppress(Exception):
                        waiting.future.set_result(outcome)
            case Died(_, reason) | Refused(_, reason):
                self._started.pop(lane, None)
                if (found := self._running.pop(lane, None)) is not None:
                    late = time.monotonic() >= found[1]
                    _fail(found[0], f"it took more than {found[0].seconds:.0f} s" if late else reason)
                elif self._waiting[lane]:  # It died before it began: not again for the same task.
                    with self._lock:
                        first = self._waiting[lane].popleft()
                    _fail(first, reason)

    def _mind_time(self) -> None:
        now = time.monotonic()
        for lane, (_, end) in self._running.items():
            if now > end:
                self._pool.interrupt(lane, kill=True)
        for lane in [lane for lane, ready in self._started.items() if ready and lane not in self._running]:
            if now - self._idle_since[lane] > IDLE_SECONDS and not self._waiting[lane]:
                del self._started[lane]
                self._pool.end(lane)


def _fail(waiting: _Waiting, reason: str) -> None:
    with suppress(Exception):  # It may have been cancelled.
        waiting.future.set_exception(UserError(reason))
