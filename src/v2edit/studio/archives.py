"""Zip archives of foreign hands: unpacked within bounds, and nowhere but into their folder."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

from v2edit.errors import UserError

MAX_DEPTH = 12  # folders
MAX_NAME = 200  # bytes of a name
MAX_RATIO = 200  # unpacked bytes over packed ones, of what is larger than
RATIO_FROM = 64 * 2**20
BLOCK = 2**20


def unzip(archive: Path, target: Path, max_bytes: int, max_files: int) -> int:
    """Unpack a zip archive into a new folder and return the number of its files. Raises `UserError`, in one line, for a
    path that leads out of the folder, a link, a name twice, a part that is encrypted, too many files or bytes, and more
    bytes than it said; then nothing is left of the folder."""
    try:
        with zipfile.ZipFile(archive) as file:
            members = [one for one in file.infolist() if not one.is_dir()]
            _check(members, archive.stat().st_size, max_bytes, max_files)
            target.mkdir()
            left = max_bytes
            for member in members:
                path = target.joinpath(*_parts(member.filename))
                path.parent.mkdir(parents=True, exist_ok=True)
                with file.open(member) as source, path.open("xb") as out:
                    left -= _copy(source, out, min(left, member.file_size), member.filename)
            return len(members)
    except UserError:
        shutil.rmtree(target, ignore_errors=True)
        raise
    except FileExistsError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise UserError("the archive has two files of one name") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OSError) as error:
        shutil.rmtree(target, ignore_errors=True)
        raise UserError(f"the archive cannot be unpacked: {' '.join(str(error).split())[:200]}") from error


def _check(members: list[zipfile.ZipInfo], packed: int, max_bytes: int, max_files: int) -> None:
    if not members:
        raise UserError("the archive is empty")
    if len(members) > max_files:
        raise UserError(f"the archive has {len(members):,} files; {max_files:,} are the most")
    total = sum(one.file_size for one in members)
    if total > max_bytes or (total > RATIO_FROM and total > MAX_RATIO * max(1, packed)):
        raise UserError(f"the archive unpacks to {total:,} bytes from {packed:,}, which is more than is taken")
    for one in members:
        _parts(one.filename)
        kind = stat.S_IFMT(one.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise UserError(f"the archive holds a link or a device: {one.filename[:80]!r}")
        if one.flag_bits & 1:
            raise UserError("the archive is encrypted")


def _parts(name: str) -> list[str]:
    """Return the parts of a path in an archive. Raises `UserError` where it leads out of its folder."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    wrong = not parts or name.startswith(("/", "\\")) or len(parts) > MAX_DEPTH or "\0" in name
    wrong = wrong or any(part in (".", "..") or ":" in part or len(part.encode()) > MAX_NAME for part in parts)
    if wrong:
        raise UserError(f"the archive has a path that leads elsewhere: {name[:80]!r}")
    return list(parts)


def _copy(source: IO[bytes], out: IO[bytes], most: int, name: str) -> int:
    """Copy a file and return its size. Raises `UserError` where it has more bytes than `most`."""
    size = 0
    while block := source.read(BLOCK):
        size += len(block)
        if size > most:
            raise UserError(f"the archive holds more than it said: {name[:80]!r}")
        out.write(block)
    return size
