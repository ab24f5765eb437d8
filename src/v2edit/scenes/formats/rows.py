"""Splats between their files and `Gaussians`: rows of numbers, a bounded number at a time, that every format shares.

A row has the columns of the original's PLY: position, first harmonic (R, G, B), logit of the opacity, logarithms of the
scales, quaternion (w, x, y, z), then the higher harmonics, all of red's, green's and blue's. N rows, K harmonics.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from v2edit.errors import UserError
from v2edit.scenes.config import MAX_DEGREE
from v2edit.scenes.gaussians import SH_C0, Gaussians

log = logging.getLogger(__name__)
CHUNK = 1 << 16  # rows that are converted at a time
LIMIT = 20.0  # of a logit or of a logarithm, in place of infinity: in float32 an alpha of 1 or 0, a scale of 2e-9
POSITION, FIRST, LOGIT, SCALES, QUAT, HIGHER = map(slice, (0, 3, 6, 7, 10, 14), (3, 6, 7, 10, 14, None))
COLUMNS = [*"xyz", *(f"f_dc_{k}" for k in range(3)), "opacity", *(f"scale_{k}" for k in range(3))]
COLUMNS += [f"rot_{k}" for k in range(4)]
FREE_COUNT = 1 << 16  # Gaussians that any compressed file may hold; a larger one has a byte for each at least
MODE = re.compile(r"\s*SplatRenderMode\s*:\s*(\w+)|\s*antialiased\s+([01])\s*$", re.I)  # Brush's; others'
AXIS = re.compile(r"\s*vertical\s+axis\W*?([+-]?)([xyz])\s*$", re.I)  # nerfstudio's


@dataclass(frozen=True)
class Splat:
    """A splat with what its file says beside its Gaussians: a PLY's comments, and a PLY's further properties, a
    structured array [N], which no one but their writer knows."""

    gaussians: Gaussians
    comments: tuple[str, ...] = ()
    extra: np.ndarray | None = None

    @property
    def up(self) -> np.ndarray | None:
        """Upward direction [3] that the comments state; None where they do not."""
        return vertical_axis(self.comments)

    @property
    def ply_comments(self) -> list[str]:
        """Comments of this splat's PLY: its own, and the antialiasing where they do not say so."""
        missing = self.gaussians.antialiased and not is_antialiased(self.comments)
        return [*self.comments, *(["SplatRenderMode: mip"] if missing else [])]

    def edited(self, gaussians: Gaussians) -> Splat:
        """Return this splat with its Gaussians edited, new ones behind them. Gaussians that are as they were keep their
        further properties; those of others, which no one can know, are 0."""
        if self.extra is None:
            return replace(self, gaussians=gaussians)
        old, new = self.gaussians.tensors(), gaussians.tensors()
        count, kept = len(self.gaussians), np.ones(len(self.gaussians), bool)
        for name, tensor in old.items():
            same = new[name][:count].cpu() == tensor.cpu() if new[name].shape[1:] == tensor.shape[1:] else kept & False
            kept &= np.asarray(same).reshape(count, -1).all(axis=1)
        extra = np.zeros(len(gaussians), self.extra.dtype)
        extra[:count][kept] = self.extra[kept]
        if changed := len(gaussians) - int(kept.sum()):
            names = ", ".join((self.extra.dtype.names or ())[:6])
            log.warning("%d of %d Gaussians are new or changed: their %s are 0", changed, len(gaussians), names)
        return replace(self, gaussians=gaussians, extra=extra)


def is_antialiased(comments: Iterable[str]) -> bool:
    """Return whether a PLY's comments say that it was trained with antialiasing."""
    stated = [match.group(1) or match.group(2) for match in map(MODE.match, comments) if match]
    return bool(stated) and stated[-1].lower() in ("mip", "1")


def vertical_axis(comments: Iterable[str]) -> np.ndarray | None:
    """Return the upward direction [3] that a PLY's comments state (`Vertical Axis: z`, as nerfstudio exports splats);
    None where they state none."""
    stated = next(filter(None, map(AXIS.match, comments)), None)
    if stated is None:
        return None
    sign, axis = stated.groups()
    return np.eye(3)["xyz".index(axis.lower())] * (-1 if sign == "-" else 1)


def check_count(path: Path, count: int, size: int) -> None:
    """Raise `UserError` for a count of Gaussians that a compressed file of `size` bytes cannot hold: what claims a
    thousand times its size is made to fill the memory."""
    if count == 0:
        raise UserError(f"{path} holds no Gaussians")
    if count > FREE_COUNT + size:
        raise UserError(f"{path} says it holds {count:,} Gaussians and has {size:,} bytes: it is cut short or forged")


def limit_degree(path: Path, degree: int) -> int:
    """Return the degree of a file's harmonics up to the highest that is rendered; warn of those that are left out."""
    if degree > MAX_DEGREE:
        log.warning("%s has harmonics of degree %d: those above %d are left out", path, degree, MAX_DEGREE)
    return min(degree, MAX_DEGREE)


def gather(chunks: Iterable[np.ndarray], count: int, degree: int, path: Path) -> tuple[Gaussians, np.ndarray]:
    """Gather chunks of rows, `count` in all with harmonics of a degree up to 3, as Gaussians, and return which rows
    they are, bool [count]. Those that are not finite after their activations are left out, with a warning; an infinite
    logit is an alpha of 0 or 1, a logarithm of minus infinity a flat Gaussian. Beyond the Gaussians themselves this
    takes the memory of a chunk. Raises `UserError` where none is left."""
    higher = (degree + 1) ** 2 - 1
    shapes = {"means": (3,), "quats": (4,), "log_scales": (3,), "logit_opacities": (), "sh": (higher + 1, 3)}
    tensors = {name: torch.empty((count, *shape)) for name, shape in shapes.items()}
    finite, seen, end = np.zeros(count, bool), 0, 0
    for chunk in chunks:
        rows = np.asarray(chunk, np.float32)
        usable = _activate_infinite(rows)
        finite[seen : seen + len(rows)] = usable
        seen += len(rows)
        if not usable.all():
            rows = rows[usable]
        table, place = torch.from_numpy(rows), slice(end, end + len(rows))
        tensors["means"][place] = table[:, POSITION]
        tensors["sh"][place, 0] = table[:, FIRST]
        tensors["logit_opacities"][place] = table[:, LOGIT].squeeze(1)
        tensors["log_scales"][place] = table[:, SCALES]
        tensors["quats"][place] = table[:, QUAT]
        # The rows have all of red's higher coefficients, then green's, then blue's.
        tensors["sh"][place, 1:] = table[:, HIGHER].reshape(len(rows), 3, higher).transpose(1, 2)
        end += len(rows)
    assert seen == count, (seen, count)
    if end == 0:
        raise UserError(f"{path} holds no Gaussian that can be used")
    if end < count:
        log.warning("%d of %d Gaussians in %s are not finite and are left out", count - end, count, path)
        tensors = {name: tensor[:end] for name, tensor in tensors.items()}
    return Gaussians(*tensors.values()), finite


def _activate_infinite(rows: np.ndarray) -> np.ndarray:
    """Return which rows are finite after activation, bool [N], and give them finite numbers that are the same."""
    logits, scales, quats = rows[:, LOGIT], rows[:, SCALES], rows[:, QUAT]
    np.copyto(logits, logits.clip(-LIMIT, LIMIT), where=np.isinf(logits))
    np.copyto(scales, np.float32(-LIMIT), where=np.isneginf(scales))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        norms = np.linalg.norm(quats.astype(np.float64), axis=1, keepdims=True)
        rotations = quats / norms
        np.copyto(quats, rotations, where=abs(np.log10(norms)) > 12, casting="same_kind")  # its square would overflow
        finite = np.isfinite(rows).all(axis=1) & np.isfinite(np.exp(scales)).all(axis=1)
    return finite & np.isfinite(rotations).all(axis=1)


def iterate(gaussians: Gaussians, order: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yield the Gaussians as chunks of rows, float32, in an order, int [N], or their own."""
    for start in range(0, len(gaussians), CHUNK):
        place = slice(start, start + CHUNK) if order is None else torch.from_numpy(order[start : start + CHUNK])
        one = {name: _as_numpy(tensor[place]) for name, tensor in gaussians.tensors().items()}
        first, higher = one["sh"][:, 0], one["sh"][:, 1:].transpose(0, 2, 1).reshape(len(one["means"]), -1)
        logits = one["logit_opacities"][:, None]
        yield np.concatenate([one["means"], first, logits, one["log_scales"], one["quats"], higher], axis=1)


def _as_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().float().numpy()


def join(*columns: np.ndarray) -> np.ndarray:
    """Return rows [N, ...] of their columns in this module's order, float32."""
    with np.errstate(over="ignore"):  # beyond float32: infinite, which `gather` sees
        return np.concatenate([np.asarray(one, np.float32).reshape(len(one), -1) for one in columns], axis=1)


def logits_of(alphas: np.ndarray) -> np.ndarray:
    """Return the logits of opacities 0 … 1, infinite at the ends."""
    with np.errstate(divide="ignore"):
        return np.log(alphas) - np.log1p(-alphas)


def alphas_of(logits: np.ndarray) -> np.ndarray:
    """Return the opacities, float64 0 … 1, of logits."""
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def harmonics_of(colours: np.ndarray) -> np.ndarray:
    """Return the first harmonics of colours 0 … 1."""
    return (colours - 0.5) / SH_C0


def colours_of(first: np.ndarray) -> np.ndarray:
    """Return the colours, float64, mostly 0 … 1, of first harmonics."""
    return 0.5 + SH_C0 * first.astype(np.float64)


def normalised(quats: np.ndarray) -> np.ndarray:
    """Return unit quaternions, float64."""
    quats = quats.astype(np.float64)
    return quats / np.linalg.norm(quats, axis=1, keepdims=True)


def smallest_three(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the place of the largest component of unit quaternions [N, 4], int [N], and the other three, [N, 3], of
    the same rotation with that component positive: they are at most the root of a half."""
    largest = np.abs(quats).argmax(axis=1)
    signs = np.where(np.take_along_axis(quats, largest[:, None], 1) < 0, -1.0, 1.0)
    others = (quats * signs)[np.arange(4) != largest[:, None]].reshape(-1, 3)
    return largest, others


def from_smallest_three(largest: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the unit quaternions [N, 4] that `smallest_three` took apart."""
    quats = np.empty((len(others), 4))
    quats[np.arange(4) != largest[:, None]] = others.ravel()
    rest = np.sqrt(np.maximum(0.0, 1.0 - (others * others).sum(axis=1)))
    np.put_along_axis(quats, largest[:, None], rest[:, None], 1)
    return quats


class Clipped:
    """Count of the Gaussians whose numbers a format cannot hold, by what these are."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def clip(self, what: str, values: np.ndarray, low: float, high: float) -> np.ndarray:
        """Return values [N, ...] within bounds; count the Gaussians of which some were beyond."""
        beyond = ((values < low) | (values > high)).reshape(len(values), -1).any(axis=1).sum()
        self.counts[what] = self.counts.get(what, 0) + int(beyond)
        return values.clip(low, high)

    def report(self, path: Path, count: int) -> None:
        """Warn of what was clipped."""
        if found := [f"the {what} of {number}" for what, number in self.counts.items() if number]:
            log.warning("%s cannot hold %s of %d Gaussians: clipped", path.name, ", ".join(found), count)


def morton_order(means: Tensor) -> np.ndarray:
    """Return an order, int [N], in which Gaussians that are near each other in space mostly follow each other: the
    Morton order of a grid of 1024 cells along each axis."""
    points = _as_numpy(means)
    low, extent = points.min(axis=0), np.maximum(np.ptp(points, axis=0), 1e-30)
    codes = np.empty(len(points), np.uint32)
    for start in range(0, len(points), CHUNK):
        cells = ((points[start : start + CHUNK] - low) / extent * 1023).astype(np.uint32)
        for shift, mask in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
            cells = (cells | (cells << np.uint32(shift))) & np.uint32(mask)
        codes[start : start + CHUNK] = cells[:, 0] | (cells[:, 1] << np.uint32(1)) | (cells[:, 2] << np.uint32(2))
    return np.argsort(codes, kind="stable")
