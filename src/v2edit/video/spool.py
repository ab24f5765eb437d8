"""Masks that are computed once and read from a file from then on: exact, and small, since masks are mostly flat."""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from v2edit.errors import UserError
from v2edit.video.stream import Frames, FrameStream

LEVEL = 1  # of compression, the fastest: flat areas take next to nothing


def spool(mask: Frames, path: Path | None = None) -> FrameStream:
    """Write a mask [T, H, W] to a file, a temporary one where no path is given, and return it as a stream from there.
    Frames like the one before are there once, and of each the part that is not 0."""
    file = tempfile.TemporaryFile() if path is None else path.open("w+b")  # noqa: SIM115  (the stream's, to its end)
    name = "a temporary file" if path is None else str(path)
    try:
        _write(mask, file)
    except OSError as error:
        raise UserError(f"cannot write {name}: {error.strerror or error}") from error
    return _open(file, name)


def _write(mask: Frames, file: IO[bytes]) -> None:
    index: list[int] = []  # which of the frames that are there each frame is
    boxes: list[list[int]] = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as archive:
        last: np.ndarray | None = None
        for frame in mask:
            if last is None or not np.array_equal(frame, last):
                boxes.append(_find_box(frame))
                top, end, left, right = boxes[-1]
                archive.writestr(str(len(boxes) - 1), np.ascontiguousarray(frame[top:end, left:right]).tobytes())
                last = frame
            index.append(len(boxes) - 1)
        facts = {"index": index, "boxes": boxes, "shape": mask.shape, "dtype": np.dtype(mask.dtype).str}
        for name, value in facts.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.save(entry, np.array(value))


def open_spool(path: Path) -> FrameStream:
    """Return the mask that `spool` wrote at a path. Raises `UserError` where it cannot be read."""
    try:
        return _open(path.open("rb"), str(path))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): start again, with another -o") from error


def _open(file: IO[bytes], name: str) -> FrameStream:
    archive = zipfile.ZipFile(file)
    index, boxes, shape, kind = (np.load(archive.open(f"{one}.npy")) for one in ("index", "boxes", "shape", "dtype"))
    dtype, size = np.dtype(str(kind)), tuple(map(int, shape))

    def read(first: int, stop: int) -> Iterator[np.ndarray]:
        there, frame = -1, np.empty(0)
        for one in index[first:stop].tolist():
            if one != there:
                top, end, left, right = boxes[one]
                frame = np.zeros(size[1:], dtype)
                try:
                    part = np.frombuffer(archive.read(str(one)), dtype)
                except (OSError, zipfile.BadZipFile, zlib.error) as error:
                    raise UserError(f"{name} cannot be read ({error}): start again") from error
                frame[top:end, left:right] = part.reshape(end - top, right - left)
                frame.flags.writeable, there = False, one
            yield frame

    return FrameStream(read, size, dtype)


def _find_box(frame: np.ndarray) -> list[int]:
    """Return the first row and that after the last, and the columns likewise, in which a frame [H, W] is not 0."""
    box: list[int] = []
    for axis in (1, 0):
        places = np.flatnonzero(frame.any(axis))
        box += [int(places[0]), int(places[-1]) + 1] if len(places) else [0, 0]
    return box
