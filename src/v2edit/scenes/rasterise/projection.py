"""Projection of 3D Gaussians to 2D Gaussians in an image (Zwicker et al. 2001), with gsplat's constants; plain torch.

Letters: N Gaussians, K harmonics.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.scenes.gaussians import Gaussians

NEAR, FAR = 0.01, 1e10
BLUR = 0.3  # added to the variances in pixels, so that no Gaussian is thinner than a pixel
LEAST_RATIO = 1e-12  # of the areas without and with BLUR, squared: the root of 0 has no gradient
ALPHA_MIN = 1 / 255  # lower alphas are left out of a pixel
ALPHA_MAX = 0.999
TRANSMITTANCE_MIN = 1e-4  # a pixel ends before the Gaussian after which less light would pass
EXTENT = 3.33  # standard deviations over which a Gaussian is drawn, at most


class Flat(NamedTuple):
    """N projected Gaussians. means [N, 2] in pixels; conics [N, 3], the inverse covariance as (xx, xy, yy); colours
    [N, 3]; opacities [N]; depths [N]; radii [N, 2], half the sides of the box that each is drawn in, in whole pixels, 0
    where it is not visible."""

    means: Tensor
    conics: Tensor
    colours: Tensor
    opacities: Tensor
    depths: Tensor
    radii: Tensor

    def order(self) -> Tensor:
        """Return the indices [M] of the visible ones, nearest first."""
        return visible_order(self.depths, self.radii)


def project(gaussians: Gaussians, world_to_camera: np.ndarray, intrinsics: np.ndarray, height: int, width: int) -> Flat:
    """Project Gaussians into the image of one camera: OpenCV's `world_to_camera` [4, 4], `intrinsics` [3, 3]. All but
    `radii` is differentiable, in the Gaussians' own precision."""
    positions = gaussians.means
    view = torch.from_numpy(world_to_camera).to(positions)
    rotation, translation = view[:3, :3], view[:3, 3]
    fx, fy, cx, cy = (float(intrinsics[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    opacities = gaussians.logit_opacities.sigmoid()

    camera = positions @ rotation.T + translation  # [N, 3]
    depths = camera[:, 2]
    visible = (depths >= NEAR) & (depths <= FAR)
    x, y, z = torch.where(visible[:, None], camera, camera.new_tensor([0.0, 0.0, 1.0])).unbind(1)

    # The linearised projection, its Jacobian held within 1.3 times the field of view as in the original.
    tan_x, tan_y = 0.5 * width / fx, 0.5 * height / fy
    tx = z * (x / z).clamp(-(cx / fx + 0.3 * tan_x), (width - cx) / fx + 0.3 * tan_x)
    ty = z * (y / z).clamp(-(cy / fy + 0.3 * tan_y), (height - cy) / fy + 0.3 * tan_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * tx / z**2, zero, fy / z, -fy * ty / z**2], dim=1).view(-1, 2, 3)
    spread = jacobian @ rotation @ (rotations(gaussians.quats) * gaussians.log_scales.exp()[:, None, :])  # [N, 2, 3]
    xx, xy, yy = ((spread[:, i] * spread[:, j]).sum(1) for i, j in ((0, 0), (0, 1), (1, 1)))
    sharp = xx * yy - xy * xy
    xx, yy = xx + BLUR, yy + BLUR
    determinant = xx * yy - xy * xy
    if gaussians.antialiased:  # what BLUR widens covers no more than before (Mip-Splatting, Yu et al. 2024)
        opacities = opacities * (sharp / determinant).clamp(min=LEAST_RATIO).sqrt()

    with torch.no_grad():
        visible = visible & (determinant > 0) & (opacities >= ALPHA_MIN)
        extent = torch.sqrt(2 * torch.log((opacities / ALPHA_MIN).clamp(min=1))).clamp(max=EXTENT)
    determinant = torch.where(determinant > 0, determinant, 1)
    conics = torch.stack([yy, -xy, xx], dim=1) / determinant[:, None]
    means = torch.stack([fx * x / z + cx, fy * y / z + cy], dim=1)
    with torch.no_grad():
        radii = torch.ceil(extent[:, None] * torch.stack([xx, yy], dim=1).sqrt())
        inside = (means + radii > 0) & (means - radii < means.new_tensor([width, height]))
        radii = torch.where((visible & inside.all(1) & radii.isfinite().all(1))[:, None], radii, 0)

    return Flat(means, conics, view_colours(positions, gaussians.sh, world_to_camera), opacities, depths, radii)


def visible_order(depths: Tensor, radii: Tensor) -> Tensor:
    """Return the indices [M] of what is visible by its radii [N, 2], nearest first; a stable sort."""
    visible = (radii > 0).all(1).nonzero()[:, 0]
    return visible[torch.sort(depths.detach()[visible], stable=True).indices]


def view_colours(positions: Tensor, sh: Tensor, world_to_camera: np.ndarray) -> Tensor:
    """Return the colours [N, 3] that a camera sees of harmonics [N, K, 3] at positions [N, 3]."""
    centre = torch.from_numpy(-world_to_camera[:3, :3].T @ world_to_camera[:3, 3]).to(positions)
    values = harmonics(F.normalize(positions - centre, dim=1), round(sh.shape[1] ** 0.5) - 1)
    return ((values[:, :, None] * sh).sum(1) + 0.5).clamp(min=0)


def rotations(quats: Tensor) -> Tensor:
    """Convert quaternions [N, 4] as (w, x, y, z), of any length, to rotation matrices [N, 3, 3]."""
    w, x, y, z = F.normalize(quats, dim=1).unbind(1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def harmonics(directions: Tensor, degree: int) -> Tensor:
    """Return the real spherical harmonics [N, (degree + 1)²] of unit vectors [N, 3], in the order and with the signs of
    Sloan 2013, as in splat files."""
    x, y, z = directions.unbind(1)
    values = [torch.full_like(x, 0.28209479177387814)]
    if degree >= 1:
        values += [-0.48860251190292 * y, 0.48860251190292 * z, -0.48860251190292 * x]
    if degree >= 2:
        values += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.9461746957575601 * z * z - 0.3153915652525201,
            -1.0925484305920792 * x * z,
            0.5462742152960395 * (x * x - y * y),
        ]
    if degree >= 3:
        values += [
            -0.5900435899266435 * y * (3 * x * x - y * y),
            2.890611442640554 * x * y * z,
            y * (0.4570457994644658 - 2.285228997322329 * z * z),
            z * (1.865881662950577 * z * z - 1.119528997770346),
            x * (0.4570457994644658 - 2.285228997322329 * z * z),
            1.445305721320277 * z * (x * x - y * y),
            -0.5900435899266435 * x * (x * x - 3 * y * y),
        ]
    return torch.stack(values, dim=1)
