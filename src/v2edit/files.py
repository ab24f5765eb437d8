"""Files: bounded JSON from outside, atomic writes, and locks on the folders that one process works in at a time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from v2edit.errors import UserError

PATIENCE = 1.0  # seconds: whoever only looks whether a folder is claimed holds its lock for a moment


@contextmanager
def claimed(folder: Path, lock: str, what: str) -> Iterator[None]:
    """A folder, made if need be, for this process alone; the system lets go of it however the process ends.

    lock: the file in it, by its path there, that says whose kind it is.
    what: what such a folder holds, in one word for messages.

    Raises `UserError` where another process works in it, or where something else lies.
    """
    path = folder / lock
    if folder.exists() and not path.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and holds no {what}; choose another -o")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another -o") from error
    with file:
        try:
            free = flocked(file, exclusive=True, patience=PATIENCE)
        except OSError as error:
            raise UserError(f"cannot lock {path}: {error.strerror}; choose another -o") from error
        if not free:
            raise UserError(f"another {what} is running in {folder}; wait for it or choose another -o")
        yield


def in_use(folder: Path, lock: str) -> bool:
    """Whether a process has claimed a folder that was claimed before."""
    with (folder / lock).open() as file:
        return not flocked(file, exclusive=False)


def flocked(file: IO[str], exclusive: bool, patience: float = 0.0) -> bool:
    """Takes a lock that goes with the open file, and so with its process; False where another process holds it for
    more than `patience` seconds. Raises `OSError` where the file system has no locks, `ImportError` on Windows."""
    import fcntl

    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
        time.sleep(0.01)


def atomic_write(path: Path, content: bytes) -> None:
    """Writes a file that is there whole or as it was before, whatever happens, a loss of power too."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Has the disk itself take a file, or the names in a folder. (Windows opens no folder.)"""
    with suppress(PermissionError, IsADirectoryError):
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


# --- JSON from outside ----------------------------------------------------------------------------

LARGEST = 16 * 2**20  # bytes; Python's objects take up to sixty times as much as their text


def read_json(path: Path) -> Any:
    """What a JSON file holds; a mark at its front is passed over.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, in one line: too large, too deep, no UTF-8, a key twice in an object.
    """
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{size:,} bytes are more than the {LARGEST:,} that such a file may have")
    return parse_json(path.read_text(encoding="utf-8-sig"))


def parse_json(text: str) -> Any:
    """What a JSON text says. Raises `ValueError`, in one line, where it is none, too deep, or has a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    facts = dict(pairs)
    if len(facts) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in facts if names.count(name) > 1)
        raise ValueError(f"it has {twice!r:.60} twice in one object")
    return facts


def names_file(path: Path) -> bool:
    """Whether there is a file at a path that a document gives, which may be longer than any that a disk takes."""
    try:
        return path.is_file()
    except OSError:
        return False
