"""Initialisation of Gaussians: at the dataset's sparse points, and where its images agree (plane sweep).

Letters: N Gaussians, V views swept, D depths, P pixels.
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

OPACITY = 0.3  # of an initial Gaussian: visible, and still transparent
POINT_SIZE, POINT_OPACITY = 0.5, 0.5  # at a sparse point, which is certain: in distances to its neighbours
MAX_VIEWS, NEIGHBOURS, DEPTHS, SIDE = 24, 4, 48, 48
NEAREST, FURTHEST = 0.15, 12.0  # depths, in distances of a camera from what it looks at
FAR_BIAS = 2e-3  # cost of the nearest depth: where all agree as well (a clear sky), the furthest is the safer guess


def initial_gaussians(
    dataset: Dataset, count: int, degree: int, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Gaussians:
    """Return `count` initial Gaussians on a device: at the sparse points first, the rest by plane sweep."""
    chosen = torch.empty(0, 3), torch.empty(0, 3), torch.empty(0)
    if dataset.points is not None:
        chosen = _at_points(dataset.points, count, generator, device)
    scene = isotropic_gaussians(*chosen, opacity=POINT_OPACITY)
    if len(scene) < count:
        sweep = plane_sweep(dataset, scene.means.numpy())
        weights = None
        if dataset.masks is not None:  # masked pixels are undefined, and have no loss that would correct them
            masks = torch.from_numpy(dataset.masks[sweep.views])[:, None].float()
            weights = F.interpolate(masks, sweep.depths.shape[1:], mode="area")[:, 0]
            weights = weights if weights.any() else None
        scene = scene.joined(isotropic_gaussians(*sample_surfaces(sweep, count - len(scene), generator, weights)))
    return scene.with_degree(degree).to(device)


def isotropic_gaussians(positions: Tensor, colours: Tensor, sizes: Tensor, opacity: float = OPACITY) -> Gaussians:
    """Return isotropic Gaussians at positions [N, 3], of colours [N, 3] and standard deviations [N]."""
    return Gaussians(
        means=positions,
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(len(positions), 1),
        log_scales=sizes.log()[:, None].repeat(1, 3),
        logit_opacities=torch.full((len(positions),), math.log(opacity / (1 - opacity))),
        sh=colour_to_sh(colours)[:, None],
    )


def _at_points(
    points: Points, count: int, generator: torch.Generator, device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the positions [N, 3], colours [N, 3] and spacings [N] of at most `count` of the points."""
    chosen = torch.randperm(len(points.positions), generator=generator)[:count].numpy()
    positions = torch.from_numpy(points.positions[chosen]).float()
    colours = torch.from_numpy(points.colours[chosen]).float() / 255
    return positions, colours, POINT_SIZE * spacing(positions.to(device)).cpu()


def spacing(positions: Tensor) -> Tensor:
    """Return the root mean square distance [N] of each position to its three nearest others, never quite 0."""
    few, at_once, mode = min(4, len(positions)), 1024, "use_mm_for_euclid_dist_if_necessary"
    if positions.is_cuda:  # hundreds of thousands: a quarter of a GiB at once, and exact where they are close together
        at_once, mode = 2**26 // len(positions) + 1, "donot_use_mm_for_euclid_dist"
    parts = positions.split(at_once)
    near = [torch.cdist(p, positions, compute_mode=mode).topk(few, largest=False).values[:, 1:] for p in parts]
    distances = torch.cat(near).square().mean(1).sqrt() if few > 1 else torch.ones_like(positions[:, 0])
    typical = float(distances.median()) or 1.0
    return distances.clamp(1e-3 * typical, 10 * typical)  # an outlier would cover everything


@dataclass(frozen=True)
class Sweep:
    """V downscaled views of a dataset with the matching costs of their pixels at D depths. `views`: their indices in
    the dataset. `cameras`, `images` [V, 3, h, w] of 0..1. `inverse` [D]: inverse depths along a camera's axis. `costs`
    [V, D, h, w]: mean differences in colour to the neighbours. `visible`, bool of that shape: where enough neighbours
    see the point."""

    views: np.ndarray
    cameras: Cameras
    images: Tensor
    inverse: Tensor
    costs: Tensor
    visible: Tensor

    @property
    def depths(self) -> Tensor:
        """Depths of the least cost, [V, h, w]."""
        return 1 / self.inverse[self.costs.argmin(1)]

    def at(self, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """Return `costs` and `visible` of the pixels at inverse depths [V, h, w], rounded to those of the sweep."""
        step = (self.inverse[-1] - self.inverse[0]) / (len(self.inverse) - 1)
        index = ((inverse - self.inverse[0]) / step).round().long().clamp(0, len(self.inverse) - 1)[:, None]
        return self.costs.gather(1, index)[:, 0], self.visible.gather(1, index)[:, 0]


def plane_sweep(dataset: Dataset, positions: np.ndarray) -> Sweep:
    """Estimate the depths of some views by plane sweep (Collins 1996): the cost of a depth is the difference in colour
    to the neighbouring views there. `positions` [N, 3], known points of the scene, tell its distance where the cameras'
    axes do not meet."""
    cameras = dataset.cameras
    scale = min(1.0, SIDE / max(cameras.height, cameras.width))
    small = cameras.resized(max(2, round(cameras.height * scale)), max(2, round(cameras.width * scale)))
    parts = torch.from_numpy(dataset.images).permute(0, 3, 1, 2).split(8)  # of photographs as floats, few at once
    images = torch.cat([F.interpolate(p.float() / 255, (small.height, small.width), mode="area") for p in parts])
    views = np.unique(np.linspace(0, len(cameras) - 1, MAX_VIEWS).round().astype(int))
    distance = distance_of(cameras, positions)
    inverse = torch.linspace(1 / (FURTHEST * distance), 1 / (NEAREST * distance), DEPTHS)
    matched = [_matching_costs(images, small, int(view), inverse) for view in views]
    costs, visible = (torch.stack(parts) for parts in zip(*matched, strict=True))
    return Sweep(views, small[views], images[views], inverse, costs, visible)


def sample_surfaces(
    sweep: Sweep, count: int, generator: torch.Generator, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample `count` positions [N, 3] on the surfaces of a sweep, with their colours [N, 3] and sizes [N]; `weights`
    [V, h, w] of its pixels are their probabilities (default: uniform)."""
    sweep_depths = sweep.depths
    weights = torch.ones_like(sweep_depths) if weights is None else weights
    ends = (weights.sum((1, 2)).double().cumsum(0) / weights.double().sum() * count + 1e-6).long().tolist()
    positions, colours, sizes = [], [], []
    for k, (depths, weight) in enumerate(zip(sweep_depths, weights, strict=True)):
        share = ends[k] - (ends[k - 1] if k else 0)
        if not share:
            continue
        chosen = torch.multinomial(weight.flatten(), share, replacement=True, generator=generator)
        # Anywhere within the pixel: positions on a grid would leave a pattern.
        jitter = torch.rand(share, 2, generator=generator)
        pixels = torch.stack([chosen % depths.shape[1], chosen // depths.shape[1]], dim=1) + jitter
        matrix, pose = (
            torch.from_numpy(array[k]).float() for array in (sweep.cameras.intrinsics, sweep.cameras.camera_to_world)
        )
        depth = depths.flatten()[chosen]
        positions.append(_unproject(pixels, depth, matrix) @ pose[:3, :3].T + pose[:3, 3])
        colours.append(sweep.images[k].flatten(1).T[chosen])
        sizes.append(depth / float(matrix[0, 0]) * math.sqrt(float(weight.sum()) / share) * 0.5)
    return torch.cat(positions), torch.cat(colours), torch.cat(sizes)


def _unproject(pixels: Tensor, depth: Tensor, matrix: Tensor) -> Tensor:
    """Return pixels [P, 2] at depths [P] as points [P, 3] in the coordinates of an OpenGL camera."""
    x = (pixels[:, 0] - matrix[0, 2]) / matrix[0, 0]
    y = (pixels[:, 1] - matrix[1, 2]) / matrix[1, 1]
    return torch.stack([x, -y, -torch.ones_like(x)], dim=1) * depth[:, None]


def _matching_costs(images: Tensor, cameras: Cameras, view: int, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matching costs [D, h, w] of a view's pixels with its neighbours at each depth, and where enough of
    them see the point, bool [D, h, w]."""
    height, width = images.shape[2:]
    distances = np.linalg.norm(cameras.centres - cameras.centres[view], axis=1)
    distances[cameras.directions @ cameras.directions[view] < 0.5] = np.inf  # sees another side
    order = [int(k) for k in np.argsort(distances) if k != view and np.isfinite(distances[k])][:NEIGHBOURS]
    if not order:
        guess = (inverse - inverse.mean()).abs()[:, None, None].expand(-1, height, width)  # unknown: halfway
        return guess, torch.zeros_like(guess, dtype=torch.bool)
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([columns, rows], dim=-1).view(-1, 2)
    matrices, poses = (torch.from_numpy(array).float() for array in (cameras.intrinsics, cameras.camera_to_world))
    rays = _unproject(pixels, torch.ones(len(pixels)), matrices[view]) @ poses[view, :3, :3].T
    points = poses[view, :3, 3] + rays[None] / inverse[:, None, None]  # [D, P, 3]
    views = torch.from_numpy(cameras.world_to_camera).float()
    costs, insides = [], []
    for other in order:
        local = points @ views[other, :3, :3].T + views[other, :3, 3]
        in_front = local[..., 2] > 1e-6
        u = matrices[other, 0, 0] * local[..., 0] / local[..., 2].clamp(min=1e-6) + matrices[other, 0, 2]
        v = matrices[other, 1, 1] * local[..., 1] / local[..., 2].clamp(min=1e-6) + matrices[other, 1, 2]
        grid = torch.stack([2 * u / width - 1, 2 * v / height - 1], dim=-1)  # [D, P, 2]
        inside = in_front & (grid.abs() <= 1).all(-1)
        sampled = F.grid_sample(images[None, other], grid[None], align_corners=False, padding_mode="border")[0]
        cost = (sampled - images[view].flatten(1)[:, None]).abs().mean(0)  # [D, P]
        costs.append(torch.where(inside, cost, 0.5))  # outside the image: evidence of neither
        insides.append(inside)
    # A neighbour's view of the point may be blocked: the better half counts.
    half = (len(order) + 1) // 2
    cost = torch.stack(costs).sort(0).values[:half].mean(0)
    blind = (torch.stack(insides).sum(0) < half).float()
    cost, blind = (
        F.avg_pool2d(map_.view(-1, 1, height, width), 5, 1, 2, count_include_pad=False)[:, 0] for map_ in (cost, blind)
    )
    return cost + FAR_BIAS * (inverse / inverse[-1])[:, None, None], blind == 0
