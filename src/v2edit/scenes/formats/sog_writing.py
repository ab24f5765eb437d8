"""Writing of SOG files (version 2), zipped or in a folder. Scales and colours share code books of 256 numbers, and the
higher harmonics of all Gaussians a palette of 65,536 at most; rotations have 8 bits for each of three components,
positions 16 bits of the logarithm of their distance.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from v2edit.errors import UserError
from v2edit.files import atomic_write
from v2edit.scenes.formats.palette import fit_codebook, fit_palette, nearest
from v2edit.scenes.formats.rows import (
    FIRST,
    LOGIT,
    POSITION,
    QUAT,
    SCALES,
    Clipped,
    Splat,
    alphas_of,
    iterate,
    morton_order,
    normalised,
    smallest_three,
)
from v2edit.scenes.formats.sog import FIRST_TAG, MAX_SIDE, META, PALETTE_WIDTH, SQRT

Put = Callable[[str, bytes], None]  # writes a file beside meta.json
PALETTE_SIZE = 1 << 16


def write(path: Path, splat: Splat) -> Clipped:
    """Write a splat zipped, in an order in which neighbours follow each other. Nothing is clipped."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        return _write_all(splat, lambda name, content: archive.writestr(zipfile.ZipInfo(name), content))


def write_folder(path: Path, splat: Splat) -> Clipped:
    """Write a splat as images beside the `meta.json` that `path` is, which comes last."""
    return _write_all(splat, lambda name, content: atomic_write(path.with_name(name), content))


def _write_all(splat: Splat, put: Put) -> Clipped:
    gaussians = splat.gaussians
    count, degree = len(gaussians), gaussians.degree
    width = -(-int(np.ceil(np.sqrt(count))) // 4) * 4
    height = -(-count // (width * 4)) * 4
    if max(width, height) > MAX_SIDE:
        raise UserError(f"a SOG holds {MAX_SIDE**2:,} Gaussians at most, and there are {count:,}")
    order = morton_order(gaussians.means)
    means = gaussians.means.detach().cpu().double().numpy()
    bounds = np.stack([_log_distance(means.min(axis=0)), _log_distance(means.max(axis=0))])
    books = {"scales": fit_codebook(gaussians.log_scales), "sh0": fit_codebook(gaussians.sh[:, 0])}
    pixels = {
        name: np.zeros((height * width, 4), np.uint8) for name in ("means_l", "means_u", "quats", "scales", "sh0")
    }
    for name in ("means_l", "means_u", "scales"):
        pixels[name][:, 3] = 255
    start = 0
    for rows in iterate(gaussians, order):
        for name, part in _pack(rows, bounds, books).items():
            pixels[name][start : start + len(rows), : part.shape[1]] = part
        start += len(rows)
    for name in list(pixels):
        put(f"{name}.webp", _encode(pixels.pop(name).reshape(height, width, 4)))
    facts: dict[str, Any] = {"version": 2, "count": count}
    if splat.gaussians.antialiased:
        facts |= {"antialias": True, "model": "antialiased"}
    facts["means"] = {"mins": bounds[0].tolist(), "maxs": bounds[1].tolist(), "files": ["means_l.webp", "means_u.webp"]}
    facts["scales"] = {"codebook": books["scales"].tolist(), "files": ["scales.webp"]}
    facts |= {"quats": {"files": ["quats.webp"]}, "sh0": {"codebook": books["sh0"].tolist(), "files": ["sh0.webp"]}}
    if degree:
        facts["shN"] = _write_palette(splat, order, (height, width), put)
    put(META, json.dumps(facts).encode())
    return Clipped()


def _log_distance(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.log1p(np.abs(values))


def _pack(rows: np.ndarray, bounds: np.ndarray, books: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the pixels of rows, uint8 [N, 3 or 4] by image."""
    extent = np.maximum(bounds[1] - bounds[0], 1e-30)
    shares = (_log_distance(rows[:, POSITION].astype(np.float64)) - bounds[0]) / extent
    steps = np.rint(shares * 65535).clip(0, 65535).astype(np.int64)
    largest, others = smallest_three(normalised(rows[:, QUAT]))
    turns = np.rint((others * SQRT / 2 + 0.5) * 255).clip(0, 255)
    alphas = np.rint(alphas_of(rows[:, LOGIT]) * 255)
    return {
        "means_l": (steps & 255).astype(np.uint8),
        "means_u": (steps >> 8).astype(np.uint8),
        "quats": np.hstack([turns, FIRST_TAG + largest[:, None]]).astype(np.uint8),
        "scales": nearest(books["scales"], rows[:, SCALES]),
        "sh0": np.hstack([nearest(books["sh0"], rows[:, FIRST]), alphas.astype(np.uint8)]),
    }


def _write_palette(splat: Splat, order: np.ndarray, size: tuple[int, int], put: Put) -> dict[str, Any]:
    """Write the palette of the higher harmonics and which entry each Gaussian has; return what meta.json says of it."""
    higher = splat.gaussians.sh[:, 1:].detach().cpu().float().numpy().reshape(len(order), -1)
    palette, labels = fit_palette(higher, PALETTE_SIZE)
    each, book = higher.shape[1] // 3, fit_codebook(palette)
    rows = -(-len(palette) // PALETTE_WIDTH)
    pixels = np.full((rows * PALETTE_WIDTH, each, 4), 255, np.uint8)
    pixels[:, :, :3] = nearest(book, np.zeros(1, np.float32))
    pixels[: len(palette), :, :3] = nearest(book, palette).reshape(-1, each, 3)
    put("shN_centroids.webp", _encode(pixels.reshape(rows, PALETTE_WIDTH * each, 4)))
    marks = np.zeros((size[0] * size[1], 4), np.uint8)
    marks[:, 3] = 255
    own = labels[order]
    marks[: len(order), 0], marks[: len(order), 1] = own & 255, own >> 8
    put("shN_labels.webp", _encode(marks.reshape(*size, 4)))
    files = ["shN_centroids.webp", "shN_labels.webp"]
    return {"count": len(palette), "bands": splat.gaussians.degree, "codebook": book.tolist(), "files": files}


def _encode(pixels: np.ndarray) -> bytes:
    """Return a lossless WebP of pixels, uint8 [H, W, 4], exact where they are transparent, too."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(content, "WEBP", lossless=True, exact=True, quality=75, method=4)
    return content.getvalue()
