"""Files of runs over HTTP: which there are, what they are, and their bytes, whole or in part."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any
from urllib.parse import quote

from starlette.responses import Response

from v2edit.files import read_json
from v2edit.runs import MANIFEST
from v2edit.runs.layout import (
    AFTER_VIDEO,
    BEFORE_VIDEO,
    COMPARISON_VIDEO,
    CONTACT_SHEET,
    EDITED,
    EDITED_SPLAT,
    MASK_VIDEO,
    SEEDS_SHEET,
    SOURCE_SPLAT,
    SPLAT_SUFFIXES,
)

MAX_FILES, MAX_DEPTH = 5000, 3  # of a run that are listed
BLOCK = 256 * 1024
# What a browser may show. All else is a file to save: no page, script or drawing of a run is ever rendered.
TYPES = {
    ".mp4": "video/mp4", ".webm": "video/webm", ".mov": "video/quicktime", ".gif": "image/gif", ".webp": "image/webp",
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".json": "application/json",
}  # fmt: skip
OTHER = "application/octet-stream"
ROLES = {
    COMPARISON_VIDEO: "compare", BEFORE_VIDEO: "before", AFTER_VIDEO: "after", MASK_VIDEO: "mask",
    CONTACT_SHEET: "sheet", SEEDS_SHEET: "sheet", SOURCE_SPLAT: "splat", EDITED_SPLAT: "splat", MANIFEST: "manifest",
}  # fmt: skip
API = "/api/v1"


def list_files(folder: Path) -> list[dict[str, Any]]:
    """Return the files of a run, without hidden ones and links: name (a path in the run), bytes, type and role; what
    goes meanwhile, as a run does that is moved to the trash, is left out."""
    found: list[dict[str, Any]] = []

    def walk(place: Path, depth: int) -> None:
        with os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                if entry.name.startswith(".") or len(found) >= MAX_FILES:
                    continue
                if entry.is_dir(follow_symlinks=False) and depth < MAX_DEPTH:
                    walk(Path(entry.path), depth + 1)
                elif entry.is_file(follow_symlinks=False):
                    found.append(_describe(folder, Path(entry.path), entry.stat(follow_symlinks=False).st_size))

    with suppress(FileNotFoundError, NotADirectoryError):
        walk(folder, 1)
    return found


def _describe(folder: Path, path: Path, size: int) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    role = ROLES.get(name, "other")
    described = {"name": name, "bytes": size, "type": TYPES.get(path.suffix.lower(), OTHER)}
    if path.stem == EDITED and "/" not in name and path.suffix.lower() not in SPLAT_SUFFIXES:
        role = "edited"
    if match := re.fullmatch(r"subtask-(\d+)(\.\w+)?", name):
        return described | {"role": "subtask", "subtask": int(match[1])}
    return described | {"role": role}


def media_of(name: str, files: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the addresses of what a page shows of a run."""

    def url(file: str) -> str:
        return f"{API}/runs/{quote(name, safe='')}/files/{quote(file)}"

    there = {one["name"]: url(one["name"]) for one in files}
    subtasks = sorted((one for one in files if one["role"] == "subtask"), key=lambda one: one["subtask"])
    edited = next((one["name"] for one in files if one["role"] == "edited"), None)
    return {
        "edited": edited and there[edited],
        "compare": there.get(COMPARISON_VIDEO), "before": there.get(BEFORE_VIDEO), "after": there.get(AFTER_VIDEO),
        "mask": there.get(MASK_VIDEO), "sheet": there.get(CONTACT_SHEET) or there.get(SEEDS_SHEET),
        "subtasks": [there[one["name"]] for one in subtasks],
        "splat_before": there.get(SOURCE_SPLAT), "splat_after": there.get(EDITED_SPLAT),
        "path": there.get("camera_path.json"),
    }  # fmt: skip


def find_file(folder: Path, name: str) -> Path | None:
    """Return the file of a run that a client names, None where the run has none of that name. The name is looked up
    among the run's files and never made a part of a path."""
    known = next((one["name"] for one in list_files(folder) if one["name"] == name), None)
    return None if known is None else folder.joinpath(*known.split("/"))


def settings_of(facts: dict[str, Any]) -> dict[str, Any]:
    """Return of a run's manifest what a page lists as its settings."""
    left_out = {"prompts", "instruction", "command", "versions", "status", "started", "finished", "reason", "progress"}
    return {name: value for name, value in facts.items() if name not in left_out}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a run's manifest, as far as there is one."""
    try:
        facts = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


class FileAnswer(Response):
    """An ASGI response: a file, or the part of it that a Range header asks for. `name` makes it a file to save; `base`
    is the folder that the file must be in, no matter what has become of it since it was found. `headers` are instead of
    the usual ones. An `immutable` file is kept by browsers, and its answer does not say when it was made."""

    def __init__(
        self,
        path: Path,
        base: Path,
        name: str | None = None,
        immutable: bool = False,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.path, self.base, self.name, self.immutable, self.background = path, base, name, immutable, None
        self.own = headers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
        try:
            file, size, stamp = await asyncio.to_thread(open_inside, self.base, self.path)
        except OSError:
            await _answer(send, 404, {"content-type": "application/json"}, b'{"error": "the file is gone"}')
            return
        with file:
            etag = f'"{size:x}"' if self.immutable else f'"{stamp:x}-{size:x}"'
            own = {
                "content-type": TYPES.get(self.path.suffix.lower(), OTHER), "accept-ranges": "bytes", "etag": etag,
                "content-security-policy": "default-src 'none'; media-src 'self'; sandbox",
                "cache-control": "private, max-age=31536000, immutable" if self.immutable else "private, no-cache",
                **self.own,
            }  # fmt: skip
            if not self.immutable:
                own["last-modified"] = formatdate(stamp / 1e9, usegmt=True)
            if self.name is not None or own["content-type"] == OTHER:
                own["content-disposition"] = (
                    f"attachment; filename*=UTF-8''{quote(self.name or self.path.name, safe='')}"
                )
            if headers.get(b"if-none-match") == etag:
                await _answer(send, 304, own, b"")
                return
            wanted = headers.get(b"range", "") if headers.get(b"if-range", etag) == etag else ""
            part = parse_range(wanted, size)
            if part is None:
                await _answer(send, 416, own | {"content-range": f"bytes */{size}"}, b"")
                return
            first, last = part
            own["content-length"] = str(last - first)
            status = 200
            if (wanted and (first, last) != (0, size)) or re.fullmatch(r"bytes=0-", wanted):
                own["content-range"], status = f"bytes {first}-{last - 1}/{size}", 206
            await send({"type": "http.response.start", "status": status, "headers": _encode(own)})
            if scope["method"] == "HEAD":
                first = last
            while first < last:
                block = await asyncio.to_thread(_read_at, file, first, min(BLOCK, last - first))
                if not block:
                    raise OSError("the file has become shorter")
                first += len(block)
                await send({"type": "http.response.body", "body": block, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one behind the last of a Range header: of the whole file for none, several and what
    is no range; None for one that is outside the file."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", text.strip())
    if not match or not any(match.groups()):
        return 0, size
    if not match[1]:
        length = min(int(match[2]), size)
        return (size - length, size) if length else None
    first, last = int(match[1]), min(int(match[2] or size), size - 1)
    return (first, last + 1) if first <= last else None


def open_inside(base: Path, path: Path) -> tuple[IO[bytes], int, int]:
    """Open a plain file in a folder, without following any link; return it, its size and when it was written (ns).
    Raises `OSError` for all else."""
    if not hasattr(os, "O_NOFOLLOW"):  # Windows
        file = path.open("rb")
        found = os.fstat(file.fileno())
        return file, found.st_size, found.st_mtime_ns
    parts = path.relative_to(base).parts
    folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        number = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    file = os.fdopen(number, "rb", buffering=0)
    found = os.fstat(number)
    if not stat.S_ISREG(found.st_mode):
        file.close()
        raise OSError(f"{path} is no plain file")
    return file, found.st_size, found.st_mtime_ns


def _read_at(file: IO[bytes], first: int, count: int) -> bytes:
    file.seek(first)
    return file.read(count)


def _encode(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


async def _answer(send: Any, status: int, headers: dict[str, str], body: bytes) -> None:
    own = headers | ({"content-length": str(len(body))} if status != 304 else {})
    await send({"type": "http.response.start", "status": status, "headers": _encode(own)})
    await send({"type": "http.response.body", "body": body})
