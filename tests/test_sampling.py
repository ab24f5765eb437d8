"""Schedules and solver steps: equal to diffusers' own, finite, and preserving the marginals."""

import math
from collections.abc import Iterator

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
)
from hypothesis import given
from hypothesis import strategies as st
from support.noise import BETAS, SHIFTS, TRAILING, draws, network, randn, scheduler_of
from torch import Tensor

from v2edit.sampling import (
    SOLVERS,
    Schedule,
    ddim_step,
    ddpm_step,
    step_mean,
    x0_from_epsilon,
    x0_from_flow,
    x0_from_v,
)

COGVIDEOX = {"ddim": CogVideoXDDIMScheduler, "dpm-sde": CogVideoXDPMScheduler}
STOCHASTIC = ("ddpm", "dpm-sde")
WITH_SHIFTS = pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)


def trajectory(solver: str, schedule: Schedule, start: int, v: Tensor, noises: Iterator[Tensor]) -> Tensor:
    """Denoise from level `start` to the end, with one draw of noise a step."""
    x0_previous = None
    for k in range(start, schedule.steps):
        step = SOLVERS[solver].step(schedule, k, first=k == start)
        x0 = x0_from_v(v, network(v, int(schedule.timesteps[k])), *schedule.level(k))
        v = step_mean(step, v, x0, x0_previous) + step.std * next(noises)
        x0_previous = x0
    return v


# Schedules


@pytest.mark.parametrize("steps", [1, 2, 7, 30, 50, 61, 103, 999, 1000])
def test_a_schedule_has_any_number_of_steps_and_the_schedulers_own_levels(steps):
    """61 and 103 are among the numbers for which diffusers' trailing spacing appends a timestep -1."""
    scheduler = scheduler_of()
    before = scheduler.timesteps.clone()
    schedule = Schedule.from_diffusers(scheduler, steps)
    assert schedule.steps == steps and schedule.timesteps[0] == 999 and (schedule.timesteps >= 0).all()
    assert schedule.a.dtype == schedule.s.dtype == torch.float64
    torch.testing.assert_close(schedule.a[:-1] ** 2, scheduler.alphas_cumprod[schedule.timesteps])
    torch.testing.assert_close(schedule.a**2 + schedule.s**2, torch.ones(steps + 1, dtype=torch.float64))
    assert schedule.level(steps) == (1.0, 0.0) and schedule.level(0) == (0.0, 1.0)
    assert scheduler.timesteps.equal(before), "the caller's scheduler was changed"


def test_adding_noise_is_the_schedulers_own():
    scheduler = scheduler_of(3.0)
    schedule, x0, eps = Schedule.from_diffusers(scheduler, 20), randn(0), randn(1)
    for k, t in enumerate(schedule.timesteps):
        torch.testing.assert_close(schedule.add_noise(x0, eps, k), scheduler.add_noise(x0, eps, t[None]))
    assert schedule.add_noise(x0, eps, 20).equal(x0)


# Solvers


@WITH_SHIFTS
@pytest.mark.parametrize("solver", COGVIDEOX)
@pytest.mark.parametrize(("steps", "start"), [(50, 0), (50, 5), (50, 49), (20, 1), (10, 0), (2, 0), (1, 0)])
def test_whole_trajectories_are_those_of_cogvideox_schedulers(shift, solver, steps, start):
    scheduler = scheduler_of(shift, COGVIDEOX[solver])
    schedule = Schedule.from_diffusers(scheduler, steps)
    scheduler.set_timesteps(steps)
    expected, x0, back = randn(1), None, None
    generator = torch.Generator().manual_seed(2)
    for t in scheduler.timesteps[start:].tolist():
        out = network(expected, t)
        if solver == "ddim":
            expected = scheduler.step(out, t, expected, return_dict=False)[0]
        else:
            expected, x0 = scheduler.step(out, x0, t, back, expected, generator=generator, return_dict=False)
            back = t
    # The DPM scheduler draws its noise twice on second-order steps and uses the second draw; the last step has none.
    got = trajectory(solver, schedule, start, randn(1), draws(2, twice_after=1))
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


@WITH_SHIFTS
@pytest.mark.parametrize(("steps", "start"), [(50, 0), (50, 5), (30, 0), (7, 2)])
def test_ddpm_is_that_of_diffusers(shift, steps, start):
    """Also for numbers of steps that do not divide 1000; its variance is clamped at 1e-20 where it is none."""
    cogvideox = scheduler_of(shift)
    peer = DDPMScheduler(**BETAS, **TRAILING)
    peer.alphas_cumprod = cogvideox.alphas_cumprod
    peer.set_timesteps(steps)
    expected, generator = randn(1), torch.Generator().manual_seed(3)
    for t in peer.timesteps[start:]:
        expected = peer.step(network(expected, int(t)), t, expected, generator=generator).prev_sample
    got = trajectory("ddpm", Schedule.from_diffusers(cogvideox, steps), start, randn(1), draws(3))
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-8)


@WITH_SHIFTS
@pytest.mark.parametrize(("steps", "start"), [(50, 1), (50, 5), (30, 1), (7, 2)])
def test_the_ode_is_the_multistep_dpm_solver(shift, steps, start):
    """From level 1 on, since diffusers replaces zero SNR by a small one; to float32, in which it keeps its sigmas."""
    cogvideox = scheduler_of(shift)
    peer = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        **{key: value for key, value in {**BETAS, **TRAILING}.items() if key != "clip_sample"},
    )
    peer.alphas_cumprod = cogvideox.alphas_cumprod.clone()
    peer.alphas_cumprod[-1] = 2**-24
    peer.set_timesteps(steps)
    peer.set_begin_index(start)
    expected = randn(1)
    for t in peer.timesteps[start:]:
        expected = peer.step(network(expected, int(t)), t, expected).prev_sample
    schedule = Schedule.from_diffusers(cogvideox, steps)
    got = trajectory("dpm-ode", schedule, start, randn(1), draws(0))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@given(
    sigma=st.floats(1e-3, 1.0),
    ratio=st.floats(0.0, 0.999),
    x=st.floats(-3, 3),
    eps=st.floats(-3, 3),
)
def test_for_flows_the_ode_is_eulers(sigma, ratio, x, eps):
    """v + (sigma' - sigma) out, with a = 1 - sigma, s = sigma."""
    x0, noise = torch.tensor(x, dtype=torch.float64), torch.tensor(eps, dtype=torch.float64)
    v, out, sigma_next = (1 - sigma) * x0 + sigma * noise, noise - x0, ratio * sigma
    step = ddim_step(1 - sigma, sigma, 1 - sigma_next, sigma_next)
    got = step_mean(step, v, x0_from_flow(v, out, 1 - sigma, sigma))
    torch.testing.assert_close(got, v + (sigma_next - sigma) * out, rtol=1e-9, atol=1e-9)


SCHEDULERS = {
    "2b": {},
    "not to one": {"set_alpha_to_one": False},
    "leading": {"timestep_spacing": "leading", "rescale_betas_zero_snr": False, "set_alpha_to_one": False},
    "linspace": {"timestep_spacing": "linspace"},
}


@pytest.mark.parametrize("changes", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 50, 61, 1000])
def test_every_step_is_finite_and_leaves_the_right_marginal(solver, changes, steps):
    """Given the true x0, a x0 + s eps goes to a' x0 + noise of deviation s', from zero SNR to the clean end."""
    schedule = Schedule.from_diffusers(scheduler_of(3.0, **changes), steps)
    for k in range(steps):
        (a, s), (a_next, s_next) = schedule.level(k), schedule.level(k + 1)
        for first in {k == 0, True}:
            step = SOLVERS[solver].step(schedule, k, first)
            assert all(map(math.isfinite, (step.c_v, step.c_x, step.c_x_prev, step.std)))
            assert math.isclose(step.c_v * a + step.c_x + step.c_x_prev, a_next, rel_tol=1e-9)
            assert math.isclose(math.hypot(step.c_v * s, step.std), s_next, rel_tol=1e-9, abs_tol=1e-9)
            assert (step.std > 0) == (solver in STOCHASTIC and s_next > 0 and s_next != s)
            assert step.c_x_prev == 0 or not first
    assert SOLVERS[solver].deterministic not in STOCHASTIC
    assert SOLVERS[SOLVERS[solver].deterministic].second_order == SOLVERS[solver].second_order


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_perfect_network_leads_to_x0(solver):
    schedule, x0, generator = Schedule.from_diffusers(scheduler_of(), 12), randn(0), draws(1)
    v, x0_previous = next(generator), None
    for k in range(12):
        step = SOLVERS[solver].step(schedule, k, first=k == 0)
        v, x0_previous = step_mean(step, v, x0, x0_previous) + step.std * next(generator), x0
    torch.testing.assert_close(v, x0, rtol=1e-12, atol=1e-12)


def test_second_order_steps_extrapolate_x0_along_the_log_snr():
    """An x0 that is affine in log(a / s) is extrapolated to the middle of the step."""
    schedule = Schedule.from_diffusers(scheduler_of(), 20)
    lam = (schedule.a / schedule.s).log().tolist()
    for name in ("dpm-ode", "dpm-sde"):
        for k in range(2, 19):
            one, two = (SOLVERS[name].step(schedule, k, first) for first in (True, False))
            x_tilde = (two.c_x * lam[k] + two.c_x_prev * lam[k - 1]) / one.c_x
            assert math.isclose(x_tilde, (lam[k] + lam[k + 1]) / 2, rel_tol=1e-9, abs_tol=1e-9)
            assert (two.c_v, two.std) == (one.c_v, one.std)


@given(st.floats(0, 1), st.floats(1e-3, 1), st.floats(1e-3, 1), st.floats(0, 1))
def test_steps_between_any_two_levels_are_finite(a, s, a_next, s_next):
    if a * s_next <= a_next * s:  # the next level is the cleaner one
        for first_order in (ddim_step, ddpm_step):
            step = first_order(a, s, a_next, s_next)
            assert all(map(math.isfinite, (step.c_v, step.c_x, step.std))) and step.std <= s_next


def test_x0_is_recovered_from_every_parameterisation():
    x0, eps, a, s = randn(0), randn(1), 0.6, 0.8
    v = a * x0 + s * eps
    torch.testing.assert_close(x0_from_v(v, a * eps - s * x0, a, s), x0)
    torch.testing.assert_close(x0_from_epsilon(v, eps, a, s), x0)
    torch.testing.assert_close(x0_from_flow(0.3 * x0 + 0.7 * eps, eps - x0, 0.3, 0.7), x0)
