"""Rasterisation of Gaussians: one `render` with three backends.

`cpu` (numba) and `gsplat` (CUDA) are the fast ones; `reference`, plain torch, is what both are tested against.
Conventions, constants and their order are those of gsplat 1.5 with its default settings ("classic" mode, which is what
viewers of splat files expect; "antialiased" where the Gaussians are).

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

log = logging.getLogger(__name__)
NEEDS = "scenes need {}: pip install 'v2edit[scenes]'"
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
    """Render the images of cameras, differentiable in the Gaussians' parameters. `auto` uses numba where the Gaussians
    are in main memory, gsplat otherwise. Raises `UserError` if the backend's package is not installed."""
    if backend == "auto":
        backend = "cpu" if gaussians.means.device.type == "cpu" else "gsplat"
    if backend == "gsplat":
        from v2edit.scenes.rasterise.gsplat import rasterise_cameras

        try:
            return Rendered(*rasterise_cameras(gaussians, cameras, torch.tensor(background)))
        except ModuleNotFoundError as missing:
            raise UserError(f"scenes on a GPU need {missing.name}: pip install {missing.name}") from missing
    behind = torch.tensor(background, dtype=torch.float32, device=gaussians.means.device)
    if backend == "cpu":
        try:
            from v2edit.scenes.rasterise.cpu import rasterise_camera
        except ModuleNotFoundError as missing:
            raise UserError(NEEDS.format(missing.name)) from missing
    else:
        from v2edit.scenes.rasterise.reference import rasterise_camera
    size = cameras.height, cameras.width
    poses = zip(cameras.world_to_camera, cameras.intrinsics, strict=True)
    images = [rasterise_camera(gaussians, pose, matrix, *size, behind) for pose, matrix in poses]
    return Rendered(*(torch.stack(parts) for parts in zip(*images, strict=True)))


def rasteriser_device(device: str, required: bool = False) -> torch.device:
    """Return where Gaussians are rasterised: on the CUDA device that `device` names ("auto": the first one) where
    gsplat renders there what it should, otherwise on the CPU, with a warning that says why. The kernels may be compiled
    for that, which takes minutes. Raises `UserError` for a device that cannot be used, or, where it is `required`, that
    cannot rasterise; and where there is nothing to rasterise with."""
    wanted, fault = find_device(device), None
    if wanted.type == "cuda":
        from v2edit.scenes.rasterise.gsplat import find_fault

        fault = find_fault(wanted)
    elif wanted.type != "cpu":
        fault = f"it needs CUDA, and {wanted} is not"
    if fault is not None and required:
        raise UserError(f"the scene was begun on {wanted}, where gsplat cannot be used now: {fault}")
    if wanted.type == "cuda" and fault is None:
        return wanted
    if fault is not None:
        log.warning("gsplat cannot be used, so the scene is reconstructed on the CPU, in small images: %s", fault)
    if find_spec("numba") is None:
        raise UserError(NEEDS.format("numba"))
    return torch.device("cpu")
