"""The state of a batch: which tasks there are, which are running, and how the others ended (files: `batch.layout`)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from v2edit.batch.layout import ERRORS_DIR, LOCK, RESULTS, RUNNING_DIR, TASK_LIST
from v2edit.batch.tasks import BatchTask
from v2edit.errors import UserError
from v2edit.files import atomic_write, is_locked, parse_json, read_json
from v2edit.runs import read_run_state, utc_now, why_not_writable


class ListedTask(BaseModel, frozen=True):
    """A line of the list of tasks."""

    name: str
    about: str
    facts: dict[str, Any]


class RunningTask(BaseModel, frozen=True):
    """A task that a worker has."""

    name: str
    attempt: int
    worker: str
    since: str
    facts: dict[str, Any]


class TaskResult(BaseModel, frozen=True):
    """A line of results.jsonl: a task that is done, or failed and was set aside."""

    name: str
    state: Literal["done", "failed"]
    reason: str | None = None  # of the last failure
    attempts: int = 1
    earlier: list[str] = []  # the reasons of the failures before it
    notes: list[str] = []  # the edit's log messages, such as what a video was taken to show
    seconds: float | None = None  # of the last attempt; None where an earlier batch had made the run
    worker: str | None = None
    finished: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class BatchStatus:
    """Progress of a batch: `results` of the listed tasks that ended, and whether a process is `active` on it."""

    folder: Path
    active: bool
    tasks: list[ListedTask]
    results: dict[str, TaskResult]
    running: list[RunningTask]

    @property
    def done(self) -> list[TaskResult]:
        return [result for result in self.results.values() if result.state == "done"]

    @property
    def failed(self) -> list[TaskResult]:
        return [result for result in self.results.values() if result.state == "failed"]

    @property
    def waiting(self) -> int:
        return len(self.tasks) - len(self.results) - len(self.running)


def read_status(folder: Path) -> BatchStatus:
    """Read the progress of a batch, running or not. Raises `UserError` for a folder that holds none."""
    if not (folder / TASK_LIST).is_file():
        raise UserError(f"{folder} holds no batch: give the folder that v2edit batch was given as -o")
    active = is_locked(folder, LOCK)
    running = _read_running(folder) if active else []
    tasks = _read_records(folder / TASK_LIST, ListedTask)
    names = {task.name for task in tasks}
    results = {name: result for name, result in _read_results(folder).items() if name in names}
    return BatchStatus(folder, active, tasks, results, [task for task in running if task.name not in results])


def run_folder_state(folder: Path) -> Literal["absent", "unfinished", "done", "other"]:
    """Return whether a run folder is absent (or empty), a run that is unfinished or done, or something else."""
    if not folder.is_symlink():
        with suppress(UserError):
            return "done" if read_run_state(folder).state == "done" else "unfinished"
    return "other" if why_not_writable(folder) else "absent"


class BatchState:
    """The state of a batch, for the process that holds the folder's lock: results in memory and on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = _read_results(folder)
        self.facts: dict[str, dict[str, Any]] = {}

    def select_tasks(
        self, tasks: Sequence[BatchTask], facts_of: Callable[[BatchTask], dict[str, Any]], retry_failed: bool
    ) -> list[BatchTask]:
        """Write the list of tasks, and return those to run: neither done nor, unless `retry_failed`, set aside.
        `facts_of` returns all that decides a task's result, as plain data. Raises `UserError` where a task's folder
        holds something else."""
        self.facts = {task.name: json.loads(json.dumps(facts_of(task))) for task in tasks}  # as read from a file
        interrupted = {task.name: task for task in _read_running(self.folder)}
        selected = []
        for task in tasks:
            facts = self.facts[task.name]
            folder, result = self.folder / task.name, self.results.get(task.name)
            state = run_folder_state(folder)
            if state == "done":
                if result is not None and result.state == "done":
                    self._require_same_facts(task, result.facts, facts)
                elif task.name in interrupted and not _changed_facts(interrupted[task.name].facts, facts):
                    # The run was done, and the batch ended before it could record that.
                    self.results[task.name] = TaskResult(name=task.name, state="done", finished=utc_now(), facts=facts)
                else:
                    raise UserError(_foreign_folder(task, folder))
                continue
            if state == "unfinished":
                record = interrupted.get(task.name) or result
                if record is None:
                    raise UserError(_foreign_folder(task, folder))
                if _changed_facts(record.facts, facts):
                    shutil.rmtree(folder)  # Nothing of it can be resumed.
            elif state == "other":
                raise UserError(_foreign_folder(task, folder))
            if result is None or result.state == "done" or retry_failed or _changed_facts(result.facts, facts):
                self.results.pop(task.name, None)
                selected.append(task)
        self._write_task_list(tasks)
        atomic_write(self.folder / RESULTS, b"".join(map(_to_line, self.results.values())))
        for name in interrupted:
            self._running_file(name).unlink(missing_ok=True)
        return selected

    def record_start(self, name: str, attempt: int, worker: str) -> None:
        """Record that a worker has a task."""
        task = RunningTask(name=name, attempt=attempt, worker=worker, since=utc_now(), facts=self.facts[name])
        atomic_write(self._running_file(name), task.model_dump_json().encode())

    def record_end(self, name: str, result: TaskResult | None, trace: str | None = None) -> None:
        """Record the end of an attempt, with the traceback of its error, and the task's result if it was the last."""
        path = self.folder / ERRORS_DIR / f"{name}.txt"
        if trace:
            path.parent.mkdir(exist_ok=True)
            atomic_write(path, trace.encode(errors="replace"))
        elif result is not None and result.state == "done":
            path.unlink(missing_ok=True)
        if result is not None:
            self.results[name] = result
            with (self.folder / RESULTS).open("ab") as file:
                file.write(_to_line(result))
                file.flush()
                os.fsync(file.fileno())
        self._running_file(name).unlink(missing_ok=True)

    def _running_file(self, name: str) -> Path:
        return self.folder / RUNNING_DIR / f"{name}.json"

    def _write_task_list(self, tasks: Sequence[BatchTask]) -> None:
        (self.folder / RUNNING_DIR).mkdir(parents=True, exist_ok=True)
        records = [{"name": task.name, "about": task.about, "facts": self.facts[task.name]} for task in tasks]
        atomic_write(self.folder / TASK_LIST, "\n".join(map(json.dumps, records)).encode() + b"\n")

    def _require_same_facts(self, task: BatchTask, before: dict[str, Any], after: dict[str, Any]) -> None:
        if changed := _changed_facts(before, after):
            field = changed[0]
            raise UserError(
                f'line {task.line}: {task.name!r} is done, with another "{field}" ({before[field]!r:.60}, now '
                f"{after[field]!r:.60}); another name, another -o, or removing {self.folder / task.name} helps"
            )


def _to_line(record: BaseModel) -> bytes:
    return record.model_dump_json().encode() + b"\n"


def _changed_facts(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of facts that differ, of those in both: another version may have others."""
    return [name for name in after if name in before and before[name] != after[name]]


def _foreign_folder(task: BatchTask, folder: Path) -> str:
    problem = f"{folder} is there and is no run of this batch"
    return f"line {task.line}: {problem}; give the task another name, or move it away"


def _read_results(folder: Path) -> dict[str, TaskResult]:
    """Read the latest result of each task."""
    path = folder / RESULTS
    return {result.name: result for result in _read_records(path, TaskResult)} if path.exists() else {}


def _read_records(path: Path, kind: Any) -> list[Any]:
    """Read a record from each line of a file; a last line without an end was cut when its writer was killed."""
    records = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                records.append(kind.model_validate(parse_json(line.decode())))
            except (ValueError, ValidationError) as error:
                raise UserError(f"{path}, line {number} is damaged; remove that line") from error
    return records


def _read_running(folder: Path) -> list[RunningTask]:
    running = []
    for path in sorted((folder / RUNNING_DIR).glob("*.json")):
        try:
            running.append(RunningTask.model_validate(read_json(path)))
        except FileNotFoundError:
            continue  # It has just ended.
        except (ValueError, ValidationError) as error:
            raise UserError(f"{path} is damaged; remove it") from error
    return running
