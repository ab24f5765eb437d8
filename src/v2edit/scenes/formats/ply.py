"""Reading and writing of PLY files: splats in the layout of the original 3D Gaussian splatting, and coloured points.

Headers are checked before anything is allocated: one may claim any size.
"""

from __future__ import annotations

import io
import logging
import re
from dataclasses import dataclass
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
LIMIT = 20.0  # of a logit or of a logarithm, in place of infinity: in float32 an alpha of 1 or 0, a scale of 2e-9
BYTES = {"char": 1, "uchar": 1, "int8": 1, "uint8": 1, "short": 2, "ushort": 2, "int16": 2, "uint16": 2,
         "int": 4, "uint": 4, "int32": 4, "uint32": 4, "float": 4, "float32": 4, "double": 8, "float64": 8}  # fmt: skip


def read_splat(path: Path) -> Gaussians:
    """Read the Gaussians of a splat file, with or without normals, of any degree of harmonics up to 3. Gaussians that
    are not finite after their activations are left out, with a warning; an infinite logit is an alpha of 0 or 1, a
    logarithm of minus infinity a flat Gaussian. Raises `UserError` for a file that is no splat."""
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
    with np.errstate(over="ignore"):  # beyond float32: infinite
        table = np.stack([np.asarray(vertex[name], np.float32) for name in [*required, *rest]], axis=1)
    table = torch.from_numpy(_activate_infinite(table, path))
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
    table = np.concatenate([positions, colours], axis=1)
    table = table[_are_finite(table, path, "points")]
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


def read_vertical_axis(path: Path) -> np.ndarray | None:
    """Return the upward direction [3] that a PLY's header states (`comment Vertical Axis: z`, as nerfstudio exports
    splats); None where it states none. Raises `UserError` for a file that is no PLY."""
    stated = re.search(r"^comment\s+vertical\s+axis\W*?([+-]?)([xyz])\s*$", _read_header(path).text, re.I | re.M)
    if stated is None:
        return None
    sign, axis = stated.groups()
    return np.eye(3)["xyz".index(axis.lower())] * (-1 if sign == "-" else 1)


def _activate_infinite(table: np.ndarray, path: Path) -> np.ndarray:
    """Return the rows (position, colour, logit, log-scales, quaternion, harmonics) that are finite after activation,
    with finite numbers that give the same."""
    logits, scales, quats = table[:, 6], table[:, 7:10], table[:, 10:14]
    np.copyto(logits, logits.clip(-LIMIT, LIMIT), where=np.isinf(logits))
    np.copyto(scales, np.float32(-LIMIT), where=np.isneginf(scales))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        extents, norms = np.exp(scales), np.linalg.norm(quats.astype(np.float64), axis=1, keepdims=True)
        rotations = quats / norms
        np.copyto(quats, rotations, where=abs(np.log10(norms)) > 12, casting="same_kind")  # its square would overflow
    return table[_are_finite(np.concatenate([table, extents, rotations], axis=1), path, "Gaussians")]


def _are_finite(table: np.ndarray, path: Path, what: str) -> np.ndarray:
    """Return which rows are finite, bool [N]; warn of those that are not."""
    finite = np.asarray(np.isfinite(table).all(axis=1))
    if not finite.all():
        log.warning("%d of %d %s in %s are not finite and are left out", (~finite).sum(), len(table), what, path)
    return finite


def _read_vertices(path: Path) -> PlyElement:
    """Read the `vertex` element of a PLY file whose header claims no more than the file holds."""
    try:
        from plyfile import PlyData, PlyParseError
    except ModuleNotFoundError as missing:
        raise UserError(f"scenes need {missing.name}: pip install 'v2edit[scenes]'") from missing
    header = _read_header(path)
    start = _keep_vertices(header, path)
    try:
        if start == header.content:
            return PlyData.read(str(path))["vertex"]
        return PlyData.read(io.BytesIO(start + path.read_bytes()[len(header.content) :]))["vertex"]
    except (PlyParseError, LookupError, ValueError, TypeError, EOFError, OverflowError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


@dataclass(frozen=True)
class _Header:
    """The header of a PLY file: its bytes with `end_header`, and its lines before that without stray blanks."""

    content: bytes
    text: str


def _read_header(path: Path) -> _Header:
    """Read a PLY header, whatever blanks surround its lines. Raises `UserError` for a file that has none."""
    with path.open("rb") as file:
        start = file.read(MAX_HEADER)
    first = re.match(rb"ply[ \t]*(\r?\n|\r)", start)
    if first is None:
        raise UserError(f"{path} is no PLY file")
    newline = rb"\r" if first[1] == b"\r" else rb"\r?\n"
    end = re.search(newline + rb"[ \t]*end_header[ \t]*" + newline, start)
    if end is None:
        raise UserError(f"{path} has no end of its PLY header within {MAX_HEADER} bytes")
    lines = (line.strip() for line in re.split(newline, start[: end.start()]))
    return _Header(start[: end.end()], "\n".join(line.decode("ascii", "replace") for line in lines if line))


def _keep_vertices(header: _Header, path: Path) -> bytes:
    """Return a header without stray blanks, which plyfile does not take, that ends with its vertices: a mesh's faces
    are not read. Raises `UserError` where it claims more bytes than there are."""
    preamble, *elements = re.split(r"^(?=element\s)", header.text, flags=re.MULTILINE)
    plain = re.search(r"^format\s+ascii", preamble, re.MULTILINE) is not None
    kept, claimed = [preamble], 0
    for element in elements:
        name, *words = element.split("\n", 1)[0].split()[1:] or [""]
        if len(words) != 1 or not re.fullmatch("[0-9]+", words[0]):
            raise UserError(f"{path} has a PLY header that makes no sense at 'element {' '.join([name, *words])[:40]}'")
        if re.search(r"^property\s+list", element, re.MULTILINE):
            if not int(words[0]):
                continue
            raise UserError(f"{path} has lists before or in its vertices: expected points or Gaussians alone")
        kinds = re.findall(r"^property\s+(\w+)", element, re.MULTILINE)
        claimed += int(words[0]) * sum(2 if plain else BYTES.get(kind, 1) for kind in kinds)
        kept.append(element)
        if name == "vertex":
            break
    else:
        raise UserError(f"{path} holds no vertices: expected points or Gaussians")
    # The last line of a text file need not end.
    available = path.stat().st_size - len(header.content) + plain
    if claimed > available:
        raise UserError(f"{path} says it holds {claimed:,} bytes and has {available:,}: it is cut short or forged")
    text = "".join(kept).rstrip("\n")
    return f"{text}\nend_header\n".encode("ascii", "replace")
