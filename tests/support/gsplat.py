"""gsplat without a GPU: its `rasterization` as version 1.5 documents it, over plain torch, and packages that are broken
as it breaks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.rasterise.projection import project
from v2edit.scenes.rasterise.reference import rasterise

# In the order of gsplat 1.5 and 1.6; `width` and `height` are numbers.
ARGUMENTS = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks", "width", "height")


def check_arguments(
    *positional: Any, sh_degree: int, packed: bool, backgrounds: Tensor, rasterize_mode: str
) -> SimpleNamespace:
    """Assert what gsplat asserts of shapes, and what its kernels take for granted: one device and float32. Return the
    arguments by name."""
    assert not packed  # packed, each step waits for the number of visible Gaussians
    given = SimpleNamespace(**dict(zip(ARGUMENTS, positional, strict=True)), backgrounds=backgrounds)
    assert rasterize_mode in ("classic", "antialiased")
    given.antialiased = rasterize_mode == "antialiased"
    count, cameras = len(given.means), len(given.viewmats)
    shapes = {"means": (count, 3), "quats": (count, 4), "scales": (count, 3), "opacities": (count,)}
    shapes |= {"viewmats": (cameras, 4, 4), "Ks": (cameras, 3, 3), "backgrounds": (cameras, 3)}
    shapes["colors"] = (count, (sh_degree + 1) ** 2, 3)
    for name, shape in shapes.items():
        tensor = getattr(given, name)
        assert tensor.shape == shape and tensor.dtype == torch.float32 and tensor.device == given.means.device, name
    return given


def rasterization(*positional: Any, **named: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return colours [C, H, W, 3], alphas [C, H, W, 1] and an empty dict. Scales are standard deviations, opacities
    shares, `viewmats` world to camera in OpenCV's axes."""
    given = check_arguments(*positional, **named)
    logits = torch.logit(given.opacities)
    parameters = given.means, given.quats, given.scales.log(), logits, given.colors
    scene = Gaussians(*parameters, antialiased=given.antialiased)
    images = []
    for view, matrix, background in zip(given.viewmats, given.Ks, given.backgrounds, strict=True):
        arrays = (one.numpy().astype(np.float64) for one in (view, matrix))
        flat = project(scene, *arrays, given.height, given.width)
        images.append(rasterise(flat, given.height, given.width, background))
    shown, alphas = (torch.stack(parts) for parts in zip(*images, strict=True))
    return shown, alphas[..., None], {}


BACKEND = {
    "works": "_C = object()",
    "not compiled": "print('gsplat: No CUDA toolkit found. gsplat will be disabled.')\n_C = None",
    "compiler fails": "raise RuntimeError('Error building extension gsplat_cuda:\\n[1/40] nvcc ...\\nFAILED')",
    "lacks a package": "import a_package_that_is_not_there",
    "other convention": "_C = object()",
    "import fails": "",
}


def write_package(folder: Path, state: str) -> None:
    """Write a package `gsplat` in a state: a key of `BACKEND`. Its kernels are imported at the first call, as its
    are."""
    (folder / "gsplat" / "cuda").mkdir(parents=True)
    (folder / "gsplat" / "cuda" / "__init__.py").touch()
    (folder / "gsplat" / "cuda" / "_backend.py").write_text(BACKEND[state])
    quats = "quats.roll(-1, 1)" if state == "other convention" else "quats"  # as (x, y, z, w)
    (folder / "gsplat" / "__init__.py").write_text(
        f"{'import a_package_that_is_not_there' if state == 'import fails' else ''}\n"
        "from support.gsplat import rasterization as plain\n"
        "def rasterization(means, quats, *others, **named):\n"
        "    from .cuda._backend import _C\n"
        "    _C.__class__ if _C is not None else _C.projection_ewa_3dgs_fused_fwd\n"
        f"    return plain(means, {quats}, *others, **named)\n"
    )
