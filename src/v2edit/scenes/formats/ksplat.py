"""Reading of `.ksplat` files of mkkellogg's GaussianSplats3D: sections of Gaussians in three levels of compression.
Coordinates are those of the PLY that it was made from.

Level 0 has float32 throughout; level 1 float16, with positions of 16 bits within the bucket that a Gaussian is in;
level 2 is the same with higher harmonics of 8 bits. Colour and opacity are 8 bits in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from v2edit.errors import UserError
from v2edit.files import check_content
from v2edit.scenes.formats.rows import CHUNK, Splat, gather, harmonics_of, join, logits_of

HEADER, SECTION = 4096, 1024  # bytes of the header, and of each section's
FLOATS = ("<f4", "<f2", "<f2")  # of scales and rotations, by the level
POSITIONS = ("<f4", "<u2", "<u2")
HARMONICS = ("<f4", "<f2", "u1")
RANGES = (1, 32767, 32767)  # of positions in a bucket, where the file does not say
REACH = 1.5  # of harmonics in 8 bits, where the file does not say
COEFFICIENTS = (0, 9, 24, 45)


@dataclass(frozen=True)
class _Section:
    """A section: its records of Gaussians lie from `start` on; `buckets` has the index of each one's bucket in
    `centres`, float32 [B, 3], or nothing in level 0."""

    start: int
    count: int
    degree: int
    step: float
    reach: int
    centres: np.ndarray
    buckets: np.ndarray


def read(path: Path) -> Splat:
    """Read a splat. Raises `UserError` for a file that is none, or is not whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER)
    check_content(path, head[:64], "scene")
    if len(head) < HEADER or head[0] != 0 or head[1] < 1:
        raise UserError(f"{path} is no .ksplat file")
    words, level = np.frombuffer(head, "<u4"), int.from_bytes(head[20:22], "little")
    low, high = np.frombuffer(head, "<f4")[9:11].astype(np.float64)
    places, count = int(words[1]), int(words[4])
    if level > 2:
        raise UserError(f"{path} has the level of compression {level}, expected 0 to 2")
    if places * SECTION > size - HEADER:
        raise UserError(f"{path} says it holds {places:,} sections and has {size:,} bytes: it is cut short or forged")
    data = np.memmap(path, np.uint8, "r")
    sections, start = [], HEADER + places * SECTION
    for place in range(places):
        at = HEADER + place * SECTION
        section, start = _read_section(path, data, np.asarray(data[at : at + SECTION]), start, level)
        if section.count:
            sections.append(section)
    total = sum(section.count for section in sections)
    if total == 0 or total != count:
        raise UserError(f"{path} says it holds {count:,} Gaussians, and its sections {total:,}")
    degree = max(section.degree for section in sections)
    chunks = (rows for section in sections for rows in _unpack_all(data, section, level, degree, (low, high)))
    gaussians, _ = gather(chunks, total, degree, path)
    return Splat(gaussians)


def _read_section(path: Path, data: np.ndarray, head: np.ndarray, start: int, level: int) -> tuple[_Section, int]:
    """Read what precedes the records of a section that begins at `start`; return it, and where the next one begins.
    Raises `UserError` where it claims more than there is."""
    words, halves, floats = (head.view(kind) for kind in ("<u4", "<u2", "<f4"))
    count, room, bucket_size, bucket_count = (int(word) for word in words[:4])
    full, partial, width, degree = int(words[8]), int(words[9]), int(halves[10]), int(halves[20])
    if degree > 3:
        raise UserError(f"{path} has harmonics of degree {degree}, expected 0 to 3")
    lengths_end = start + 4 * partial
    records = lengths_end + width * bucket_count
    end = records + room * _record(level, degree).itemsize
    if count > room or end > len(data):
        raise UserError(f"{path} says it holds {end:,} bytes and has {len(data):,}: it is cut short or forged")
    reach = int(words[6]) or RANGES[level]
    centres, buckets = np.empty((0, 3), np.float32), np.empty(0, np.int64)
    if level > 0 and count:
        if width != 12:
            raise UserError(f"{path} has buckets of {width} bytes, expected 12")
        centres = np.frombuffer(data[lengths_end:records], "<f4").reshape(bucket_count, 3)
        lengths = np.frombuffer(data[start:lengths_end], "<u4").astype(np.int64)
        within = min(full, -(-count // max(bucket_size, 1)))  # no more than there are Gaussians for
        if full + partial > bucket_count or within * bucket_size + lengths.clip(0, count).sum() < count:
            raise UserError(f"{path} has Gaussians that are in none of its {bucket_count:,} buckets")
        buckets = np.repeat(np.arange(within), np.minimum(bucket_size, count))[:count]
        left = np.repeat(np.arange(full, full + partial), lengths.clip(0, count - len(buckets)))
        buckets = np.concatenate([buckets, left])[:count]
    step = float(floats[4]) / 2 / reach
    return _Section(records, count, degree, step, reach, centres, buckets), end


def _record(level: int, degree: int) -> np.dtype:
    """Return the layout of a Gaussian."""
    return np.dtype([
        ("position", POSITIONS[level], 3), ("scale", FLOATS[level], 3), ("rotation", FLOATS[level], 4),
        ("colour", "u1", 4), ("harmonics", HARMONICS[level], (COEFFICIENTS[degree],)),
    ])  # fmt: skip


def _unpack_all(
    data: np.ndarray, section: _Section, level: int, degree: int, bounds: tuple[float, float]
) -> Iterator[np.ndarray]:
    """Yield chunks of rows of a section, with harmonics of a degree."""
    record = _record(level, section.degree)
    for first in range(0, section.count, CHUNK):
        last = min(first + CHUNK, section.count)
        content = data[section.start + first * record.itemsize : section.start + last * record.itemsize]
        part = np.frombuffer(content.tobytes(), record)
        positions = part["position"].astype(np.float64)
        if level > 0:
            centres = section.centres[section.buckets[first:last]]
            positions = (positions - section.reach) * section.step + centres
        colours, higher = part["colour"] / 255.0, part["harmonics"].astype(np.float64)
        if level == 2:
            low, high = bounds[0] or -REACH, bounds[1] or REACH
            higher = low + higher / 255 * (high - low)
        with np.errstate(divide="ignore", invalid="ignore"):  # a scale of 0 is flat, one below is left out
            scales = np.log(part["scale"].astype(np.float64))
        higher = _by_colour(higher, section.degree, degree)
        yield join(positions, harmonics_of(colours[:, :3]), logits_of(colours[:, 3]), scales, part["rotation"], higher)


def _by_colour(values: np.ndarray, degree: int, wanted: int) -> np.ndarray:
    """Return harmonics [N, …] that are stored band by band, each of red, green and blue, as all of red's, green's and
    blue's, with zeros above their degree up to the one that is wanted."""
    colours = np.zeros((len(values), 3, (wanted + 1) ** 2 - 1))
    for band in range(1, degree + 1):
        ends = slice(band**2 - 1, (band + 1) ** 2 - 1)
        colours[:, :, ends] = values[:, 3 * ends.start : 3 * ends.stop].reshape(len(values), 3, -1)
    return colours.reshape(len(values), -1)
