"""Coordinate systems of splats, named by where x, y and z point: RDF (right, down, front) is that of PLY files, RUB
(right, up, back) that of .spz.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from v2edit.scenes.formats.rows import HIGHER, POSITION, QUAT
from v2edit.scenes.rasterise.projection import harmonics

LETTERS = {"R": (1, 0, 0), "L": (-1, 0, 0), "D": (0, 1, 0), "U": (0, -1, 0), "F": (0, 0, 1), "B": (0, 0, -1)}


@dataclass(frozen=True)
class Conversion:
    """The conversion of rows from one coordinate system to another, whose axes are the same but for their order and
    sign: `axes` [3, 3] takes coordinates from the one to the other."""

    axes: np.ndarray

    @classmethod
    def between(cls, source: str, target: str) -> Conversion:
        """Return the conversion between two systems, each three letters such as RUB."""
        from_source, from_target = (np.array([LETTERS[one] for one in name], float).T for name in (source, target))
        return cls(from_target.T @ from_source)

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Return rows (see `rows`) in the other system. Signs and places alone change in positions and rotations, and
        in harmonics where the order of the axes does not change."""
        rows = rows.copy()
        rows[:, POSITION] = rows[:, POSITION] @ self.axes.T.astype(np.float32)
        rows[:, QUAT] = rows[:, QUAT] @ self._quaternions().T.astype(np.float32)
        higher = rows[:, HIGHER].reshape(len(rows), 3, -1)
        for degree in range(1, round((higher.shape[2] + 1) ** 0.5)):
            band = slice(degree**2 - 1, (degree + 1) ** 2 - 1)
            higher[..., band] = higher[..., band] @ self._harmonics(degree).T.astype(np.float32)
        rows[:, HIGHER] = higher.reshape(len(rows), -1)
        return rows

    def _quaternions(self) -> np.ndarray:
        """Return the matrix [4, 4] of a quaternion (w, x, y, z) multiplied from the left by the turn of the axes. A
        Gaussian is the same when its axes are reversed, so of a reflection its negative, a turn, is taken."""
        turn = self.axes * np.linalg.det(self.axes)
        # The quaternion of a turn is the eigenvector of the largest eigenvalue of this matrix (Bar-Itzhack 2000).
        (a, b, c), (d, e, f), (g, h, i) = turn
        values, vectors = np.linalg.eigh(np.array([
            [a + e + i, h - f, c - g, d - b], [h - f, a - e - i, b + d, c + g],
            [c - g, b + d, e - a - i, f + h], [d - b, c + g, f + h, i - a - e],
        ]))  # fmt: skip
        w, x, y, z = vectors[:, values.argmax()]
        return np.round([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]], 12)

    def _harmonics(self, degree: int) -> np.ndarray:
        """Return the matrix of the harmonics of one degree, [2 degree + 1, 2 degree + 1]: the function of the other
        system's directions has the values that it had."""
        directions = np.random.default_rng(0).normal(size=(64, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        there, here = (_basis(one, degree) for one in (directions, directions @ self.axes))
        return np.round(np.linalg.lstsq(there, here, rcond=None)[0], 12)


def _basis(directions: np.ndarray, degree: int) -> np.ndarray:
    """Return the harmonics of one degree in directions [N, 3]."""
    return harmonics(torch.from_numpy(directions), degree).numpy()[:, degree**2 : (degree + 1) ** 2]
