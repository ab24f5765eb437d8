"""Reading and writing of PLY files: splats in the layout of the original 3D Gaussian splatting, and coloured points.

Headers are checked before anything is allocated: one may claim any size.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from v2edit.errors import UserError
from v2edit.scenes.config import MAX_DEGREE
from v2edit.scenes.dataset import Points
from v2edit.scenes.gaussians import Gaussians

if TYPE_CHECKING:
    from plyfile import PlyElement

log = logging.getLogger(__name__)
MAX_HEADER = 1 << 16  # bytes
BYTES = {"char": 1, "uchar": 1, "int8": 1, "uint8": 1, "short": 2, "ushort": 2, "int16": 2, "uint16": 2,
         "int": 4, "uint": 4, "int32": 4, "uint32": 4, "float": 4, "float32": 4, "double": 8, "float64": 8}  # fmt: skip


def read_splat(path: Path) -> Gaussians:
    """Read the Gaussians of a splat file, with or without normals, of any degree of harmonics up to 3. Gaussians that
    are not finite are left out, with a warning. Raises `UserError` for a file that is no splat."""
    vertex = _read_vertices(path)
    names = {column.name for column in vertex.properties}
    if "packed_position" in names:
        raise UserError(f"{path} is a compressed splat: export it uncompressed (SuperSplat: PLY, not compressed PLY)")
    rest = sorted(
        (n for n in names if re.fullmatch(r"f_rest_\d{1,4}", n)), key=lambda name: int(name.removeprefix("f_rest_"))
    )
    required = [*"xyz", *(f"f_dc_{i}" for i in range(3)), "opacity"]
    required += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    if missing := [name for name in required if name not in names]:
        raise UserError(f"{path} is no Gaussian splat: it has no {', '.join(missing[:3])}")
    if len(rest) not in {3 * ((degree + 1) ** 2 - 1) for degree in range(MAX_DEGREE + 1)}:
        raise UserError(f"{path} has {len(rest)} f_rest properties, expected 0, 9, 24 or 45")
    table = np.stack([np.asarray(vertex[name], np.float32) for name in [*required, *rest]], axis=1)
    table = _drop_non_finite(table, path, "Gaussians")
    table = torch.from_numpy(table[np.abs(table[:, 10:14]).sum(1) > 0])
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
    """Read coloured points, gray where the file has no colours; None where no point is finite."""
    vertex = _read_vertices(path)
    names = {column.name for column in vertex.properties}
    if missing := set("xyz") - names:
        raise UserError(f"{path} has points without {', '.join(sorted(missing))}")
    positions = np.stack([np.asarray(vertex[axis], np.float64) for axis in "xyz"], axis=1)
    colours = np.full((len(positions), 3), 128.0)
    if {"red", "green", "blue"} <= names:
        colours = np.stack([np.asarray(vertex[name], np.float64) for name in ("red", "green", "blue")], axis=1)
    table = _drop_non_finite(np.concatenate([positions, colours], axis=1), path, "points")
    if not len(table):
        return None
    return Points(table[:, :3], table[:, 3:].clip(0, 255).astype(np.uint8))


def write_points(path: Path, points: Points) -> Path:
    """Write coloured points, with float64 positions."""
    from plyfile import PlyData, PlyElement

    columns = [*((axis, "f8") for axis in "xyz"), *((name, "u1") for name in ("red", "green", "blue"))]
    table = np.empty(len(points.positions), columns)
    for i, (axis, colour) in enumerate(zip("xyz", ("red", "green", "blue"), strict=True)):
        table[axis], table[colour] = points.positions[:, i], points.colours[:, i]
    PlyData([PlyElement.describe(table, "vertex")]).write(str(path))
    return path


def _drop_non_finite(table: np.ndarray, path: Path, what: str) -> np.ndarray:
    finite = np.isfinite(table).all(axis=1)
    if not finite.all():
        log.warning("%d of %d %s in %s are not finite and are left out", (~finite).sum(), len(table), what, path)
    return table[finite]


def _read_vertices(path: Path) -> PlyElement:
    """Read the `vertex` element of a PLY file whose header claims no more than the file holds."""
    try:
        from plyfile import PlyData, PlyParseError
    except ModuleNotFoundError as missing:
        raise UserError(f"scenes need {missing.name}: pip install 'v2edit[scenes]'") from missing
    _check_header(path)
    try:
        return PlyData.read(str(path))["vertex"]
    except (PlyParseError, LookupError, ValueError, TypeError, EOFError, OverflowError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _check_header(path: Path) -> None:
    """Raise `UserError` where a header is no PLY's, or claims more bytes than the file holds."""
    with path.open("rb") as file:
        start = file.read(MAX_HEADER)
    if not start.startswith((b"ply\n", b"ply\r")):
        raise UserError(f"{path} is no PLY file")
    head, end, _ = start.replace(b"\r\n", b"\n").replace(b"\r", b"\n").partition(b"\nend_header\n")
    if not end:
        raise UserError(f"{path} has no end of its PLY header within {MAX_HEADER} bytes")
    text = head.decode("ascii", "replace")
    plain = re.search(r"^format\s+ascii", text, re.MULTILINE) is not None
    claimed = 0
    for element in re.split(r"^element\s+", text, flags=re.MULTILINE)[1:]:
        words = element.split("\n", 1)[0].split()
        if len(words) != 2 or not words[1].isdigit():
            raise UserError(f"{path} has a PLY header that makes no sense at 'element {' '.join(words)[:40]}'")
        if re.search(r"^property\s+list", element, re.MULTILINE):
            raise UserError(f"{path} has lists (faces) in it: it is a mesh, expected points or Gaussians alone")
        kinds = re.findall(r"^property\s+(\w+)", element, re.MULTILINE)
        claimed += int(words[1]) * sum(2 if plain else BYTES.get(kind, 1) for kind in kinds)
    available = path.stat().st_size - len(head) - 1
    if claimed > available:
        raise UserError(f"{path} says it holds {claimed:,} bytes and has {available:,}: it is cut short or forged")
