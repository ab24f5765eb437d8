"""Splats in PLY files, in the layout of the original 3D Gaussian splatting (Kerbl et al. 2023), in coordinates RDF:
every number is kept as it is, and so are further properties and comments.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from v2edit.errors import UserError
from v2edit.scenes.formats import compressed_ply
from v2edit.scenes.formats.ply import NUMPY, read_header, read_table
from v2edit.scenes.formats.rows import CHUNK, COLUMNS, Clipped, Splat, gather, is_antialiased, iterate, limit_degree

log = logging.getLogger(__name__)
NORMALS = ("nx", "ny", "nz")
DEGREES = {3 * ((degree + 1) ** 2 - 1): degree for degree in range(5)}  # by the number of f_rest
KINDS = {code: kind for kind, code in reversed(NUMPY.items())}


def read(path: Path) -> Splat:
    """Read a splat, compressed or not, with or without normals, of any degree of harmonics up to 4, of which the fourth
    is left out with a warning. Raises `UserError` for a file that is no splat."""
    header = read_header(path)
    vertex, kinds = read_table(path)
    elements = [element.name for element in header.parse(path)[1]]
    if others := [name for name in elements if name not in ("vertex", "chunk", "sh")]:
        log.warning("%s holds more than Gaussians, which is left out: %s", path, ", ".join(others[:6]))
    if "packed_position" in kinds:
        return compressed_ply.read(path, vertex, "sh" in elements, header.comments)
    names = set(kinds)
    rest = sorted((n for n in names if re.fullmatch(r"f_rest_\d{1,4}", n)), key=lambda name: int(name[7:]))
    if missing := [name for name in COLUMNS if name not in names]:
        raise UserError(f"{path} is no Gaussian splat: it has no {', '.join(missing[:3])}")
    if len(rest) not in DEGREES:
        raise UserError(f"{path} has {len(rest)} f_rest properties, expected 0, 9, 24 or 45")
    if not len(vertex):
        raise UserError(f"{path} holds no Gaussian that can be used")
    degree = limit_degree(path, DEGREES[len(rest)])
    known = [*COLUMNS, *_first_bands(rest, (degree + 1) ** 2 - 1)]
    extra = np.empty(
        len(vertex), [(name, NUMPY[kind]) for name, kind in kinds.items() if name not in {*COLUMNS, *rest}]
    )
    chunks = _read_chunks(path, vertex, known, extra)
    gaussians, finite = gather(chunks, len(vertex), degree, path)
    extra = _without_empty_normals(extra)
    if extra is not None and not finite.all():
        extra = extra[finite]
    antialiased = is_antialiased(header.comments)
    return Splat(replace(gaussians, antialiased=antialiased), header.comments, extra)


def _first_bands(rest: list[str], count: int) -> list[str]:
    """Return the names of the first harmonics of each colour, `count` of each."""
    third = len(rest) // 3
    return [name for colour in range(3) for name in rest[colour * third : colour * third + count]]


def _read_chunks(path: Path, vertex: np.ndarray, names: list[str], extra: np.ndarray) -> Iterator[np.ndarray]:
    """Yield chunks of rows of a file's columns, and copy those of `extra`. A mapped file is read piece by piece: the
    pages of a mapping would stay."""
    file = path.open("rb") if isinstance(vertex, np.memmap) else None
    try:
        for start in range(0, len(vertex), CHUNK):
            part = vertex[start : start + CHUNK]
            if file is not None:
                file.seek(vertex.offset + start * vertex.dtype.itemsize)
                part = np.frombuffer(file.read(len(part) * vertex.dtype.itemsize), vertex.dtype)
            rows = np.empty((len(part), len(names)), np.float32)
            with np.errstate(over="ignore", invalid="ignore"):  # beyond float32: infinite
                for name in extra.dtype.names or ():
                    extra[name][start : start + len(part)] = part[name]
                for k, name in enumerate(names):
                    rows[:, k] = part[name]
            yield rows
    finally:
        if file is not None:
            file.close()


def _without_empty_normals(extra: np.ndarray) -> np.ndarray | None:
    """Return further properties without normals of 0, which say nothing; None where there are no others."""
    names = extra.dtype.names or ()
    if not any(extra[name].any() for name in NORMALS if name in names):
        names = tuple(name for name in names if name not in NORMALS)
    return np.ascontiguousarray(extra[list(names)]) if names else None


def write(path: Path, splat: Splat) -> Clipped:
    """Write a splat in the original's layout, with normals, for any viewer or trainer; further properties follow.
    Nothing is clipped."""
    gaussians, extra = splat.gaussians, splat.extra
    names = extra.dtype.names or () if extra is not None else ()
    harmonics = [f"f_rest_{k}" for k in range(3 * (gaussians.sh.shape[1] - 1))]
    floats = [*COLUMNS[:3], *NORMALS, *COLUMNS[3:6], *harmonics, *COLUMNS[6:]]
    further = [name for name in names if name not in NORMALS]
    table = [(name, "<f4") for name in floats]
    if extra is not None:
        table += [(name, extra.dtype[name].newbyteorder("<")) for name in further]
    dtype = np.dtype(table)
    lines = [f"comment {comment}" for comment in splat.ply_comments]
    lines.append(f"element vertex {len(gaussians)}")
    lines += [f"property {KINDS[dtype[name].str[1:]]} {name}" for name in dtype.names or ()]
    with path.open("wb") as file:
        file.write("\n".join(["ply", "format binary_little_endian 1.0", *lines, "end_header\n"]).encode())
        start = 0
        for rows in iterate(gaussians):
            part = np.zeros(len(rows), dtype)
            for name, column in zip([*COLUMNS, *harmonics], rows.T, strict=True):
                part[name] = column
            for name in names:
                assert extra is not None
                part[name] = extra[name][start : start + len(rows)]
            file.write(part.tobytes())
            start += len(rows)
    return Clipped()
