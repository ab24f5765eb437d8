"""The records of jobs on disk: what a run folder cannot say, above all of jobs whose run has not begun."""

from __future__ import annotations

import logging
import secrets
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from v2edit.errors import UserError
from v2edit.files import atomic_write, read_json
from v2edit.studio.settings import ID

log = logging.getLogger(__name__)
ALPHABET = string.ascii_lowercase + string.digits
JobState = Literal["queued", "loading", "running", "stopped", "failed", "done"]
ACTIVE = ("loading", "running")


def make_id() -> str:
    """Return an id that cannot be guessed."""
    return "".join(secrets.choice(ALPHABET) for _ in range(20))


class JobRecord(BaseModel, frozen=True):
    """A job: what it is to do, and how it stands. `steps` are those that its run had made when its latest attempt
    began: `attempts` counts those of one server that made none, `restarts` those that ended with their server."""

    id: str
    created: str
    order: float
    kind: Literal["edit", "scene"]
    title: str
    input: dict[str, Any]
    instruction: str | None = None
    options: dict[str, Any] = {}
    mask: str | None = None
    trim: list[float | None] | None = None
    run: str | None = None
    state: JobState = "queued"
    stopping: bool = False  # its worker has been told to end, since the user stopped it
    reason: str | None = None
    attempts: int = 0
    restarts: int = 0
    steps: int = 0
    started: str | None = None
    finished: str | None = None
    notes: list[str] = []

    @property
    def resumes(self) -> bool:
        """Whether it goes on with its input, a run that was begun elsewhere."""
        return bool(self.input.get("resume"))


def order_before(waiting: Sequence[JobRecord], before: str) -> tuple[float, list[JobRecord]]:
    """Return the order that comes right before a job of those that wait, and the jobs that have to make room for it,
    with their new ones. Raises `UserError` where that job does not wait."""
    place = next((k for k, one in enumerate(waiting) if one.id == before), None)
    if place is None:
        raise UserError("the job that it is to come before does not wait")
    upper = waiting[place].order
    lower = waiting[place - 1].order if place else upper - 2
    if lower < (order := (lower + upper) / 2) < upper:
        return order, []
    # No number lies between any more.
    later = [one.model_copy(update={"order": one.order + k}) for k, one in enumerate(waiting[place:], start=1)]
    return lower + 0.5, later


class JobRecords:
    """The records of a folder: a file for each job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self) -> list[JobRecord]:
        """Read all records, in the order of the queue; one that is damaged is left out, which is logged."""
        records = []
        for path in self.folder.glob("*.json"):
            try:
                record = JobRecord.model_validate(read_json(path))
                if record.id != path.stem or not ID.fullmatch(record.id):
                    raise ValueError("its id is another than its file's")
                records.append(record)
            except (OSError, ValueError, ValidationError) as error:
                log.warning("%s is no job and is left alone: %s", path, " ".join(str(error).split())[:200])
        return sorted(records, key=lambda record: (record.order, record.id))

    def write(self, record: JobRecord) -> None:
        """Write a record, whole or not at all. Raises `OSError` where the disk does not take it."""
        atomic_write(self.folder / f"{record.id}.json", record.model_dump_json(indent=1).encode())

    def remove(self, id: str) -> None:
        (self.folder / f"{id}.json").unlink(missing_ok=True)
