"""Projection of Gaussians for CPUs: `project` as one numba kernel, with a backward pass written by hand.

Letters: N Gaussians. The kernels are the formulas of `projection.project`, one Gaussian at a time, in float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from v2edit.scenes.rasterise.projection import ALPHA_MIN, BLUR, EXTENT, FAR, LEAST_RATIO, NEAR

ONE, TWO, HALF, ZERO = np.float32(1), np.float32(2), np.float32(0.5), np.float32(0)
THREE, FIVE = np.float32(3), np.float32(5)
# The factors of the real harmonics, of `projection.harmonics`.
Y0, Y1, Y2, Y20 = (
    np.float32(one) for one in (0.28209479177387814, 0.48860251190292, 1.0925484305920792, 0.3153915652525201)
)
Y30, Y31, Y32, Y33 = (
    np.float32(one) for one in (0.373176332590115, 0.457045799464466, 2.890611442640554, 0.5900435899266435)
)
ALPHA_LOW, LONGEST, BLUR32 = np.float32(ALPHA_MIN), np.float32(EXTENT), np.float32(BLUR)


class View(NamedTuple):
    """N Gaussians as a camera sees them. rows [N, 9]: x, y in pixels, the inverse covariance's xx, xy, yy, opacity,
    colour; depths [N]; radii [N, 2], half the sides of their boxes, 0 where not visible."""

    rows: np.ndarray
    depths: np.ndarray
    radii: np.ndarray

    def order(self) -> np.ndarray:
        """Return the indices [M] of the visible ones, nearest first, and by index where depths are equal."""
        visible = ((self.radii[:, 0] > 0) & (self.radii[:, 1] > 0)).nonzero()[0]
        # Positive floats are in the order of their bits; numbers alone sort several times as fast as with indices.
        keys = (self.depths[visible].view(np.int32).astype(np.int64) << 32) | visible
        keys.sort()
        return keys & 0xFFFFFFFF


def project(parameters: list[np.ndarray], camera: np.ndarray) -> View:
    """Project Gaussians, as `gaussians.Gaussians` has them, through a camera of `pack_camera`."""
    count = len(parameters[0])
    view = View(*(np.zeros((count, *shape), np.float32) for shape in ((9,), (), (2,))))
    _forward(tuple(parameters), camera, *view)
    return view


def project_back(
    parameters: list[np.ndarray], camera: np.ndarray, order: np.ndarray, by_row: np.ndarray
) -> list[np.ndarray]:
    """Return the gradients by each of the parameters from those [M, 9] by the rows of the visible ones."""
    gradients = [np.zeros_like(one) for one in parameters]
    _backward(tuple(parameters), camera, order, by_row, tuple(gradients))
    return gradients


def pack_camera(
    world_to_camera: np.ndarray, intrinsics: np.ndarray, height: int, width: int, antialiased: bool
) -> np.ndarray:
    """Return a camera as the kernels take it, float32 [26]: rotation (9), translation (3), fx, fy, cx, cy, and the
    least and largest x/z and y/z at which the projection is linearised, width, height, its centre (3), and whether
    opacities make up for BLUR."""
    fx, fy, cx, cy = (float(intrinsics[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy  # 1.3 times the field of view, as in the original
    limits = -(cx / fx + margin_x), (width - cx) / fx + margin_x, -(cy / fy + margin_y), (height - cy) / fy + margin_y
    centre = -world_to_camera[:3, :3].T @ world_to_camera[:3, 3]
    values = *world_to_camera[:3, :3].ravel(), *world_to_camera[:3, 3], fx, fy, cx, cy, *limits, width, height, *centre
    values += (float(antialiased),)
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


@njit(inline="always")
def _share(c, xx, xy, yy, determinant):
    """Return by what an opacity makes up for BLUR, where the camera wants that, and the determinant without BLUR."""
    sharp = (xx - BLUR32) * (yy - BLUR32) - xy * xy
    return (math.sqrt(max(sharp / determinant, LEAST_RATIO)) if c[25] > ZERO else 1.0), sharp


@njit(inline="always")
def _share_back(xx, xy, yy, determinant, sharp):
    """Return the gradients of the logarithm of `_share` by xx, xy and yy."""
    if sharp <= LEAST_RATIO * determinant:
        return 0.0, 0.0, 0.0
    inverse, narrow = 1 / determinant, 1 / sharp
    d_xx, d_yy = (yy - BLUR32) * narrow - yy * inverse, (xx - BLUR32) * narrow - xx * inverse
    return 0.5 * d_xx, xy * (inverse - narrow), 0.5 * d_yy


@njit(inline="always")
def _place_back(c, place, g, d_m0, d_m1):
    """Return the gradient by a position in the camera's coordinates (3), from those by its row and by M of `_spread`;
    `place`: x, y, z, and the x and y at which the projection is linearised."""
    x, y, z, tx, ty = place
    d_j00 = d_m0[0] * c[0] + d_m0[1] * c[1] + d_m0[2] * c[2]
    d_j02 = d_m0[0] * c[6] + d_m0[1] * c[7] + d_m0[2] * c[8]
    d_j11 = d_m1[0] * c[3] + d_m1[1] * c[4] + d_m1[2] * c[5]
    d_j12 = d_m1[0] * c[6] + d_m1[1] * c[7] + d_m1[2] * c[8]
    fx, fy = c[12], c[13]
    zz = z * z
    d_x, d_y = g[0] * fx / z, g[1] * fy / z
    d_z = -(g[0] * fx * x + g[1] * fy * y) / zz
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
    return d_x, d_y, d_z


@njit(inline="always")
def _way(means, n, c):
    """Return the direction from the camera to a Gaussian, a unit vector (3), and its distance."""
    x, y, z = means[n, 0] - c[22], means[n, 1] - c[23], means[n, 2] - c[24]
    length = max(math.sqrt(x * x + y * y + z * z), np.float32(1e-12))
    return x / length, y / length, z / length, length


@njit(inline="always")
def _harmonics(way, count, basis):
    """Write the first `count` of `projection.harmonics` of a direction into `basis`."""
    x, y, z = way[0], way[1], way[2]
    basis[0] = Y0
    if count > 1:
        basis[1], basis[2], basis[3] = -Y1 * y, Y1 * z, -Y1 * x
    if count > 4:
        basis[4], basis[5], basis[6] = Y2 * x * y, -Y2 * y * z, Y20 * (THREE * z * z - ONE)
        basis[7], basis[8] = -Y2 * x * z, HALF * Y2 * (x * x - y * y)
    if count > 9:
        basis[9], basis[10] = -Y33 * y * (THREE * x * x - y * y), Y32 * x * y * z
        basis[11], basis[12] = Y31 * y * (ONE - FIVE * z * z), Y30 * z * (FIVE * z * z - THREE)
        basis[13], basis[14] = Y31 * x * (ONE - FIVE * z * z), HALF * Y32 * z * (x * x - y * y)
        basis[15] = -Y33 * x * (x * x - THREE * y * y)


@njit(inline="always")
def _harmonics_back(way, count, g):
    """Return the gradient by a direction (3), of any length, from that by the harmonics."""
    x, y, z = way[0], way[1], way[2]
    d_x = d_y = d_z = ZERO
    if count > 1:
        d_x, d_y, d_z = -Y1 * g[3], -Y1 * g[1], Y1 * g[2]
    if count > 4:
        d_x += Y2 * (y * g[4] - z * g[7] + x * g[8])
        d_y += Y2 * (x * g[4] - z * g[5] - y * g[8])
        d_z += TWO * THREE * Y20 * z * g[6] - Y2 * (y * g[5] + x * g[7])
    if count > 9:
        square, saddle = x * x - y * y, TWO * x * y
        d_x += -THREE * Y33 * (saddle * g[9] + square * g[15]) + Y32 * z * (y * g[10] + x * g[14])
        d_y += THREE * Y33 * (saddle * g[15] - square * g[9]) + Y32 * z * (x * g[10] - y * g[14])
        d_z += Y32 * (x * y * g[10] + HALF * square * g[14]) + THREE * Y30 * (FIVE * z * z - ONE) * g[12]
        flat = Y31 * (ONE - FIVE * z * z)
        d_x += flat * g[13]
        d_y += flat * g[11]
        d_z -= TWO * FIVE * Y31 * z * (y * g[11] + x * g[13])
    return d_x, d_y, d_z


@njit(inline="always")
def _colour(basis, sh, n):
    """Return the colour (3) of a Gaussian, before it is held above 0."""
    red = green = blue = HALF
    for k in range(sh.shape[1]):
        red += basis[k] * sh[n, k, 0]
        green += basis[k] * sh[n, k, 1]
        blue += basis[k] * sh[n, k, 2]
    return red, green, blue


@njit(inline="always")
def _colours_back(sh, n, way, g, basis, d_sh):
    """Write the gradient by a Gaussian's harmonics, from that by its row; return the one by the direction (3)."""
    count = sh.shape[1]
    _harmonics(way, count, basis)
    red, green, blue = _colour(basis, sh, n)
    g_0, g_1, g_2 = (g[6] if red >= ZERO else ZERO), (g[7] if green >= ZERO else ZERO), (g[8] if blue >= ZERO else ZERO)
    for k in range(count):
        d_sh[n, k, 0], d_sh[n, k, 1], d_sh[n, k, 2] = basis[k] * g_0, basis[k] * g_1, basis[k] * g_2
        basis[k] = g_0 * sh[n, k, 0] + g_1 * sh[n, k, 1] + g_2 * sh[n, k, 2]
    return _harmonics_back(way, count, basis)


@njit(nogil=True, cache=True, error_model="numpy")
def _forward(parameters, c, rows, depths, radii):
    means, quats, log_scales, logit_opacities, sh = parameters
    width, height = c[20], c[21]
    basis = np.zeros(16, np.float32)
    for n in range(len(means)):
        x, y, z = _in_camera(means, n, c)
        depths[n] = z
        opacity = ONE / (ONE + math.exp(-logit_opacities[n]))
        if not (z >= NEAR and z <= FAR and opacity >= ALPHA_LOW):
            continue
        s = (math.exp(log_scales[n, 0]), math.exp(log_scales[n, 1]), math.exp(log_scales[n, 2]))
        _, _, _, _, xx, xy, yy, _, _ = _spread(c, x, y, z, _turn(quats, n), s)
        determinant = xx * yy - xy * xy
        if not determinant > ZERO:
            continue
        opacity = np.float32(opacity * _share(c, xx, xy, yy, determinant)[0])
        if not opacity >= ALPHA_LOW:
            continue
        u, v = c[12] * x / z + c[14], c[13] * y / z + c[15]
        extent = min(math.sqrt(TWO * math.log(max(opacity / ALPHA_LOW, ONE))), LONGEST)
        wide, tall = math.ceil(extent * math.sqrt(xx)), math.ceil(extent * math.sqrt(yy))
        if not (math.isfinite(wide) and math.isfinite(tall)):
            continue
        if u + wide > ZERO and u - wide < width and v + tall > ZERO and v - tall < height:
            radii[n, 0], radii[n, 1] = wide, tall
            row = rows[n]
            row[0], row[1], row[5] = u, v, opacity
            row[2], row[3], row[4] = yy / determinant, -xy / determinant, xx / determinant
            _harmonics(_way(means, n, c), sh.shape[1], basis)
            red, green, blue = _colour(basis, sh, n)
            row[6], row[7], row[8] = max(red, ZERO), max(green, ZERO), max(blue, ZERO)


@njit(nogil=True, cache=True, error_model="numpy")
def _backward(parameters, c, order, by_row, gradients):
    means, quats, log_scales, logit_opacities, sh = parameters
    d_means, d_quats, d_log_scales, d_logits, d_sh = gradients
    basis = np.zeros(16, np.float32)
    d_rot = np.zeros((3, 3), np.float32)
    places = np.full(len(means), -1, np.int32)
    for m in range(len(order)):
        places[order[m]] = m
    for n in range(len(means)):  # in the order in which they lie in memory
        if places[n] < 0:
            continue
        g = by_row[places[n]]
        x, y, z = _in_camera(means, n, c)
        turn = _turn(quats, n)
        s = (math.exp(log_scales[n, 0]), math.exp(log_scales[n, 1]), math.exp(log_scales[n, 2]))
        t0, t1, m0, m1, xx, xy, yy, tx, ty = _spread(c, x, y, z, turn, s)
        determinant = xx * yy - xy * xy
        q0, q1, q2 = yy / determinant, -xy / determinant, xx / determinant
        # The gradient by a matrix from that by its inverse Q: -Q G Q, G symmetric.
        g0, g1, g2 = g[2], HALF * g[3], g[4]
        a0, a1, b0, b1 = q0 * g0 + q1 * g1, q0 * g1 + q1 * g2, q1 * g0 + q2 * g1, q1 * g1 + q2 * g2
        d_xx, d_xy, d_yy = -(a0 * q0 + a1 * q1), -TWO * (a0 * q1 + a1 * q2), -(b0 * q1 + b1 * q2)
        opacity = ONE / (ONE + math.exp(-logit_opacities[n]))
        share, sharp = _share(c, xx, xy, yy, determinant)
        d_logits[n] = g[5] * share * opacity * (ONE - opacity)
        if c[25] > ZERO:
            by_xx, by_xy, by_yy = _share_back(xx, xy, yy, determinant, sharp)
            scale = g[5] * share * opacity
            d_xx, d_xy, d_yy = d_xx + scale * by_xx, d_xy + scale * by_xy, d_yy + scale * by_yy
        d_m00 = d_m01 = d_m02 = d_m10 = d_m11 = d_m12 = ZERO
        rot = (turn[0], turn[1], turn[2])
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
        d_x, d_y, d_z = _place_back(c, (x, y, z, tx, ty), g, (d_m00, d_m01, d_m02), (d_m10, d_m11, d_m12))
        way = _way(means, n, c)
        d_way = _colours_back(sh, n, way, g, basis, d_sh)
        along = way[0] * d_way[0] + way[1] * d_way[1] + way[2] * d_way[2]
        for j in range(3):
            d_means[n, j] = c[j] * d_x + c[3 + j] * d_y + c[6 + j] * d_z + (d_way[j] - along * way[j]) / way[3]
        d_quats[n, 0], d_quats[n, 1], d_quats[n, 2], d_quats[n, 3] = _turn_back(turn, d_rot)
