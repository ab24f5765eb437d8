"""Reading and writing of PLY files: splats in the layout of the original 3D Gaussian splatting, and coloured points.

Headers are checked before anything is allocated: one may claim any size.
"""

from __future__ import annotations

import logging
import mmap
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.recfunctions import unstructured_to_structured

from v2edit.errors import UserError
from v2edit.files import check_content
from v2edit.scenes.config import MAX_DEGREE
from v2edit.scenes.dataset import Points
from v2edit.scenes.gaussians import SH_C0, Gaussians

log = logging.getLogger(__name__)
MAX_HEADER = 1 << 24  # bytes
LIMIT = 20.0  # of a logit or of a logarithm, in place of infinity: in float32 an alpha of 1 or 0, a scale of 2e-9
TEXT, BIG = "ascii", "binary_big_endian"
FORMATS = {TEXT: "", "binary_little_endian": "<", BIG: ">"}
NUMPY = {"char": "i1", "uchar": "u1", "int8": "i1", "uint8": "u1", "short": "i2", "ushort": "u2", "int16": "i2",
         "uint16": "u2", "int": "i4", "uint": "u4", "int32": "i4", "uint32": "u4", "float": "f4", "float32": "f4",
         "double": "f8", "float64": "f8"}  # fmt: skip
BYTES = {kind: int(code[1]) for kind, code in NUMPY.items()}
HARMONICS = [f"f_dc_{k}" for k in range(3)]
COLOURS = [["red", "green", "blue"], ["diffuse_red", "diffuse_green", "diffuse_blue"], list("rgb"), HARMONICS]
GREY = 128
TOLERANCE = 1.01  # of white, in decimal numbers
BRIGHTEST = 16  # times white: decimal colours beyond 1 may be of a high dynamic range


def read_splat(path: Path) -> Gaussians:
    """Read the Gaussians of a splat file, with or without normals, of any degree of harmonics up to 3. Gaussians that
    are not finite after their activations are left out, with a warning; an infinite logit is an alpha of 0 or 1, a
    logarithm of minus infinity a flat Gaussian. Raises `UserError` for a file that is no splat."""
    vertex, kinds = _read_vertices(path)
    names = set(kinds)
    if "packed_position" in names:
        raise UserError(f"{path} is a compressed splat: export it uncompressed (SuperSplat: PLY, not compressed PLY)")
    rest = sorted(
        (n for n in names if re.fullmatch(r"f_rest_\d{1,4}", n)), key=lambda name: int(name.removeprefix("f_rest_"))
    )
    required = [*"xyz", *HARMONICS, "opacity"]
    required += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    if missing := [name for name in required if name not in names]:
        raise UserError(f"{path} is no Gaussian splat: it has no {', '.join(missing[:3])}")
    if len(rest) not in {3 * ((degree + 1) ** 2 - 1) for degree in range(MAX_DEGREE + 1)}:
        raise UserError(f"{path} has {len(rest)} f_rest properties, expected 0, 9, 24 or 45")
    with np.errstate(over="ignore"):  # beyond float32: infinite
        table = np.stack([np.asarray(vertex[name], np.float32) for name in [*required, *rest]], axis=1)
    table = torch.from_numpy(_activate_infinite(table, path))
    if not len(table):
        raise UserError(f"{path} holds no Gaussian that can be used")
    # The file has all of red's higher coefficients, then green's, then blue's.
    higher = table[:, 14:].reshape(len(table), 3, len(rest) // 3).transpose(1, 2)
    return Gaussians(
        means=table[:, :3].contiguous(),
        quats=table[:, 10:14].contiguous(),
        log_scales=table[:, 7:10].contiguous(),
        logit_opacities=table[:, 6].contiguous(),
        sh=torch.cat([table[:, None, 3:6], higher], dim=1).contiguous(),
    )


def write_splat(path: Path, gaussians: Gaussians) -> Path:
    """Write a splat file in the original's layout, with normals, for any viewer or trainer."""
    from plyfile import PlyData, PlyElement

    parts = {name: tensor.detach().cpu().float().numpy() for name, tensor in gaussians.tensors().items()}
    higher = parts["sh"][:, 1:].transpose(0, 2, 1).reshape(len(gaussians), -1)
    columns = {
        **{axis: parts["means"][:, i] for i, axis in enumerate("xyz")},
        **{f"n{axis}": np.zeros(len(gaussians)) for axis in "xyz"},
        **{f"f_dc_{i}": parts["sh"][:, 0, i] for i in range(3)},
        **{f"f_rest_{i}": higher[:, i] for i in range(higher.shape[1])},
        "opacity": parts["logit_opacities"],
        **{f"scale_{i}": parts["log_scales"][:, i] for i in range(3)},
        **{f"rot_{i}": parts["quats"][:, i] for i in range(4)},
    }
    table = np.empty(len(gaussians), [(name, "f4") for name in columns])
    for name, column in columns.items():
        table[name] = column
    PlyData([PlyElement.describe(table, "vertex")]).write(str(path))
    return path


def read_points(path: Path) -> Points | None:
    """Read coloured points, grey where the file has no colours, which is logged; None where no point is finite."""
    vertex, kinds = _read_vertices(path)
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


def read_vertical_axis(path: Path) -> np.ndarray | None:
    """Return the upward direction [3] that a PLY's header states (`comment Vertical Axis: z`, as nerfstudio exports
    splats); None where it states none. Raises `UserError` for a file that is no PLY."""
    stated = re.search(r"^comment\s+vertical\s+axis\W*?([+-]?)([xyz])\s*$", _read_header(path).text, re.I | re.M)
    if stated is None:
        return None
    sign, axis = stated.groups()
    return np.eye(3)["xyz".index(axis.lower())] * (-1 if sign == "-" else 1)


def _activate_infinite(table: np.ndarray, path: Path) -> np.ndarray:
    """Return the rows (position, colour, logit, log-scales, quaternion, harmonics) that are finite after activation,
    with finite numbers that give the same."""
    logits, scales, quats = table[:, 6], table[:, 7:10], table[:, 10:14]
    np.copyto(logits, logits.clip(-LIMIT, LIMIT), where=np.isinf(logits))
    np.copyto(scales, np.float32(-LIMIT), where=np.isneginf(scales))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        extents, norms = np.exp(scales), np.linalg.norm(quats.astype(np.float64), axis=1, keepdims=True)
        rotations = quats / norms
        np.copyto(quats, rotations, where=abs(np.log10(norms)) > 12, casting="same_kind")  # its square would overflow
    return table[_are_finite(np.concatenate([table, extents, rotations], axis=1), path, "Gaussians")]


def _are_finite(table: np.ndarray, path: Path, what: str) -> np.ndarray:
    """Return which rows are finite, bool [N]; warn of those that are not."""
    finite = np.asarray(np.isfinite(table).all(axis=1))
    if not finite.all():
        log.warning("%d of %d %s in %s are not finite and are left out", (~finite).sum(), len(table), what, path)
    return finite


@dataclass(frozen=True)
class _Element:
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
class _Header:
    """The header of a PLY file: its length in bytes with `end_header`, and its lines before that without stray
    blanks."""

    length: int
    text: str

    def parse(self, path: Path) -> tuple[str, list[_Element]]:
        """Return the format and the elements. Raises `UserError` where they make no sense."""
        encoding, elements = "", []
        for line in self.text.split("\n"):
            match line.split():
                case ["format", word, *_]:
                    encoding = word
                case ["element", name, count] if re.fullmatch("[0-9]{1,18}", count):
                    elements.append(_Element(name, int(count), ()))
                case ["property", *words] if elements and _is_property(words, elements[-1]):
                    elements[-1] = replace(elements[-1], properties=(*elements[-1].properties, tuple(words)))
                case ["element" | "property", *_]:
                    raise UserError(f"{path} has a PLY header that makes no sense at '{line[:40]}'")
        if encoding not in FORMATS:
            raise UserError(f"{path} is a PLY of the format {encoding[:20]!r}, expected {', '.join(FORMATS)}")
        return encoding, elements


def _is_property(words: list[str], element: _Element) -> bool:
    """Return whether words make a further property of an element: of known kinds, and its name is new."""
    kinds = words[1:-1] if words[:1] == ["list"] else words[:-1]
    names = {known[-1] for known in element.properties}
    return len(words) == 2 * len(kinds) > 0 and set(kinds) <= set(BYTES) and words[-1] not in names


def _read_header(path: Path) -> _Header:
    """Read a PLY header, whatever blanks surround its lines. Raises `UserError` for a file that has none."""
    with path.open("rb") as file:
        start = file.read(MAX_HEADER)
    check_content(path, start, "scene")
    first = re.match(rb"(?:\xef\xbb\xbf)?ply[ \t]*(\r?\n|\r)", start)  # after a byte order mark
    if first is None:
        raise UserError(f"{path} is no PLY file")
    newline = rb"\r" if first[1] == b"\r" else rb"\r?\n"
    end = re.search(newline + rb"[ \t]*end_header[ \t]*" + newline, start)
    if end is None:
        raise UserError(f"{path} has no end of its PLY header within {MAX_HEADER:,} bytes")
    lines = (line.strip() for line in re.split(newline, start[: end.start()]))
    return _Header(end.end(), "\n".join(line.decode("utf-8", "replace") for line in lines if line))


def _read_vertices(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    """Read the `vertex` element of a PLY file, a structured array [N], and the kinds of its numbers by their names;
    other elements, as a mesh's faces, are skipped. Raises `UserError` where there is none, or less than the header
    claims."""
    header = _read_header(path)
    encoding, elements = header.parse(path)
    names = [element.name for element in elements]
    if "vertex" not in names:
        raise UserError(f"{path} holds no vertices: expected points or Gaussians")
    place = names.index("vertex")
    vertex = elements[place]
    if vertex.has_lists:
        raise UserError(f"{path} has lists in its vertices: expected points or Gaussians")
    kinds = {name: kind for kind, name in vertex.properties}
    if not kinds:
        raise UserError(f"{path} has vertices without properties: expected points or Gaussians")
    if encoding == TEXT:
        return _read_text(path, header, list(kinds), sum(one.count for one in elements[:place]), vertex.count), kinds
    dtype = np.dtype([(name, f"{FORMATS[encoding]}{NUMPY[kind]}") for name, kind in kinds.items()])
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = _find_data(data, header, elements, encoding == BIG, path)
        for element in elements[:place]:
            start = element.find_end(data, start, encoding == BIG)
        claimed, available = vertex.count * dtype.itemsize, max(len(data) - start, 0)
    if claimed > available:
        raise UserError(f"{path} says it holds {claimed:,} bytes and has {available:,}: it is cut short or forged")
    return (np.memmap(path, dtype, "r", start, (vertex.count,)) if vertex.count else np.empty(0, dtype)), kinds


def _find_data(data: mmap.mmap, header: _Header, elements: list[_Element], is_big: bool, path: Path) -> int:
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


def _read_text(path: Path, header: _Header, names: list[str], skipped: int, count: int) -> np.ndarray:
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
