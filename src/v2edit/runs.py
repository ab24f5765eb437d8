"""Run folders: all of a run or nothing of it, with a manifest that says how it was made."""

import dataclasses
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from v2edit.errors import UserError

MANIFEST = "run.json"
LONGEST_STEM = 120  # bytes of a video's name in its run's: file systems take 255, and more is added to it
PACKAGES = ("v2edit", "torch", "diffusers", "transformers", "av")


class RunWriter:
    """A run folder in the making, as a context manager.

    Inside the context, `folder` is a hidden folder beside `out`, to write into. Leaving it puts everything at
    `out` at once; leaving it with an error removes everything. What is at `out` is never touched: should
    something turn up there in the meantime, the run goes beside it, and `out` says where.

    Raises `UserError` when `out` is there already (an empty folder is welcome) or cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self.out = Path(os.path.abspath(out))
        self.folder = self.out.parent / f".{self.out.name}.partial-{secrets.token_hex(4)}"
        if _taken(self.out):
            raise UserError(f"{out} exists; choose another -o or remove it")

    def __enter__(self) -> Self:
        self._parents = [path for path in self.folder.parents if not path.exists()]  # made here, innermost first
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            self._remove()
            raise UserError(f"cannot write to {self.out.parent}: {error.strerror}; choose another -o") from error
        self.started = _now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._put_in_place()
        except OSError as failed:
            kind = type(failed)
            raise UserError(f"cannot write to {self.out}: {failed.strerror or failed}; choose another -o") from failed
        except BaseException as interrupted:
            kind = type(interrupted)
            raise
        finally:
            if kind is not None:
                self._remove()

    def _put_in_place(self) -> None:
        self.out = first_free(self.out)
        if not self.out.is_dir():
            self.folder.rename(self.out)
            return
        # An empty folder may be somebody's working directory: it is filled, not replaced, the manifest last.
        moved: list[Path] = []
        try:
            for path in sorted(self.folder.iterdir(), key=lambda path: path.name == MANIFEST):
                moved.append(path.rename(self.out / path.name))
        except BaseException:
            for path in moved:
                path.unlink()
            raise
        self.folder.rmdir()

    def _remove(self) -> None:
        """Everything that was made, and of the folders above it those that were made for it and are empty again."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            for path in self._parents:
                path.rmdir()

    def write_manifest(self, facts: Mapping[str, Any], argv: Sequence[str] | None = None) -> None:
        """Write `run.json`: `facts`, the command line with secrets blanked, versions and times (UTC).

        Dataclasses among the facts are written with all their fields, paths and other things as text.
        """
        manifest = {
            "status": "done",
            **facts,
            "command": None if argv is None else without_secrets(argv),
            "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "started": self.started,
            "finished": _now(),
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False, default=_plain)
        # A file's name may be no UTF-8; escaped, it is JSON still, and the same name when read.
        (self.folder / MANIFEST).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def describe_input(path: Path) -> dict[str, str]:
    """A file, or a folder of files, as a manifest names it: its absolute path and the SHA-256 of its content
    (for a folder, of its files' names and checksums)."""

    def checksum(file: Path) -> str:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    if path.is_dir():
        lines = [f"{checksum(file)}  {file.name}\n" for file in sorted(path.iterdir()) if file.is_file()]
        content = hashlib.sha256("".join(lines).encode()).hexdigest()
    else:
        content = checksum(path)
    return {"path": os.path.abspath(path), "sha256": content}


def default_run_folder(video: Path, instruction: str) -> Path:
    """`runs/<video>-<instruction>`, shortened to plain characters, with -2, -3 … when taken."""
    return first_free(Path("runs") / default_name(video, instruction))


def default_name(video: Path, instruction: str) -> str:
    """`<video>-<instruction>`, shortened to plain characters."""
    slug = "-".join(re.findall(r"[a-z0-9]+", instruction.lower()))[:48].strip("-")
    stem = re.sub(r"[^\w.-]+", "_", Path(os.path.abspath(video)).stem).strip(".")
    stem = stem.encode()[:LONGEST_STEM].decode(errors="ignore")
    return f"{stem}-{slug}".strip("-")


def first_free(out: Path) -> Path:
    """`out`, or `out` with the first of -2, -3 … that is not taken."""
    number, free = 1, out
    while _taken(free):
        number += 1
        free = out.with_name(f"{out.name}-{number}")
    return free


def without_secrets(argv: Sequence[str]) -> list[str]:
    """A command line that may be shown: values of options that sound secret, access tokens, and the log-ins and
    parameters of addresses are blanked."""
    secret = r"token|secret|password|api-?_?key"
    shown: list[str] = []
    for word in argv:
        if shown and re.fullmatch(rf"--?[\w-]*({secret})[\w-]*", shown[-1], re.IGNORECASE):
            word = "***"
        word = re.sub(rf"^(--?[\w-]*(?:{secret})[\w-]*=).*", r"\1***", word, flags=re.IGNORECASE)
        word = re.sub(r"(?<=://)[^/@\s]+(?=@)", "***", word)
        if "://" in word:
            word = re.sub(r"(?<=[?&])([^=&#\s]+=)[^&#\s]+", r"\1***", word)
        shown.append(re.sub(r"\b(hf_|sk-)[\w-]{16,}", r"\1***", word))
    return shown


def _taken(path: Path) -> bool:
    """Is there anything at this path that writing there would harm?"""
    try:
        return path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir())))
    except OSError as error:
        raise UserError(f"cannot look into {path}: {error.strerror}; choose another -o") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
