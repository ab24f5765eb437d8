"""Paths of run folders, checksums of their inputs, and command lines without secrets."""

import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from v2edit.errors import UserError
from v2edit.runs.lock import is_state_locked

MAX_STEM_BYTES = 120  # of a video's name in its run's: file systems take 255, and more is added to it
STATE_DIR = ".state"  # in the folder of an unfinished run
REQUEST_FILE = "request.json"  # in the state folder: once it is there, the run can be resumed
SECRET_OPTION = r"token|secret|password|api-?_?key"


def fingerprint_input(path: Path) -> dict[str, str]:
    """Return the absolute path and the SHA-256 of a file, or of a folder's file names and checksums, for a manifest."""

    def checksum(file: Path) -> str:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    if path.is_dir():
        lines = [f"{checksum(file)}  {file.name}\n" for file in sorted(path.iterdir()) if file.is_file()]
        content = hashlib.sha256(os.fsencode("".join(lines))).hexdigest()
    else:
        content = checksum(path)
    return {"path": os.path.abspath(path), "sha256": content}


def check_input(path: Path, checksum: str) -> None:
    """Raise `UserError` unless a run's input is what it was when the run began."""
    if not path.exists():
        raise UserError(f"the input is gone: {path}; put it back")
    if fingerprint_input(path)["sha256"] != checksum:
        raise UserError(f"{path} is not what it was when the run began; put that back")


def default_run_folder(video: Path, instruction: str) -> Path:
    """Return `runs/<video>-<instruction>`, shortened to plain characters, with the first of -2, -3 … that is free."""
    return unique_path(Path("runs") / default_name(video, instruction))


def default_name(video: Path, instruction: str) -> str:
    """Return `<video>-<instruction>`, shortened to plain characters."""
    slug = "-".join(re.findall(r"[a-z0-9]+", instruction.lower()))[:48].strip("-")
    stem = re.sub(r"[^\w.-]+", "_", Path(os.path.abspath(video)).stem).strip(".")
    stem = stem.encode()[:MAX_STEM_BYTES].decode(errors="ignore")
    return f"{stem}-{slug}".strip("-")


def unique_path(path: Path) -> Path:
    """Return the path, with the first of -2, -3 … at which a run can be written."""
    number, candidate = 1, path
    while why_not_writable(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def redact(argv: Sequence[str]) -> list[str]:
    """Return a command line that anybody may see: values of options that sound secret, access tokens, and the log-ins
    and parameters of addresses are replaced by ***."""
    words: list[str] = []
    for word in argv:
        if words and re.fullmatch(rf"--?[\w-]*({SECRET_OPTION})[\w-]*", words[-1], re.IGNORECASE):
            word = "***"
        word = re.sub(rf"^(--?[\w-]*(?:{SECRET_OPTION})[\w-]*=).*", r"\1***", word, flags=re.IGNORECASE)
        word = re.sub(r"(?<=://)[^/@\s]+(?=@)", "***", word)
        if "://" in word:
            word = re.sub(r"(?<=[?&])([^=&#\s]+=)[^&#\s]+", r"\1***", word)
        words.append(re.sub(r"\b(hf_|sk-)[\w-]{16,}", r"\1***", word))
    return words


def display_path(path: Path) -> str:
    """Return a path as a user would type it in the current folder, quoted for a shell."""
    cwd = Path.cwd()
    return shlex.quote(str(path.relative_to(cwd) if path.is_relative_to(cwd) and path != cwd else path))


def why_not_writable(path: Path) -> str | None:
    """Return the reason why no run can be written at a path, or None where one can."""
    try:
        if path.is_dir() and not path.is_symlink():
            names = {entry.name for entry in path.iterdir()}
            if (path / STATE_DIR / REQUEST_FILE).is_file():
                if is_state_locked(path / STATE_DIR):
                    return f"another process is working on {display_path(path)}; choose another -o"
                resume = f"v2edit resume {display_path(path)}"
                return f"{path} is an unfinished run: go on with {resume}, or choose another -o"
            # A process that ended before its run began left nothing but an unlocked state folder.
            if not names or (names == {STATE_DIR} and not is_state_locked(path / STATE_DIR)):
                return None
        elif not path.is_symlink() and not path.exists():
            return None
    except OSError as error:
        raise UserError(f"cannot look into {path}: {error.strerror}; choose another -o") from error
    return f"{path} exists; choose another -o or remove it"
