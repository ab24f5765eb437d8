"""Uploads: files that clients send, each upload in a folder of its own under an id."""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from v2edit.errors import UserError
from v2edit.files import atomic_write, read_json
from v2edit.runs import utc_now
from v2edit.runs.layout import SPLAT_SUFFIXES
from v2edit.studio.messages import for_browser
from v2edit.studio.records import make_id
from v2edit.studio.settings import GIB, ID

log = logging.getLogger(__name__)
MAX_NAME = 120  # bytes
MAX_FILES = 20_000
MAX_OPEN = 64  # uploads that are begun and not finished
LEAST_FREE = GIB  # bytes of disk that uploads leave
API = "/api/v1"
State = Literal["open", "probing", "ready", "failed"]


class TooLarge(Exception):
    """More was sent, or is to be sent, than is taken."""


class DiskFull(Exception):
    """The disk has no room."""


class Upload(BaseModel, frozen=True):
    """An upload: what its client said of it, how it stands, and the `facts` that were found out about it."""

    id: str
    name: str
    created: str
    bytes: int  # at most, as its client said
    files: int
    wanted: Literal["file", "frames", "scene"]
    state: State = "open"
    reason: str | None = None
    facts: dict[str, Any] = {}
    copy_of: str | None = None  # the checksum of what it is a copy of, where it came from this machine

    @property
    def splat_suffix(self) -> str | None:
        """What the name of its splat ends in, None for what is none: a dataset has yet to be reconstructed."""
        suffix = Path(self.facts.get("path", "")).suffix.lower()
        is_splat = self.state == "ready" and self.facts.get("kind") == "scene" and suffix in SPLAT_SUFFIXES
        return suffix if is_splat else None

    @property
    def view(self) -> dict[str, Any]:
        """The upload as clients get it."""
        shown = {"kind", "frames", "fps", "width", "height", "seconds", "sound", "shots", "source_prompt"}
        own = {name: self.facts.get(name) for name in sorted(shown)}
        has_pictures = self.state == "ready" and self.facts.get("kind") != "scene"
        place = f"{API}/uploads/{self.id}"
        return {
            "id": self.id, "name": self.name, "state": self.state,
            "reason": None if self.reason is None else for_browser(self.reason), "created": self.created,
            "bytes": self.bytes, **own,
            "proxy": f"{place}/proxy.mp4" if has_pictures else None,
            "thumb": f"{place}/thumb.jpg" if has_pictures else None,
            "splat": f"{place}/splat{self.splat_suffix}" if self.splat_suffix else None,
        }  # fmt: skip


def sanitise(name: str) -> str:
    """Return a name for a file of a client's name: its last part in plain characters. Raises `UserError` for none."""
    name = re.split(r"[/\\]", name)[-1]
    stem, dot, suffix = name.rpartition(".")
    stem, suffix = (stem, suffix) if dot else (suffix, "")
    suffix = re.sub(r"[^A-Za-z0-9]", "", suffix)[:10]
    stem = re.sub(r"[^\w -]+", "_", stem).strip(" _")
    stem = stem.encode()[: MAX_NAME - len(suffix) - 1].decode(errors="ignore")
    if not stem:
        stem = "file"
    return f"{stem}.{suffix}" if suffix else stem


class Uploads:
    """The uploads of a studio. Methods may be called from any thread."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._sizes: dict[str, dict[str, int]] = {}
        self._uploads: dict[str, Upload] = {}
        for path in folder.iterdir():
            with suppress(OSError, ValueError, ValidationError):
                for part in path.glob(".*.part"):
                    part.unlink()
                upload = Upload.model_validate(read_json(path / "upload.json"))
                if upload.state == "open":  # Its client is gone with the server that it sent to.
                    shutil.rmtree(path, ignore_errors=True)
                    continue
                if upload.id == path.name and ID.fullmatch(upload.id):
                    self._uploads[upload.id] = upload
                    self._sizes[upload.id] = {one.name: one.stat().st_size for one in (path / "files").iterdir()}

    def all(self) -> list[Upload]:
        """Return all uploads, latest first."""
        return sorted(list(self._uploads.values()), key=lambda one: (one.created, one.id), reverse=True)

    def get(self, id: str) -> Upload:
        """Return an upload. Raises `KeyError`."""
        return self._uploads[id]

    def place(self, id: str) -> Path:
        """Return the folder of an upload that there is. Raises `KeyError`."""
        return self.folder / self._uploads[id].id

    def path(self, id: str) -> Path:
        """Return what of an upload is edited. Raises `KeyError`, and `UserError` where it is not ready."""
        upload = self.get(id)
        if upload.state != "ready":
            raise UserError(f"{upload.name} is not ready to be edited: it is {upload.reason or upload.state}")
        return self.place(id) / upload.facts["path"]

    def create(self, name: str, size: int, files: int, wanted: Literal["file", "frames", "scene"]) -> Upload:
        """Begin an upload of so many bytes. Raises `TooLarge`, `DiskFull` or `UserError`."""
        if size == 0:
            raise UserError("this file is empty" if files == 1 else "these files are empty")
        if size > self.most_bytes:
            raise TooLarge(f"{size:,} bytes are more than the {self.most_bytes:,} that are taken (--max-upload)")
        if not 1 <= files <= MAX_FILES:
            raise UserError(f"files is {files}, expected 1 to {MAX_FILES:,}")
        with self._lock:
            waiting = [one for one in self._uploads.values() if one.state == "open"]
            left = sum(one.bytes - sum(self._sizes[one.id].values()) for one in waiting)
            if len(waiting) >= MAX_OPEN:
                self.remove(min(waiting, key=lambda one: one.created).id)
            if shutil.disk_usage(self.folder).free - left < size + LEAST_FREE:
                raise DiskFull("the disk has no room for it")
            upload = Upload(
                id=make_id(), name=sanitise(name), created=utc_now(), bytes=size, files=files, wanted=wanted
            )
            (self.folder / upload.id / "files").mkdir(parents=True)
            self._sizes[upload.id] = {}
            self._put(upload)
        return upload

    def expect(self, id: str, name: str, size: int | None) -> tuple[Path, int]:
        """Return where a file of an open upload goes, and the bytes that it may have. Raises `KeyError`, `TooLarge`,
        and `UserError` where the upload takes no more."""
        with self._lock:
            upload, own = self.get(id), sanitise(name)
            if upload.state != "open":
                raise UserError("the upload is finished: begin another")
            sizes = self._sizes[id]
            if own not in sizes and len(sizes) >= upload.files:
                raise UserError(f"the upload was to have {upload.files} file{'s' * (upload.files > 1)}, and has them")
            left = upload.bytes - sum(size for name, size in sizes.items() if name != own)
            if size is not None and size > left:
                raise TooLarge(f"{size:,} bytes are more than the {max(0, left):,} that were said")
            sizes.setdefault(own, 0)
            return self.folder / id / "files" / own, left

    def received(self, id: str, path: Path, size: int) -> Upload:
        """Note a file that has come. Raises `KeyError`, and `TooLarge` where the upload has too many bytes by now."""
        with self._lock:
            upload, sizes = self.get(id), self._sizes[id]
            sizes[path.name] = size
            if sum(sizes.values()) > upload.bytes:
                del sizes[path.name]
                path.unlink(missing_ok=True)
                raise TooLarge("the files have more bytes than were said")
            return upload

    def dropped(self, id: str, path: Path) -> None:
        """Note a file that has not come whole."""
        with self._lock:
            if not path.exists() and id in self._sizes:
                self._sizes[id].pop(path.name, None)

    def finish(self, id: str) -> Upload:
        """Close an upload to more files. Raises `KeyError`, and `UserError` where there is none yet."""
        with self._lock:
            upload = self.get(id)
            if upload.state in ("probing", "ready"):
                return upload
            if not any(self._sizes[id].values()):
                raise UserError("nothing has been uploaded yet")
            return self._put(upload.model_copy(update={"state": "probing", "reason": None}))

    def copied(self, id: str, checksum: str) -> Upload:
        """Close an upload whose files were copied from this machine. Raises `KeyError`."""
        with self._lock:
            sizes = {one.name: one.stat().st_size for one in (self.place(id) / "files").iterdir()}
            self._sizes[id] = sizes
            return self._put(self.get(id).model_copy(update={"state": "probing", "copy_of": checksum}))

    def set(self, id: str, **changes: Any) -> Upload | None:
        """Change an upload's state, reason or facts, if it is still there."""
        with self._lock:
            if (upload := self._uploads.get(id)) is None:
                return None
            return self._put(upload.model_copy(update=changes))

    def remove(self, id: str) -> None:
        """Remove an upload and its files. Raises `KeyError`."""
        with self._lock:
            place = self.place(id)
            del self._uploads[id]
            self._sizes.pop(id, None)
        shutil.rmtree(place, ignore_errors=True)

    def _put(self, upload: Upload) -> Upload:
        text = upload.model_dump_json(indent=1)
        atomic_write(self.folder / upload.id / "upload.json", text.encode(errors="backslashreplace"))
        self._uploads[upload.id] = upload
        return upload


class Receiver:
    """Writes a file as its pieces come, at most `most` bytes, and leaves nothing where it does not come whole."""

    def __init__(self, path: Path, most: int) -> None:
        self.path, self.most, self.size = path, most, 0
        self._part = path.parent.parent / f".{make_id()}.part"
        self._file = self._part.open("xb")

    def write(self, piece: bytes) -> None:
        """Write a piece. Raises `TooLarge`, and `DiskFull`."""
        self.size += len(piece)
        if self.size > self.most:
            raise TooLarge(f"more than the {self.most:,} bytes that were said have come")
        try:
            self._file.write(piece)
        except OSError as error:
            raise DiskFull(f"the disk takes no more: {error.strerror}") from error

    def commit(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self.path)

    def discard(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)
