"""The three preservation controls of V2Edit Sec. 3.2, each a function: initial noise, per-step noise, attention maps.

Letters: F latent frames, C channels. A *source* is a branch that denoises a known video with the prompt that
describes it; the *edit* branch runs beside it and takes noise and maps from it. From the second subtask on there are
two sources, the original video and the current one, weighted by the mixture coefficient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from v2edit.attention import Replacement
from v2edit.sampling import Schedule


@dataclass
class Source:
    """A known video `x0` [1, F, C, h, w], the prompt [L, D] that describes it, and its weight in the mixture."""

    x0: Tensor
    prompt: Tensor
    weight: float = 1.0


def sources_of(
    original: Tensor, current: Tensor, p_original: Tensor, p_current: Tensor, mixture: float, subtask: int
) -> list[Source]:
    """The sources of a subtask (counted from 1): in the first, original and current are the same branch; later a
    source that the mixture gives no weight is left out."""
    if subtask == 1:
        return [Source(original, p_original)]
    both = [Source(original, p_original, mixture), Source(current, p_current, 1.0 - mixture)]
    return [source for source in both if source.weight > 0]


def noise_stream(seed: int, subtask: int, like: Tensor) -> Iterator[Tensor]:
    """Independent unit-normal draws of a subtask, each shaped as `like`. Drawn on the CPU, so that a seed means the
    same noise on every device, and from a stream of the subtask's own, so that a resumed run draws the same."""
    state = np.random.SeedSequence([seed, subtask]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state))
    while True:
        yield torch.randn(like.shape, generator=generator).to(like)


def first_step(schedule: Schedule, alpha: float, inc: bool) -> int:
    """Initial noise control: denoising starts at the first timestep <= alpha T; without it, at pure noise."""
    return schedule.first_step(alpha if inc else 1.0)


def attention_map_replacement(sources: list[Source], shared: int, cfg_batches: int, unconditional: bool) -> Replacement:
    """Attention-map replacement for the rows [half][*sources, edit]: the edit takes the shared columns' maps of the
    sources by their weights, in the conditional half (the last) and, if asked for, in the unconditional one."""
    branches = len(sources) + 1
    rows: list[tuple[tuple[int, float], ...]] = []
    for half in range(cfg_batches):
        first = half * branches
        rows += [((first + index, 1.0),) for index in range(len(sources))]
        replaced = half == cfg_batches - 1 or unconditional
        rows.append(
            tuple((first + index, source.weight) for index, source in enumerate(sources))
            if replaced
            else ((first + len(sources), 1.0),)
        )
    return Replacement(shared, tuple(rows))
