"""Titles, notes and stars of runs, and the trash, from which a run can be restored."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from v2edit.errors import UserError
from v2edit.files import atomic_write, read_json
from v2edit.runs import unique_path, utc_now
from v2edit.runs.lock import is_state_locked
from v2edit.runs.naming import STATE_DIR
from v2edit.studio.records import make_id

MAX_NAME = 200  # bytes of a file's name, beside what is added to it


class Note(BaseModel, frozen=True):
    """What a user has said of a run."""

    title: str | None = None
    note: str = ""
    starred: bool = False


class Notes:
    """The notes of a library, a file a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._notes: dict[str, Note] = {}
        self._lock = threading.Lock()
        for path in folder.glob("*.json"):
            with suppress(OSError, ValueError, ValidationError, KeyError, TypeError):
                facts = read_json(path)
                self._notes[facts.pop("name")] = Note.model_validate(facts)

    def get(self, name: str) -> Note:
        return self._notes.get(name, Note())

    def change(self, name: str, **changes: Any) -> None:
        """Change some of the note of a run that there is; changes at the same time are all kept."""
        with self._lock:
            self.set(name, self.get(name).model_copy(update=changes))

    def set(self, name: str, note: Note) -> None:
        """Set the note of a run that there is."""
        path = self._path(name)
        if note == Note():
            path.unlink(missing_ok=True)
            self._notes.pop(name, None)
            return
        text = json.dumps({"name": name, **note.model_dump()}, ensure_ascii=False)
        atomic_write(path, text.encode(errors="backslashreplace"))
        self._notes[name] = note

    def _path(self, name: str) -> Path:
        stem = name if len(os.fsencode(name)) <= MAX_NAME else hashlib.sha256(os.fsencode(name)).hexdigest()
        return self.folder / f"{stem}.json"


class Trash:
    """Runs that were deleted, each in a folder of an id, with its name and when it was deleted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def throw(self, run: Path) -> str:
        """Move a run to the trash and return its id there. Raises `UserError` where a process works on it."""
        if is_state_locked(run / STATE_DIR) or any(is_state_locked(one) for one in run.glob(f"*/{STATE_DIR}")):
            raise UserError(f"{run.name} is running: stop it first")
        id = make_id()
        place = self.folder / id
        place.mkdir()
        facts = {"name": run.name, "deleted": utc_now()}
        atomic_write(place / "trash.json", json.dumps(facts).encode(errors="backslashreplace"))
        try:
            run.rename(place / "run")
        except OSError as error:
            shutil.rmtree(place, ignore_errors=True)
            raise UserError(f"{run.name} cannot be moved to the trash: {error.strerror}") from error
        return id

    def list(self) -> list[dict[str, Any]]:
        """Return what is in the trash, latest first: id, name and when it was deleted."""
        found = []
        for path in self.folder.iterdir():
            with suppress(OSError, ValueError, KeyError, TypeError):
                facts = read_json(path / "trash.json")
                if (path / "run").is_dir():
                    found.append({"id": path.name, "name": facts["name"], "deleted": facts["deleted"]})
        return sorted(found, key=lambda one: one["deleted"], reverse=True)

    def restore(self, id: str, library: Path) -> str:
        """Move a run back, under another name where its own is taken, and return the name. Raises `KeyError` where it
        is not in the trash."""
        facts = next((one for one in self.list() if one["id"] == id), None)
        if facts is None:
            raise KeyError(id)
        target = unique_path(library / Path(facts["name"]).name)
        (self.folder / id / "run").rename(target)
        shutil.rmtree(self.folder / id, ignore_errors=True)
        return target.name

    def remove(self, id: str) -> None:
        """Remove a run from the trash for good. Raises `KeyError` where it is not there."""
        if not any(one["id"] == id for one in self.list()):
            raise KeyError(id)
        shutil.rmtree(self.folder / id, ignore_errors=True)
