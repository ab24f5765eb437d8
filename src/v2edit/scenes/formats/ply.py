"""Reading of PLY files, and coloured points in them; splats are in `splat_ply`.

Headers are checked before anything is allocated: one may claim any size.
"""

from __future__ import annotations

import logging
import mmap
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.lib.recfunctions import unstructured_to_structured

from v2edit.errors import UserError
from v2edit.files import check_content
from v2edit.scenes.dataset import Points
from v2edit.scenes.gaussians import SH_C0

log = logging.getLogger(__name__)
USUAL_HEADER, MAX_HEADER = 1 << 16, 1 << 24  # bytes
TEXT, BIG = "ascii", "binary_big_endian"
FORMATS = {TEXT: "", "binary_little_endian": "<", BIG: ">"}
NUMPY = {"char": "i1", "uchar": "u1", "int8": "i1", "uint8": "u1", "short": "i2", "ushort": "u2", "int16": "i2",
         "uint16": "u2", "int": "i4", "uint": "u4", "int32": "i4", "uint32": "u4", "float": "f4", "float32": "f4",
         "double": "f8", "float64": "f8"}  # fmt: skip
BYTES = {kind: int(code[1]) for kind, code in NUMPY.items()}
HARMONICS = [f"f_dc_{k}" for k in range(3)]
COLOURS = [["red", "green", "blue"], ["diffuse_red", "diffuse_green", "diffuse_blue"], list("rgb"), HARMONICS]
GREY = 128
PLURALS = {"vertex": "vertices", "chunk": "chunks"}
TOLERANCE = 1.01  # of white, in decimal numbers
BRIGHTEST = 16  # times white: decimal colours beyond 1 may be of a high dynamic range


def read_points(path: Path) -> Points | None:
    """Read coloured points, grey where the file has no colours, which is logged; None where no point is finite."""
    vertex, kinds = read_table(path)
    if missing := set("xyz") - set(kinds):
        raise UserError(f"{path} has points without {', '.join(sorted(missing))}")
    positions = np.stack([np.asarray(vertex[axis], np.float64) for axis in "xyz"], axis=1)
    table = np.concatenate([positions, _read_colours(vertex, kinds, path)], axis=1)
    table = table[_are_finite(table, path, "points")]
    if not len(table):
        return None
    return Points(table[:, :3], np.rint(table[:, 3:] * 255).astype(np.uint8))


def _read_colours(vertex: np.ndarray, kinds: dict[str, str], path: Path) -> np.ndarray:
    """Return the colours of points, float64 [N, 3] of 0..1, by whatever names and in whatever range they are: a splat's
    harmonics, too."""
    actual = {name.lower(): name for name in kinds}
    names = next((names for names in COLOURS if set(names) <= set(actual)), None)
    if names is None:
        message = "%s has no colours that are known (red, green, blue) among %s: its points are grey"
        log.warning(message, path, ", ".join(list(kinds)[:12]))
        return np.full((len(vertex), 3), GREY / 255)
    values = np.stack([np.asarray(vertex[actual[name]], np.float64) for name in names], axis=1)
    if names == HARMONICS:
        return (0.5 + SH_C0 * values).clip(0, 1)
    return scale_colours(values, kinds[actual[names[0]]], path)


def scale_colours(values: np.ndarray, kind: str, path: Path) -> np.ndarray:
    """Return colours [N, 3] of a kind of number as 0..1, in whatever range they are; what lies beyond is clipped, which
    is logged."""
    white = _white_level(values, kind)
    if beyond := ((values < 0) | (values > TOLERANCE * white)).any(axis=1).sum():
        log.warning("%d of %d colours in %s are not from 0 to %g: clipped", beyond, len(values), path, white)
    return (values / white).clip(0, 1)


def _white_level(values: np.ndarray, kind: str) -> float:
    """Return the value of white in colours of a kind of number: what holds 9 in 10 of them, since a few may lie beyond
    it. Whole numbers of more than 8 bits often hold 8; decimal ones go to 1 unless they are whole or far beyond."""
    finite = values[np.isfinite(values)]
    typical = np.quantile(finite, 0.9, method="lower") if finite.size else 0.0
    is_whole = bool((finite == np.rint(finite)).all())
    is_integer = is_whole and NUMPY[kind][0] in "iu"
    if not is_integer and typical <= (TOLERANCE if is_whole else BRIGHTEST):
        return 1.0
    if is_integer and BYTES[kind] == 1:
        return 255.0
    return 255.0 if typical <= TOLERANCE * 255 else 65535.0


def write_points(path: Path, points: Points) -> Path:
    """Write coloured points, with float64 positions."""
    from plyfile import PlyData, PlyElement

    columns = [*((axis, "f8") for axis in "xyz"), *((name, "u1") for name in ("red", "green", "blue"))]
    table = np.empty(len(points.positions), columns)
    for i, (axis, colour) in enumerate(zip("xyz", ("red", "green", "blue"), strict=True)):
        table[axis], table[colour] = points.positions[:, i], points.colours[:, i]
    PlyData([PlyElement.describe(table, "vertex")]).write(str(path))
    return path


def _are_finite(table: np.ndarray, path: Path, what: str) -> np.ndarray:
    """Return which rows are finite, bool [N]; warn of those that are not."""
    finite = np.asarray(np.isfinite(table).all(axis=1))
    if not finite.all():
        log.warning("%d of %d %s in %s are not finite and are left out", (~finite).sum(), len(table), what, path)
    return finite


@dataclass(frozen=True)
class Element:
    """An element of a PLY header: its number of rows, and the words of each property, (kind, name) or ("list", kind of
    the count, kind, name)."""

    name: str
    count: int
    properties: tuple[tuple[str, ...], ...]

    @property
    def has_lists(self) -> bool:
        return any(words[0] == "list" for words in self.properties)

    def find_end(self, data: mmap.mmap, start: int, is_big: bool) -> int:
        """Return where the element's binary rows that begin at `start` end, which may be beyond the data."""
        if not self.has_lists:
            return start + self.count * sum(BYTES[kind] for kind, _ in self.properties)
        for _ in range(self.count):
            for words in self.properties:
                length = 1
                if words[0] == "list":
                    count = data[start : start + BYTES[words[1]]]
                    start, length = start + BYTES[words[1]], int.from_bytes(count, "big" if is_big else "little")
                start += length * BYTES[words[-2]]
            if start > len(data):
                break
        return start


@dataclass(frozen=True)
class Header:
    """The header of a PLY file: its length in bytes with `end_header`, and its lines before that without stray
    blanks."""

    length: int
    text: str

    @property
    def comments(self) -> tuple[str, ...]:
        """The comments, without that word."""
        return tuple(line[8:].strip() for line in self.text.split("\n") if line.startswith("comment "))

    def parse(self, path: Path) -> tuple[str, list[Element]]:
        """Return the format and the elements. Raises `UserError` where they make no sense."""
        encoding, elements = "", []
        for line in self.text.split("\n"):
            match line.split():
                case ["format", word, *_]:
                    encoding = word
                case ["element", name, count] if re.fullmatch("[0-9]{1,18}", count):
                    elements.append(Element(name, int(count), ()))
                case ["property", *words] if elements and _is_property(words, elements[-1]):
                    elements[-1] = replace(elements[-1], properties=(*elements[-1].properties, tuple(words)))
                case ["element" | "property", *_]:
                    raise UserError(f"{path} has a PLY header that makes no sense at '{line[:40]}'")
        if encoding not in FORMATS:
            raise UserError(f"{path} is a PLY of the format {encoding[:20]!r}, expected {', '.join(FORMATS)}")
        return encoding, elements


def _is_property(words: list[str], element: Element) -> bool:
    """Return whether words make a further property of an element: of known kinds, and its name is new."""
    kinds = words[1:-1] if words[:1] == ["list"] else words[:-1]
    names = {known[-1] for known in element.properties}
    return len(words) == 2 * len(kinds) > 0 and set(kinds) <= set(BYTES) and words[-1] not in names


def read_header(path: Path) -> Header:
    """Read a PLY header, whatever blanks surround its lines. Raises `UserError` for a file that has none."""
    with path.open("rb") as file:
        start = file.read(USUAL_HEADER)
        check_content(path, start, "scene")
        first = re.match(rb"(?:\xef\xbb\xbf)?ply[ \t]*(\r?\n|\r)", start)  # after a byte order mark
        if first is None:
            raise UserError(f"{path} is no PLY file")
        newline = rb"\r" if first[1] == b"\r" else rb"\r?\n"
        last_line = re.compile(newline + rb"[ \t]*end_header[ \t]*" + newline)
        if (end := last_line.search(start)) is None:
            start += file.read(MAX_HEADER - len(start))
            end = last_line.search(start)
    if end is None:
        raise UserError(f"{path} has no end of its PLY header within {MAX_HEADER:,} bytes")
    lines = (line.strip() for line in re.split(newline, start[: end.start()]))
    return Header(end.end(), "\n".join(line.decode("utf-8", "replace") for line in lines if line))


def read_table(path: Path, name: str = "vertex") -> tuple[np.ndarray, dict[str, str]]:
    """Read an element of a PLY file, a structured array [N], and the kinds of its numbers by their names; other
    elements, as a mesh's faces, are skipped. Binary ones are mapped, not read. Raises `UserError` where there is none,
    or less than the header claims."""
    header = read_header(path)
    encoding, elements = header.parse(path)
    names = [element.name for element in elements]
    if name not in names:
        raise UserError(f"{path} holds no {PLURALS.get(name, name)}: expected points or Gaussians")
    place = names.index(name)
    table = elements[place]
    if table.has_lists:
        raise UserError(f"{path} has lists in its {PLURALS.get(name, name)}: expected points or Gaussians")
    kinds = {name: kind for kind, name in table.properties}
    if not kinds:
        raise UserError(f"{path} has {PLURALS.get(name, name)} without properties: expected points or Gaussians")
    if encoding == TEXT:
        return _read_text(path, header, list(kinds), sum(one.count for one in elements[:place]), table.count), kinds
    dtype = np.dtype([(name, f"{FORMATS[encoding]}{NUMPY[kind]}") for name, kind in kinds.items()])
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = _find_data(data, header, elements, encoding == BIG, path)
        for element in elements[:place]:
            start = element.find_end(data, start, encoding == BIG)
        claimed, available = table.count * dtype.itemsize, max(len(data) - start, 0)
    if claimed > available:
        raise UserError(f"{path} says it holds {claimed:,} bytes and has {available:,}: it is cut short or forged")
    return (np.memmap(path, dtype, "r", start, (table.count,)) if table.count else np.empty(0, dtype)), kinds


def _find_data(data: mmap.mmap, header: Header, elements: list[Element], is_big: bool, path: Path) -> int:
    """Return where binary rows begin: at the header's end, or after a stray end of a line where the length of the file
    says so. Raises `UserError` where it may be either; logs what is left over."""
    blanks = re.match(rb"[\r\n]{0,4}", data[header.length : header.length + 4])
    starts = range(header.length, header.length + (blanks.end() if blanks else 0) + 1)
    if len(starts) == 1 and any(element.has_lists for element in elements):
        return header.length  # their end is slow to find
    ends = {}
    for start in starts:
        end = start
        for element in elements:
            end = element.find_end(data, end, is_big)
        ends[start] = end
    fitting = [start for start, end in ends.items() if end <= len(data) and not data[end : end + 64].strip()]
    if len(fitting) > 1:
        raise UserError(f"{path} has a stray end of a line, before its data or after them: remove it")
    start = fitting[0] if fitting else header.length
    if not fitting and ends[start] < len(data):
        log.warning("%s holds %d bytes more than its header says: left out", path, len(data) - ends[start])
    return start


def _read_text(path: Path, header: Header, names: list[str], skipped: int, count: int) -> np.ndarray:
    """Read `count` rows of numbers of a text PLY after those `skipped`, as a structured array of float64."""
    with path.open("rb") as file:
        file.seek(header.length)
        lines = [line for line in file.read().splitlines() if line.strip()]
    if skipped + count > len(lines):
        raise UserError(f"{path} says it holds {skipped + count:,} rows and has {len(lines):,}: it is cut short")
    rows = np.empty((0, len(names)))
    if count:
        wanted = (line.decode("ascii", "replace") for line in lines[skipped : skipped + count])
        try:
            rows = np.loadtxt(wanted, comments=None, ndmin=2)
        except ValueError as error:
            raise UserError(f"cannot read {path}: {str(error).split(';')[0]}") from error
    if rows.shape[1] != len(names):
        raise UserError(f"{path} has rows of {rows.shape[1]} numbers, expected {len(names)}")
    return unstructured_to_structured(rows, np.dtype([(name, np.float64) for name in names]))
