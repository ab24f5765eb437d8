"""Lens distortion, removed from images when they are read: Gaussians are projected through pinholes.

The coefficients and formulas are OpenCV's, which COLMAP and nerfstudio share.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Distortion:
    """Radial k1..k4, divided by d1..d3 (OpenCV's k4..k6), and tangential p1, p2; `fisheye`: equidistant projection,
    with k1..k4 in powers of the angle."""

    k1: float = 0.0
    k2: float = 0.0
    k3: float = 0.0
    k4: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    d1: float = 0.0
    d2: float = 0.0
    d3: float = 0.0
    fisheye: bool = False

    @property
    def is_none(self) -> bool:
        """Whether the lens is a pinhole."""
        return not any(astuple(self))

    def distort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map points (x, y) at depth 1, as a pinhole sees them, to where they appear in the distorted image."""
        r2 = x * x + y * y
        if self.fisheye:
            r = np.sqrt(r2)
            t = np.arctan(r)
            bent = t * (1 + t**2 * (self.k1 + t**2 * (self.k2 + t**2 * (self.k3 + t**2 * self.k4))))
            scale = np.where(r > 1e-8, bent / np.maximum(r, 1e-8), 1.0)
            return x * scale, y * scale
        radial = 1 + r2 * (self.k1 + r2 * (self.k2 + r2 * (self.k3 + r2 * self.k4)))
        radial = radial / (1 + r2 * (self.d1 + r2 * (self.d2 + r2 * self.d3)))
        return (
            x * radial + 2 * self.p1 * x * y + self.p2 * (r2 + 2 * x * x),
            y * radial + self.p1 * (r2 + 2 * y * y) + 2 * self.p2 * x * y,
        )


def _fold_radius(distortion: Distortion, radius: float) -> float:
    """Return where, up to a radius, a lens's radial curve turns back: what a pinhole sees beyond that the lens never
    saw, and the formula would show something else there."""
    radii = np.linspace(0, radius, 1001)
    bent = replace(distortion, p1=0.0, p2=0.0).distort(radii, np.zeros_like(radii))[0]
    turns = np.nonzero(~(np.diff(bent) > 0))[0]
    return float(radii[turns[0]]) if len(turns) else np.inf


def undistort(image: np.ndarray, intrinsics: np.ndarray, distortion: Distortion) -> tuple[np.ndarray, np.ndarray]:
    """Return the image uint8 [H, W, 3] of a pinhole of the same intrinsics [3, 3], and bool [H, W], which of its pixels
    the original shows; the others are undefined."""
    height, width = image.shape[:2]
    if distortion.is_none:
        return image, np.ones((height, width), bool)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    with np.errstate(
        over="ignore", invalid="ignore", divide="ignore"
    ):  # an extreme lens maps far points to inf or nan: outside
        x, y = (columns - cx) / fx, (rows - cy) / fy
        radii = np.hypot(x, y)
        x, y = distortion.distort(x, y)
        u, v = x * fx + cx, y * fy + cy
        inside = radii <= _fold_radius(distortion, float(radii.max()))
        inside &= (u >= 0) & (u <= width) & (v >= 0) & (v <= height)
    return sample_bilinear(image, np.where(inside, u, 0), np.where(inside, v, 0)), inside


def sample_bilinear(image: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Sample an image at points (u, v), pixel centres at +0.5, as uint8 [..., 3]; beyond the edge it is repeated."""
    height, width = image.shape[:2]
    u, v = np.clip(u - 0.5, 0, width - 1), np.clip(v - 0.5, 0, height - 1)
    left, top = np.floor(u).astype(int), np.floor(v).astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    across, down = (u - left)[..., None], (v - top)[..., None]
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return np.round(upper * (1 - down) + lower * down).astype(np.uint8)
