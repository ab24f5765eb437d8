"""Dry run of a batch: the estimates of its tasks, one after the other, and their sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2edit.batch.state import run_folder_state
from v2edit.batch.tasks import BatchTask
from v2edit.batch.worker import WorkerSetup
from v2edit.errors import UserError
from v2edit.jobs.estimate import Estimate, format_bytes, format_duration, format_flops


@dataclass(frozen=True)
class BatchEstimate:
    """What the tasks of a batch would do and take, by name: their estimates, or why a task would fail; and the number
    of those that are done."""

    estimates: dict[str, Estimate]
    refusals: dict[str, str]
    done: int

    @property
    def total_seconds(self) -> float:
        """Seconds of all tasks, one at a time."""
        return sum(one.total_seconds for one in self.estimates.values())

    @property
    def figures(self) -> dict[str, Any]:
        """The estimates for programs, in bytes and seconds."""
        tasks = {name: one.figures for name, one in self.estimates.items()}
        return {"tasks": tasks, "refusals": self.refusals, "done": self.done, "total_seconds": self.total_seconds}

    @property
    def text(self) -> str:
        """The estimates for people."""
        lines = [f"{name}: {one.summary}" for name, one in self.estimates.items()]
        lines += [f"{name}: would fail: {reason}" for name, reason in self.refusals.items()]
        if not self.estimates:
            return "\n".join([*lines, f"nothing to do; {self.done} tasks are done"])
        ones = list(self.estimates.values())
        peak, flops = max(one.peak for one in ones), sum(one.flops for one in ones)
        methods = Counter(one.method for one in ones)
        lines += [
            f"tasks   {len(ones)} to do, {self.done} done, {len(self.refusals)} that would fail",
            f"compute {format_flops(flops)}",
            f"memory  about {format_bytes(peak)} at the peak of a worker",
            f"time    about {format_duration(self.total_seconds)}, one task at a time",
            *(f"        {method}" for method in methods),
        ]
        return "\n".join(lines)


def estimate_tasks(
    setup: WorkerSetup,
    tasks: Sequence[BatchTask],
    folder: Path,
    timed: bool,
    on_progress: Callable[[int, int, str], None],
) -> BatchEstimate:
    """Estimate the tasks that are not done in the batch's `folder`; nothing is written. `on_progress` is called with
    the tasks that are estimated, of how many, and the latest one's name."""
    waiting = [task for task in tasks if run_folder_state(folder / task.name) != "done"]
    estimates, refusals = {}, {}
    for number, task in enumerate(waiting, start=1):
        try:
            estimates[task.name] = setup.job(task).estimate(timed)
        except (UserError, OSError) as error:
            refusals[task.name] = str(error)
        on_progress(number, len(waiting), task.name)
    return BatchEstimate(estimates, refusals, len(tasks) - len(waiting))
