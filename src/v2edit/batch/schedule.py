"""Jobs over workers: each is tried until it is done or has failed too often, whatever happens to the workers."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from v2edit.batch.state import Ledger, Result, now, state_of
from v2edit.batch.worker import Job, Outcome
from v2edit.errors import UserError
from v2edit.workers import Died, Ended, Refused, Started, WorkerPool

log = logging.getLogger(__name__)
STARTS = 5  # that a worker may die in, one after the other, before it is given up


@dataclass
class _Attempt:
    job: Job
    number: int = 1
    earlier: list[str] = field(default_factory=list)


def work_through(
    jobs: Sequence[Job], workers: WorkerPool, retries: int, ledger: Ledger, on_end: Callable[[Result], None]
) -> None:
    """Does the jobs, each up to `retries` times again; `on_end` is told of each that came to its end.

    Raises `UserError` when no worker is left that could start. However it is left, no worker is at work afterwards,
    and nothing half done lies about.
    """
    waiting = deque(map(_Attempt, jobs))
    busy: dict[int, _Attempt] = {}
    places: dict[int, str] = {}  # of workers that have started
    failed_starts = dict.fromkeys(range(min(workers.count, len(jobs))), 0)  # of workers that are not given up

    def start_again(worker: int, reason: str) -> None:
        """In the place of one that died, as often as that makes sense."""
        failed_starts[worker] = 0 if places.pop(worker, None) else failed_starts[worker] + 1
        if failed_starts[worker] == STARTS:
            give_up(worker, reason)
        elif waiting or busy:
            workers.start(worker)

    def give_up(worker: int, reason: str) -> None:
        del failed_starts[worker]
        if not failed_starts:
            raise UserError(f"no worker can start: {reason}")
        log.warning("a worker is given up, %d are left: it cannot start: %s", len(failed_starts), reason)

    def settle(attempt: _Attempt, outcome: Outcome, worker: str) -> None:
        """Writes down how an attempt went, and lines its task up again where it may be tried again."""
        name, result = attempt.job.task.name, None
        if outcome.reason is not None and attempt.number <= retries:
            waiting.append(_Attempt(attempt.job, attempt.number + 1, [*attempt.earlier, outcome.reason]))
        else:
            result = Result(
                name=name,
                state="done" if outcome.reason is None else "failed",
                reason=outcome.reason,
                attempts=attempt.number,
                earlier=attempt.earlier,
                notes=outcome.notes,
                seconds=outcome.seconds,
                worker=worker,
                finished=now(),
                facts=ledger.facts[name],
            )
        ledger.ended(name, result, outcome.trace)
        if result is not None:
            on_end(result)

    try:
        for worker in list(failed_starts):
            workers.start(worker)
        while waiting or busy:
            for worker in [one for one in places if one not in busy][: len(waiting)]:
                attempt = busy[worker] = waiting.popleft()
                ledger.began(attempt.job.task.name, attempt.number, places[worker])
                workers.submit(worker, attempt.job)
            for event in workers.wait():
                match event:
                    case Started(worker, place):
                        places[worker] = place
                    case Refused(worker, reason):
                        give_up(worker, reason)
                    case Ended(worker, outcome):
                        settle(busy.pop(worker), outcome, places[worker])
                        if outcome.suspect and waiting:
                            places.pop(worker)
                            workers.start(worker)
                    case Died(worker, reason):
                        if (attempt := busy.pop(worker, None)) is not None:
                            settle(attempt, _last_words(attempt.job, reason), places[worker])
                        start_again(worker, reason)
    finally:
        workers.stop()
        for worker, attempt in busy.items():
            if (last := _last_words(attempt.job, "")).reason is None:
                settle(attempt, last, places[worker])
            # Of the others the ledger keeps what they were begun with: the next batch goes on with them.


def _last_words(job: Job, reason: str) -> Outcome:
    """What became of a job whose worker is gone: it may just have come to its end."""
    if state_of(job.out) == "done":
        return Outcome(None, [], None)
    return Outcome(reason, [], None)
