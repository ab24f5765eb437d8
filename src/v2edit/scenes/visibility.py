"""Visibility of Gaussians from the cameras of a path: how much of each shows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from v2edit.scenes.cameras import Cameras
from v2edit.scenes.gaussians import SH_C0, Gaussians
from v2edit.scenes.masks import weights_on
from v2edit.scenes.rasterise.projection import project

SEEN = 0.1  # the share of its light that reaches a camera, for a Gaussian to be seen by it, and not to shine through


def visibility(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """Return the most of each Gaussian that any of the cameras sees, [N] of 0 to 1: its weight in the image, over what
    that would be with nothing before it."""
    most = torch.zeros(len(gaussians), device=gaussians.means.device)
    everywhere = torch.ones(1, cameras.height, cameras.width)
    with torch.enable_grad():
        for k in range(len(cameras)):
            weights, _ = weights_on(gaussians, cameras[[k]], everywhere, everywhere)
            most = torch.maximum(most, weights / SH_C0 / _footprints(gaussians, cameras[[k]]))
    return most.clamp(max=1)


@torch.no_grad()
def _footprints(gaussians: Gaussians, camera: Cameras) -> Tensor:
    """Return how many pixels of a camera's image each Gaussian would make up alone, [N]; inf where it is outside."""
    flat = project(gaussians, camera.world_to_camera[0], camera.intrinsics[0], camera.height, camera.width)
    xx, xy, yy = flat.conics.unbind(1)
    pixels = flat.opacities * 2 * math.pi / (xx * yy - xy * xy).clamp(min=1e-12).sqrt()
    return torch.where((flat.radii > 0).all(1), pixels.clamp(min=1e-9), torch.inf)
