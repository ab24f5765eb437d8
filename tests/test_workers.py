"""The pool of worker processes: jobs, deaths and ends, with workers that load nothing."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import Pipe

import pytest

from v2edit.errors import UserError
from v2edit.workers import Died, Ended, ProcessPool, Refused, Reported, Started, WorkerDied


class Echo:
    """Returns each job, but for one that kills the worker and one that makes an error."""

    def __init__(self, refuses: bool = False) -> None:
        self.refuses = refuses

    def load(self) -> tuple[str | None, str]:
        return (None, "no model") if self.refuses else ("here", "")

    def run(self, job: object) -> object:
        if job == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if job == "threads":
            return os.environ.get("OMP_NUM_THREADS")
        return ValueError("no such job") if job == "error" else job


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    pool = ProcessPool([Echo, Echo])
    yield pool
    pool.stop()


def test_a_worker_that_is_killed_is_reported_and_can_be_started_again(pool):
    pool.start(1)
    assert pool.wait() == [Started(1, "here")]
    pool.submit(1, "job")
    assert pool.wait() == [Ended(1, "job")]
    pool.submit(1, "die")
    (event,) = pool.wait()
    assert isinstance(event, Died) and event.worker == 1 and "SIGKILL" in event.reason
    pool.start(1)
    assert pool.wait() == [Started(1, "here")]


def test_all_jobs_are_done_with_those_that_come_meanwhile(pool):
    jobs = deque(range(5))
    done = []
    for job, outcome in pool.imap_unordered(jobs):
        assert outcome == job
        done.append(job)
        if job == 4:
            jobs.extend([5, 6])
    assert sorted(done) == list(range(7))


def test_errors_and_deaths_end_the_work(pool):
    with pytest.raises(ValueError, match="no such job"):
        list(pool.imap_unordered(deque(["error"])))
    with pytest.raises(WorkerDied):
        list(pool.imap_unordered(deque(["job", "die"])))


def test_a_worker_that_cannot_load_refuses():
    pool = ProcessPool([partial(Echo, refuses=True)])
    pool.start(0)
    assert pool.wait() == [Refused(0, "no model")]
    with pytest.raises(UserError, match="no model"):
        list(pool.imap_unordered(deque(["job"])))


def test_threads_are_set_where_the_user_has_not(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    pool = ProcessPool([Echo], threads=3)
    assert list(pool.imap_unordered(deque(["threads"]))) == [("threads", "3")]
    pool.stop()


@pytest.mark.parametrize("kill", [False, True])
def test_a_worker_that_is_interrupted_dies_without_being_waited_for(pool, kill):
    pool.start(0)
    assert pool.wait() == [Started(0, "here")]
    pool.interrupt(0, kill)
    pool.interrupt(1)  # which has no process
    (event,) = pool.wait()
    assert isinstance(event, Died) and event.worker == 0


def test_waiting_ends_with_time_and_with_other_connections():
    reader, writer = Pipe(duplex=False)
    pool = ProcessPool([Echo])
    assert pool.wait(0.0) == []
    writer.send_bytes(b"x")
    assert pool.wait(None, [reader]) == [] and reader.recv_bytes() == b"x"


class Reporting(Echo):
    """An echo that tells of each job before it returns it."""

    def connect(self, report: Callable[[object], None]) -> None:
        self.report = report

    def run(self, job: object) -> object:
        self.report(f"doing {job}")
        return job


def test_a_worker_reports_while_it_works():
    pool = ProcessPool([Reporting])
    pool.start(0)
    assert pool.wait() == [Started(0, "here")]
    pool.submit(0, "job")
    assert [*pool.wait(), *pool.wait()] == [Reported(0, "doing job"), Ended(0, "job")]
    pool.stop()
