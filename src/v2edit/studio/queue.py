"""The queue of jobs: a thread that gives them to the workers of the edits, and records how each ends, once."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from v2edit.batch.state import run_folder_state
from v2edit.errors import UserError
from v2edit.runs import read_run_state, utc_now
from v2edit.studio.records import ACTIVE, JobRecord, JobRecords, make_id, order_before
from v2edit.studio.worker import EditTask, Note
from v2edit.workers import GRACE, Died, Ended, Event, ProcessPool, Refused, Reported, Started

log = logging.getLogger(__name__)
MAX_ATTEMPTS = 3  # of a job that make no step, while the server lives
MAX_RESTARTS = 10  # of the server, in which a job makes no step: it may be what ends it
MAX_FAILED_STARTS = 3  # of a worker, one after the other, before a job fails for it
MAX_NOTES = 50
IDLE_SECONDS = 900.0  # after which a worker without jobs is ended, and with it the model in its memory
MAX_FINISHED = 5000  # jobs that have ended, of which older ones are forgotten; their runs stay


class QueueFull(Exception):
    """No more jobs are taken now."""


class UnknownJob(KeyError):
    """There is no such job."""


class JobQueue:
    """The jobs of a studio. Methods may be called from any thread; `prepare` makes a job's task, with its run folder
    reserved, and `on_change` is called with a job's id and its record, or None where it has gone."""

    def __init__(
        self,
        records: JobRecords,
        pool: ProcessPool,
        library: Path,
        prepare: Callable[[JobRecord], EditTask],
        on_change: Callable[[str, JobRecord | None], None],
        limits: tuple[int, int],
    ) -> None:
        self._disk, self._pool, self._library = records, pool, library
        self._prepare, self._on_change = prepare, on_change
        self._most_queued, self._per_minute = limits
        self._lock = threading.RLock()
        self._records: dict[str, JobRecord] = {}
        self.progress: dict[str, dict[str, Any]] = {}  # of jobs that run
        self._plans: dict[str, list[str]] = {}
        self._running: dict[int, str] = {}  # job by worker
        self._places: dict[int, str] = {}  # of workers that can take jobs
        self._starting: set[int] = set()
        self._failed_starts: dict[int, int] = {}
        self._idle_since: dict[int, float] = {}
        self._unwritten: set[str] = set()  # jobs whose record on disk is an older one
        self._deadlines: dict[int, float] = {}  # when workers that were told to end are killed
        self._submitted: deque[float] = deque()
        self._reader, self._writer = Pipe(duplex=False)
        self._ends = False
        self._thread = threading.Thread(target=self._work, name="v2edit-studio-queue", daemon=True)

    # --- for the API ---------------------------------------------------------------------------

    def start(self) -> None:
        """Read the records, put right what an earlier server left, and begin."""
        for record in self._disk.read():
            self._records[record.id] = record
        for record in list(self._records.values()):
            self._reconcile(record)
        self._forget()
        self._thread.start()

    def begin_to_close(self) -> None:
        self._ends = True
        self._wake()

    def close(self) -> None:
        """End the workers, whose runs are suspended, and the thread. What ran goes on with the next start."""
        self.begin_to_close()
        if self._thread.is_alive():
            self._thread.join()

    def all(self) -> list[JobRecord]:
        """Return all jobs in the order of the queue."""
        return sorted(list(self._records.values()), key=lambda one: (one.order, one.id))

    def get(self, id: str) -> JobRecord:
        """Return a job. Raises `UnknownJob`."""
        try:
            return self._records[id]
        except KeyError:
            raise UnknownJob(id) from None

    def position(self, id: str) -> int | None:
        """Return the place of a job among those that wait, from 1."""
        return next((k for k, record in enumerate(self._waiting(), start=1) if record.id == id), None)

    def plan(self, id: str) -> list[str]:
        return self._plans.get(id, [])

    def submit(self, **facts: Any) -> JobRecord:
        """Add a job at the end of the queue. Raises `QueueFull`."""
        with self._lock:
            now = time.monotonic()
            while self._submitted and now - self._submitted[0] > 60:
                self._submitted.popleft()
            if len(self._submitted) >= self._per_minute:
                raise QueueFull(f"more than {self._per_minute} jobs in a minute: wait a little")
            if len(self._waiting()) >= self._most_queued:
                raise QueueFull(f"{self._most_queued} jobs are waiting: let some of them end first")
            self._submitted.append(now)
            last = max((record.order for record in self._records.values()), default=0.0)
            record = JobRecord(id=make_id(), created=utc_now(), order=last + 1, **facts)
            self._put(record)
        self._wake()
        return record

    def cancel(self, id: str) -> JobRecord:
        """Stop a job: one that waits leaves the queue, one that runs is suspended after its current step."""
        with self._lock:
            record = self.get(id)
            if record.state == "queued":
                self._end(record, "stopped", "stopped before it began")
            elif record.state in ACTIVE and not record.stopping:
                self._put(record.model_copy(update={"stopping": True}))
                for worker, job in self._running.items():
                    if job == id:
                        self._interrupt(worker)
            return self.get(id)

    def resume(self, id: str) -> JobRecord:
        """Put a job that stopped or failed back into the queue, at its place. Raises `UserError` for another."""
        with self._lock:
            record = self.get(id)
            if record.state not in ("stopped", "failed"):
                raise UserError(f"the job is {record.state}: only what stopped or failed is gone on with")
            update = {
                "state": "queued",
                "reason": None,
                "attempts": 0,
                "restarts": 0,
                "finished": None,
                "stopping": False,
            }
            self._put(record.model_copy(update=update))
        self._wake()
        return self.get(id)

    def move(self, id: str, before: str | None) -> JobRecord:
        """Move a job that waits before another, or to the end. Raises `UserError` for one that does not wait."""
        with self._lock:
            record, waiting = self.get(id), [one for one in self._waiting() if one.id != id]
            if record.state != "queued":
                raise UserError(f"the job is {record.state}: only what waits can be moved")
            if before is None:
                order = max(one.order for one in self._records.values()) + 1
            else:
                order, moved = order_before(waiting, before)
                for one in moved:
                    self._put(one)
            self._put(record.model_copy(update={"order": order}))
            return self.get(id)

    def remove(self, id: str) -> None:
        """Forget a job; its run stays. Raises `UserError` for one that runs."""
        with self._lock:
            record = self.get(id)
            if record.state in ACTIVE:
                raise UserError("the job is running: stop it first")
            del self._records[id]
            self._unwritten.discard(id)
            self._disk.remove(id)
            self._on_change(id, None)

    # --- the records ---------------------------------------------------------------------------

    def _waiting(self) -> list[JobRecord]:
        waiting = [record for record in list(self._records.values()) if record.state == "queued"]
        return sorted(waiting, key=lambda one: (one.order, one.id))

    def _put(self, record: JobRecord) -> None:
        try:
            self._disk.write(record)
            self._unwritten.discard(record.id)
        except OSError as error:  # a full disk, most likely
            if threading.current_thread() is not self._thread:
                raise
            log.error("the record of a job cannot be written: %s", error)
            self._unwritten.add(record.id)  # What has happened has, and is written as soon as may be.
        self._records[record.id] = record
        self._on_change(record.id, record)

    def _end(self, record: JobRecord, state: str, reason: str | None) -> None:
        """Record the end of a job, whatever ended it: once, since only a job that has not ended comes here."""
        self.progress.pop(record.id, None)
        update: dict[str, Any] = {"state": state, "reason": reason, "finished": utc_now(), "stopping": False}
        if state != "done" and record.run is not None:
            with suppress(OSError):
                (self._library / record.run).rmdir()  # reserved, and nothing came of it
            if not (self._library / record.run).exists():
                update["run"] = None
        self._put(record.model_copy(update=update))

    def _reconcile(self, record: JobRecord) -> None:
        """Put right the record of a job by its run folder, whose worker is gone."""
        if record.state == "done":
            return
        state = "absent" if record.run is None else run_folder_state(self._library / record.run)
        if state == "done":
            self._end(record, "done", None)
        elif record.state in ACTIVE:
            if record.stopping:
                self._end(record, "stopped", "stopped by you")
            else:
                counts = {"attempts": max(0, record.attempts - 1), "restarts": record.restarts + 1}
                self._retry(record.model_copy(update=counts), "its process and the studio's ended")

    def _retry(self, record: JobRecord, reason: str) -> None:
        """Queue a job again whose worker is gone, unless that has made no step too often."""
        self.progress.pop(record.id, None)
        if (steps := self._steps(record)) > record.steps:
            record = record.model_copy(update={"attempts": 0, "restarts": 0, "steps": steps})
        if record.attempts >= MAX_ATTEMPTS or record.restarts >= MAX_RESTARTS:
            self._end(record, "failed", f"{reason}, {max(record.attempts, record.restarts)} times")
        else:
            self._put(record.model_copy(update={"state": "queued"}))

    def _steps(self, record: JobRecord) -> int:
        """Return how many steps of a job's run are made."""
        if record.run is not None:
            with suppress(UserError):
                return read_run_state(self._library / record.run).done
        return 0

    def _forget(self) -> None:
        ended = [one for one in self.all() if one.state not in ("queued", *ACTIVE)]
        for record in ended[: max(0, len(ended) - MAX_FINISHED)]:
            self.remove(record.id)

    # --- the thread ----------------------------------------------------------------------------

    def _wake(self) -> None:
        with suppress(OSError, ValueError):
            self._writer.send_bytes(b"1")

    def _work(self) -> None:
        try:
            while not self._ends:
                self._assign()
                events = self._pool.wait(self._timeout(), [self._reader])
                while self._reader.poll():
                    self._reader.recv_bytes()
                for event in events:
                    with self._lock:
                        self._handle(event)
                self._mind_time()
        finally:
            self._pool.stop()
            with self._lock:
                for job in self._running.values():
                    record = self._records[job]
                    if record.run and run_folder_state(self._library / record.run) == "done":
                        self._end(record, "done", None)

    def _timeout(self) -> float:
        return 0.5 if self._deadlines or self._unwritten else 5.0

    def _assign(self) -> None:
        with self._lock:
            waiting = deque(self._waiting())
            for worker in range(self._pool.count):
                if not waiting:
                    return
                if worker in self._running or worker in self._starting or worker in self._deadlines:
                    continue
                if worker not in self._places:
                    self._starting.add(worker)
                    self._pool.start(worker)
                    waiting.popleft()  # It waits for this worker.
                    continue
                self._give(worker, waiting.popleft())

    def _give(self, worker: int, record: JobRecord) -> None:
        """Give a job to a worker; one that cannot be prepared has failed."""
        try:
            task = self._prepare(record)
        except (UserError, OSError) as error:
            self._end(record, "failed", str(error))
            return
        update = {
            "state": "loading", "run": task.out.name, "attempts": record.attempts + 1, "steps": self._steps(record),
            "started": record.started or utc_now(), "finished": None, "reason": None,
        }  # fmt: skip
        record = record.model_copy(update=update)
        self._running[worker] = record.id
        self._plans.pop(record.id, None)
        self._put(record)
        self._pool.submit(worker, task)

    def _handle(self, event: Event) -> None:
        worker = event.worker
        match event:
            case Started(_, place):
                self._starting.discard(worker)
                self._places[worker] = place
                self._failed_starts.pop(worker, None)
                self._idle_since[worker] = time.monotonic()
            case Refused(_, reason):
                self._starting.discard(worker)
                for record in self._waiting()[:1]:
                    self._end(record, "failed", reason)
            case Reported(_, update):
                self._note(self._records[self._running[worker]], update)
            case Ended(_, outcome):
                self._idle_since[worker] = time.monotonic()
                record = self._records[self._running.pop(worker)]
                notes = list(dict.fromkeys([*record.notes, *outcome.notes]))[-MAX_NOTES:]
                record = record.model_copy(update={"notes": notes})
                if outcome.trace:
                    log.error("job %s: %s", record.id, outcome.trace)
                self._end(record, "done" if outcome.reason is None else "failed", outcome.reason)
                if outcome.suspect or record.stopping:
                    self._places.pop(worker, None)
                    self._interrupt(worker)
            case Died(_, reason):
                self._handle_death(worker, reason)

    def _handle_death(self, worker: int, reason: str) -> None:
        self._places.pop(worker, None)
        self._deadlines.pop(worker, None)
        if worker in self._starting:
            self._starting.discard(worker)
            self._failed_starts[worker] = self._failed_starts.get(worker, 0) + 1
            if self._failed_starts[worker] >= MAX_FAILED_STARTS:
                del self._failed_starts[worker]
                for record in self._waiting()[:1]:
                    self._end(record, "failed", reason)
        job = self._running.pop(worker, None)
        if job is None:
            return
        record = self._records[job]
        if record.run and run_folder_state(self._library / record.run) == "done":
            self._end(record, "done", None)
        elif record.stopping:
            self._end(record, "stopped", "stopped by you")
        else:
            self._retry(record, reason)

    def _note(self, record: JobRecord, update: Any) -> None:
        """Take what a worker reports: a line of the log, or a step."""
        if isinstance(update, Note):
            if update.is_plan:
                self._plans[record.id] = [*self._plans.get(record.id, []), update.text][-MAX_NOTES:]
                return
            if update.text in record.notes:
                return
            self._put(record.model_copy(update={"notes": [*record.notes, update.text][-MAX_NOTES:]}))
            return
        if update["done"] is None:  # of a scene, whose loops are of many kinds
            update["done"] = self._scene_share(record)
        self.progress[record.id] = update
        if record.state == "loading":
            self._put(record.model_copy(update={"state": "running"}))
        else:
            self._on_change(record.id, record)

    def _scene_share(self, record: JobRecord) -> float:
        assert record.run is not None
        with suppress(UserError):
            state = read_run_state(self._library / record.run)
            return round(0.99 * state.done / max(1, state.total), 4)
        return 0.0

    def _interrupt(self, worker: int) -> None:
        self._deadlines[worker] = time.monotonic() + GRACE
        self._pool.interrupt(worker)

    def _mind_time(self) -> None:
        """Kill workers that were told to end and have not, and end those that have had no job for long."""
        now = time.monotonic()
        with self._lock:
            for id in list(self._unwritten):
                self._put(self._records[id])
        for worker, deadline in self._deadlines.items():
            if now > deadline:
                self._pool.interrupt(worker, kill=True)
        for worker in [one for one in self._places if one not in self._running and one not in self._deadlines]:
            if now - self._idle_since[worker] > IDLE_SECONDS:
                self._places.pop(worker)
                self._interrupt(worker)
