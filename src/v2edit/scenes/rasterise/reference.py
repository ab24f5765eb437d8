"""The reference rasteriser, slow and plain: every Gaussian at every pixel. The fast ones must equal it.

Letters: M visible Gaussians, P pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.rasterise.projection import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN, Flat, project


def rasterise_camera(
    gaussians: Gaussians, world_to_camera: np.ndarray, intrinsics: np.ndarray, height: int, width: int, behind: Tensor
) -> tuple[Tensor, Tensor]:
    """Return colours [H, W, 3] and alphas [H, W] of one camera; differentiable in the Gaussians' parameters."""
    return rasterise(project(gaussians, world_to_camera, intrinsics, height, width), height, width, behind)


def rasterise(flat: Flat, height: int, width: int, background: Tensor) -> tuple[Tensor, Tensor]:
    """Composite front to back; return colours [H, W, 3] and alphas [H, W]. Memory grows with M x P."""
    order = flat.order()
    alphas = footprints(flat, order, height, width)  # [M, P]
    drawn = alphas >= ALPHA_MIN
    alphas = torch.where(drawn, alphas, 0)
    # A pixel ends before the first Gaussian after which too little light would pass.
    after = torch.cumprod(1 - alphas, dim=0)
    ended = (drawn & (after <= TRANSMITTANCE_MIN)).cumsum(0) > 0
    alphas = torch.where(ended, 0, alphas)
    after = torch.cumprod(1 - alphas, dim=0)
    before = torch.cat([after.new_ones(1, height * width), after])  # the last row: the transmittance of all
    weights = alphas * before[:-1]
    colours = weights.T @ flat.colours[order] + before[-1][:, None] * background.to(weights)
    return colours.view(height, width, 3), (1 - before[-1]).view(height, width)


def footprints(flat: Flat, order: Tensor, height: int, width: int) -> Tensor:
    """Return the alpha of each Gaussian at each pixel, [M, P], without cut-offs."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([columns, rows], dim=-1).view(-1, 2).to(flat.means)
    dx, dy = (flat.means[order][:, None] - pixels).unbind(-1)
    a, b, c = flat.conics[order][:, :, None].unbind(1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alphas = (flat.opacities[order][:, None] * torch.exp(-sigma)).clamp(max=ALPHA_MAX)
    return torch.where(sigma >= 0, alphas, 0)
