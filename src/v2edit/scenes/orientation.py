"""Orientation of splats, which come without cameras: which way is up, by their ground or their symmetry.

Letters: N points, P planes tried.
"""

from __future__ import annotations

import numpy as np

from v2edit.errors import UserError

AXES = {sign + axis: s * np.eye(3)[k] for k, axis in enumerate("xyz") for sign, s in (("", 1.0), ("-", -1.0))}
DEFAULT_UP = AXES["-y"]  # of COLMAP's worlds, and of most splats
OPEN = 3.0  # the diagonal of the 1-99 % box in that of the 10-90 % box, in the open
MIN_POINTS = 100  # fewer lie in planes by chance
MAX_POINTS, PLANES = 4000, 1000  # taken at random to find the ground
THICKNESS = 0.02  # of a ground, to either side, in diagonals of the box of all points
MIN_GROUND, ENOUGH = 0.12, 0.6  # the share of the points that lie in a ground
MIN_DENSITY = 2.0  # of a ground, in the mean density of layers as thick; not asked where it has ENOUGH of the points
MAX_BELOW = 0.08  # the share of the points that may lie below it
MIN_SPREAD = 0.75  # a ground's extent along both its directions, in that of all points
MIN_ASPECT = 0.4  # a ground's lesser extent in the greater: the face of a guitar is as flat, and longer
AXIS_BONUS = {"-y": 1.6, "z": 1.6, "y": 1.2}  # of a ground that faces about as in most worlds: walls are as flat
ABOUT, SNAP = np.cos(np.radians([37, 5]))  # of an axis: about that, and taken for it
CELLS = 24  # of a grid along each axis, whose halves are compared
CLEARLY_LESS = 0.1  # symmetric, of 1, than the vertical axis of most worlds
TOP_HEAVY = 0.25  # the mean's place above the middle of the box, in half heights, by which an object stands on its head


def parse_up(option: str) -> np.ndarray | None:
    """Return the upward direction [3] of `--up`: x, y or z, with or without a minus; None for auto. Raises
    `UserError` for another word."""
    if option == "auto":
        return None
    if (axis := option.removeprefix("+")) not in AXES:
        raise UserError(f"--up is {option!r}, expected auto, {', '.join(AXES)}")
    return AXES[axis]


def estimate_up(positions: np.ndarray) -> np.ndarray:
    """Estimate the upward direction [3] of points [N, 3]: away from their ground, a wide plane with nearly nothing
    below it; without one, along the axis across which they are least symmetric, as most things differ from top to
    bottom more than from side to side. Where that says little, up is -y."""
    low, high = box_of(positions)
    inside = positions[((positions >= low) & (positions <= high)).all(1)]
    if len(inside) < MIN_POINTS or not (high > low).all():
        return DEFAULT_UP
    points = inside[np.random.default_rng(0).permutation(len(inside))[:MAX_POINTS]]
    up = _ground_normal(points, float(np.linalg.norm(high - low)))
    if up is None:
        return _least_symmetric(points, low, high)
    nearest = max(AXES.values(), key=lambda axis: float(axis @ up))
    return nearest if nearest @ up > SNAP else up


def box_of(positions: np.ndarray, axes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest coordinates, [3] each, of the 1-99 % box of points [N, 3], along the rows of
    `axes` [3, 3] where these are given: splats have single Gaussians far away. Where it is many times as large as the
    10-90 % box, around a capture in the open with all that lies behind, return the latter."""
    coordinates = positions if axes is None else positions @ axes.T
    low, inner_low, inner_high, high = np.quantile(coordinates, [0.01, 0.1, 0.9, 0.99], axis=0)
    is_open = np.linalg.norm(high - low) > OPEN * np.linalg.norm(inner_high - inner_low)
    return (inner_low, inner_high) if is_open else (low, high)


def _ground_normal(points: np.ndarray, diagonal: float) -> np.ndarray | None:
    """Return the upward normal [3] of the ground of points [N, 3]; None where there is none."""
    generator, best, ground = np.random.default_rng(1), 0.0, None
    corners = points[generator.integers(0, len(points), (PLANES, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    for normal, corner in zip(normals[lengths > 0] / lengths[lengths > 0, None], corners[lengths > 0, 0], strict=True):
        height = (points - corner) @ normal
        above, below = (height > THICKNESS * diagonal).mean(), (height < -THICKNESS * diagonal).mean()
        share, up = 1 - above - below, normal if above >= below else -normal
        extent = max(float(np.ptp(np.quantile(height, [0.01, 0.99]))) / diagonal, THICKNESS)
        if share < min(max(MIN_GROUND, MIN_DENSITY * 2 * THICKNESS / extent), ENOUGH) or min(above, below) > MAX_BELOW:
            continue
        # Scenes are wide rather than high: by that their ground differs from a wall.
        score = share / extent * max([1.0, *(bonus for axis, bonus in AXIS_BONUS.items() if AXES[axis] @ up > ABOUT)])
        inliers = points[np.abs(height) <= THICKNESS * diagonal]
        if score > best and _is_wide(inliers, points, up):
            fitted = np.linalg.eigh(np.cov(inliers.T))[1][:, 0]
            best, ground = score, fitted * np.sign(fitted @ up)
    return ground


def _is_wide(some: np.ndarray, points: np.ndarray, normal: np.ndarray) -> bool:
    """Return whether some points of a plane reach as far along it as nearly all points, in both directions."""
    across = np.linalg.svd(normal[None])[2][1:]
    directions = np.linalg.eigh(np.cov((points @ across.T).T))[1].T @ across
    part, whole = (np.ptp(np.quantile(p @ directions.T, [0.02, 0.98], axis=0), axis=0) for p in (some, points))
    return bool((part >= MIN_SPREAD * whole).all() and part.min() >= MIN_ASPECT * part.max())


def _least_symmetric(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the upward direction of points [N, 3] without a ground, along an axis: they are least symmetric along it,
    and most of them are below the middle."""
    grid = np.histogramdd(points, CELLS, list(zip(low, high, strict=True)))[0]
    symmetry = np.array([np.minimum(grid, np.flip(grid, axis)).sum() for axis in range(3)]) / max(grid.sum(), 1)
    axis = int(symmetry.argmin()) if symmetry[1] - symmetry.min() > CLEARLY_LESS else 1
    up = DEFAULT_UP if axis == 1 else np.eye(3)[axis]
    mean = ((points.mean(0) - (low + high) / 2) / ((high - low) / 2)) @ up
    return -up if mean > TOP_HEAVY else up
