"""3D Gaussians (Kerbl et al. 2023), in the parameters that are optimised and that splat files store.

Letters: N Gaussians, K spherical-harmonic coefficients ((degree + 1) squared).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

PARAMETERS = "means", "quats", "log_scales", "logit_opacities", "sh"
SH_C0 = 0.28209479177387814  # the constant harmonic: a colour is 0.5 + SH_C0 times the first coefficient


@dataclass(frozen=True)
class Gaussians:
    """N Gaussians, float32, in world coordinates. means [N, 3]; quats [N, 4] as (w, x, y, z), of any length but zero;
    log_scales [N, 3], natural logarithms of the standard deviations along the rotated axes; logit_opacities [N]; sh [N,
    K, 3], K of 1, 4, 9 or 16. `antialiased`: their opacities are for no blur of pixels; renders make up for it
    (Mip-Splatting)."""

    means: Tensor
    quats: Tensor
    log_scales: Tensor
    logit_opacities: Tensor
    sh: Tensor
    antialiased: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        n = len(self.means)
        shapes = [tuple(tensor.shape) for tensor in self.tensors().values()]
        assert shapes[:4] == [(n, 3), (n, 4), (n, 3), (n,)] and shapes[4] == (n, (self.degree + 1) ** 2, 3), shapes

    def __len__(self) -> int:
        return len(self.means)

    @property
    def degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return round(self.sh.shape[1] ** 0.5) - 1

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters by name."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all of the Gaussians as arrays by name, for a file."""
        tensors = {name: tensor.cpu().numpy() for name, tensor in self.tensors().items()}
        return {**tensors, "antialiased": np.array(self.antialiased)}

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> Gaussians:
        """Return the Gaussians that `arrays` gave, among whatever else; those of before they could be antialiased were
        not."""
        tensors = {name: torch.from_numpy(arrays[name]) for name in PARAMETERS}
        return Gaussians(**tensors, antialiased=bool(arrays.get("antialiased", False)))

    def to(self, device: torch.device | str) -> Gaussians:
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def detach(self) -> Gaussians:
        """Return a copy without autograd history."""
        return replace(self, **{name: tensor.detach().clone() for name, tensor in self.tensors().items()})

    def with_degree(self, degree: int) -> Gaussians:
        """Return these Gaussians with harmonics of a degree: higher ones are cut, or added as zeros."""
        count = (degree + 1) ** 2
        padding = self.sh.new_zeros(len(self), max(0, count - self.sh.shape[1]), 3)
        return replace(self, sh=torch.cat([self.sh[:, :count], padding], dim=1))

    def select(self, indices: Tensor) -> Gaussians:
        """Return some of the Gaussians, by index or by bool [N]."""
        return replace(self, **{name: tensor[indices] for name, tensor in self.tensors().items()})

    def joined(self, other: Gaussians) -> Gaussians:
        """Return these Gaussians followed by others of the same degree."""
        added = other.tensors()
        return replace(self, **{name: torch.cat([tensor, added[name]]) for name, tensor in self.tensors().items()})


def colour_to_sh(colours: Tensor) -> Tensor:
    """Convert colours [..., 3] of 0..1 to the first coefficient."""
    return (colours - 0.5) / SH_C0


def sh_to_colour(first: Tensor) -> Tensor:
    """Convert the first coefficient [..., 3] to a colour."""
    return 0.5 + SH_C0 * first
