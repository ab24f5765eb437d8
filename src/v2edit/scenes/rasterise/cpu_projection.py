"""Projection of Gaussians for CPUs: `project` as one numba kernel, with a backward pass written by hand.

Letters: N Gaussians. The kernels are the formulas of `projection.project`, one Gaussian at a time, in float32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from v2edit.scenes.rasterise.projection import ALPHA_MIN, BLUR, EXTENT, FAR, NEAR

ONE, TWO, HALF, ZERO = np.float32(1), np.float32(2), np.float32(0.5), np.float32(0)
ALPHA_LOW, LONGEST, BLUR32 = np.float32(ALPHA_MIN), np.float32(EXTENT), np.float32(BLUR)


class Project(torch.autograd.Function):
    """Project means [N, 3], quats [N, 4], log scales [N, 3] and opacities [N] through a camera: [N, 5] (x, y in pixels,
    the inverse covariance's xx, xy, yy), depths [N] and radii [N, 2]; differentiable in the first three."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, means: Tensor, quats: Tensor, log_scales: Tensor, opacities: Tensor, camera: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        places, turns, sizes = (tensor.detach().numpy() for tensor in (means, quats, log_scales))
        flat, depths = np.zeros((len(means), 5), np.float32), np.empty(len(means), np.float32)
        radii = np.zeros((len(means), 2), np.float32)
        _forward(places, turns, sizes, opacities.detach().numpy(), camera, flat, depths, radii)
        ctx.saved = places, turns, sizes, camera, radii
        outputs = torch.from_numpy(flat), torch.from_numpy(depths), torch.from_numpy(radii)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, d_flat: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore
        places, turns, sizes, camera, radii = ctx.saved
        by_place, by_turn, by_size = (np.zeros_like(one) for one in (places, turns, sizes))
        _backward(places, turns, sizes, camera, radii, d_flat.contiguous().numpy(), by_place, by_turn, by_size)
        return *(torch.from_numpy(one) for one in (by_place, by_turn, by_size)), None, None


def pack_camera(world_to_camera: np.ndarray, intrinsics: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a camera as the kernels take it, float32 [22]: rotation (9), translation (3), fx, fy, cx, cy, and the
    least and largest x/z and y/z at which the projection is linearised, width, height."""
    fx, fy, cx, cy = (float(intrinsics[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy  # 1.3 times the field of view, as in the original
    limits = -(cx / fx + margin_x), (width - cx) / fx + margin_x, -(cy / fy + margin_y), (height - cy) / fy + margin_y
    values = *world_to_camera[:3, :3].ravel(), *world_to_camera[:3, 3], fx, fy, cx, cy, *limits, width, height
    return np.array(values, np.float32)


@njit(inline="always")
def _turn(quats, n):
    """Return the rotation matrix of a quaternion of any length, by rows, its unit quaternion and its length."""
    w, x, y, z = quats[n, 0], quats[n, 1], quats[n, 2], quats[n, 3]
    length = max(math.sqrt(w * w + x * x + y * y + z * z), np.float32(1e-12))
    w, x, y, z = w / length, x / length, y / length, z / length
    return (
        (ONE - TWO * (y * y + z * z), TWO * (x * y - w * z), TWO * (x * z + w * y)),
        (TWO * (x * y + w * z), ONE - TWO * (x * x + z * z), TWO * (y * z - w * x)),
        (TWO * (x * z - w * y), TWO * (y * z + w * x), ONE - TWO * (x * x + y * y)),
        (w, x, y, z),
        length,
    )


@njit(inline="always")
def _turn_back(turn, r):
    """Return the gradient by a quaternion from that by its rotation matrix, `r` [3, 3]; `turn` is what `_turn` gave."""
    w, i, j, k = turn[3]
    d_w = TWO * (i * (r[2, 1] - r[1, 2]) + j * (r[0, 2] - r[2, 0]) + k * (r[1, 0] - r[0, 1]))
    d_i = TWO * (j * (r[0, 1] + r[1, 0]) + k * (r[0, 2] + r[2, 0]) + w * (r[2, 1] - r[1, 2]))
    d_i -= TWO * TWO * i * (r[1, 1] + r[2, 2])
    d_j = TWO * (i * (r[0, 1] + r[1, 0]) + k * (r[1, 2] + r[2, 1]) + w * (r[0, 2] - r[2, 0]))
    d_j -= TWO * TWO * j * (r[0, 0] + r[2, 2])
    d_k = TWO * (i * (r[0, 2] + r[2, 0]) + j * (r[1, 2] + r[2, 1]) + w * (r[1, 0] - r[0, 1]))
    d_k -= TWO * TWO * k * (r[0, 0] + r[1, 1])
    along = d_w * w + d_i * i + d_j * j + d_k * k  # its length changes nothing
    length = turn[4]
    return (
        (d_w - along * w) / length,
        (d_i - along * i) / length,
        (d_j - along * j) / length,
        (d_k - along * k) / length,
    )


@njit(inline="always")
def _in_camera(means, n, c):
    """Return a position in the camera's coordinates."""
    a, b, d = means[n, 0], means[n, 1], means[n, 2]
    return (
        c[0] * a + c[1] * b + c[2] * d + c[9],
        c[3] * a + c[4] * b + c[5] * d + c[10],
        c[6] * a + c[7] * b + c[8] * d + c[11],
    )


@njit(inline="always")
def _spread(c, x, y, z, turn, s):
    """Return the columns' images [2][3] of a Gaussian's scaled axes, T before the scaling, and M = J R [2][3]."""
    tx = z * min(max(x / z, c[16]), c[17])
    ty = z * min(max(y / z, c[18]), c[19])
    j00, j02, j11, j12 = c[12] / z, -c[12] * tx / (z * z), c[13] / z, -c[13] * ty / (z * z)
    m0 = (j00 * c[0] + j02 * c[6], j00 * c[1] + j02 * c[7], j00 * c[2] + j02 * c[8])
    m1 = (j11 * c[3] + j12 * c[6], j11 * c[4] + j12 * c[7], j11 * c[5] + j12 * c[8])
    r0, r1, r2 = turn[0], turn[1], turn[2]
    t0 = (
        m0[0] * r0[0] + m0[1] * r1[0] + m0[2] * r2[0],
        m0[0] * r0[1] + m0[1] * r1[1] + m0[2] * r2[1],
        m0[0] * r0[2] + m0[1] * r1[2] + m0[2] * r2[2],
    )
    t1 = (
        m1[0] * r0[0] + m1[1] * r1[0] + m1[2] * r2[0],
        m1[0] * r0[1] + m1[1] * r1[1] + m1[2] * r2[1],
        m1[0] * r0[2] + m1[1] * r1[2] + m1[2] * r2[2],
    )
    s = (np.float64(s[0]), np.float64(s[1]), np.float64(s[2]))  # a needle's determinant is a small difference
    xx = (t0[0] * s[0]) ** 2 + (t0[1] * s[1]) ** 2 + (t0[2] * s[2]) ** 2 + BLUR32
    yy = (t1[0] * s[0]) ** 2 + (t1[1] * s[1]) ** 2 + (t1[2] * s[2]) ** 2 + BLUR32
    xy = t0[0] * t1[0] * s[0] * s[0] + t0[1] * t1[1] * s[1] * s[1] + t0[2] * t1[2] * s[2] * s[2]
    return t0, t1, m0, m1, xx, xy, yy, tx, ty


@njit(nogil=True, cache=True, error_model="numpy")
def _forward(means, quats, log_scales, opacities, c, flat, depths, radii):
    width, height = c[20], c[21]
    for n in range(len(means)):
        x, y, z = _in_camera(means, n, c)
        depths[n] = z
        if not (z >= NEAR and z <= FAR and opacities[n] >= ALPHA_LOW):
            continue
        s = (math.exp(log_scales[n, 0]), math.exp(log_scales[n, 1]), math.exp(log_scales[n, 2]))
        _, _, _, _, xx, xy, yy, _, _ = _spread(c, x, y, z, _turn(quats, n), s)
        determinant = xx * yy - xy * xy
        if not determinant > ZERO:
            continue
        u, v = c[12] * x / z + c[14], c[13] * y / z + c[15]
        extent = min(math.sqrt(TWO * math.log(max(opacities[n] / ALPHA_LOW, ONE))), LONGEST)
        wide, tall = math.ceil(extent * math.sqrt(xx)), math.ceil(extent * math.sqrt(yy))
        if not (math.isfinite(wide) and math.isfinite(tall)):
            continue
        if u + wide > ZERO and u - wide < width and v + tall > ZERO and v - tall < height:
            radii[n, 0], radii[n, 1] = wide, tall
            flat[n, 0], flat[n, 1] = u, v
            flat[n, 2], flat[n, 3], flat[n, 4] = yy / determinant, -xy / determinant, xx / determinant


@njit(nogil=True, cache=True, error_model="numpy")
def _backward(means, quats, log_scales, c, radii, g, d_means, d_quats, d_log_scales):
    for n in range(len(means)):
        if radii[n, 0] <= ZERO or radii[n, 1] <= ZERO:
            continue
        x, y, z = _in_camera(means, n, c)
        turn = _turn(quats, n)
        s = (math.exp(log_scales[n, 0]), math.exp(log_scales[n, 1]), math.exp(log_scales[n, 2]))
        t0, t1, m0, m1, xx, xy, yy, tx, ty = _spread(c, x, y, z, turn, s)
        determinant = xx * yy - xy * xy
        q0, q1, q2 = yy / determinant, -xy / determinant, xx / determinant
        # The gradient by a matrix from that by its inverse Q: -Q G Q, G symmetric.
        g0, g1, g2 = g[n, 2], HALF * g[n, 3], g[n, 4]
        a0, a1, b0, b1 = q0 * g0 + q1 * g1, q0 * g1 + q1 * g2, q1 * g0 + q2 * g1, q1 * g1 + q2 * g2
        d_xx, d_xy, d_yy = -(a0 * q0 + a1 * q1), -TWO * (a0 * q1 + a1 * q2), -(b0 * q1 + b1 * q2)
        d_m00 = d_m01 = d_m02 = d_m10 = d_m11 = d_m12 = ZERO
        rot = (turn[0], turn[1], turn[2])
        d_rot = np.zeros((3, 3), np.float32)
        for k in range(3):
            square = s[k] * s[k]
            e0 = (TWO * d_xx * t0[k] + d_xy * t1[k]) * square
            e1 = (TWO * d_yy * t1[k] + d_xy * t0[k]) * square
            d_log_scales[n, k] = e0 * t0[k] + e1 * t1[k]
            for j in range(3):
                d_rot[j, k] = m0[j] * e0 + m1[j] * e1
            d_m00 += e0 * rot[0][k]
            d_m01 += e0 * rot[1][k]
            d_m02 += e0 * rot[2][k]
            d_m10 += e1 * rot[0][k]
            d_m11 += e1 * rot[1][k]
            d_m12 += e1 * rot[2][k]
        d_j00 = d_m00 * c[0] + d_m01 * c[1] + d_m02 * c[2]
        d_j02 = d_m00 * c[6] + d_m01 * c[7] + d_m02 * c[8]
        d_j11 = d_m10 * c[3] + d_m11 * c[4] + d_m12 * c[5]
        d_j12 = d_m10 * c[6] + d_m11 * c[7] + d_m12 * c[8]
        fx, fy = c[12], c[13]
        zz = z * z
        d_x, d_y = g[n, 0] * fx / z, g[n, 1] * fy / z
        d_z = -(g[n, 0] * fx * x + g[n, 1] * fy * y) / zz
        d_z += -(d_j00 * fx + d_j11 * fy) / zz + TWO * (d_j02 * fx * tx + d_j12 * fy * ty) / (zz * z)
        d_tx, d_ty = -d_j02 * fx / zz, -d_j12 * fy / zz
        if x / z >= c[16] and x / z <= c[17]:
            d_x += d_tx
        else:
            d_z += d_tx * tx / z
        if y / z >= c[18] and y / z <= c[19]:
            d_y += d_ty
        else:
            d_z += d_ty * ty / z
        for j in range(3):
            d_means[n, j] = c[j] * d_x + c[3 + j] * d_y + c[6 + j] * d_z
        d_quats[n, 0], d_quats[n, 1], d_quats[n, 2], d_quats[n, 3] = _turn_back(turn, d_rot)
