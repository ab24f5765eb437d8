"""`.splat` files, as antimatter15's viewer reads them: 32 bytes a Gaussian, without a header. Positions and scales are
float32, colour and opacity 8 bits each of 0 … 1, the four components of the rotation 8 bits each of -1 … 1; there are
no higher harmonics. Coordinates are those of the PLY that it was made from.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from v2edit.errors import UserError
from v2edit.files import check_content
from v2edit.scenes.formats.rows import (
    CHUNK,
    FIRST,
    LOGIT,
    POSITION,
    QUAT,
    SCALES,
    Clipped,
    Splat,
    alphas_of,
    colours_of,
    gather,
    harmonics_of,
    iterate,
    join,
    logits_of,
    normalised,
)

RECORD = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("colour", "u1", 4), ("rotation", "u1", 4)])
UNIT = 128.0  # of a rotation's byte: 0 is -1, 128 is 0


def read(path: Path) -> Splat:
    """Read a splat. Raises `UserError` for a file that is none: of another length, or of numbers that are no scales."""
    size = path.stat().st_size
    with path.open("rb") as file:
        check_content(path, file.read(64), "scene")
    if size % RECORD.itemsize:
        raise UserError(f"{path} has {size:,} bytes, expected {RECORD.itemsize} for each Gaussian: it is cut short")
    count = size // RECORD.itemsize
    gaussians, finite = gather(_read_chunks(path, count), count, 0, path)
    if finite.mean() < 0.5:
        raise UserError(f"{path} is no .splat: most of its numbers cannot be of Gaussians")
    return Splat(gaussians)


def _read_chunks(path: Path, count: int) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        for start in range(0, count, CHUNK):
            size = min(CHUNK, count - start) * RECORD.itemsize
            part = np.frombuffer(file.read(size), RECORD)
            colours, quats = part["colour"] / 255.0, (part["rotation"] - UNIT) / UNIT
            with np.errstate(divide="ignore", invalid="ignore"):  # a scale of 0 is flat, one below is left out
                scales = np.log(part["scale"])
            yield join(part["position"], harmonics_of(colours[:, :3]), logits_of(colours[:, 3]), scales, quats)


def write(path: Path, splat: Splat) -> Clipped:
    """Write a splat, its Gaussians in their order; return what was clipped."""
    clipped = Clipped()
    with path.open("wb") as file:
        for rows in iterate(splat.gaussians):
            part = np.empty(len(rows), RECORD)
            part["position"], part["scale"] = rows[:, POSITION], np.exp(rows[:, SCALES])
            part["colour"][:, :3] = np.rint(clipped.clip("colours", colours_of(rows[:, FIRST]), 0, 1) * 255)
            part["colour"][:, 3] = np.rint(alphas_of(rows[:, LOGIT]) * 255)[:, 0]
            part["rotation"] = (np.rint(normalised(rows[:, QUAT]) * UNIT) + UNIT).clip(0, 255)
            file.write(part.tobytes())
    return clipped
