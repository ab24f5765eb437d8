"""Pools of workers that start at once."""

from collections.abc import Callable, Sequence
from typing import Any

from support.processes import SERVER
from v2edit.workers import Ended, Event, ProcessPool, Refused, Started, Worker


class PreloadedPool(ProcessPool):
    """A `ProcessPool` whose processes start with the libraries imported."""

    def __init__(self, factories: Sequence[Callable[[], Worker]], threads: int | None = None) -> None:
        super().__init__(factories, threads)
        self._context = SERVER


class InlinePool:
    """A `WorkerPool` whose workers are objects of this process."""

    def __init__(self, factories: Sequence[Callable[[], Worker]], threads: int | None = None) -> None:
        self.count = len(factories)
        self._factories = factories
        self._workers: dict[int, Worker] = {}
        self._events: list[Event] = []

    def start(self, worker: int) -> None:
        self._workers[worker] = self._factories[worker]()
        place, reason = self._workers[worker].load()
        self._events.append(Refused(worker, reason) if place is None else Started(worker, place))

    def submit(self, worker: int, job: Any) -> None:
        self._events.append(Ended(worker, self._workers[worker].run(job)))

    def wait(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        self._workers.clear()
