"""A mask that was painted in one view of a scene, carried into its space.

What the view shows in the mask is chosen; what it does not see goes with what it is most like among its neighbours, in
place and colour (label propagation: Zhu and Ghahramani 2002), as the back of an object whose front is painted; what the
view has beside the mask is never chosen. Letters: N Gaussians, K neighbours of each, H and W the view's sides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.scenes.cameras import Cameras
from v2edit.scenes.gaussians import Gaussians, colour_to_sh, sh_to_colour
from v2edit.scenes.masks import HIDDEN, weights_on
from v2edit.scenes.rasterise import render

MOSTLY = 0.5  # the share of a Gaussian's weight in the view that lies in the mask, for it to be chosen
NEAR_SURFACE = 0.05  # of its distance: a Gaussian further behind what the view shows is not seen, but shines through
NEIGHBOURS = 12
COLOUR = 0.12  # of 1: the difference in colour at which neighbours count for a tenth or so as much
SHADE = 0.3  # of a difference in brightness; also the scale of hues, whose greatest differences are about 3
ROUNDS = 300
LEAST_OPACITY = 0.05  # of a Gaussian that takes part: fog joins what is apart
REACH = 0.1  # of what is chosen, across: how far from it something new may be


@dataclass(frozen=True, eq=False)
class Painted:
    """A mask painted in one view: `mask` float32 [H, W] of 0 to 1, by one of `cameras`."""

    mask: np.ndarray
    camera: Cameras


@dataclass(frozen=True, eq=False)
class Chosen:
    """The part of space that is nearer to the Gaussians chosen of a scene than to its others, and no further from them
    than `reach`: `means` float32 [N, 3], `within` bool [N]."""

    means: Tensor
    within: Tensor
    reach: float

    def contains(self, means: Tensor) -> Tensor:
        """Return which positions [M, 3] lie in it, bool [M]."""
        if not self.within.any():
            return torch.zeros(len(means), dtype=torch.bool, device=means.device)
        distances, nearest = nearest_of(means, self.means.to(means), 1)
        return self.within.to(means.device)[nearest[:, 0]] & (distances[:, 0] <= self.reach)


def choose_painted(gaussians: Gaussians, painted: Painted) -> Chosen:
    """Return the part of a scene's space that a mask painted in one view selects."""
    within = select_painted(gaussians, painted)
    means = gaussians.means.detach()
    extent = (
        means[within].quantile(torch.tensor([0.05, 0.95], device=means.device), dim=0) if within.any() else means[:2]
    )
    return Chosen(means, within, REACH * float((extent[-1] - extent[0]).norm()))


@torch.no_grad()
def select_painted(gaussians: Gaussians, painted: Painted) -> Tensor:
    """Return which Gaussians a mask painted in one view selects, bool [N]: of those that the view sees, near the
    surface that it shows, those that weigh mostly in the mask; of the others that the mask covers, or that lie outside
    the view, those that are joined to these rather than to the rest."""
    mask = torch.from_numpy(painted.mask)[None]
    with torch.enable_grad():
        inside, total = weights_on(gaussians, painted.camera, mask, torch.ones_like(mask))
    depth, surface, is_inside, covered = _look(gaussians, painted)
    is_seen = (total > HIDDEN) & (depth < surface * (1 + NEAR_SURFACE))
    label = is_seen & (covered | ~is_inside) & (inside > MOSTLY * total)
    # What the view shows is known, and what lies outside the cone; of what lies outside the view, nothing.
    is_known = is_seen | (is_inside & ~covered)
    takes_part = is_seen | (gaussians.logit_opacities.sigmoid() > LEAST_OPACITY)
    parts, fog = torch.nonzero(takes_part)[:, 0], torch.nonzero(~takes_part & ~is_known)[:, 0]
    label[parts] = _propagate(gaussians.select(parts), label[parts], is_known[parts]) > MOSTLY
    if len(fog) and len(parts):
        label[fog] = label[parts][nearest_of(gaussians.means[fog], gaussians.means[parts], 1)[1][:, 0]]
    return label


def _look(gaussians: Gaussians, painted: Painted) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return of each Gaussian its depth in the view, that of the surface shown at its pixel (inf: none), both float32
    [N], whether its middle lies in the view, and whether the mask, grown by a pixel, covers it, both bool [N]."""
    camera, device = painted.camera, gaussians.means.device
    view = torch.from_numpy(camera.world_to_camera[0]).to(gaussians.means)
    local = gaussians.means @ view[:3, :3].T + view[:3, 3]
    depth = local[:, 2]
    # The mean depth, and not that of the inverse, which a little fog before the camera would pull to it.
    plain = replace(gaussians, sh=colour_to_sh(depth[:, None].clamp(min=0).expand(-1, 3))[:, None])
    rendered = render(plain, camera)
    alphas = rendered.alphas[0]
    shown = torch.where(alphas > 0.5, rendered.colours[0, ..., 0] / alphas.clamp(min=1e-9), torch.inf)
    pixels = local @ torch.from_numpy(camera.intrinsics[0]).to(local).T
    pixels = (pixels[:, :2] / pixels[:, 2:].clamp(min=1e-9)).floor()
    size = torch.tensor([camera.width, camera.height], device=device)
    is_inside = (depth > 0) & (pixels >= 0).all(1) & (pixels < size).all(1)
    columns, rows = pixels.clamp(min=torch.zeros_like(size), max=size - 1).long().T
    grown = F.max_pool2d(torch.from_numpy(painted.mask)[None, None], 3, 1, 1)[0, 0].to(device)
    return (
        depth,
        torch.where(is_inside, shown[rows, columns], torch.inf),
        is_inside,
        is_inside & (grown[rows, columns] > 0.5),
    )


def _propagate(gaussians: Gaussians, label: Tensor, is_known: Tensor) -> Tensor:
    """Return how much of what each Gaussian is joined to, in place and colour, is labelled, float32 [N] of 0 to 1: of
    both labels, which are those of `label` where it `is_known`, the share that spreads to it on the graph of nearest
    neighbours."""
    known = torch.stack([label & is_known, ~label & is_known], dim=1).float()
    spread = spread_values(gaussians, known, torch.nonzero(~is_known)[:, 0])
    return spread[:, 0] / spread.sum(1).clamp(min=1e-30)


def spread_values(gaussians: Gaussians, values: Tensor, asked: Tensor, colour: float = COLOUR) -> Tensor:
    """Return the `values` [N, F] of Gaussians, those of the ones that are `asked` for (indices) being what spreads to
    them from the others along neighbours that are alike in place and, on the scale of `colour`, in colour."""
    if not len(asked):
        return values
    weights, nearest = like_neighbours(gaussians, asked, colour)
    spread = values.clone()
    spread[asked] = 0  # from nothing, so that what few rounds reach from afar is compared and not cut off
    for _ in range(ROUNDS):
        spread[asked] = (weights[..., None] * spread[nearest]).sum(1)
    return spread


def like_neighbours(gaussians: Gaussians, which: Tensor, colour: float = COLOUR) -> tuple[Tensor, Tensor]:
    """Return how much each neighbour counts for `which` Gaussians, by their likeness in place and, on the scale of
    `colour`, in colour, float32 [M, K + 1] of sum 1 and 0 for itself, and which these are."""
    colours = describe_colours(sh_to_colour(gaussians.sh[:, 0]).clamp(0, 1))
    distances, nearest = nearest_of(gaussians.means[which], gaussians.means, min(NEIGHBOURS + 1, len(gaussians)))
    unit = distances[:, -1:].clamp(min=1e-9)  # each one's own, for a scene is as dense as its photographs
    unlike = (colours[nearest] - colours[which][:, None]).square().sum(2) / colour**2
    weights = torch.exp(-((distances / unit) ** 2) - unlike)
    weights[:, 0] = 0  # itself
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-12), nearest


def describe_colours(colours: Tensor) -> Tensor:
    """Return colours, [N, 3] of 0 to 1, as brightness and hue [N, 4]: the lit and the dark side of a thing differ in
    the first, which counts for less."""
    light = colours.mean(1, keepdim=True)
    return SHADE * torch.cat([light, (colours - light) / (light + 0.1)], dim=1)


def nearest_of(positions: Tensor, others: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the distances of positions [M, 3] to the nearest `count` of others [N, 3], nearest first, and their
    indices, both [M, count]."""
    at_once = max(1, 2**24 // max(1, len(others)))
    parts = [
        torch.cdist(part, others, compute_mode="donot_use_mm_for_euclid_dist").topk(count, largest=False)
        for part in positions.split(at_once)
    ]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
