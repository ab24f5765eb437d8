"""Step caching: which steps run no layers of the network. The choice is made before the loop, from the noise levels and
what was measured of the model once, and not from the data: one for all rows, so that what a skipped step gets wrong is
in source and edit alike and cancels in the difference form, and a run that resumes makes the same one.

Tried on the tasks of benchmarks/caching.py and not kept: what was kept unscaled, as MagCache has it (0.6 dB less inside
where two of three steps are skipped), and a first-block cache (1.8 dB less). That judges by how the first layer's
work changes, which in controlled steps is PNC's new noise (by 0.36 a step, 0.07 below beta)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from v2edit.backbones.caching import StepCache
from v2edit.editing.config import ResolvedConfig
from v2edit.editing.controls import first_step, is_controlled
from v2edit.editing.state import EditState
from v2edit.runs.snapshots import LoopState
from v2edit.sampling import Schedule

# MagCache's own: the first share of the schedule's steps that is never skipped, and the most steps skipped in a row.
RETAINED, MAX_SKIPS = 0.2, 3


class StepCaching:
    """The step caching of a loop: what its layers added at the last step that ran them, and the state before it."""

    def __init__(self, schedule: Schedule, config: ResolvedConfig) -> None:
        self.skips = plan_skips(schedule, config)
        self.cache: StepCache | None = None
        self.before: LoopState | None = None

    def begin(self, state: EditState, draws: int) -> StepCache | None:
        """Return the cache for the step to come of a state: one to fill, one to take from, or None."""
        if state.k in self.skips:
            assert self.cache is not None
            self.cache.scale = self.skips[state.k]
        else:
            self.cache = StepCache() if state.k + 1 in self.skips else None
            self.before = state.to_snapshot(draws)
        return self.cache

    def resumable(self, state: EditState, draws: int) -> LoopState:
        """Return the state that a run resumes from: where the next step is skipped, that before the last one that ran.
        Running it again gives what the layers added, which is too large for a snapshot, and the same result."""
        if state.k not in self.skips:
            return state.to_snapshot(draws)
        assert self.before is not None
        return self.before


def plan_skips(schedule: Schedule, config: ResolvedConfig) -> dict[int, float]:
    """Return the steps that are skipped, and the factor of what the layers added at the last step that ran them.

    With m_k the magnitude of what they add at the noise of step k, steps after step j are skipped while the sum of
    |1 - m_k / m_j| over them is below `config.cache` (MagCache's rule; diffusers/hooks/mag_cache.py). Where rows
    leave or another expert begins, a step runs."""
    if not config.cache:
        return {}
    assert config.magnitudes is not None

    def rows_of(k: int) -> tuple[object, ...]:
        """Return what tells which rows a step has, and which network they go through."""
        guidance = config.guidance_at(schedule, k, classifier_free=True)
        return is_controlled(schedule, k, config), schedule.expert(k), guidance

    skips: dict[int, float] = {}
    start = ran = first_step(schedule, config.alpha, config.inc)
    error = 0.0
    for k in range(start + 1, schedule.steps):
        is_alike = rows_of(k) == rows_of(k - 1) and k >= RETAINED * schedule.steps
        ratio = magnitude(config.magnitudes, schedule.noise(k)) / magnitude(config.magnitudes, schedule.noise(ran))
        error += abs(1 - ratio)
        if is_alike and error < config.cache and k - ran <= MAX_SKIPS:
            skips[k] = ratio
        else:
            ran, error = k, 0.0
    return skips


def magnitude(magnitudes: Sequence[tuple[float, float]], noise: float) -> float:
    """Return the magnitude at a noise's share, from pairs of both in any order, linear in its logarithm."""
    known, values = zip(*sorted(map(tuple, magnitudes)), strict=True)
    return math.exp(float(np.interp(noise, known, np.log(values))))
