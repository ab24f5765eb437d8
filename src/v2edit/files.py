"""Files: bounded JSON from outside, atomic writes, and locks on the folders that one process works in at a time."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from v2edit.errors import UserError

LOCK_TIMEOUT = 1.0  # seconds: a process that only looks whether a folder is locked holds its lock for a moment
MAX_JSON_BYTES = 16 * 2**20  # Python's objects take up to sixty times as much as their text


@contextmanager
def lock_folder(folder: Path, lock: str, kind: str) -> Iterator[None]:
    """Lock a folder for this process, creating it if need be; the system releases the lock however the process ends.
    `lock` is the lock file's path inside it, which also marks it as a folder of a `kind` (in one word, for messages).
    Raises `UserError` where another process works in it, it holds something else, or it cannot be written."""
    path = folder / lock
    if folder.exists() and not path.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and holds no {kind}; choose another -o")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another -o") from error
    with file:
        try:
            acquired = try_flock(file, exclusive=True, timeout=LOCK_TIMEOUT)
        except OSError as error:
            raise UserError(f"cannot lock {path}: {error.strerror}; choose another -o") from error
        if not acquired:
            raise UserError(f"another {kind} is running in {folder}; wait for it or choose another -o")
        yield


def is_locked(folder: Path, lock: str) -> bool:
    """Return whether a process holds the lock of a folder that `lock_folder` once locked."""
    with (folder / lock).open() as file:
        return not try_flock(file, exclusive=False)


def try_flock(file: IO[Any], exclusive: bool, timeout: float = 0.0) -> bool:
    """Lock an open file until it is closed or its process ends; return False where another process holds the lock for
    more than `timeout` seconds. Raises `OSError` where the file system has no locks, `ImportError` on Windows."""
    import fcntl

    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(0.01)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to it at the end, or removed after an error."""
    # A token, since several processes may write the same file; 40 characters, since a name has at most 255 bytes.
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file that is there whole or as it was before, whatever happens, a loss of power too. Raises `OSError`,
    with a name, where the disk does not take it."""
    try:
        with atomic_path(path) as part, part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    fsync_path(path.parent)


def fsync_path(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk itself. (Windows opens no folder.)"""
    with suppress(PermissionError, IsADirectoryError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_existing_file(path: Path) -> bool:
    """Return whether there is a file at a path from a document, which may be longer than any that a disk takes."""
    try:
        return path.is_file()
    except OSError:
        return False


def check_content(path: Path, head: bytes, what: str) -> None:
    """Raise `UserError` for a file that begins with `head` (64 bytes are enough) and stands for the content that is
    missing: an empty one, or a pointer of Git LFS."""
    if not head:
        raise UserError(f"{path} is an empty file")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the {what} itself: fetch it with `git lfs pull`")


def read_json(path: Path) -> Any:
    """Read a JSON file; a byte order mark at its front is skipped. Raises `OSError` where it cannot be read,
    `ValueError`, in one line, where it is no JSON: too large, too deep, no UTF-8, a key twice in an object."""
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise ValueError(f"{size:,} bytes are more than the {MAX_JSON_BYTES:,} that such a file may have")
    return parse_json(path.read_text(encoding="utf-8-sig"))


def parse_json(text: str) -> Any:
    """Parse a JSON text. Raises `ValueError`, in one line, where it is none, too deep, or has a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's items as a dict. Raises `ValueError` for a key that is there twice."""
    items = dict(pairs)
    if len(items) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in items if names.count(name) > 1)
        raise ValueError(f"it has {repeated!r:.60} twice in one object")
    return items
