"""Where Gaussians start: at the dataset's sparse points, and where the images agree.

Letters: N seeds, V views swept, D depths tried, P pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.scenes.cameras import Cameras, distance_of
from v2edit.scenes.dataset import Dataset, Points
from v2edit.scenes.gaussians import Gaussians, colour_to_sh

OPACITY = 0.3  # of a seed: enough to be seen, little enough to be seen through
SWEPT, NEIGHBOURS, DEPTHS, SIDE = 24, 4, 48, 48
NEAREST, FURTHEST = 0.15, 12.0  # depths tried, in distances of a camera from what it looks at
FAR_FIRST = 2e-3  # where every depth agrees as well (a clear sky), the further one is the safer guess


def initial_gaussians(dataset: Dataset, count: int, degree: int, generator: torch.Generator) -> Gaussians:
    """`count` Gaussians to start from: the sparse points first, the rest by plane sweep."""
    places, colours, sizes = (torch.empty(0, 3), torch.empty(0, 3), torch.empty(0))
    if dataset.points is not None:
        places, colours, sizes = _at_points(dataset.points, count, generator)
    if len(places) < count:
        sweep = plane_sweep(dataset, places.numpy())
        weights = None
        if dataset.masks is not None:  # What is masked is of no meaning, and no loss would ever reach it.
            masks = torch.from_numpy(dataset.masks[sweep.views])[:, None].float()
            weights = F.interpolate(masks, sweep.depths.shape[1:], mode="area")[:, 0]
            weights = weights if weights.any() else None
        swept = scattered(sweep, count - len(places), generator, weights)
        places, colours, sizes = (torch.cat(pair) for pair in zip((places, colours, sizes), swept, strict=True))
    return blobs(places, colours, sizes).of_degree(degree)


def blobs(places: Tensor, colours: Tensor, sizes: Tensor) -> Gaussians:
    """Round Gaussians at places [N, 3], of colours [N, 3] and sizes [N], that can be seen through."""
    return Gaussians(
        means=places,
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(len(places), 1),
        log_scales=sizes.log()[:, None].repeat(1, 3),
        logit_opacities=torch.full((len(places),), math.log(OPACITY / (1 - OPACITY))),
        sh=colour_to_sh(colours)[:, None],
    )


def _at_points(points: Points, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    chosen = torch.randperm(len(points.places), generator=generator)[:count].numpy()
    places = torch.from_numpy(points.places[chosen]).float()
    colours = torch.from_numpy(points.colours[chosen]).float() / 255
    return places, colours, spacing(places)


def spacing(places: Tensor) -> Tensor:
    """The root mean square distance [N] of each place to its three nearest others, never quite 0."""
    few = min(4, len(places))
    near = [torch.cdist(part, places).topk(few, largest=False).values[:, 1:] for part in places.split(1024)]
    distances = torch.cat(near).square().mean(1).sqrt() if few > 1 else torch.ones(len(places))
    typical = float(distances.median()) or 1.0
    return distances.clamp(1e-3 * typical, 10 * typical)  # a lone point would be a blob over everything


@dataclass(frozen=True)
class Sweep:
    """V views of a dataset, made smaller, and how badly their neighbours agree on each pixel at each of D depths.

    `views`: which of the dataset's these are. `cameras`, `images` [V, 3, h, w] of 0..1. `inverse` [D]: one over the
    depths tried, along a camera's axis. `costs` [V, D, h, w]: mean differences in colour; `seen`, bool of that shape:
    where enough neighbours could tell.
    """

    views: np.ndarray
    cameras: Cameras
    images: Tensor
    inverse: Tensor
    costs: Tensor
    seen: Tensor

    @property
    def depths(self) -> Tensor:
        """Those that are agreed on best, [V, h, w]."""
        return 1 / self.inverse[self.costs.argmin(1)]

    def at(self, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """`costs` and `seen` of pixels at inverse depths [V, h, w], of those tried the nearest ones."""
        step = (self.inverse[-1] - self.inverse[0]) / (len(self.inverse) - 1)
        index = ((inverse - self.inverse[0]) / step).round().long().clamp(0, len(self.inverse) - 1)[:, None]
        return self.costs.gather(1, index)[:, 0], self.seen.gather(1, index)[:, 0]


def plane_sweep(dataset: Dataset, places: np.ndarray) -> Sweep:
    """The depths of some views by plane sweep (Collins 1996): each of D depths is judged by how well the neighbouring
    views agree there on the colour. `places` [N, 3], of what is known of the scene, say how far away it is where the
    cameras do not."""
    cameras = dataset.cameras
    scale = min(1.0, SIDE / max(cameras.height, cameras.width))
    small = cameras.resized(max(2, round(cameras.height * scale)), max(2, round(cameras.width * scale)))
    images = torch.from_numpy(dataset.images).permute(0, 3, 1, 2).float() / 255
    images = F.interpolate(images, (small.height, small.width), mode="area")
    views = np.unique(np.linspace(0, len(cameras) - 1, SWEPT).round().astype(int))
    distance = distance_of(cameras, places)
    inverse = torch.linspace(1 / (FURTHEST * distance), 1 / (NEAREST * distance), DEPTHS)
    judged = [_judged(images, small, int(view), inverse) for view in views]
    costs, seen = (torch.stack(parts) for parts in zip(*judged, strict=True))
    return Sweep(views, small[views], images[views], inverse, costs, seen)


def scattered(
    sweep: Sweep, count: int, generator: torch.Generator, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`count` places [N, 3] on the surfaces that a sweep found, their colours [N, 3] and sizes [N]; where there are
    `weights` [V, h, w] of its pixels, by them."""
    found = sweep.depths
    weights = torch.ones_like(found) if weights is None else weights
    upto = (weights.sum((1, 2)).double().cumsum(0) / weights.double().sum() * count + 1e-6).long().tolist()
    places, colours, sizes = [], [], []
    for k, (depths, weight) in enumerate(zip(found, weights, strict=True)):
        share = upto[k] - (upto[k - 1] if k else 0)
        if not share:
            continue
        chosen = torch.multinomial(weight.flatten(), share, replacement=True, generator=generator)
        # Within its pixel, anywhere: seeds on a grid would leave a pattern.
        jitter = torch.rand(share, 2, generator=generator)
        spots = torch.stack([chosen % depths.shape[1], chosen // depths.shape[1]], dim=1) + jitter
        matrix, pose = (
            torch.from_numpy(one[k]).float() for one in (sweep.cameras.intrinsics, sweep.cameras.camera_to_world)
        )
        depth = depths.flatten()[chosen]
        places.append(_unproject(spots, depth, matrix) @ pose[:3, :3].T + pose[:3, 3])
        colours.append(sweep.images[k].flatten(1).T[chosen])
        sizes.append(depth / float(matrix[0, 0]) * math.sqrt(float(weight.sum()) / share) * 0.5)
    return torch.cat(places), torch.cat(colours), torch.cat(sizes)


def _unproject(spots: Tensor, depth: Tensor, matrix: Tensor) -> Tensor:
    """Pixels [P, 2] at depths [P] as points [P, 3] before an OpenGL camera."""
    x = (spots[:, 0] - matrix[0, 2]) / matrix[0, 0]
    y = (spots[:, 1] - matrix[1, 2]) / matrix[1, 1]
    return torch.stack([x, -y, -torch.ones_like(x)], dim=1) * depth[:, None]


def _judged(images: Tensor, cameras: Cameras, view: int, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """How badly the neighbours of a view agree on its pixels at each depth, [D, h, w], and where they can tell."""
    height, width = images.shape[2:]
    beside = np.linalg.norm(cameras.centres - cameras.centres[view], axis=1)
    beside[cameras.directions @ cameras.directions[view] < 0.5] = np.inf  # sees another side
    order = [int(k) for k in np.argsort(beside) if k != view and np.isfinite(beside[k])][:NEIGHBOURS]
    if not order:
        guess = (inverse - inverse.mean()).abs()[:, None, None].expand(-1, height, width)  # nobody knows: halfway
        return guess, torch.zeros_like(guess, dtype=torch.bool)
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    spots = torch.stack([columns, rows], dim=-1).view(-1, 2)
    matrices, poses = (torch.from_numpy(one).float() for one in (cameras.intrinsics, cameras.camera_to_world))
    rays = _unproject(spots, torch.ones(len(spots)), matrices[view]) @ poses[view, :3, :3].T
    points = poses[view, :3, 3] + rays[None] / inverse[:, None, None]  # [D, P, 3]
    views = torch.from_numpy(cameras.world_to_camera).float()
    costs, inner = [], []
    for other in order:
        there = points @ views[other, :3, :3].T + views[other, :3, 3]
        ahead = there[..., 2] > 1e-6
        u = matrices[other, 0, 0] * there[..., 0] / there[..., 2].clamp(min=1e-6) + matrices[other, 0, 2]
        v = matrices[other, 1, 1] * there[..., 1] / there[..., 2].clamp(min=1e-6) + matrices[other, 1, 2]
        grid = torch.stack([2 * u / width - 1, 2 * v / height - 1], dim=-1)  # [D, P, 2]
        inside = ahead & (grid.abs() <= 1).all(-1)
        found = F.grid_sample(images[None, other], grid[None], align_corners=False, padding_mode="border")[0]
        cost = (found - images[view].flatten(1)[:, None]).abs().mean(0)  # [D, P]
        costs.append(torch.where(inside, cost, 0.5))  # not seen there: no good sign, but no proof either
        inner.append(inside)
    # A neighbour may be hidden from what this view sees: the better half judges.
    half = (len(order) + 1) // 2
    agreed = torch.stack(costs).sort(0).values[:half].mean(0)
    blind = (torch.stack(inner).sum(0) < half).float()
    agreed, blind = (
        F.avg_pool2d(one.view(-1, 1, height, width), 5, 1, 2, count_include_pad=False)[:, 0] for one in (agreed, blind)
    )
    return agreed + FAR_FIRST * (inverse / inverse[-1])[:, None, None], blind == 0
