"""Reading of SOG files of PlayCanvas (SuperSplat), versions 1 and 2: numbers of 8 bits in the pixels of lossless
images, a Gaussian's in each, with a `meta.json` that has their bounds and code books; in a folder, or zipped as `.sog`.
Coordinates are those of the PLY that it was made from, as every program that writes them leaves them.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from v2edit.errors import UserError
from v2edit.files import MAX_JSON_BYTES, check_content, parse_json
from v2edit.scenes.formats.rows import (
    CHUNK,
    LIMIT,
    Splat,
    check_count,
    from_smallest_three,
    gather,
    join,
    logits_of,
)

META = "meta.json"
SQRT = np.sqrt(2.0)
PALETTE_WIDTH = 64  # entries in a row of the palette of higher harmonics
MAX_SIDE = 16383  # pixels, of WebP
FIRST_TAG = 252  # of a rotation: the place of its largest component
Load = Callable[[str], bytes]  # reads a file beside meta.json
Numbers = Annotated[list[float | None], Field(max_length=4096)]
Files = Annotated[list[Annotated[str, Field(max_length=200)]], Field(min_length=1, max_length=4)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")
    files: Files
    mins: Numbers | float | None = None
    maxs: Numbers | float | None = None
    codebook: Numbers | None = None
    count: int | None = None
    bands: Literal[0, 1, 2, 3] | None = None
    shape: list[Annotated[int, Field(ge=0)]] | None = None


class _Meta(BaseModel):
    model_config = ConfigDict(extra="ignore")
    version: Literal[1, 2] = 1
    count: Annotated[int, Field(ge=0)] = 0
    antialias: bool = False
    model: str = ""
    means: _Part
    scales: _Part
    quats: _Part
    sh0: _Part
    shN: _Part | None = None


def is_folder(path: Path) -> bool:
    """Return whether a folder holds a SOG that is not zipped."""
    return (path / META).is_file() and (path / "means_l.webp").is_file()


def read(path: Path) -> Splat:
    """Read a splat: a `.sog`, a folder, or the `meta.json` in it. Raises `UserError` for what is none, is not whole, or
    has images that are not of its count."""
    with _opened(path) as (load, size):
        meta = _read_meta(path, load)
        count = meta.count or (meta.means.shape or [0])[0]
        check_count(path, count, size)
        images = {name: _read_image(path, load, part.files[0], count) for name, part in _parts(meta).items()}
        images["means_u"] = _read_image(path, load, _second(path, meta.means), count)
        try:
            palette, degree = _read_palette(path, load, meta, count)
            gaussians, _ = gather(_unpack_all(meta, images, palette, count), count, degree, path)
        except UserError:
            raise
        except (ValueError, IndexError, TypeError) as error:
            raise UserError(f"{path} has bounds or code books that make no sense") from error
    return Splat(replace(gaussians, antialiased=meta.antialias or meta.model == "antialiased"))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Load, int]]:
    """Yield what reads a file beside meta.json, and the bytes that these have in all."""
    if path.is_dir() or path.name == META:
        folder = path if path.is_dir() else path.parent
        yield lambda name: (folder / name).read_bytes(), sum(one.stat().st_size for one in folder.glob("*.*"))
        return
    with path.open("rb") as file:
        check_content(path, file.read(64), "scene")
    size = path.stat().st_size
    with ExitStack() as stack:
        with _damage_in_a_line(path):
            archive = stack.enter_context(zipfile.ZipFile(path))

        def load(name: str) -> bytes:
            info = archive.getinfo(name)
            with _damage_in_a_line(path), archive.open(info) as member:
                return member.read(2 * size + MAX_JSON_BYTES)  # images are compressed already

        yield load, size


@contextmanager
def _damage_in_a_line(path: Path) -> Iterator[None]:
    """Raise `UserError` for whatever zipfile raises of a file that is no zip, or a damaged one."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is no .sog file, or a damaged one: {error}") from error


def _load(path: Path, load: Load, name: str) -> bytes:
    """Load a file beside meta.json. Raises `UserError` where it is not there, or elsewhere."""
    if Path(name).name != name or "\\" in name or "\0" in name:
        raise UserError(f"{path} names the file {name[:60]!r}, expected one beside its {META}")
    try:
        return load(name)
    except (KeyError, FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"{path} has no {name}") from error


def _read_meta(path: Path, load: Load) -> _Meta:
    content = _load(path, load, META)
    try:
        if len(content) > MAX_JSON_BYTES:
            raise ValueError(f"{len(content):,} bytes are too many")
        return _Meta.model_validate(parse_json(content.decode("utf-8-sig")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} has a {META} that is of no SOG: {place}: {first['msg']}") from error
    except ValueError as error:
        raise UserError(f"{path} has a {META} that cannot be read: {error}") from error


def _parts(meta: _Meta) -> dict[str, _Part]:
    return {"means_l": meta.means, "scales": meta.scales, "quats": meta.quats, "sh0": meta.sh0}


def _second(path: Path, part: _Part) -> str:
    if len(part.files) < 2:
        raise UserError(f"{path} names {part.files[0]} without the second file that belongs to it")
    return part.files[1]


def _read_image(path: Path, load: Load, name: str, count: int) -> np.ndarray:
    """Read an image as pixels, uint8 [P, 4], of which there are `count` at least, and twice as many at most. Its size
    is looked at before it is decoded: a few bytes may hold gigapixels."""
    from PIL import Image

    content = _load(path, load, name)
    width, height = _size_of(path, name, content)
    if not count <= width * height <= 2 * count + (1 << 16):
        raise UserError(f"{path} has {name} of {width} x {height} pixels for {count:,} Gaussians")
    try:
        with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
            pixels = np.asarray(image.convert("RGBA"))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{path} has {name}, which is no WebP image that can be read") from error
    if pixels.shape[:2] != (height, width):
        raise UserError(f"{path} has {name} of two sizes")
    return pixels.reshape(-1, 4)


def _size_of(path: Path, name: str, content: bytes) -> tuple[int, int]:
    """Return width and height that a WebP file states. Raises `UserError` where it is none."""
    kind, body = content[12:16], content[20:30]
    is_webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP" and len(body) == 10
    if is_webp and kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if is_webp and kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if is_webp and kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise UserError(f"{path} has {name}, which is no WebP image")


def _read_palette(path: Path, load: Load, meta: _Meta, count: int) -> tuple[tuple[np.ndarray, np.ndarray] | None, int]:
    """Return the palette of higher harmonics, float64 [P, K - 1, 3], with the labels [N] of the Gaussians, and their
    degree."""
    part = meta.shN
    if part is None or part.bands == 0:
        return None, 0
    content = _load(path, load, part.files[0])
    width, height = _size_of(path, part.files[0], content)
    degree = part.bands or {3: 1, 8: 2, 15: 3}.get(width // PALETTE_WIDTH, 0)
    each = (degree + 1) ** 2 - 1
    if degree == 0 or width != PALETTE_WIDTH * each or height > (1 << 16) // PALETTE_WIDTH:
        raise UserError(f"{path} has a palette of {width} x {height} pixels, which is of no degree of harmonics")
    pixels = _read_image(path, load, part.files[0], width * height)[:, :3]
    palette = _look_up(part, pixels).reshape(height * PALETTE_WIDTH, each, 3)
    marks = _read_image(path, load, _second(path, part), count)[:count].astype(np.int64)
    labels = marks[:, 0] | marks[:, 1] << 8
    if labels.max() >= len(palette):
        raise UserError(f"{path} has Gaussians of the palette's place {labels.max()}, and {len(palette)} in it")
    return (palette, labels), degree


def _look_up(part: _Part, pixels: np.ndarray) -> np.ndarray:
    """Return what pixels [P, C] stand for: entries of a code book (version 2), or between bounds (version 1)."""
    if part.codebook is not None:
        book = np.array([-np.inf if one is None else one for one in part.codebook], np.float64)
        return book[pixels]
    low, high = _numbers(part.mins), _numbers(part.maxs)
    return low + (high - low) * (pixels / 255.0)


def _numbers(values: list[float | None] | float | None) -> np.ndarray:
    return np.array(values, np.float64)


def _unpack_all(
    meta: _Meta, images: dict[str, np.ndarray], palette: tuple[np.ndarray, np.ndarray] | None, count: int
) -> Iterator[np.ndarray]:
    low, high = _numbers(meta.means.mins), _numbers(meta.means.maxs)
    if low.shape != (3,) or high.shape != (3,):
        raise ValueError("bounds of positions")
    for start in range(0, count, CHUNK):
        end = min(start + CHUNK, count)
        part = {name: image[start:end] for name, image in images.items()}
        steps = part["means_l"][:, :3] | part["means_u"][:, :3].astype(np.int32) << 8
        logs = low + (high - low) * (steps / 65535.0)
        with np.errstate(over="ignore"):
            positions = np.sign(logs) * np.expm1(np.abs(logs))
        colours, logits = part["sh0"], logits_of(part["sh0"][:, 3] / 255.0)
        if meta.sh0.codebook is None:
            values = _look_up(meta.sh0, colours)  # of the opacity the logit
            first, logits = values[:, :3], values[:, 3]
        else:
            first = _look_up(meta.sh0, colours[:, :3])
        scales = _look_up(meta.scales, part["scales"][:, :3])
        higher = np.empty((end - start, 0))
        if palette is not None:
            higher = palette[0][palette[1][start:end]].transpose(0, 2, 1)
        yield join(positions, first, logits.clip(-LIMIT, LIMIT), scales, _unpack_rotations(part["quats"]), higher)


def _unpack_rotations(pixels: np.ndarray) -> np.ndarray:
    """Return quaternions of pixels [N, 4]; of one whose last byte names no component, no rotation."""
    tags = pixels[:, 3].astype(int) - FIRST_TAG
    quats = from_smallest_three(tags.clip(0, 3), (pixels[:, :3] / 255.0 * 2 - 1) / SQRT)
    quats[tags < 0] = (1, 0, 0, 0)
    return quats
