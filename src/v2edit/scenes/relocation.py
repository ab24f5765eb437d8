"""Relocation and splitting of Gaussians: where they are needed.

Letters: N Gaussians.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from v2edit.scenes.rasterise.projection import rotations

DEAD = 0.005  # opacity up to which a Gaussian is relocated
SPLIT = 0.6  # of a Gaussian's longest axis: the length of each half, and its distance from the middle


@torch.no_grad()
def relocate(
    leaves: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    editable: Tensor | None = None,
) -> int:
    """Move faded Gaussians onto others, drawn by opacity, and reduce the opacity and scale of both so that the image
    stays (Kheradmand et al. 2024, Eq. 9); return how many were moved. Where `editable`, bool [N], is given, they move
    only onto these, and become editable."""
    opacities = leaves["logit_opacities"].sigmoid().cpu()
    dead = (opacities <= DEAD).nonzero()[:, 0]
    alive = ((opacities > DEAD) & (True if editable is None else editable.cpu())).nonzero()[:, 0]
    if not len(dead) or not len(alive):
        return 0
    drawn = torch.multinomial(opacities[alive], len(dead), replacement=True, generator=generator)
    onto, copies = alive[drawn], torch.bincount(drawn, minlength=len(alive))[drawn] + 1
    opacity, shrink = compute_relocation(opacities[onto], copies)
    device = leaves["means"].device
    dead, onto = dead.to(device), onto.to(device)
    if editable is not None:
        editable[dead] = True
    leaves["logit_opacities"][onto] = torch.logit(opacity.clamp(DEAD, 1 - 1e-6)).to(device)
    leaves["log_scales"][onto] += shrink.log()[:, None].to(device)
    for leaf in leaves.values():
        leaf[dead] = leaf[onto]
        for name in ("exp_avg", "exp_avg_sq"):
            if name in optimiser.state[leaf]:
                optimiser.state[leaf][name][onto] = 0
                optimiser.state[leaf][name][dead] = 0
    return len(dead)


def compute_relocation(opacities: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Return the opacity, and the factor of the scale, of n copies of a Gaussian that together look like the one
    (Kheradmand et al. 2024, Eq. 9; gsplat's `compute_relocation`):
    o' = 1 - (1 - o)^(1/n), and s'/s = o / sum_k C(n, k) (-1)^(k-1) o'^k / sqrt(k), k = 1..n."""
    copies = copies.clamp(max=20).double()
    opacities = opacities.double().clamp(max=1 - 1e-7)
    new = 1 - (1 - opacities) ** (1 / copies)
    k = torch.arange(1, int(copies.max()) + 1, dtype=torch.float64)
    choose = torch.exp(
        torch.lgamma(copies[:, None] + 1) - torch.lgamma(k + 1) - torch.lgamma((copies[:, None] - k).clamp(min=0) + 1)
    )
    terms = torch.where(k <= copies[:, None], choose * (-1.0) ** (k - 1) * new[:, None] ** k / k.sqrt(), 0)
    return new.float(), (opacities / terms.sum(1)).float()


@torch.no_grad()
def split(leaves: dict[str, Tensor], optimiser: torch.optim.Optimizer, needs: Tensor, count: int) -> None:
    """Split the `count` Gaussians of the greatest `needs` [N] across their longest axis into two that look like the
    one, nearly: where the images pull at a Gaussian in several directions, one is too few. The second halves are
    appended to the leaves, and to the moments of the optimiser."""
    chosen = needs.topk(count).indices
    length, axis = leaves["log_scales"][chosen].exp().max(dim=1)
    along = rotations(leaves["quats"][chosen])[torch.arange(count, device=axis.device), :, axis]
    leaves["log_scales"][chosen, axis] += math.log(SPLIT)
    # Two of the same height would cover more than the one did, unless they were half as long.
    covered = leaves["logit_opacities"][chosen].sigmoid() / (2 * SPLIT)
    leaves["logit_opacities"][chosen] = torch.logit(covered.clamp(DEAD, 1 - 1e-6))
    for name, leaf in leaves.items():
        halves = leaf[chosen]
        if name == "means":
            offset = SPLIT * length[:, None] * along
            leaf[chosen] -= offset
            halves = halves + offset
        grown = torch.cat([leaf, halves]).requires_grad_()
        state = optimiser.state.pop(leaf, {})
        for key in ("exp_avg", "exp_avg_sq"):
            if key in state:
                state[key][chosen] = 0
                state[key] = torch.cat([state[key], torch.zeros_like(halves)])
        if leaf.numel():
            group = next(group for group in optimiser.param_groups if group["params"][0] is leaf)
            group["params"][0], optimiser.state[grown] = grown, state
        leaves[name] = grown
