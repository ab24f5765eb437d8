"""Folders that one process works in at a time, and files that are there whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from v2edit.errors import UserError

PATIENCE = 1.0  # seconds: whoever only looks whether a folder is claimed holds its lock for a moment


@contextmanager
def claimed(folder: Path, lock: str, what: str) -> Iterator[None]:
    """A folder, made if need be, for this process alone; the system lets go of it however the process ends.

    lock: the file in it, by its path there, that says whose kind it is.
    what: what such a folder holds, in one word for messages.

    Raises `UserError` where another process works in it, or where something else lies.
    """
    import fcntl

    path = folder / lock
    if folder.exists() and not path.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and holds no {what}; choose another -o")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another -o") from error
    with file:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    message = f"another {what} is running in {folder}; wait for it or choose another -o"
                    raise UserError(message) from error
            except OSError as error:
                raise UserError(f"cannot lock {path}: {error.strerror}; choose another -o") from error
            time.sleep(PATIENCE / 10)
        yield


def in_use(folder: Path, lock: str) -> bool:
    """Whether a process has claimed a folder that was claimed before."""
    import fcntl

    with (folder / lock).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def write_whole(path: Path, content: bytes) -> None:
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
