"""The formats of splats: which module reads and writes a file, by its name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from v2edit.errors import UserError
from v2edit.files import atomic_path
from v2edit.runs.layout import SPLAT_SUFFIXES, SplatFormatName
from v2edit.scenes.formats import compressed_ply, dot_splat, ksplat, sog, sog_writing, splat_ply, spz
from v2edit.scenes.formats.rows import Clipped, Splat
from v2edit.scenes.gaussians import Gaussians

log = logging.getLogger(__name__)
CONTENTS = {b"ply\n": ".ply", b"ply\r": ".ply", b"NGSP": ".spz", b"\x1f\x8b": ".spz", b"PK\x03\x04": ".sog"}


@dataclass(frozen=True)
class _Format:
    """A format: the functions that read and write it, the highest degree of its harmonics, what it keeps of a splat
    beside its Gaussians, and where its axes point."""

    read: Callable[[Path], Splat]
    write: Callable[[Path, Splat], Clipped] | None
    degree: int = 3
    keeps: tuple[str, ...] = ()
    axes: str = "RDF"


FORMATS = {
    ".compressed.ply": _Format(splat_ply.read, compressed_ply.write, keeps=("antialiased", "comments")),
    ".ply": _Format(splat_ply.read, splat_ply.write, keeps=("antialiased", "comments", "extra")),
    ".splat": _Format(dot_splat.read, dot_splat.write, degree=0),
    ".ksplat": _Format(ksplat.read, None),
    ".spz": _Format(spz.read, spz.write, keeps=("antialiased",), axes="RUB"),
    ".sog": _Format(sog.read, sog_writing.write, keeps=("antialiased",)),
    sog.META: _Format(sog.read, sog_writing.write_folder, keeps=("antialiased",)),
}


def is_splat(path: Path) -> bool:
    """Return whether a path is a splat by its name: a file, or a folder that is a SOG."""
    return sog.is_folder(path) if path.is_dir() else find_suffix(path) is not None


def find_suffix(path: Path) -> str | None:
    """Return the end of a file's name that says its format; None where none does."""
    name = path.name.lower()
    return next((suffix for suffix in FORMATS if name == suffix or (suffix[0] == "." and name.endswith(suffix))), None)


def read_splat_file(path: Path) -> Splat:
    """Read a splat of any format, with all that its file says. Raises `UserError` for what cannot be read, in one
    line."""
    if path.is_dir():
        return sog.read(path)
    suffix = find_suffix(path)
    if suffix is None:
        raise UserError(f"{path} is no splat: expected {', '.join(SPLAT_SUFFIXES)}, or a {sog.META} of SOG")
    if not path.exists():
        raise UserError(f"no such scene: {path}")
    with path.open("rb") as file:
        head = file.read(4)
    found = next((of for start, of in CONTENTS.items() if head.startswith(start)), None)
    if found is not None and not suffix.endswith(found) and suffix != sog.META:
        raise UserError(f"{path} is a {found} by its content: name it so")
    return FORMATS[suffix].read(path)


def read_splat(path: Path) -> Gaussians:
    """Read the Gaussians of a splat, as `read_splat_file` does."""
    return read_splat_file(path).gaussians


def axes_of(path: Path) -> str:
    """Return where the axes of a file's format point: right (left), down (up) and front (back), by their letters."""
    return FORMATS[find_suffix(path) or sog.META].axes


def degree_in(path: Path, gaussians: Gaussians) -> int:
    """Return the degree of the harmonics of Gaussians in a file of a path's format."""
    return min(gaussians.degree, FORMATS[find_suffix(path) or sog.META].degree)


def check_writable(path: Path) -> None:
    """Raise `UserError` for a name that no splat can be written as."""
    suffix = find_suffix(path)
    if suffix is None or FORMATS[suffix].write is None:
        names = ", ".join(name for name, one in FORMATS.items() if one.write)
        reason = "is read, and not written" if suffix else "says no format of splats"
        raise UserError(f"the name {path.name} {reason}: expected one that ends in {names}")


def write_splat_file(path: Path, splat: Splat) -> None:
    """Write a splat in the format that the file's name says; warn of what that cannot hold. The file is there whole or
    not at all. Raises `UserError` for a name that says none."""
    check_writable(path)
    suffix = find_suffix(path)
    assert suffix is not None
    one = FORMATS[suffix]
    assert one.write is not None
    if splat.gaussians.degree > one.degree:
        message = "%s has no harmonics above degree %d: those up to %d are left out"
        log.warning(message, path.name, one.degree, splat.gaussians.degree)
    if splat.gaussians.antialiased and "antialiased" not in one.keeps:
        log.warning("%s cannot say that the splat was trained with antialiasing", path.name)
    if splat.extra is not None and "extra" not in one.keeps:
        names = ", ".join((splat.extra.dtype.names or ())[:6])
        log.warning("%s has no place for further properties, which are left out: %s", path.name, names)
    if suffix == sog.META:
        clipped = one.write(path, splat)
    else:
        with atomic_path(path) as part:
            clipped = one.write(part, splat)
    clipped.report(path, len(splat.gaussians))


def write_splat(path: Path, gaussians: Gaussians) -> Path:
    """Write Gaussians alone, as `write_splat_file` does; return the path."""
    write_splat_file(path, Splat(gaussians))
    return path


def write_in_formats(path: Path, splat: Splat, further: SplatFormatName) -> None:
    """Write a splat as the .ply that `path` is and, beside it, in a further format, which may be the same."""
    for suffix in dict.fromkeys(("ply", further)):
        write_splat_file(path.with_suffix(f".{suffix}"), splat)
