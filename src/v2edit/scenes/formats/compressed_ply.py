"""Compressed PLY files, as SuperSplat writes them: chunks of 256 Gaussians whose positions, scales and colours are
fractions of the chunk's bounds, in 11, 10 and 11 bits, 11, 10 and 11, and 8 each; rotations have 10 bits for each of
three components, opacities and higher harmonics 8. Coordinates are those of a PLY.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from v2edit.errors import UserError
from v2edit.scenes.formats.ply import read_table
from v2edit.scenes.formats.rows import (
    CHUNK,
    FIRST,
    HIGHER,
    LIMIT,
    LOGIT,
    POSITION,
    QUAT,
    SCALES,
    Clipped,
    Splat,
    alphas_of,
    colours_of,
    from_smallest_three,
    gather,
    harmonics_of,
    is_antialiased,
    iterate,
    join,
    logits_of,
    morton_order,
    normalised,
    smallest_three,
)

SIZE = 256  # Gaussians of a chunk
SPREAD = 8.0  # of the higher harmonics: from -4 to 4
BOUNDS = [f"{end}_{what}{axis}" for what in ("", "scale_") for end in ("min", "max") for axis in "xyz"]
COLOUR_BOUNDS = [f"{end}_{name}" for end in ("min", "max") for name in "rgb"]
PACKED = [f"packed_{name}" for name in ("position", "rotation", "scale", "color")]
ROOT = np.sqrt(2.0)


def read(path: Path, vertex: np.ndarray, has_harmonics: bool, comments: tuple[str, ...]) -> Splat:
    """Read a compressed splat, whose vertices and comments are given. Raises `UserError` for one that is not whole."""
    chunks, kinds = read_table(path, "chunk")
    names = [*BOUNDS, *(COLOUR_BOUNDS if "min_r" in kinds else [])]
    if missing := [name for name in PACKED if name not in (vertex.dtype.names or ())]:
        raise UserError(f"{path} is no compressed splat: it has no {missing[0]}")
    if missing := [name for name in names if name not in kinds]:
        raise UserError(f"{path} is no compressed splat: its chunks have no {missing[0]}")
    if any(vertex.dtype[name].kind != "u" or vertex.dtype[name].itemsize != 4 for name in PACKED):
        raise UserError(f"{path} is no compressed splat that can be read: binary ones have uint properties")
    if not len(vertex):
        raise UserError(f"{path} holds no Gaussian that can be used")
    if len(chunks) * SIZE < len(vertex):
        raise UserError(f"{path} has {len(chunks)} chunks for {len(vertex):,} Gaussians, expected one for each {SIZE}")
    harmonics, degree = _read_harmonics(path, len(vertex)) if has_harmonics else (None, 0)
    bounds = np.stack([np.asarray(chunks[name], np.float64) for name in names], axis=1)
    parts = _unpack_all(vertex, bounds, harmonics)
    gaussians, _ = gather(parts, len(vertex), degree, path)
    return Splat(replace(gaussians, antialiased=is_antialiased(comments)), comments)


def _read_harmonics(path: Path, count: int) -> tuple[np.ndarray, int]:
    """Return the higher harmonics as they are stored, a structured array [N], and their degree."""
    table, kinds = read_table(path, "sh")
    wanted = [f"f_rest_{k}" for k in range(len(kinds))]
    if len(kinds) not in (9, 24, 45) or set(wanted) != set(kinds) or {*kinds.values()} - {"uchar", "uint8"}:
        raise UserError(f"{path} has {len(kinds)} compressed harmonics, expected 9, 24 or 45 of uchar")
    if len(table) != count:
        raise UserError(f"{path} has harmonics of {len(table):,} Gaussians, and {count:,} Gaussians")
    return table, {9: 1, 24: 2, 45: 3}[len(kinds)]


def _unpack_all(vertex: np.ndarray, bounds: np.ndarray, harmonics: np.ndarray | None) -> Iterator[np.ndarray]:
    for start in range(0, len(vertex), CHUNK):
        place = slice(start, start + CHUNK)
        packed = {name: np.asarray(vertex[name][place]) for name in PACKED}
        own = bounds[np.arange(start, start + len(packed[PACKED[0]])) // SIZE]
        higher = np.empty((len(own), 0))
        if harmonics is not None:
            stored = np.stack([harmonics[name][place] for name in harmonics.dtype.names or ()], axis=1)
            share = np.where(stored == 255, 1.0, np.where(stored == 0, 0.0, (stored + 0.5) / 256))
            higher = (share - 0.5) * SPREAD
        yield _unpack(packed, own, higher)


def _unpack(packed: dict[str, np.ndarray], bounds: np.ndarray, higher: np.ndarray) -> np.ndarray:
    """Return rows of packed numbers [N], with the bounds [N, 12 or 18] of their chunks."""
    positions = _lerp(_unpack_11_10_11(packed["packed_position"]), bounds[:, 0:3], bounds[:, 3:6])
    scales = _lerp(_unpack_11_10_11(packed["packed_scale"]), bounds[:, 6:9], bounds[:, 9:12])
    rotation, colour = packed["packed_rotation"], packed["packed_color"]
    others = np.stack([(rotation >> np.uint32(shift)) & np.uint32(1023) for shift in (20, 10, 0)], axis=1) / 1023
    quats = from_smallest_three((rotation >> np.uint32(30)).astype(int), (others - 0.5) * ROOT)
    shares = np.stack([(colour >> np.uint32(shift)) & np.uint32(255) for shift in (24, 16, 8, 0)], axis=1) / 255
    colours = shares[:, :3] if bounds.shape[1] == 12 else _lerp(shares[:, :3], bounds[:, 12:15], bounds[:, 15:18])
    return join(positions, harmonics_of(colours), logits_of(shares[:, 3]), scales, quats, higher)


def _lerp(shares: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low * (1 - shares) + high * shares


def _unpack_11_10_11(packed: np.ndarray) -> np.ndarray:
    """Return the fractions [N, 3] of packed numbers [N]."""
    x, y, z = packed >> np.uint32(21), (packed >> np.uint32(11)) & np.uint32(1023), packed & np.uint32(2047)
    return np.stack([x / 2047, y / 1023, z / 2047], axis=1)


def write(path: Path, splat: Splat) -> Clipped:
    """Write a compressed splat, in an order in which neighbours share a chunk; return what was clipped."""
    gaussians = splat.gaussians
    count, higher = len(gaussians), 3 * (gaussians.sh.shape[1] - 1)
    lines = [f"comment {comment}" for comment in splat.ply_comments]
    lines.append(f"element chunk {-(-count // SIZE)}")
    lines += [f"property float {name}" for name in [*BOUNDS, *COLOUR_BOUNDS]]
    lines += [f"element vertex {count}", *(f"property uint {name}" for name in PACKED)]
    if higher:
        lines += [f"element sh {count}", *(f"property uchar f_rest_{k}" for k in range(higher))]
    order, clipped = morton_order(gaussians.means), Clipped()
    with path.open("wb") as file:
        file.write("\n".join(["ply", "format binary_little_endian 1.0", *lines, "end_header\n"]).encode())
        starts = np.cumsum([file.tell(), -(-count // SIZE) * 18 * 4, count * 16])
        for rows in iterate(gaussians, order):
            for k, part in enumerate(_pack(rows, clipped)):
                starts[k] = _write_at(file, int(starts[k]), part.tobytes())
    return clipped


def _write_at(file: BinaryIO, place: int, content: bytes) -> int:
    """Write at a place of a file and return the place behind."""
    file.seek(place)
    file.write(content)
    return place + len(content)


def _pack(rows: np.ndarray, clipped: Clipped) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the bounds of the chunks of rows, float32 [C, 18], the packed numbers, uint32 [N, 4], and the higher
    harmonics, uint8 [N, …]."""
    starts = np.arange(0, len(rows), SIZE)
    scales = rows[:, SCALES].clip(-LIMIT, LIMIT)
    colours = colours_of(rows[:, FIRST])
    shares, bounds = [], []
    for values in (rows[:, POSITION].astype(np.float64), scales.astype(np.float64), colours):
        low, high = (np.float32(ufunc.reduceat(values, starts, axis=0)) for ufunc in (np.minimum, np.maximum))
        own_low, own_high = (np.repeat(one.astype(np.float64), SIZE, axis=0)[: len(rows)] for one in (low, high))
        extent = own_high - own_low
        shares.append(np.where(extent > 0, (values - own_low) / np.where(extent > 0, extent, 1), 0).clip(0, 1))
        bounds += [low, high]
    largest, others = smallest_three(normalised(rows[:, QUAT]))
    turns = _steps(others / ROOT + 0.5, 1023)
    colour, alpha = _steps(shares[2], 255), _steps(alphas_of(rows[:, LOGIT]), 255)
    packed = [
        _pack_11_10_11(shares[0]),
        (largest.astype(np.uint32) << np.uint32(30)) | _join_bits(turns, (20, 10, 0)),
        _pack_11_10_11(shares[1]),
        _join_bits(np.concatenate([colour, alpha], axis=1), (24, 16, 8, 0)),
    ]
    half = SPREAD / 2
    higher = clipped.clip("harmonics", rows[:, HIGHER], -half, half) / SPREAD + 0.5
    return np.hstack(bounds), np.stack(packed, axis=1), (higher * 256).clip(0, 255).astype(np.uint8)


def _steps(shares: np.ndarray, steps: int) -> np.ndarray:
    return np.floor(shares * steps + 0.5).clip(0, steps).astype(np.uint32)


def _join_bits(values: np.ndarray, shifts: tuple[int, ...]) -> np.ndarray:
    return np.bitwise_or.reduce([values[:, k] << np.uint32(shift) for k, shift in enumerate(shifts)])


def _pack_11_10_11(shares: np.ndarray) -> np.ndarray:
    x, y, z = _steps(shares[:, 0], 2047), _steps(shares[:, 1], 1023), _steps(shares[:, 2], 2047)
    return (x << np.uint32(21)) | (y << np.uint32(11)) | z
