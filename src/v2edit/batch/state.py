"""What a batch's folder says of it, so that it can be stopped anywhere and looked at from elsewhere.

    NAME/            a task's run folder
    results.jsonl    a line for each task that came to its end: done, or failed and set aside
    index.html       the summary
    errors/NAME.txt  where a task failed for no reason of the user's: the traceback
    .batch/          the lock, the tasks, and a file for each that is running

Only the process that holds the lock writes here, apart from the run folders.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from v2edit.errors import UserError
from v2edit.files import atomic_write, is_locked, parse_json, read_json
from v2edit.runs import read_run_state, why_not_writable

if TYPE_CHECKING:
    from v2edit.batch.tasks import Task

STATE = ".batch"
LOCK = f"{STATE}/lock"
LIST, RUNNING = f"{STATE}/tasks.jsonl", f"{STATE}/running"
RESULTS, PAGE, ERRORS = "results.jsonl", "index.html", "errors"
OWN_NAMES = (STATE, RESULTS, PAGE, ERRORS)
State = Literal["done", "failed"]


class Listed(BaseModel):
    """A task as the folder keeps it."""

    model_config = ConfigDict(frozen=True)

    name: str
    about: str
    facts: dict[str, Any]


class Running(BaseModel):
    """A task that a worker is at."""

    model_config = ConfigDict(frozen=True)

    name: str
    attempt: int
    worker: str
    since: str
    facts: dict[str, Any]


class Result(BaseModel):
    """A line of results.jsonl: a task that came to its end."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: State
    reason: str | None = None
    """Why it failed, the last time."""
    attempts: int = 1
    earlier: list[str] = []
    """Why earlier attempts failed."""
    notes: list[str] = []
    """What the edit had to say, such as what a video was taken to show."""
    seconds: float | None = None
    """How long the last attempt took; None where a run was found done."""
    worker: str | None = None
    finished: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Status:
    """How far a batch is: `results` of the listed tasks that came to their end, and whether it is `active`, at work."""

    folder: Path
    active: bool
    tasks: list[Listed]
    results: dict[str, Result]
    running: list[Running]

    @property
    def done(self) -> list[Result]:
        return [one for one in self.results.values() if one.state == "done"]

    @property
    def failed(self) -> list[Result]:
        return [one for one in self.results.values() if one.state == "failed"]

    @property
    def waiting(self) -> int:
        return len(self.tasks) - len(self.results) - len(self.running)


def state_of(folder: Path) -> Literal["absent", "unfinished", "done", "other"]:
    """What is at a run folder's place."""
    if not folder.is_symlink():
        with suppress(UserError):
            return "done" if read_run_state(folder).state == "done" else "unfinished"
    return "other" if why_not_writable(folder) else "absent"


class Ledger:
    """A batch's folder as the process that holds its lock keeps it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = _results(folder)
        self.places: dict[str, Running] = {}

    def plan(self, tasks: Sequence[Task], facts: Callable[[Task], dict[str, Any]], retry_failed: bool) -> list[Task]:
        """Notes the tasks, and says which are to be run: those that neither are done nor were set aside.

        facts: what makes a task's result.

        Raises `UserError` where a task's folder holds something else.
        """
        self.facts = {task.name: _plain(facts(task)) for task in tasks}
        left = {one.name: one for one in _running(self.folder)}
        todo = []
        for task in tasks:
            own = self.facts[task.name]
            out, known = self.folder / task.name, self.results.get(task.name)
            if (there := state_of(out)) == "done":
                if known is not None and known.state == "done":
                    self._require_same(task, known.facts, own)
                elif task.name in left and not _changed(left[task.name].facts, own):
                    # It came to its end, and the batch to its own before it could say so.
                    self.results[task.name] = Result(name=task.name, state="done", finished=now(), facts=own)
                else:
                    raise UserError(_in_the_way(task, out))
                continue
            if there == "unfinished":
                begun = left.get(task.name) or known
                if begun is None:
                    raise UserError(_in_the_way(task, out))
                if _changed(begun.facts, own):
                    shutil.rmtree(out)  # Nothing of it can be gone on with.
            elif there == "other":
                raise UserError(_in_the_way(task, out))
            if known is None or known.state == "done" or retry_failed or _changed(known.facts, own):
                self.results.pop(task.name, None)
                todo.append(task)
        self._write_list(tasks)
        self._write_results()
        for name in left:
            self._running_file(name).unlink(missing_ok=True)
        return todo

    def began(self, name: str, attempt: int, worker: str) -> None:
        one = Running(name=name, attempt=attempt, worker=worker, since=now(), facts=self.facts[name])
        atomic_write(self._running_file(name), one.model_dump_json().encode())

    def ended(self, name: str, result: Result | None, trace: str | None = None) -> None:
        """An attempt is over, and with it, where there is a result, the task."""
        path = self.folder / ERRORS / f"{name}.txt"
        if trace:
            path.parent.mkdir(exist_ok=True)
            atomic_write(path, trace.encode(errors="replace"))
        elif result is not None and result.state == "done":
            path.unlink(missing_ok=True)
        if result is not None:
            self.results[name] = result
            with (self.folder / RESULTS).open("ab") as file:
                file.write(result.model_dump_json().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        self._running_file(name).unlink(missing_ok=True)

    def _running_file(self, name: str) -> Path:
        return self.folder / RUNNING / f"{name}.json"

    def _write_list(self, tasks: Sequence[Task]) -> None:
        (self.folder / RUNNING).mkdir(parents=True, exist_ok=True)
        listed = [{"name": task.name, "about": task.about, "facts": self.facts[task.name]} for task in tasks]
        atomic_write(self.folder / LIST, "\n".join(json.dumps(one) for one in listed).encode() + b"\n")

    def _write_results(self) -> None:
        lines = (one.model_dump_json().encode() + b"\n" for one in self.results.values())
        atomic_write(self.folder / RESULTS, b"".join(lines))

    def _require_same(self, task: Task, before: dict[str, Any], now: dict[str, Any]) -> None:
        if changed := _changed(before, now):
            field = changed[0]
            raise UserError(
                f'line {task.line}: {task.name!r} is done, with another "{field}" ({before[field]!r:.60}, now '
                f"{now[field]!r:.60}); another name, another -o, or removing {self.folder / task.name} helps"
            )


def read_status(folder: Path) -> Status:
    """How far a batch is, at work or not. Raises `UserError` for a folder that holds none."""
    if not (folder / LIST).is_file():
        raise UserError(f"{folder} holds no batch: give the folder that v2edit batch was given as -o")
    active = is_locked(folder, LOCK)
    running = _running(folder) if active else []
    tasks = [one for one in _records(folder / LIST, Listed)]
    names = {task.name for task in tasks}
    results = {name: one for name, one in _results(folder).items() if name in names}
    return Status(folder, active, tasks, results, [one for one in running if one.name not in results])


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _results(folder: Path) -> dict[str, Result]:
    """The latest result of each task."""
    path = folder / RESULTS
    return {one.name: one for one in _records(path, Result)} if path.exists() else {}


def _records(path: Path, kind: Any) -> list[Any]:
    """What the lines of a file say; a last one without an end was being written when its writer was killed."""
    found = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                found.append(kind.model_validate(parse_json(line.decode())))
            except (ValueError, ValidationError) as error:
                raise UserError(f"{path}, line {number} is damaged; remove that line") from error
    return found


def _running(folder: Path) -> list[Running]:
    found = []
    for path in sorted((folder / RUNNING).glob("*.json")):
        try:
            found.append(Running.model_validate(read_json(path)))
        except FileNotFoundError:
            continue  # It has just come to its end.
        except (ValueError, ValidationError) as error:
            raise UserError(f"{path} is damaged; remove it") from error
    return found


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The facts that differ, of those that both know: another version may know others."""
    return [name for name in after if name in before and before[name] != after[name]]


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts as they come back from a file."""
    return json.loads(json.dumps(facts))


def _in_the_way(task: Task, out: Path) -> str:
    return f"line {task.line}: {out} is there and is no run of this batch; give the task another name, or move it away"
