"""Schedules and solver steps (V2Edit Sec. 3.1).

One diffusion for every family of models: v_k = a_k x0 + s_k eps, with k running from the noisiest level, 0, to the
clean end, N. Everything is linear in tensors of any one shape. Coefficients are float64 and rational in a and s, not
exponentials of log-SNRs, which are infinite at zero terminal SNR (a = 0) and at the clean end (s = 0)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from v2edit.errors import UserError


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels of N denoising steps; step k leads from level k to level k + 1."""

    timesteps: Tensor  # [N], in order: the network's timestep at step k; integers, or of flow models floats
    a: Tensor  # float64 [N + 1]
    s: Tensor  # float64 [N + 1]; s[N] is 0 where the scheduler ends clean
    second_expert: int | None = None  # the first step of a model's second network, where it has one for little noise

    def __post_init__(self) -> None:
        assert self.a.shape == self.s.shape == (self.steps + 1,) and self.steps > 0
        order = self.timesteps.diff().sign()  # most count down to the clean end, some up
        assert bool((order <= 0).all() or (order >= 0).all()) and float(self.timesteps.min()) >= 0
        assert bool((self.s[:-1] > 0).all() and (self.a[1:] > 0).all()), "only the ends may be pure noise or clean"

    @classmethod
    def from_diffusers(cls, scheduler: Any, steps: int, **options: Any) -> Schedule:
        """Read the tables of a diffusers scheduler after its `set_timesteps` with the options of the model's pipeline.

        Of flow models these are `sigmas` (s = sigma, a = 1 - sigma; inverted ones are a), of others `alphas_cumprod`
        (a^2) and `final_alpha_cumprod`: the level after a timestep is that of the next one, so `steps` need not divide
        T.
        Raises `UserError` for more steps than T, or too few."""
        if steps > scheduler.config.num_train_timesteps:
            raise UserError(f"{steps} steps are more than the model's {scheduler.config.num_train_timesteps} timesteps")
        scheduler = copy.copy(scheduler)  # The caller's own keeps its timesteps.
        with np.errstate(invalid="ignore"):  # what is no number is refused below
            scheduler.set_timesteps(**{"num_inference_steps": steps} | options)
        if is_flow(scheduler):
            sigmas = torch.as_tensor(scheduler.sigmas).cpu().double()
            if not sigmas.isfinite().all():
                few = "the model's scheduler stretches its noise levels to an end (shift_terminal), which needs more"
                raise UserError(f"--steps {steps} is too few: {few}")
            sigmas = 1 - sigmas if scheduler.config.get("invert_sigmas") else sigmas
            return cls(scheduler.timesteps.cpu(), 1 - sigmas, sigmas)
        timesteps = scheduler.timesteps.cpu().long()
        # Rounding in diffusers' trailing spacing appends a timestep -1 for some numbers of steps: 61, 103, ...
        timesteps = timesteps[timesteps >= 0]
        alphas = scheduler.alphas_cumprod.cpu().double()[timesteps]
        alphas = torch.cat([alphas, scheduler.final_alpha_cumprod.cpu().double().reshape(1)])
        return cls(timesteps, alphas.sqrt(), (1 - alphas).sqrt())

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def expert(self, k: int) -> int:
        """Return the index of the network that predicts at step k."""
        return int(self.second_expert is not None and k >= self.second_expert)

    def level(self, k: int) -> tuple[float, float]:
        """Return (a_k, s_k)."""
        return float(self.a[k]), float(self.s[k])

    def share(self, k: int) -> float:
        """Return the share of the steps that step k begins, (N - k) / N: what alpha and beta, and diffusers' strength,
        count in. The quotient is rounded as the decimal that a user writes for it, so comparing the two is exact."""
        return (self.steps - k) / self.steps

    def noise(self, k: int) -> float:
        """Return sigma = s / (a + s), the noise's share of a level, which compares models: 1 is noise alone."""
        a, s = self.level(k)
        return s / (a + s)

    def largest_share(self, noise: float) -> float:
        """Return the largest share of the steps at whose level the noise's share is at most `noise`, else the last."""
        return next((self.share(k) for k in range(self.steps) if self.noise(k) <= noise), self.share(self.steps - 1))

    def add_noise(self, x0: Tensor, eps: Tensor, k: int) -> Tensor:
        """Return v_k = a_k x0 + s_k eps."""
        a, s = self.level(k)
        return a * x0 + s * eps


def is_flow(scheduler: Any) -> bool:
    """Whether a diffusers scheduler is of a flow model, v = (1 - sigma) x0 + sigma eps."""
    return type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))


def with_flow_shift(scheduler: Any, shift: float | None) -> Any:
    """Return a flow model's scheduler with another shift of its noise levels, shift σ / (1 + (shift − 1) σ); None: as
    it is. Raises `UserError` for a model that is no flow model."""
    if shift is None:
        return scheduler
    if not is_flow(scheduler):
        raise UserError("--flow-shift: only flow models, such as Wan, have such a shift; leave it out")
    name = "flow_shift" if "flow_shift" in scheduler.config else "shift"
    return type(scheduler).from_config(scheduler.config, **{name: shift}, use_dynamic_shifting=False)


def prediction_of(scheduler: Any) -> str:
    """Return what a diffusers scheduler takes its network to predict; those of flows alone do not say."""
    return scheduler.config.get("prediction_type", "flow_prediction")


def x0_from_v(v: Tensor, out: Tensor, a: float, s: float) -> Tensor:
    """Return x0 from a v-prediction, out = a eps - s x0."""
    return a * v - s * out


def x0_from_epsilon(v: Tensor, out: Tensor, a: float, s: float) -> Tensor:
    """Return x0 from a noise prediction, out = eps; such models have no level with a = 0."""
    return (v - s * out) / a


def x0_from_flow(v: Tensor, out: Tensor, a: float, s: float) -> Tensor:
    """Return x0 from a flow prediction, out = eps - x0, where a + s = 1."""
    return v - s * out


@dataclass(frozen=True)
class Step:
    """The coefficients of v_{k+1} = c_v v_k + c_x x0 + c_x_prev x0_previous + std n, with n of unit variance."""

    c_v: float
    c_x: float
    c_x_prev: float
    std: float


def decay(a: float, s: float, a_next: float, s_next: float) -> float:
    """Return e^-h = (a / s) / (a' / s'), with h the step in log-SNR; 0 from pure noise and to the clean end."""
    return (a * s_next) / (a_next * s)


def ddim_step(a: float, s: float, a_next: float, s_next: float) -> Step:
    """DDIM, for flows Euler: v' = (s'/s) v + a' (1 - e^-h) x0. It follows the probability flow, v' = a' x0 + s' eps
    with the eps that v holds, and is DPM-Solver++ of first order."""
    e = decay(a, s, a_next, s_next)
    return Step(s_next / s, a_next * (1 - e), 0.0, 0.0)


def ddpm_step(a: float, s: float, a_next: float, s_next: float) -> Step:
    """DDPM: v' = (s'/s) e^-h v + a' (1 - e^-2h) x0 + s' sqrt(1 - e^-2h) n, the posterior of v' given v and x0. Where
    a^2 + s^2 = 1, std^2 = s'^2 / s^2 (1 - a^2 / a'^2). It is SDE-DPM-Solver++ of first order."""
    e = decay(a, s, a_next, s_next)
    return Step(s_next / s * e, a_next * (1 - e * e), 0.0, s_next * math.sqrt(1 - e * e))


@dataclass(frozen=True)
class Solver:
    """A first-order step, and whether x0 is extrapolated from the last two (DPM-Solver++ 2M)."""

    first_order: Callable[[float, float, float, float], Step]
    second_order: bool
    deterministic: str  # name of the solver of the same order that adds no noise

    def step(self, schedule: Schedule, k: int, first: bool) -> Step:
        """Return step k; `first` where there is no x0 of step k - 1. The last is of first order, as in diffusers."""
        step = self.first_order(*schedule.level(k), *schedule.level(k + 1))
        if not self.second_order or first or k == schedule.steps - 1:
            return step
        w = extrapolation_weight(schedule, k)
        return Step(step.c_v, (1 + w) * step.c_x, -w * step.c_x, step.std)


def extrapolation_weight(schedule: Schedule, k: int) -> float:
    """Return 1/2r = h_k / 2 h_{k-1} in x~ = (1 + 1/2r) x0 - (1/2r) x0_previous; 0 after pure noise (h = inf)."""
    e_previous, e = (decay(*schedule.level(i), *schedule.level(i + 1)) for i in (k - 1, k))
    return math.log(e) / (2 * math.log(e_previous)) if e_previous > 0 else 0.0


SOLVERS = {
    "ddim": Solver(ddim_step, second_order=False, deterministic="ddim"),
    "ddpm": Solver(ddpm_step, second_order=False, deterministic="ddim"),
    "dpm-ode": Solver(ddim_step, second_order=True, deterministic="dpm-ode"),
    "dpm-sde": Solver(ddpm_step, second_order=True, deterministic="dpm-ode"),
}


def step_mean(step: Step, v: Tensor, x0: Tensor, x0_previous: Tensor | None = None) -> Tensor:
    """Return D_k(v_k), the mean of v_{k+1}; a first-order step needs no `x0_previous`."""
    first_order = step.c_v * v + step.c_x * x0
    if step.c_x_prev == 0:
        return first_order
    assert x0_previous is not None, "a second-order step needs the x0 of the step before"
    return first_order + step.c_x_prev * x0_previous


def add_step_noise(step: Step, mean: Tensor, draws: Iterator[Tensor]) -> Tensor:
    """Return v_{k+1} = D_k(v_k) + std n; a deterministic step draws nothing."""
    return mean + step.std * next(draws) if step.std else mean
