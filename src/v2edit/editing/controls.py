"""The controls of V2Edit Sec. 3.2, a function each: initial noise, per-step noise, attention maps, and their window.

Letters: F latent frames, C channels, L text slots, D width. A *source* is a branch that denoises a known video with the
prompt that describes it; the *edit* branch runs beside it and takes noise and maps from it. From the second subtask on
there are two sources, the original video and the current one, weighted by the mixture coefficient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from v2edit.attention import Replacement, identity_sources
from v2edit.backbones import Text
from v2edit.editing.config import ResolvedConfig
from v2edit.editing.progression import BranchText
from v2edit.errors import UserError
from v2edit.sampling import Schedule


@dataclass(frozen=True, eq=False)
class Source:
    """A known video `x0` [1, F, C, h, w], the prompt that describes it, and its weight in the mixture."""

    x0: Tensor
    prompt: Text
    weight: float = 1.0


def mix_sources(original: Tensor, current: Tensor, text: BranchText, mixture: float, subtask: int) -> list[Source]:
    """Return the mixture of a subtask (counted from 1): its sources, with weights that sum to 1 (V2Edit Sec. 3.3). In
    the first subtask the original video is the current one: one source. Later a source of weight 0 is left out."""
    if subtask == 1:
        return [Source(original, text.original)]
    both = [Source(original, text.original, mixture), Source(current, text.current, 1.0 - mixture)]
    return [source for source in both if source.weight > 0]


def first_step(schedule: Schedule, alpha: float, inc: bool = True) -> int:
    """INC, initial noise control: return the first of the last share alpha of the steps, at whose level the edit starts
    as a noised source, v_k = a_k x0 + s_k eps; without it step 0, pure noise. Raises `UserError` where the share is
    less than a step."""
    if not inc:
        return 0
    for k in range(schedule.steps):
        if schedule.share(k) <= alpha:
            return k
    raise UserError(
        f"--alpha {alpha:g} is less than one of {schedule.steps} denoising steps; give a larger --alpha or more --steps"
    )


def in_control_window(schedule: Schedule, k: int, beta: float) -> bool:
    """The window of PNC and AMR: all steps but the last share beta of them."""
    return schedule.share(k) > beta


def is_controlled(schedule: Schedule, k: int, config: ResolvedConfig) -> bool:
    """Whether the sources run beside the edit at step k: it is in the window, and PNC or AMR is on."""
    return (config.pnc or config.amr) and in_control_window(schedule, k, config.beta)


def per_step_noise_control(
    edit_mean: Tensor, next_states: Sequence[Tensor], means: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    """PNC, per-step noise control: return v'_{k+1} = D_k(v'_k) + n_k with n_k = sum_i w_i (v_{k+1} - D_k(v_k))_i over
    the sources i. `edit_mean` is D_k(v'_k); all tensors have one shape, and the weights sum to 1.

    n_k is not divided by the step's std, so deterministic solvers have it too. It is computed in the difference form
    sum_i w_i (v_{k+1} + (D_k(v'_k) - D_k(v_k)))_i: an edit whose mean equals the one source's gets v_{k+1} to the last
    bit, and little is lost where the means come from 16 bits."""
    assert math.isclose(sum(weights), 1.0, abs_tol=1e-9)
    sources = zip(weights, next_states, means, strict=True)
    states = [weight * (v_next + (edit_mean - mean)) for weight, v_next, mean in sources]
    return sum(states[1:], states[0])


def attention_map_replacement(
    weights: Sequence[float], shared: int, unconditional: Sequence[int] = (), in_both: bool = False
) -> Replacement:
    """AMR, attention-map replacement: return which rows take whose maps. Rows are the unconditional ones of the
    `unconditional` branches, then the conditional ones of all branches [*sources, edit]. The edit takes the maps of the
    first `shared` text columns from the sources by their `weights`, in its conditional row and, if `in_both`, in its
    unconditional one too. `attention.replaced_attention` carries it out."""
    edit, rows = len(weights), identity_sources(len(unconditional) + len(weights) + 1)
    mixed = tuple((len(unconditional) + source, weight) for source, weight in enumerate(weights))
    rows = (*rows[:-1], mixed)
    if in_both and edit in unconditional:
        mixed = tuple((unconditional.index(source), weight) for source, weight in enumerate(weights))
        row = unconditional.index(edit)
        rows = (*rows[:row], mixed, *rows[row + 1 :])
    return Replacement(shared, rows)
