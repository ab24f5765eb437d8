"""CogVideoX's schedulers, seeded noise, and a function in place of a network."""

import math
from collections.abc import Iterator

import torch
from diffusers import CogVideoXDDIMScheduler
from torch import Tensor

# What CogVideoX publishes: the 2b model shifts the SNR by 3, the 5b model does not.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
TRAILING = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SHIFTS = {"2b": 3.0, "5b": 1.0}
SHAPE = (1, 3, 4, 5)


def scheduler_of(shift: float = 1.0, kind: type = CogVideoXDDIMScheduler, **changes: object):
    """Build a diffusers scheduler with CogVideoX's published settings."""
    return kind(**{**BETAS, **TRAILING, "snr_shift_scale": shift, **changes})


def randn(seed: int) -> Tensor:
    """Draw seeded float64 noise of one small shape."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draws(seed: int, twice_after: float = math.inf) -> Iterator[Tensor]:
    """Yield a generator's draws; after `twice_after` of them every other one is skipped."""
    generator, count = torch.Generator().manual_seed(seed), 0
    while True:
        if count >= twice_after:
            torch.randn(SHAPE, generator=generator, dtype=torch.float64)
        count += 1
        yield torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def network(v: Tensor, t: int) -> Tensor:
    """Compute a fixed nonlinear function of state and timestep."""
    return torch.tanh(v.flip(-1) + 0.5 * randn(t)) + 0.3 * v
