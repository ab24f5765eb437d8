"""The slow, obvious rasteriser: every Gaussian at every pixel, in one formula. What the fast ones must equal.

Letters: M Gaussians seen, P pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from v2edit.scenes.rasterise.projection import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN, Flat


def rasterise(flat: Flat, height: int, width: int, background: Tensor) -> tuple[Tensor, Tensor]:
    """Composites front to back; gives colours [H, W, 3] and alphas [H, W]. Memory grows with M x P."""
    order = flat.order()
    alphas = footprints(flat, order, height, width)  # [M, P]
    kept = alphas >= ALPHA_MIN
    alphas = torch.where(kept, alphas, 0)
    # A pixel ends before the first Gaussian that would let too little through.
    after = torch.cumprod(1 - alphas, dim=0)
    ended = (kept & (after <= TRANSMITTANCE_MIN)).cumsum(0) > 0
    alphas = torch.where(ended, 0, alphas)
    after = torch.cumprod(1 - alphas, dim=0)
    before = torch.cat([after.new_ones(1, height * width), after])  # the last row: what comes through them all
    weights = alphas * before[:-1]
    colours = weights.T @ flat.colours[order] + before[-1][:, None] * background.to(weights)
    return colours.view(height, width, 3), (1 - before[-1]).view(height, width)


def footprints(flat: Flat, order: Tensor, height: int, width: int) -> Tensor:
    """What share of each pixel each Gaussian covers, [M, P], nothing left out."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([columns, rows], dim=-1).view(-1, 2).to(flat.means)
    dx, dy = (flat.means[order][:, None] - pixels).unbind(-1)
    a, b, c = flat.conics[order][:, :, None].unbind(1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alphas = (flat.opacities[order][:, None] * torch.exp(-sigma)).clamp(max=ALPHA_MAX)
    return torch.where(sigma >= 0, alphas, 0)
