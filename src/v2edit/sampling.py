"""Noise: a schedule's levels, the solvers' steps, and the noise between two known states (V2Edit Sec. 3.2).

One diffusion for every family of models: v_k = a_k x0 + s_k eps, with k running from the noisiest level, 0, to the
clean end, N. Everything is linear in tensors of any one shape. Coefficients are float64 and rational in a and s, not
exponentials of log-SNRs, which are infinite at zero terminal SNR (a = 0) and at the clean end (s = 0).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from v2edit.errors import UserError


@dataclass(frozen=True, eq=False)
class Schedule:
    """N denoising steps, step k leading from level k to level k + 1."""

    timesteps: Tensor  # int64 [N], descending: what the network is told at step k
    a: Tensor  # float64 [N + 1]
    s: Tensor  # float64 [N + 1]; s[N] is 0 where the scheduler ends clean
    train_steps: int  # T: the timesteps are 0 ... T - 1

    def __post_init__(self) -> None:
        assert self.a.shape == self.s.shape == (self.steps + 1,) and self.steps > 0
        assert bool((self.timesteps.diff() < 0).all()) and int(self.timesteps[-1]) >= 0
        assert int(self.timesteps[0]) < self.train_steps
        assert bool((self.s[:-1] > 0).all() and (self.a[1:] > 0).all()), "only the ends may be pure noise or clean"

    @classmethod
    def from_diffusers(cls, scheduler: Any, steps: int) -> Schedule:
        """The tables of a diffusers scheduler that has `alphas_cumprod` and `final_alpha_cumprod`: a^2 and 1 - s^2.

        The level after a timestep is that of the next timestep, so `steps` need not divide T; that after the last
        is `final_alpha_cumprod`. Raises UserError for more steps than T.
        """
        if steps > scheduler.config.num_train_timesteps:
            raise UserError(f"{steps} steps are more than the model's {scheduler.config.num_train_timesteps} timesteps")
        scheduler = copy.copy(scheduler)  # The caller's own keeps its timesteps.
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps.cpu().long()
        # Rounding in diffusers' trailing spacing appends a timestep -1 for some numbers of steps: 61, 103, ...
        timesteps = timesteps[timesteps >= 0]
        alphas = scheduler.alphas_cumprod.cpu().double()[timesteps]
        alphas = torch.cat([alphas, scheduler.final_alpha_cumprod.cpu().double().reshape(1)])
        return cls(timesteps, alphas.sqrt(), (1 - alphas).sqrt(), int(scheduler.config.num_train_timesteps))

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def level(self, k: int) -> tuple[float, float]:
        """(a_k, s_k)."""
        return float(self.a[k]), float(self.s[k])

    def share(self, k: int) -> float:
        """t_k / T, rounded as a user's decimal for it is, so that comparing is exact; 0.57 * 100 < 57."""
        return int(self.timesteps[k]) / self.train_steps

    def first_step(self, alpha: float) -> int:
        """Initial noise control: the first step with t_k <= alpha T. Raises UserError where there is none."""
        for k in range(self.steps):
            if self.share(k) <= alpha:
                return k
        raise UserError(
            f"alpha {alpha:g} keeps none of {self.steps} denoising steps: the last timestep is already"
            f" {self.share(-1):g} of the whole; give a larger alpha or more steps"
        )

    def controlled(self, k: int, beta: float) -> bool:
        """Whether step k lies in the window of the other controls, t_k > beta T; beta = 0 is every step, also t = 0."""
        return beta == 0 or self.share(k) > beta

    def add_noise(self, x0: Tensor, eps: Tensor, k: int) -> Tensor:
        """v_k = a_k x0 + s_k eps."""
        a, s = self.level(k)
        return a * x0 + s * eps


def x0_from_v(v: Tensor, out: Tensor, a: float, s: float) -> Tensor:
    """The clean state that a v-prediction `out` = a eps - s x0 means."""
    return a * v - s * out


def x0_from_epsilon(v: Tensor, out: Tensor, a: float, s: float) -> Tensor:
    """The clean state that a noise prediction `out` = eps means; such models have no level with a = 0."""
    return (v - s * out) / a


def x0_from_flow(v: Tensor, out: Tensor, a: float, s: float) -> Tensor:
    """The clean state that a flow `out` = eps - x0 means, where a + s = 1."""
    return v - s * out


@dataclass(frozen=True)
class Step:
    """v_{k+1} = c_v v_k + c_x x0 + c_x_prev x0_previous + std n, with n of unit variance."""

    c_v: float
    c_x: float
    c_x_prev: float
    std: float


def decay(a: float, s: float, a_next: float, s_next: float) -> float:
    """e^-h = (a / s) / (a' / s'), with h the step in log-SNR: 0 from pure noise and to the clean end."""
    return (a * s_next) / (a_next * s)


def ode(a: float, s: float, a_next: float, s_next: float) -> Step:
    """(s'/s) v + a' (1 - e^-h) x0: the probability flow, which is a' x0 + s' eps for the eps that v holds."""
    e = decay(a, s, a_next, s_next)
    return Step(s_next / s, a_next * (1 - e), 0.0, 0.0)


def sde(a: float, s: float, a_next: float, s_next: float) -> Step:
    """(s'/s) e^-h v + a' (1 - e^-2h) x0 + s' sqrt(1 - e^-2h) n: the posterior of v' given v and x0.

    Where a^2 + s^2 = 1 it is DDPM's, std^2 = s'^2 / s^2 (1 - a^2 / a'^2): DDPM is the first order of SDE-DPM-Solver++
    as DDIM (for flows, Euler) is that of DPM-Solver++.
    """
    e = decay(a, s, a_next, s_next)
    return Step(s_next / s * e, a_next * (1 - e * e), 0.0, s_next * math.sqrt(1 - e * e))


@dataclass(frozen=True)
class Solver:
    """A first-order step, and whether x0 is extrapolated from the two last ones (DPM-Solver++ 2M)."""

    first_order: Callable[[float, float, float, float], Step]
    second_order: bool
    deterministic: str  # name of the solver of the same order that adds no noise

    @property
    def stochastic(self) -> bool:
        return self.first_order is sde

    def step(self, schedule: Schedule, k: int, first: bool) -> Step:
        """Step k; `first` where there is no x0 of step k - 1. The last step is of first order, as in diffusers."""
        step = self.first_order(*schedule.level(k), *schedule.level(k + 1))
        if not self.second_order or first or k == schedule.steps - 1:
            return step
        w = extrapolation(schedule, k)
        return Step(step.c_v, (1 + w) * step.c_x, -w * step.c_x, step.std)


def extrapolation(schedule: Schedule, k: int) -> float:
    """1/2r = h_k / 2 h_{k-1} in x~ = (1 + 1/2r) x0 - (1/2r) x0_previous; 0 after a step from pure noise (h = inf)."""
    e_previous, e = (decay(*schedule.level(i), *schedule.level(i + 1)) for i in (k - 1, k))
    return math.log(e) / (2 * math.log(e_previous)) if e_previous > 0 else 0.0


SOLVERS = {
    "ddim": Solver(ode, second_order=False, deterministic="ddim"),
    "ddpm": Solver(sde, second_order=False, deterministic="ddim"),
    "dpm-ode": Solver(ode, second_order=True, deterministic="dpm-ode"),
    "dpm-sde": Solver(sde, second_order=True, deterministic="dpm-ode"),
}


def step_mean(step: Step, v: Tensor, x0: Tensor, x0_previous: Tensor | None = None) -> Tensor:
    """D_k(v_k), the mean of v_{k+1}; `x0_previous` may be None where the step is of first order."""
    first_order = step.c_v * v + step.c_x * x0
    if step.c_x_prev == 0:
        return first_order
    assert x0_previous is not None, "a second-order step needs the x0 of the step before"
    return first_order + step.c_x_prev * x0_previous


def extract(v_next: Tensor, mean: Tensor) -> Tensor:
    """n_k = v_{k+1} - D_k(v_k), the noise that leads to a known next state (V2Edit Sec. 3.2).

    Not divided by std, so that deterministic solvers have it too.
    """
    return v_next - mean


def replay(mean_edit: Tensor, sources: Sequence[tuple[float, Tensor, Tensor]]) -> Tensor:
    """Per-step noise control: v'_{k+1} = D_k(v'_k) + n_k, with n_k mixed from sources (weight, v_{k+1}, D_k(v_k)).

    The weights sum to 1, so this is the source's next state plus what the edit's mean differs by. Written so, a mean
    equal to the one source's gives v_{k+1} to the last bit, and little is lost where the means come from 16 bits.
    """
    assert math.isclose(sum(weight for weight, _, _ in sources), 1.0, abs_tol=1e-9)
    states = [weight * (v_next + (mean_edit - mean_source)) for weight, v_next, mean_source in sources]
    return sum(states[1:], states[0])
