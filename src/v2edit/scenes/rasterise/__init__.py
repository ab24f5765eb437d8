"""Rasterisation of Gaussians: one `render` with three backends.

`cpu` (numba) and `gsplat` (CUDA) are the fast ones; `reference`, plain torch, is what both are tested against.
Conventions, constants and their order are those of gsplat 1.5 with its default settings ("classic" mode, which is what
viewers of splat files expect).

Letters: C cameras, N Gaussians.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from v2edit.errors import UserError
from v2edit.host import find_device
from v2edit.scenes.cameras import Cameras
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.rasterise.projection import project

log = logging.getLogger(__name__)
Backend = Literal["auto", "cpu", "gsplat", "reference"]


class Rendered(NamedTuple):
    """Rendered images: `colours` [C, H, W, 3], 0 to 1, above where Gaussians are brighter; `alphas` [C, H, W]."""

    colours: Tensor
    alphas: Tensor


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    backend: Backend = "auto",
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Rendered:
    """Render the images of cameras, differentiable in the Gaussians' parameters. `auto` uses gsplat where the Gaussians
    are on a CUDA device, numba otherwise. Raises `UserError` if the backend's package is not installed."""
    if backend == "auto":
        backend = "gsplat" if gaussians.means.is_cuda else "cpu"
    behind = torch.tensor(background, dtype=torch.float32, device=gaussians.means.device)
    if backend == "gsplat":
        return Rendered(*_gsplat(gaussians, cameras, behind))
    if backend == "cpu":
        try:
            from v2edit.scenes.rasterise.cpu import rasterise
        except ModuleNotFoundError as missing:
            raise UserError(f"scenes need {missing.name}: pip install 'v2edit[scenes]'") from missing
    else:
        from v2edit.scenes.rasterise.reference import rasterise
    images = []
    for k in range(len(cameras)):
        flat = project(gaussians, cameras.world_to_camera[k], cameras.intrinsics[k], cameras.height, cameras.width)
        images.append(rasterise(flat, cameras.height, cameras.width, behind))
    return Rendered(*(torch.stack(parts) for parts in zip(*images, strict=True)))


def rasteriser_device(device: str) -> torch.device:
    """Return where Gaussians are rasterised: on the CUDA device that `device` names ("auto": the first one) where
    gsplat is installed, otherwise on the CPU. Raises `UserError` for a device that cannot be used."""
    wanted = find_device(device)
    if wanted.type != "cuda":
        return torch.device("cpu")
    if find_spec("gsplat") is None:
        log.warning("gsplat is not installed: the scene is reconstructed on the CPU, small; pip install gsplat")
        return torch.device("cpu")
    return wanted


def _gsplat(gaussians: Gaussians, cameras: Cameras, background: Tensor) -> tuple[Tensor, Tensor]:
    try:
        from gsplat import rasterization  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as missing:
        raise UserError("scenes on a GPU need gsplat: pip install gsplat (or --device cpu)") from missing
    device = gaussians.means.device
    colours, alphas, _ = rasterization(
        gaussians.means,
        gaussians.quats,
        gaussians.log_scales.exp(),
        gaussians.logit_opacities.sigmoid(),
        gaussians.sh,
        torch.from_numpy(cameras.world_to_camera).float().to(device),
        torch.from_numpy(cameras.intrinsics).float().to(device),
        cameras.width,
        cameras.height,
        sh_degree=gaussians.degree,
        backgrounds=background.expand(len(cameras), 3),
    )
    return colours, alphas[..., 0]
