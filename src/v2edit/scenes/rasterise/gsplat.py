"""The rasteriser for GPUs: gsplat's kernels, which are compiled when they are first used."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from v2edit.files import try_flock
from v2edit.scenes.cameras import Cameras, look_at
from v2edit.scenes.gaussians import Gaussians, colour_to_sh

log = logging.getLogger(__name__)
TOLERANCE = 0.02  # of 1: its exponential is the GPU's fast one
COMPILE_TIMEOUT = 1800.0  # seconds to wait for another process that compiles the kernels
NOT_COMPILED = (
    "its kernels are not compiled, for which it needs the CUDA toolkit (nvcc) of torch's CUDA version, a C++ compiler "
    "and ninja"
)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from main memory to a device; to CUDA from page-locked memory, so that nothing waits for it."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def rasterise_cameras(gaussians: Gaussians, cameras: Cameras, background: Tensor) -> tuple[Tensor, Tensor]:
    """Return colours [C, H, W, 3] and alphas [C, H, W] of all cameras over a background [3], on the Gaussians' device;
    differentiable. Raises `ImportError` where gsplat is missing, and whatever it raises where it is not compiled."""
    from gsplat import rasterization  # pyright: ignore[reportMissingImports]

    device = gaussians.means.device
    colours, alphas, _ = rasterization(
        gaussians.means,
        gaussians.quats,
        gaussians.log_scales.exp(),
        gaussians.logit_opacities.sigmoid(),
        gaussians.sh,
        to_device(torch.from_numpy(cameras.world_to_camera).float(), device),
        to_device(torch.from_numpy(cameras.intrinsics).float(), device),
        cameras.width,
        cameras.height,
        sh_degree=gaussians.degree,
        packed=False,  # packing would wait for the number of visible Gaussians, and a camera sees most of them
        backgrounds=to_device(background, device).expand(len(cameras), 3),
        rasterize_mode="antialiased" if gaussians.antialiased else "classic",
    )
    return colours, alphas[..., 0]


@cache
def find_fault(device: torch.device) -> str | None:
    """Render a small scene with gsplat, and its gradients, so that its kernels are loaded, or compiled, which takes
    minutes. Return why it cannot be used on a device, in one line; None where it can."""
    if find_spec("gsplat") is None:
        return "it is not installed: pip install gsplat"
    try:
        with _compile_lock(), redirect_stdout(sys.stderr):  # it prints, and standard output may be JSON
            if find_spec("gsplat.csrc") is None:  # a wheel without kernels
                log.info("loading gsplat's kernels: the first time they are compiled, which takes some minutes")
            return _compare_with_reference(device)
    except ModuleNotFoundError as missing:
        return f"it needs {missing.name}, which is not installed"
    except Exception as error:  # whatever a compiler, a driver or another release of gsplat raises
        log.debug("gsplat failed", exc_info=True)
        reason = " ".join([f"{type(error).__name__}:", *str(error).split()])[:200]
        return reason if _has_kernels() else f"{NOT_COMPILED} ({reason})"


def _has_kernels() -> bool:
    """Whether gsplat has loaded its kernels; where it could not, it goes on without, or its module is not there."""
    backend: Any = sys.modules.get("gsplat.cuda._backend")
    return getattr(backend, "_C", None) is not None


def _compare_with_reference(device: torch.device) -> str | None:
    from v2edit.scenes.rasterise.projection import project
    from v2edit.scenes.rasterise.reference import rasterise

    scene, camera, background = *_probe_scene(), torch.tensor([0.2, 0.5, 0.9])
    leaves = {name: tensor.to(device).detach().requires_grad_() for name, tensor in scene.tensors().items()}
    colours, alphas = rasterise_cameras(Gaussians(*leaves.values()), camera, background)
    (colours.square().sum() + alphas.sum()).backward()
    if not all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves.values()):
        return "its gradients are not finite"
    flat = project(scene, camera.world_to_camera[0], camera.intrinsics[0], camera.height, camera.width)
    expected, alpha = rasterise(flat, camera.height, camera.width, background)
    error = max(float((a[0].detach().cpu() - b).abs().max()) for a, b in ((colours, expected), (alphas, alpha)))
    return None if error <= TOLERANCE else f"its images are not those of the reference: they differ by {error:.2g} of 1"


def _probe_scene() -> tuple[Gaussians, Cameras]:
    """Return turned, stretched Gaussians of several colours, and a camera of unequal focal lengths off the middle."""
    draw = torch.Generator().manual_seed(0)
    count = 16
    scene = Gaussians(
        means=torch.rand(count, 3, generator=draw) * 2 - 1,
        quats=torch.randn(count, 4, generator=draw),
        log_scales=torch.rand(count, 3, generator=draw) * 1.5 - 2.5,
        logit_opacities=torch.rand(count, generator=draw) * 2 - 1,
        sh=colour_to_sh(torch.rand(count, 1, 3, generator=draw)),
    )
    higher = torch.rand(count, 3, 3, generator=draw) - 0.5
    scene = replace(scene, sh=torch.cat([scene.sh, 0.3 * higher], dim=1))
    matrix = np.array([[[30.0, 0, 18], [0, 36, 11], [0, 0, 1]]])
    return scene, Cameras(matrix, look_at(np.array([[2.0, 3, 1]]), np.zeros(3), np.array([0, 0.3, 1])), 24, 34)


@contextmanager
def _compile_lock() -> Iterator[None]:
    """Let one process at a time compile: gsplat removes what another has begun."""
    with ExitStack() as held:
        with suppress(OSError, ImportError):  # where there are no locks, as without them
            file = held.enter_context((Path(tempfile.gettempdir()) / "v2edit-gsplat.lock").open("a"))
            try_flock(file, exclusive=True, timeout=COMPILE_TIMEOUT)
        yield
