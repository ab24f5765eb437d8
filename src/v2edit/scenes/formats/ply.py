"""PLY files: splats as the original 3D Gaussian splatting writes them, and coloured points.

Nothing in a file is believed before it is checked: a header may claim any size.
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
HEADER = 1 << 16  # bytes within which a header must end
BYTES = {"char": 1, "uchar": 1, "int8": 1, "uint8": 1, "short": 2, "ushort": 2, "int16": 2, "uint16": 2,
         "int": 4, "uint": 4, "int32": 4, "uint32": 4, "float": 4, "float32": 4, "double": 8, "float64": 8}  # fmt: skip


def read_splat(path: Path) -> Gaussians:
    """The Gaussians of a splat file, with or without normals, of any degree of harmonics up to 3.

    Ones with numbers that are none are left out, with a note. Raises `UserError` where it is no such file.
    """
    vertex = _vertices(path)
    names = {one.name for one in vertex.properties}
    if "packed_position" in names:
        raise UserError(f"{path} is a compressed splat: export it uncompressed (SuperSplat: PLY, not compressed PLY)")
    rest = sorted(
        (n for n in names if re.fullmatch(r"f_rest_\d{1,4}", n)), key=lambda name: int(name.removeprefix("f_rest_"))
    )
    wanted = [*"xyz", *(f"f_dc_{i}" for i in range(3)), "opacity"]
    wanted += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    if absent := [name for name in wanted if name not in names]:
        raise UserError(f"{path} is no Gaussian splat: it has no {', '.join(absent[:3])}")
    if len(rest) not in {3 * ((degree + 1) ** 2 - 1) for degree in range(MAX_DEGREE + 1)}:
        raise UserError(f"{path} has {len(rest)} f_rest properties, expected 0, 9, 24 or 45")
    table = np.stack([np.asarray(vertex[name], np.float32) for name in [*wanted, *rest]], axis=1)
    table = _finite(table, path, "Gaussians")
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
    """Writes a splat file as the original does, normals and all: viewers and trainers read it."""
    from plyfile import PlyData, PlyElement

    parts = {name: one.detach().cpu().float().numpy() for name, one in gaussians.tensors().items()}
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
    """Coloured points [P]; gray where they have no colour; None where there are none that can be used."""
    vertex = _vertices(path)
    names = {one.name for one in vertex.properties}
    if absent := set("xyz") - names:
        raise UserError(f"{path} has points without {', '.join(sorted(absent))}")
    places = np.stack([np.asarray(vertex[axis], np.float64) for axis in "xyz"], axis=1)
    colours = np.full((len(places), 3), 128.0)
    if {"red", "green", "blue"} <= names:
        colours = np.stack([np.asarray(vertex[name], np.float64) for name in ("red", "green", "blue")], axis=1)
    together = _finite(np.concatenate([places, colours], axis=1), path, "points")
    if not len(together):
        return None
    return Points(together[:, :3], together[:, 3:].clip(0, 255).astype(np.uint8))


def write_points(path: Path, points: Points) -> Path:
    from plyfile import PlyData, PlyElement

    kinds = [*((axis, "f8") for axis in "xyz"), *((name, "u1") for name in ("red", "green", "blue"))]
    table = np.empty(len(points.places), kinds)
    for i, (axis, colour) in enumerate(zip("xyz", ("red", "green", "blue"), strict=True)):
        table[axis], table[colour] = points.places[:, i], points.colours[:, i]
    PlyData([PlyElement.describe(table, "vertex")]).write(str(path))
    return path


def _finite(table: np.ndarray, path: Path, what: str) -> np.ndarray:
    good = np.isfinite(table).all(axis=1)
    if not good.all():
        log.warning("%d of %d %s in %s are not finite numbers and are left out", (~good).sum(), len(table), what, path)
    return table[good]


def _vertices(path: Path) -> PlyElement:
    """The `vertex` element of a PLY file whose header promises no more than the file holds."""
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
    with path.open("rb") as opened:
        start = opened.read(HEADER)
    if not start.startswith((b"ply\n", b"ply\r")):
        raise UserError(f"{path} is no PLY file")
    head, end, _ = start.replace(b"\r\n", b"\n").replace(b"\r", b"\n").partition(b"\nend_header\n")
    if not end:
        raise UserError(f"{path} has no end of its PLY header within {HEADER} bytes")
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
    room = path.stat().st_size - len(head) - 1
    if claimed > room:
        raise UserError(f"{path} says it holds {claimed:,} bytes and has {room:,}: it is cut short, or no honest file")
