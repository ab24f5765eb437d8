"""Workers that are actors of Ray: on a cluster, or on this machine."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import sys
import threading
from contextlib import ExitStack, redirect_stdout
from typing import Any

from v2edit.batch.worker import Job, Setup, Worker
from v2edit.errors import UserError
from v2edit.host import available_cores
from v2edit.workers import Died, Ended, Event, Refused, Started

LOCAL = "local"
STORE = 100 * 2**20  # bytes of a local instance's object store: nothing large goes through it
GRACE = 20.0  # seconds for killed actors to be gone
MOMENT = 1.0  # seconds after which waiting looks whether it was interrupted


class Actors:
    """An actor for each GPU of the cluster or, where there is none, for each machine; each on a device of its own."""

    def __init__(self, setup: Setup, address: str, device: str, count: int | None) -> None:
        """Connects to a cluster ("auto": the one that this machine belongs to), or starts Ray here ("local").

        count: how many workers, if not one for each device.

        Raises `UserError` where Ray is not installed, there is no cluster, or it has no such device.
        """
        self._ray = _ray()
        if self._ray.is_initialized():
            raise UserError("this process uses Ray already; call ray.shutdown() first")
        self._setup = setup
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, tuple[int, bool]] = {}  # what was asked of which worker, and whether it was to load
        # Ray prints what happens to its workers; that is not what this process has to say in the end.
        self._aside = ExitStack()
        self._aside.enter_context(redirect_stdout(sys.stderr))
        try:
            _connect(self._ray, address, count)
            self.count, self._device, self._share = self._plan(device, count)
        except BaseException:
            self.stop()
            raise

    def _plan(self, device: str, count: int | None) -> tuple[int, str, dict[str, float]]:
        """How many workers, on what device, and the share of a machine that each one has."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = sum(int(one.get("GPU", 0)) for one in machines)
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device is {device!r}, and Ray chooses devices itself: expected auto, cuda or cpu")
        if device == "cuda" and not gpus:
            raise UserError("--device is cuda, and the Ray cluster has no GPU; its machines tell it with --num-gpus")
        kind = "GPU" if gpus and device != "cpu" else "CPU"
        able = [one for one in machines if one.get(kind, 0) >= 1]
        if not able:
            raise UserError("no machine of the Ray cluster has a CPU to work on; they tell it with --num-cpus")
        if kind == "GPU":
            count = count or gpus
            cpus = min(one.get("CPU", 0) // one["GPU"] for one in able)
            return count, "cuda", {"num_gpus": 1, "num_cpus": cpus if cpus >= 1 else 0}
        count = count or len(able)
        cpus = min(one["CPU"] for one in able) // math.ceil(count / len(able))
        return count, "cpu", {"num_gpus": 0, "num_cpus": max(1, cpus)}

    def start(self, worker: int) -> None:
        self._forget(worker)
        # A dead one is replaced, not restarted: what it was at counts as tried, and it loads before it is given work.
        kind = self._ray.remote(max_restarts=0, max_task_retries=0, **self._share)(Worker)
        self._actors[worker] = actor = kind.remote(self._setup, self._device)
        self._pending[actor.load.remote()] = worker, True

    def submit(self, worker: int, job: Job) -> None:
        self._pending[self._actors[worker].run.remote(job)] = worker, False

    def wait(self) -> list[Event]:
        ready: list[Any] = []
        while not ready:
            ready, _ = self._ray.wait(list(self._pending), timeout=MOMENT)
        return [self._heard(one) for one in ready]

    def _heard(self, answer: Any) -> Event:
        worker, loading = self._pending.pop(answer)
        try:
            found = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            self._forget(worker)
            return Died(worker, _cause(error))
        if not loading:
            return Ended(worker, found)
        place, reason = found
        if place is not None:
            return Started(worker, place)
        self._forget(worker)
        return Refused(worker, reason)

    def _forget(self, worker: int) -> None:
        if (actor := self._actors.pop(worker, None)) is not None:
            self._ray.kill(actor)
        self._pending = {answer: whose for answer, whose in self._pending.items() if whose[0] != worker}

    def stop(self) -> None:
        asked = list(self._pending)
        for worker in list(self._actors):
            self._forget(worker)
        if asked:  # Being killed is answered, too.
            self._ray.wait(asked, num_returns=len(asked), timeout=GRACE)
        self._ray.shutdown()
        self._aside.close()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of an instance that is started here; a cluster has its own
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs Ray: pip install 'v2edit[batch]'") from error
    return ray


def _connect(ray: Any, address: str, count: int | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options |= {
            "num_cpus": max(available_cores(), count or 1),
            "include_dashboard": False,
            "object_store_memory": STORE,
        }
    ended = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, **options)
        if threading.current_thread() is threading.main_thread():
            signal.signal(
                signal.SIGTERM, ended
            )  # Ray exits at once; whoever called this may have something to clean up.
    except Exception as error:  # of many kinds
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"cannot use Ray at {address!r}: {first:.300}") from error


def _cause(error: BaseException) -> str:
    """Why an actor is gone, in one line out of Ray's many."""
    text = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError":
        return "its worker process was ended by Ray for want of memory on its machine"
    if "End of file" in text:  # All that is left of it is a connection that it does not answer.
        return "its worker process was killed or crashed: for want of memory, perhaps"
    told = re.search(r"Worker exit detail: (.*?)(?: Some common causes|$)", text)
    return f"its worker process ended: {told[1] if told else text:.300}"
