"""The controls: where they start and end, and that per-step noise control gives the source back exactly."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import CogVideoXVideoToVideoPipeline
from hypothesis import given
from hypothesis import strategies as st
from support.noise import SHIFTS, draws, network, randn, scheduler_of
from torch import Tensor

from v2edit.editing.controls import first_step, in_control_window, mix_sources, per_step_noise_control
from v2edit.editing.progression import BranchText
from v2edit.errors import UserError
from v2edit.sampling import SOLVERS, Schedule, step_mean, x0_from_v

# Initial noise control and the window


@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
def test_the_papers_window_keeps_45_of_50_steps_and_controls_20(shift):
    schedule = Schedule.from_diffusers(scheduler_of(shift), 50)
    start = first_step(schedule, 0.9)
    controlled = [in_control_window(schedule, k, 0.5) for k in range(start, 50)]
    assert start == 5 and controlled == [True] * 20 + [False] * 25
    assert first_step(schedule, 0.9, inc=False) == 0


@pytest.mark.parametrize("tenths", range(1, 11))
def test_the_first_step_is_that_of_the_video_to_video_pipeline(tenths):
    scheduler = scheduler_of()
    scheduler.set_timesteps(50)
    pipeline = SimpleNamespace(scheduler=SimpleNamespace(order=1))
    strength = tenths / 10
    expected, _ = CogVideoXVideoToVideoPipeline.get_timesteps(pipeline, 50, scheduler.timesteps, strength, "cpu")
    schedule = Schedule.from_diffusers(scheduler, 50)
    assert schedule.timesteps[first_step(schedule, strength) :].equal(expected)


@pytest.mark.parametrize("steps", [100, 1000])
def test_alpha_and_beta_mean_the_decimals_that_are_written(steps):
    """0.57 * 100 is less than 57 in floating point: a boundary that is on a step must still count as on it."""
    a = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    schedule = Schedule(torch.arange(steps - 1, -1, -1), a, (1 - a**2).sqrt())
    for k in range(steps):
        written = float(f"{(steps - k) / steps:.3f}")
        assert first_step(schedule, written) == k
        assert k == 0 or in_control_window(schedule, k - 1, written)
        assert not in_control_window(schedule, k, written) and in_control_window(schedule, k, 0.0)


def test_an_alpha_that_keeps_nothing_is_refused():
    with pytest.raises(UserError, match=r"alpha 0\.01 is less than one of 50 denoising steps"):
        first_step(Schedule.from_diffusers(scheduler_of(), 50), 0.01)


# Per-step noise control

states = st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3).map(torch.tensor)


@given(states, states)
def test_the_sources_own_mean_leads_to_its_next_state(v_next, mean):
    assert per_step_noise_control(mean, [v_next], [mean], [1.0]).equal(v_next)


@given(states, states, states, states, states, st.floats(0, 1))
def test_it_is_the_mean_plus_the_mixed_noise_of_the_sources(edit_mean, v_one, mean_one, v_two, mean_two, mu):
    """The difference form against the paper's: n_k = v_{k+1} - D_k(v_k), v'_{k+1} = D_k(v'_k) + n_k."""
    one = per_step_noise_control(edit_mean, [v_one], [mean_one], [1.0])
    torch.testing.assert_close(one, edit_mean + (v_one - mean_one), rtol=1e-5, atol=1e-5)
    both = per_step_noise_control(edit_mean, [v_one, v_two], [mean_one, mean_two], [1 - mu, mu])
    noise = (1 - mu) * (v_one - mean_one) + mu * (v_two - mean_two)
    torch.testing.assert_close(both, edit_mean + noise, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("alpha", [1.0, 0.9])
def test_controlled_to_the_end_an_equal_prompt_gives_the_source_bit_for_bit(solver, alpha, dtype):
    """Source and edit see one network of that precision; the noise of each step is drawn independently."""
    schedule, x0, eps = Schedule.from_diffusers(scheduler_of(), 10), randn(0).float(), draws(1)
    start = first_step(schedule, alpha)
    source = edit = schedule.add_noise(x0, next(eps).float(), start)
    previous: list[Tensor | None] = [None, None]
    for k in range(start, 10):
        step, means = SOLVERS[solver].step(schedule, k, first=k == start), []
        for branch, v in enumerate((source, edit)):
            out = network(v.to(dtype), int(schedule.timesteps[k])).to(dtype).float()
            predicted = x0_from_v(v, out, *schedule.level(k))
            means.append(step_mean(step, v, predicted, previous[branch]))
            previous[branch] = predicted
        source = schedule.add_noise(x0, next(eps).float(), k + 1)
        edit = per_step_noise_control(means[1], [source], means[:1], [1.0])
        assert edit.equal(source)
    assert edit.equal(x0)


def test_the_weights_of_the_sources_sum_to_one():
    x, prompt = torch.zeros(1), torch.zeros(1)
    text = BranchText(prompt, prompt, prompt, prompt, shared=0)
    for mixture in (0.0, 0.3, 1.0):
        for subtask in (1, 2):
            assert sum(s.weight for s in mix_sources(x, x, text, mixture, subtask)) == pytest.approx(1.0)
