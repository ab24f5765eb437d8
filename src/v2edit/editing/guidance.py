"""Classifier-free guidance of the branches of a lockstep batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from v2edit.attention import Replacement
from v2edit.backbones import Text
from v2edit.backbones.caching import StepCache
from v2edit.editing.microbatch import MicroBatcher, unconditional_branches
from v2edit.sampling import Schedule


@dataclass(frozen=True)
class Branch:
    """A branch of the lockstep batch: noisy latents `v` [1, F, C, h, w], a prompt and its guidance scale."""

    v: Tensor
    prompt: Text
    guidance: float


def denoise_with_guidance(
    batcher: MicroBatcher,
    branches: list[Branch],
    negative: Text,
    k: int,
    schedule: Schedule,
    replacement: Replacement | None = None,
    loop: bool = False,
    unconditional: Sequence[int] | None = None,
    cache: StepCache | None = None,
) -> list[Tensor]:
    """Return the guided x0 of each branch at step k, all rows in one batch where memory allows: the unconditional ones
    of the `unconditional` branches (default: those that guidance needs), then the conditional ones of all. With a
    `cache` the layers' part is kept, or taken from an earlier step of the same rows."""
    scales = [branch.guidance for branch in branches]
    if unconditional is None:
        unconditional = unconditional_branches(batcher.backbone.classifier_free, scales)
    rows = [*(replace(branches[branch], prompt=negative) for branch in unconditional), *branches]
    latents, text = torch.cat([row.v for row in rows]), [row.prompt for row in rows]
    told, count = [row.guidance for row in rows], len(unconditional)
    x0s = batcher.denoise(latents, k, schedule, text, replacement, loop, count, told, cache).split(1)
    guided = list(x0s[count:])
    for branch, uncond in zip(unconditional, x0s[:count], strict=True):
        if scales[branch] > 1:
            guided[branch] = guide(uncond, guided[branch], scales[branch])
    return guided


def guide(uncond: Tensor, cond: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance on x0, which is linear in the network's output: the same as guidance on that."""
    return uncond + guidance * (cond - uncond)
