"""A pool of workers that are actors of Ray, on a cluster or on this machine."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from typing import Any

from v2edit.errors import UserError, first_line
from v2edit.host import available_cores
from v2edit.workers import Died, Ended, Event, Executor, Refused, Started, Worker

LOCAL = "local"
OBJECT_STORE_BYTES = 100 * 2**20  # of a local instance: nothing large goes through it
GRACE = 20.0  # seconds for killed actors to be gone
POLL_INTERVAL = 1.0  # seconds between two looks for an interrupt while waiting
CONNECT_TIMEOUT = 10.0  # seconds for a cluster's machine to answer


class RayPool(Executor):
    """A `WorkerPool` of one actor for each GPU of the cluster or, without GPUs, one for each machine. `device` is the
    device of all of them, cuda or cpu."""

    def __init__(self, factory: Callable[[str], Worker], address: str, device: str, count: int | None) -> None:
        """Connect to a cluster ("auto": the one that this machine belongs to), or start Ray here ("local"). `factory`
        makes a worker of its device, in the actor's process; `count` is the number of workers, if not one for each
        device. Raises `UserError` where Ray is not installed, there is no cluster, or it has no such device."""
        self._ray = _import_ray()
        if self._ray.is_initialized():
            raise UserError("this process uses Ray already; call ray.shutdown() first")
        self._factory = factory
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, tuple[int, bool]] = {}  # of each call that runs: its worker, and whether it loads
        # Ray prints what happens to its workers, and stdout is for this process's results.
        self._redirection = ExitStack()
        self._redirection.enter_context(redirect_stdout(sys.stderr))
        try:
            _connect(self._ray, address, count)
            self.count, self.device, self._resources = self._allocate(device, count)
        except BaseException:
            self.stop()
            raise

    def _allocate(self, device: str, count: int | None) -> tuple[int, str, dict[str, float]]:
        """Return the number of workers, their device, and the resources of each."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device is {device!r}, and Ray chooses devices itself: expected auto, cuda or cpu")
        if device == "cuda" and not gpus:
            raise UserError("--device is cuda, and the Ray cluster has no GPU; its machines tell it with --num-gpus")
        kind = "GPU" if gpus and device != "cpu" else "CPU"
        able = [machine for machine in machines if machine.get(kind, 0) >= 1]
        if not able:
            raise UserError("no machine of the Ray cluster has a CPU to work on; they tell it with --num-cpus")
        if kind == "GPU":
            count = count or gpus
            cpus = min(machine.get("CPU", 0) // machine["GPU"] for machine in able)
            return count, "cuda", {"num_gpus": 1, "num_cpus": cpus if cpus >= 1 else 0}
        count = count or len(able)
        cpus = min(machine["CPU"] for machine in able) // math.ceil(count / len(able))
        return count, "cpu", {"num_gpus": 0, "num_cpus": max(1, cpus)}

    def start(self, worker: int) -> None:
        self._kill(worker)
        # Ray itself must restart none: an attempt that ended with its actor counts, and an actor loads before it works.
        actor_class = self._ray.remote(max_restarts=0, max_task_retries=0, **self._resources)(_Actor)
        self._actors[worker] = actor = actor_class.remote(self._factory, self.device)
        self._pending[actor.load.remote()] = worker, True

    def is_started(self, worker: int) -> bool:
        return worker in self._actors

    def submit(self, worker: int, job: Any) -> None:
        self._pending[self._actors[worker].run.remote(job)] = worker, False

    def wait(self) -> list[Event]:
        ready: list[Any] = []
        while not ready:
            ready, _ = self._ray.wait(list(self._pending), timeout=POLL_INTERVAL)
        return [self._receive(call) for call in ready]

    def _receive(self, call: Any) -> Event:
        worker, is_loading = self._pending.pop(call)
        try:
            result = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            self._kill(worker)
            return Died(worker, _cause(error))
        if not is_loading:
            return Ended(worker, result)
        place, reason = result
        if place is not None:
            return Started(worker, place)
        self._kill(worker)
        return Refused(worker, reason)

    def _kill(self, worker: int) -> None:
        if (actor := self._actors.pop(worker, None)) is not None:
            self._ray.kill(actor)
        self._pending = {call: entry for call, entry in self._pending.items() if entry[0] != worker}

    def stop(self) -> None:
        calls = list(self._pending)
        for worker in list(self._actors):
            self._kill(worker)
        if calls:  # They end when their actors are gone.
            self._ray.wait(calls, num_returns=len(calls), timeout=GRACE)
        self._ray.shutdown()
        self._redirection.close()


class _Actor:
    """The worker in an actor's process."""

    def __init__(self, factory: Callable[[str], Worker], device: str) -> None:
        self.worker = factory(device)

    def load(self) -> tuple[str | None, str]:
        return self.worker.load()

    def run(self, job: Any) -> Any:
        return self.worker.run(job)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of an instance that is started here; a cluster has its own
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs Ray: pip install 'v2edit[batch]'") from error
    return ray


def _connect(ray: Any, address: str, count: int | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options |= {"num_cpus": max(available_cores(), count or 1), "include_dashboard": False}
        options["object_store_memory"] = OBJECT_STORE_BYTES
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if match := re.fullmatch(r"(?:ray://)?([^/]+):(\d+)", address):
            # Where nothing listens, Ray itself tries for minutes, and then it may end the process.
            socket.create_connection((match[1], int(match[2])), CONNECT_TIMEOUT).close()
        ray.init(address=address, **options)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own exits at once, without cleaning up.
    except Exception as error:  # of many kinds
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"cannot use Ray at {address!r}: {reason:.300}") from error


def _cause(error: BaseException) -> str:
    """Return why an actor is gone, in one line out of Ray's many."""
    text = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError":
        return "its worker process was ended by Ray for want of memory on its machine"
    if "End of file" in text:  # All that is left of it is a connection that it does not answer.
        return "its worker process was killed or crashed: for want of memory, perhaps"
    detail = re.search(r"Worker exit detail: (.*?)(?: Some common causes|$)", text)
    return f"its worker process ended: {detail[1] if detail else text:.300}"
