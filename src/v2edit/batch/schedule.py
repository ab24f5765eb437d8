"""The scheduler: tasks over workers, each tried until it is done or has failed too often, whatever ends the workers."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from v2edit.batch.state import BatchState, TaskResult, run_folder_state
from v2edit.batch.worker import Assignment, AttemptOutcome
from v2edit.errors import UserError
from v2edit.runs import utc_now
from v2edit.workers import Died, Ended, Event, Refused, Started, WorkerPool

log = logging.getLogger(__name__)
MAX_FAILED_STARTS = 5  # of a worker, one after the other, before it is given up


@dataclass
class _Attempt:
    assignment: Assignment
    number: int = 1
    earlier_reasons: list[str] = field(default_factory=list)


class Scheduler:
    """Runs assignments on a pool of workers, none of them started, and records each start and end in the batch's state.
    A task that failed is tried again `retries` times; `on_result` is called with the result of each task that ends."""

    def __init__(
        self, pool: WorkerPool, retries: int, state: BatchState, on_result: Callable[[TaskResult], None]
    ) -> None:
        self._pool, self._retries, self._state, self._on_result = pool, retries, state, on_result
        self._waiting: deque[_Attempt] = deque()
        self._running: dict[int, _Attempt] = {}  # by worker
        self._places: dict[int, str] = {}  # machine, device and process of each worker that has started
        self._failed_starts: dict[int, int] = {}  # of each worker that is not given up

    def run(self, assignments: Sequence[Assignment]) -> None:
        """Run all assignments. Afterwards, also after an error, no worker is left and nothing half done lies about.
        Raises `UserError` when no worker is left that could start."""
        self._waiting.extend(map(_Attempt, assignments))
        self._failed_starts = dict.fromkeys(range(min(self._pool.count, len(assignments))), 0)
        try:
            for worker in list(self._failed_starts):
                self._pool.start(worker)
            while self._waiting or self._running:
                self._submit_waiting()
                for event in self._pool.wait():
                    self._handle(event)
        finally:
            self._pool.stop()
            for worker, attempt in self._running.items():
                if _is_done(attempt):
                    self._record(attempt, AttemptOutcome(None, [], None), self._places[worker])
                # For the others the state still says that they are running: the next batch resumes them.

    def _submit_waiting(self) -> None:
        idle = [worker for worker in self._places if worker not in self._running]
        for worker in idle[: len(self._waiting)]:
            attempt = self._running[worker] = self._waiting.popleft()
            self._state.record_start(attempt.assignment.task.name, attempt.number, self._places[worker])
            self._pool.submit(worker, attempt.assignment)

    def _handle(self, event: Event) -> None:
        match event:
            case Started(worker, place):
                self._places[worker] = place
            case Refused(worker, reason):
                self._give_up(worker, reason)
            case Ended(worker, outcome):
                self._record(self._running.pop(worker), outcome, self._places[worker])
                if outcome.suspect and self._waiting:
                    self._places.pop(worker)
                    self._pool.start(worker)
            case Died(worker, reason):
                if (attempt := self._running.pop(worker, None)) is not None:
                    outcome = AttemptOutcome(None if _is_done(attempt) else reason, [], None)
                    self._record(attempt, outcome, self._places[worker])
                self._restart(worker, reason)

    def _restart(self, worker: int, reason: str) -> None:
        """Start a worker that died again, unless it has died in too many starts."""
        self._failed_starts[worker] = 0 if self._places.pop(worker, None) else self._failed_starts[worker] + 1
        if self._failed_starts[worker] == MAX_FAILED_STARTS:
            self._give_up(worker, reason)
        elif self._waiting or self._running:
            self._pool.start(worker)

    def _give_up(self, worker: int, reason: str) -> None:
        del self._failed_starts[worker]
        if not self._failed_starts:
            raise UserError(f"no worker can start: {reason}")
        log.warning("a worker is given up, %d are left: it cannot start: %s", len(self._failed_starts), reason)

    def _record(self, attempt: _Attempt, outcome: AttemptOutcome, place: str) -> None:
        """Record the outcome of an attempt, and queue its task again where it may be retried."""
        name, result = attempt.assignment.task.name, None
        if outcome.reason is not None and attempt.number <= self._retries:
            reasons = [*attempt.earlier_reasons, outcome.reason]
            self._waiting.append(_Attempt(attempt.assignment, attempt.number + 1, reasons))
        else:
            state = "done" if outcome.reason is None else "failed"
            result = TaskResult(
                name=name, state=state, reason=outcome.reason, attempts=attempt.number, earlier=attempt.earlier_reasons,
                notes=outcome.notes, seconds=outcome.seconds, worker=place, finished=utc_now(),
                facts=self._state.facts[name],
            )  # fmt: skip
        self._state.record_end(name, result, outcome.trace)
        if result is not None:
            self._on_result(result)


def _is_done(attempt: _Attempt) -> bool:
    """Return whether the run of an attempt is done, though its worker did not live to report it."""
    return run_folder_state(attempt.assignment.out) == "done"
