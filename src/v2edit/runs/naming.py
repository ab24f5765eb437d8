"""What run folders are called, and what may stand in a manifest."""

import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from v2edit.errors import UserError
from v2edit.runs.lock import is_free

LONGEST_STEM = 120  # bytes of a video's name in its run's: file systems take 255, and more is added to it
STATE = ".state"  # in a run folder that is not done
REQUEST = "request.json"  # in there: from when on the run can be gone on with


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


def check_input(path: Path, checksum: str) -> None:
    """Raises `UserError` unless a run's input is what it was when the run began."""
    if not path.exists():
        raise UserError(f"the input is gone: {path}; put it back")
    if describe_input(path)["sha256"] != checksum:
        raise UserError(f"{path} is not what it was when the run began; put that back")


def default_run_folder(video: Path, instruction: str) -> Path:
    """`runs/<video>-<instruction>`, shortened to plain characters, with -2, -3 … when taken."""
    return unique_path(Path("runs") / default_name(video, instruction))


def default_name(video: Path, instruction: str) -> str:
    """`<video>-<instruction>`, shortened to plain characters."""
    slug = "-".join(re.findall(r"[a-z0-9]+", instruction.lower()))[:48].strip("-")
    stem = re.sub(r"[^\w.-]+", "_", Path(os.path.abspath(video)).stem).strip(".")
    stem = stem.encode()[:LONGEST_STEM].decode(errors="ignore")
    return f"{stem}-{slug}".strip("-")


def unique_path(out: Path) -> Path:
    """`out`, or `out` with the first of -2, -3 … that is not taken."""
    number, free = 1, out
    while taken(free):
        number += 1
        free = out.with_name(f"{out.name}-{number}")
    return free


def redact(argv: Sequence[str]) -> list[str]:
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


def shown(path: Path) -> str:
    """A path as a user would type it here."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) and path != here else path))


def taken(path: Path) -> str | None:
    """Why nothing can be written at this path; None where it is free."""
    try:
        if path.is_dir() and not path.is_symlink():
            names = {one.name for one in path.iterdir()}
            if (path / STATE / REQUEST).is_file():
                if not is_free(path / STATE):
                    return f"another process is working on {shown(path)}; choose another -o"
                return f"{path} is an unfinished run: go on with v2edit resume {shown(path)}, or choose another -o"
            # One that ended before it began left nothing but this.
            if not names or (names == {STATE} and is_free(path / STATE)):
                return None
        elif not path.is_symlink() and not path.exists():
            return None
    except OSError as error:
        raise UserError(f"cannot look into {path}: {error.strerror}; choose another -o") from error
    return f"{path} exists; choose another -o or remove it"
