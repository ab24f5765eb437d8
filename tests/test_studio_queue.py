"""The queue of jobs without edits: its order, its records through any end, deaths of workers, and its bounds."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.processes import PreloadedPool
from support.videos import error_of

from v2edit.batch.worker import AttemptOutcome
from v2edit.studio.queue import MAX_ATTEMPTS, MAX_RESTARTS, JobQueue, QueueFull, UnknownJob
from v2edit.studio.records import JobRecord, JobRecords
from v2edit.workers import ProcessPool

BOUNDS = (1000, 1000)


@dataclass(frozen=True)
class Chore:
    """What the worker below takes for an edit: a run folder, and what is to happen."""

    out: Path
    what: str


class Chores:
    """A worker that makes no edits: it writes a line for each job that it is given, and ends as the job says."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def load(self) -> tuple[str | None, str]:
        return "here", ""

    def run(self, job: Chore) -> AttemptOutcome:
        with self.log.open("a") as file:
            file.write(f"{job.what}\n")
        if job.what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if job.what == "sleep":
            threading.Event().wait()
        return AttemptOutcome("as was asked" if job.what == "fail" else None, ["a note"], 0.0)


@contextmanager
def queue_in(folder: Path, count: int = 0, limits: tuple[int, int] = BOUNDS, seen: list[Any] | None = None):
    """A queue in a folder, with so many workers."""
    pool: ProcessPool = PreloadedPool([partial(Chores, folder / "log")] * count)

    def prepare(record: JobRecord) -> Any:
        out = folder / f"run-{record.id}"
        out.mkdir(exist_ok=True)
        return Chore(out, record.title)

    changes = seen if seen is not None else []
    on_change = lambda id, record: changes.append((id, record and record.state))  # noqa: E731
    queue = JobQueue(JobRecords(folder / "jobs"), pool, folder, prepare, on_change, limits)
    queue.start()
    try:
        yield queue
    finally:
        queue.close()


def add(queue: JobQueue, title: str = "job") -> str:
    return queue.submit(kind="edit", title=title, input={"upload": "x"}).id


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def titles(queue: JobQueue) -> list[str]:
    return [record.title for record in queue.all() if record.state == "queued"]


def test_two_hundred_jobs_keep_their_order_through_a_restart(tmp_path):
    with queue_in(tmp_path) as queue:
        ids = [add(queue, str(k)) for k in range(200)]
        queue.move(ids[150], ids[0])
        queue.move(ids[3], None)
        queue.cancel(ids[7])
        before = titles(queue)
    expected = [str(k) for k in (150, *range(200)) if k not in (3, 7)]
    expected.pop(expected.index("150", 1))
    assert before == [*expected, "3"]
    with queue_in(tmp_path) as queue:
        assert titles(queue) == before and queue.get(ids[7]).state == "stopped"
        assert queue.position(ids[150]) == 1 and queue.position(ids[3]) == 199 and queue.position(ids[7]) is None


def test_moving_before_one_job_again_and_again_keeps_an_order(tmp_path):
    with queue_in(tmp_path) as queue:
        ids = [add(queue, str(k)) for k in range(4)]
        for k in range(120):  # halves the gap each time
            queue.move(ids[k % 2], ids[2])
            place = [record.id for record in queue.all()]
            assert place.index(ids[k % 2]) == place.index(ids[2]) - 1 and place[-1] == ids[3]


def test_jobs_run_in_their_order_and_end_once(tmp_path):
    seen: list[Any] = []
    with queue_in(tmp_path, 1, seen=seen) as queue:
        ids = [add(queue, title) for title in ("one", "fail", "three")]
        wait(lambda: all(queue.get(id).finished for id in ids))
        assert [queue.get(id).state for id in ids] == ["done", "failed", "done"]
        assert queue.get(ids[1]).reason == "as was asked" and queue.get(ids[0]).notes == ["a note"]
    assert (tmp_path / "log").read_text().split() == ["one", "fail", "three"]
    assert [id for id, state in seen if state in ("done", "failed")] == ids
    assert not (tmp_path / f"run-{ids[1]}").exists()  # reserved, and nothing came of it


def test_a_job_whose_worker_dies_is_tried_so_often_and_no_more(tmp_path):
    with queue_in(tmp_path, 1) as queue:
        bad, good = add(queue, "die"), add(queue, "good")
        wait(lambda: queue.get(good).state == "done")
        assert queue.get(bad).state == "failed" and f"{MAX_ATTEMPTS} times" in str(queue.get(bad).reason)
    assert (tmp_path / "log").read_text().split() == ["die"] * MAX_ATTEMPTS + ["good"]


def test_a_job_that_is_stopped_frees_its_worker(tmp_path):
    with queue_in(tmp_path, 1) as queue:
        long, short = add(queue, "sleep"), add(queue, "short")
        wait(lambda: (tmp_path / "log").exists())
        assert queue.cancel(long).stopping and queue.cancel(long).stopping
        assert "running" in error_of(lambda: queue.remove(long)) or "loading" in error_of(lambda: queue.remove(long))
        wait(lambda: queue.get(short).state == "done")
        assert queue.get(long).state == "stopped" and not queue.get(long).stopping
        assert queue.resume(long).state == "queued"
        assert error_of(lambda: queue.resume(short)) and error_of(lambda: queue.move(short, None))


def test_what_a_server_left_is_put_right(tmp_path):
    records = JobRecords(tmp_path / "jobs")
    facts: dict[str, Any] = {"created": "2026-01-01T00:00:00+00:00", "kind": "edit", "title": "x", "input": {}}
    ids = [letter * 20 for letter in "abc"]
    changes: list[dict[str, Any]] = [{}, {"stopping": True}, {"restarts": MAX_RESTARTS - 1}]
    for k, (id, change) in enumerate(zip(ids, changes, strict=True)):
        records.write(JobRecord(id=id, order=k, state="running", run=f"run-{id}", **facts | change))
    (tmp_path / "jobs" / f"{'d' * 20}.json").write_text("{")
    (tmp_path / "jobs" / "e.json").write_text(records.read()[0].model_dump_json())
    with queue_in(tmp_path) as queue:
        assert [queue.get(id).state for id in ids] == ["queued", "stopped", "failed"]
        assert len(queue.all()) == 3
        with pytest.raises(UnknownJob):
            queue.get("d" * 20)


def test_the_queue_is_bounded(tmp_path):
    with queue_in(tmp_path, limits=(3, 1000)) as queue:
        ids = [add(queue) for _ in range(3)]
        with pytest.raises(QueueFull, match="waiting"):
            add(queue)
        queue.remove(ids[0])
        add(queue)
    with queue_in(tmp_path, limits=(1000, 2)) as queue:
        for _ in range(2):
            add(queue)
        with pytest.raises(QueueFull, match="minute"):
            add(queue)


def test_a_worker_that_cannot_start_fails_a_job_and_not_the_queue(tmp_path):
    class Pool(PreloadedPool):
        def start(self, worker: int) -> None:
            super().start(worker)
            process, _ = self._processes[worker]
            process.kill()

    queue = JobQueue(
        JobRecords(tmp_path / "jobs"), Pool([partial(Chores, tmp_path / "log")]), tmp_path,
        lambda record: pytest.fail("it has no worker"), lambda id, record: None, BOUNDS,
    )  # fmt: skip
    queue.start()
    try:
        id = add(queue)
        wait(lambda: queue.get(id).state == "failed")
        assert "SIGKILL" in str(queue.get(id).reason)
    finally:
        queue.close()
