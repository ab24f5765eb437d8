"""`.spz` files of Niantic (versions 1 to 4): columns of quantised numbers, in one gzip stream or, since version 4, a
zstd stream each. Coordinates are RUB, or those that Adobe's extension states, and are turned to those of a PLY, RDF.

Positions are fixed-point numbers of 24 bits, scales logarithms in steps of 1/16 from -10 on, rotations three components
of 10 bits, the rest 8 bits: opacity 0 … 1, first harmonics about ±3.3, higher ones ±1.
"""

from __future__ import annotations

import gzip
import logging
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from v2edit.errors import UserError
from v2edit.files import check_content
from v2edit.scenes.formats.coordinates import Conversion
from v2edit.scenes.formats.rows import (
    CHUNK,
    FIRST,
    HIGHER,
    LOGIT,
    POSITION,
    QUAT,
    SCALES,
    Clipped,
    Splat,
    alphas_of,
    check_count,
    from_smallest_three,
    gather,
    iterate,
    join,
    limit_degree,
    logits_of,
    normalised,
    smallest_three,
)

log = logging.getLogger(__name__)
MAGIC, GZIP = b"NGSP", b"\x1f\x8b"
HEADER, TABLE = struct.Struct("<4sIIBBBB"), struct.Struct("<QQ")
HEADER_4 = 32  # bytes, of version 4
WRITTEN_VERSION = 3  # which every viewer reads
ANTIALIASED, EXTENDED = 1, 2  # flags
COORDINATES = 0xADBE0003  # the type of Adobe's extension
SYSTEMS = [  # by their numbers in the extension, of which 0 says nothing
    "RUB", "LDB", "RDB", "LUB", "RUB", "LDF", "RDF", "LUF", "RUF",
    "LFD", "RFD", "LFU", "RFU", "LBD", "RBD", "LBU", "RBU",
]  # fmt: skip
MAX_EXTENSIONS = 1 << 20  # bytes
MAX_BITS = 23  # of a coordinate's fraction
USUAL_BITS = 12  # which Niantic's program writes: a fraction of 1/4096
COLOUR_SCALE = 0.15  # of the first harmonics
XYZW = [3, 0, 1, 2]  # the places of w, x, y and z in the file's order


@dataclass(frozen=True)
class _Header:
    """A file's header; `sizes` has the bytes a Gaussian of each of its columns, in their order."""

    version: int
    count: int
    degree: int
    fraction_bits: int
    flags: int

    @property
    def sizes(self) -> dict[str, int]:
        return {
            "positions": 6 if self.version == 1 else 9,
            "alphas": 1,
            "colours": 3,
            "scales": 3,
            "rotations": 4 if self.version >= 3 else 3,
            "harmonics": 3 * ((self.degree + 1) ** 2 - 1),
        }


def read(path: Path) -> Splat:
    """Read a splat, of harmonics up to degree 4, of which the fourth is left out with a warning. Raises `UserError` for
    a file that is none, or is not whole."""
    with path.open("rb") as file:
        head = file.read(64)
        check_content(path, head, "scene")
        file.seek(0)
        size = path.stat().st_size
        try:
            if head.startswith(GZIP):
                with gzip.GzipFile(fileobj=file) as stream:
                    header, columns, extensions = _read_stream(path, cast(BinaryIO, stream), size)
            elif head.startswith(MAGIC):
                header, columns, extensions = _read_streams(path, file, size)
            else:
                raise UserError(f"{path} is no .spz file")
        except (EOFError, zlib.error, gzip.BadGzipFile, struct.error) as error:
            raise UserError(f"{path} is damaged or cut short: {str(error) or 'it ends too early'}") from error
    degree = limit_degree(path, header.degree)
    system = _coordinate_system(path, extensions)
    chunks = _unpack_all(header, columns, degree, Conversion.between(system, "RDF"))
    gaussians, _ = gather(chunks, header.count, degree, path)
    return Splat(replace(gaussians, antialiased=bool(header.flags & ANTIALIASED)))


def _parse_header(path: Path, head: bytes, size: int) -> _Header:
    """Return the header at the front of some bytes. Raises `UserError` for one that this module cannot read."""
    magic, version, count, degree, bits, flags, _ = HEADER.unpack(head[: HEADER.size])
    if magic != MAGIC:
        raise UserError(f"{path} is no .spz file")
    if version not in (1, 2, 3, 4):
        raise UserError(f"{path} is an .spz of version {version}, expected 1 to 4")
    if degree > 4:
        raise UserError(f"{path} has harmonics of degree {degree}, expected 0 to 4")
    if bits > MAX_BITS:
        raise UserError(f"{path} has coordinates with {bits} bits behind the point, expected {MAX_BITS} at most")
    check_count(path, count, size)
    return _Header(version, count, degree, bits, flags)


def _read_stream(path: Path, stream: BinaryIO, size: int) -> tuple[_Header, dict[str, np.ndarray], bytes]:
    """Return the header, the columns, uint8 [N, …], and the extensions of a file of versions 1 to 3. No more is
    decompressed than the header says."""
    header = _parse_header(path, stream.read(HEADER.size), size)
    if header.version > 3:
        raise UserError(f"{path} is an .spz of version {header.version} in gzip, which only earlier ones are")
    columns = {}
    for name, width in header.sizes.items():
        content = stream.read(header.count * width)
        if len(content) < header.count * width:
            raise UserError(f"{path} is cut short: it has no {name} for all of its {header.count:,} Gaussians")
        columns[name] = np.frombuffer(content, np.uint8).reshape(header.count, width)
    return header, columns, stream.read(MAX_EXTENSIONS) if header.flags & EXTENDED else b""


def _read_streams(path: Path, file: BinaryIO, size: int) -> tuple[_Header, dict[str, np.ndarray], bytes]:
    """Return the same of a file of version 4, whose columns are compressed one by one."""
    try:
        import zstandard
    except ModuleNotFoundError as missing:
        raise UserError(f".spz files of version 4 need {missing.name}: pip install 'v2edit[scenes]'") from missing
    head = file.read(HEADER_4)
    header = _parse_header(path, head, size)
    number, table = struct.unpack_from("<BI", head, HEADER.size - 1)
    widths = {name: width for name, width in header.sizes.items() if width}
    if header.version < 4 or number != len(widths) or not HEADER_4 <= table <= size:
        raise UserError(f"{path} has an .spz header that makes no sense: version {header.version}, {number} streams")
    extensions = file.read(min(table - HEADER_4, MAX_EXTENSIONS)) if header.flags & EXTENDED else b""
    file.seek(table)
    entries = [TABLE.unpack(file.read(TABLE.size)) for _ in widths]
    columns = {"harmonics": np.empty((header.count, 0), np.uint8)}
    for (name, width), (packed, unpacked) in zip(widths.items(), entries, strict=True):
        if unpacked != header.count * width or packed > size:
            raise UserError(f"{path} has {name} of {unpacked:,} bytes, expected {header.count * width:,}")
        try:
            content = zstandard.ZstdDecompressor().stream_reader(file.read(packed)).read(unpacked)
        except zstandard.ZstdError as error:
            raise UserError(f"{path} is damaged: its {name} cannot be decompressed") from error
        if len(content) < unpacked:
            raise UserError(f"{path} is cut short: it has no {name} for all of its {header.count:,} Gaussians")
        columns[name] = np.frombuffer(content, np.uint8).reshape(header.count, width)
    return header, columns, extensions


def _coordinate_system(path: Path, extensions: bytes) -> str:
    """Return the coordinate system that a file's extensions state, or that of the format; others are noted."""
    place, system, others = 0, "RUB", 0
    while place + 8 <= len(extensions):
        kind, length = struct.unpack_from("<II", extensions, place)
        if kind == COORDINATES and length == 4 and place + 12 <= len(extensions):
            value = int.from_bytes(extensions[place + 8 : place + 12], "little")
            if value >= len(SYSTEMS):
                raise UserError(f"{path} has the coordinate system {value}, expected 0 to {len(SYSTEMS) - 1}")
            system = SYSTEMS[value]
        else:
            others += 1
        place += 8 + length
    if others:
        log.warning("%s has extensions beside its Gaussians, which are left out", path)
    return system


def _unpack_all(
    header: _Header, columns: dict[str, np.ndarray], degree: int, conversion: Conversion
) -> Iterator[np.ndarray]:
    for start in range(0, header.count, CHUNK):
        part = {name: column[start : start + CHUNK] for name, column in columns.items()}
        yield conversion.apply(_unpack(header, part, degree))


def _unpack(header: _Header, part: dict[str, np.ndarray], degree: int) -> np.ndarray:
    """Return rows of the columns of some Gaussians, in the file's own coordinates."""
    if header.version == 1:
        positions = part["positions"].copy().view("<f2").astype(np.float64)
    else:
        low, middle, high = part["positions"].reshape(-1, 3, 3).astype(np.int32).transpose(2, 0, 1)
        fixed = low | (middle << 8) | (high << 16)
        positions = ((fixed ^ 0x800000) - 0x800000) / 2.0**header.fraction_bits
    colours = (part["colours"] / 255.0 - 0.5) / COLOUR_SCALE
    higher = (part["harmonics"].reshape(len(positions), -1, 3)[:, : (degree + 1) ** 2 - 1] - 128.0) / 128.0
    turns = _unpack_rotations(part["rotations"])
    logits, scales = logits_of(part["alphas"] / 255.0), part["scales"] / 16.0 - 10.0
    return join(positions, colours, logits, scales, turns[:, XYZW], higher.transpose(0, 2, 1))


def _unpack_rotations(packed: np.ndarray) -> np.ndarray:
    """Return quaternions (x, y, z, w) [N, 4]: of 3 bytes x, y and z with w positive; of 4 the three smallest
    components, a sign and 9 bits each, below the place of the largest."""
    if packed.shape[1] == 3:
        vector = packed / 127.5 - 1
        return np.hstack([vector, np.sqrt(np.maximum(0.0, 1 - (vector**2).sum(axis=1, keepdims=True)))])
    words = packed.copy().view("<u4")[:, 0].astype(np.int64)
    fields = np.stack([(words >> shift) & 1023 for shift in (20, 10, 0)], axis=1)
    others = (fields & 511) / 511 * math.sqrt(0.5) * np.where(fields & 512, -1, 1)
    return from_smallest_three(words >> 30, others)


def write(path: Path, splat: Splat) -> Clipped:
    """Write a splat, its Gaussians in their order, with coordinates as fine as the farthest Gaussian allows; return
    what was clipped."""
    gaussians, clipped = splat.gaussians, Clipped()
    farthest = float(gaussians.means.abs().max())
    bits = min(MAX_BITS, 23 - max(math.frexp(farthest)[1], 0))
    if bits < 0:
        raise UserError(f"an .spz cannot hold Gaussians as far away as {farthest:g}: 8,388,607 at most")
    if bits < USUAL_BITS:
        log.warning("the .spz has positions in steps of %g, as Gaussians are as far as %g", 2.0**-bits, farthest)
    conversion = Conversion.between("RDF", "RUB")
    header = _Header(WRITTEN_VERSION, len(gaussians), gaussians.degree, bits, ANTIALIASED * gaussians.antialiased)
    columns = {name: np.empty((header.count, width), np.uint8) for name, width in header.sizes.items()}
    start = 0
    for rows in iterate(gaussians):
        for name, part in _pack(conversion.apply(rows), bits, clipped).items():
            columns[name][start : start + len(rows)] = part.reshape(len(rows), -1)
        start += len(rows)
    with path.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as stream:
        facts = (header.version, header.count, header.degree, header.fraction_bits, header.flags, 0)
        stream.write(HEADER.pack(MAGIC, *facts))
        for column in columns.values():
            stream.write(column.data)
    return clipped


def _pack(rows: np.ndarray, bits: int, clipped: Clipped) -> dict[str, np.ndarray]:
    """Return the columns of rows, uint8 [N, …], in the file's coordinates."""
    fixed = np.rint(rows[:, POSITION].astype(np.float64) * 2.0**bits).clip(-(2**23), 2**23 - 1).astype(np.int32)
    scales = clipped.clip("scales", rows[:, SCALES], -10 - 1 / 32, 255 / 16 - 10 + 1 / 32)
    reach = 0.5 / COLOUR_SCALE
    colours = clipped.clip("colours", rows[:, FIRST], -reach, reach)
    higher = clipped.clip("harmonics", rows[:, HIGHER], -1 - 1 / 256, 127 / 128 + 1 / 256)
    return {
        "positions": np.stack([(fixed >> shift) & 255 for shift in (0, 8, 16)], axis=2).astype(np.uint8),
        "alphas": _bytes(alphas_of(rows[:, LOGIT]) * 255),
        "colours": _bytes(colours * COLOUR_SCALE * 255 + 127.5),
        "scales": _bytes((scales + 10) * 16),
        "rotations": _pack_rotations(normalised(rows[:, QUAT])[:, [1, 2, 3, 0]]),
        "harmonics": _bytes(higher.reshape(len(rows), 3, -1).transpose(0, 2, 1) * 128 + 128),
    }


def _pack_rotations(quats: np.ndarray) -> np.ndarray:
    """Return unit quaternions (x, y, z, w) as 4 bytes each, uint8 [N, 4]."""
    largest, others = smallest_three(quats)
    sizes = np.rint(np.abs(others) / math.sqrt(0.5) * 511).clip(0, 511).astype(np.int64)
    fields = sizes | np.where(others < 0, 512, 0)
    words = (largest << 30) | (fields[:, 0] << 20) | (fields[:, 1] << 10) | fields[:, 2]
    return words.astype("<u4").view(np.uint8).reshape(-1, 4)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)
