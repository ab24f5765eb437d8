"""Masks of an edit: the pixels of the video that it changed, and the Gaussians that may change with them.

A model's autoencoder blurs every frame, and no frame shows what the path does not see. So a scene is reconstructed from
the pixels that the edit changed; the rest of it stays as it is.

Letters: T frames of the path, N Gaussians.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.editing.matte import smooth_step
from v2edit.scenes.cameras import Cameras
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.gaussians import Gaussians, colour_to_sh
from v2edit.scenes.initialise import Sweep, isotropic_gaussians, plane_sweep, sample_surfaces
from v2edit.scenes.rasterise import render

UNCHANGED, CHANGED = 6.0, 18.0  # of 255: the mask is 0 below the one difference, 1 above the other
SMOOTHING = 3  # pixels: side of the squares over which differences are averaged, against noise
DILATION = 2  # pixels
MIN_CHANGED = 0.1  # the share of a visible Gaussian's weight that lies on changed pixels, for it to be editable
HIDDEN = 1e-3  # pixels: a Gaussian that covers less of all frames is hidden
MIN_COST_GAIN = 0.03  # of 1: frames that match better by this at a nearer depth than the scene's show a new surface
MIN_BEHIND = 0.5  # the share of the frames in which a hidden Gaussian lies behind changed pixels, for it to be editable


def change_mask(before: np.ndarray, after: np.ndarray) -> Tensor:
    """Return how much of each pixel an edit changed, float32 [T, H, W] of 0..1; frames are uint8 [T, H, W, 3]."""
    difference = torch.from_numpy(after.astype(np.float32) - before).permute(0, 3, 1, 2)
    smooth = F.avg_pool2d(difference, SMOOTHING, 1, SMOOTHING // 2, count_include_pad=False).abs().amax(1, keepdim=True)
    dilated = F.max_pool2d(smooth, 2 * DILATION + 1, 1, DILATION)[:, 0]
    return smooth_step(dilated, UNCHANGED, CHANGED)


def composite(unedited: np.ndarray, edited: np.ndarray, mask: Tensor) -> tuple[np.ndarray, Tensor]:
    """Composite `edited` frames, uint8 [T, h, w, 3] with a `mask` [T, h, w], over `unedited` ones, uint8 [T, H, W, 3];
    return both in the size of the latter."""
    height, width = unedited.shape[1:3]
    video = torch.from_numpy(edited).permute(0, 3, 1, 2).float()
    video = F.interpolate(video, (height, width), mode="bicubic", antialias=True).clamp(0, 255).permute(0, 2, 3, 1)
    mask = F.interpolate(mask[:, None], (height, width), mode="bilinear")[:, 0]
    mixed = torch.lerp(torch.from_numpy(unedited).float(), video, mask[..., None])
    return mixed.round().to(torch.uint8).numpy(), mask


def editable_mask(gaussians: Gaussians, cameras: Cameras, mask: Tensor) -> Tensor:
    """Return which Gaussians may change, bool [N]: of the visible ones, those whose weight in the frames lies on enough
    changed pixels; of the hidden ones, those behind changed pixels, since the inside of an object and the surface
    behind it can be seen from elsewhere. `mask` [T, H, W]: how much of each pixel changed."""
    on_changed, total = weights_on(gaussians, cameras, mask, torch.ones_like(mask))
    behind = _changed_in_front(gaussians.means.cpu(), cameras, mask).to(total)
    return torch.where(total <= HIDDEN, behind >= MIN_BEHIND, on_changed > MIN_CHANGED * total)


def weights_on(gaussians: Gaussians, cameras: Cameras, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much each Gaussian weighs in the pixels of two masks [T, H, W] of a path's frames, both [N]."""
    # The gradient of an image's sum by a Gaussian's colour is its weight in it.
    colours = torch.zeros(len(gaussians), 1, 3, device=gaussians.means.device, requires_grad=True)
    plain = replace(gaussians, sh=colours)
    for k in range(len(cameras)):
        image = render(plain, cameras[[k]]).colours[0]
        (image[..., 0] * one[k].to(image) + image[..., 1] * other[k].to(image)).sum().backward()
    assert colours.grad is not None
    return colours.grad[:, 0, 0], colours.grad[:, 0, 1]


def spawn(
    gaussians: Gaussians, unedited: np.ndarray, target: Dataset, mask: Tensor, generator: torch.Generator
) -> Gaussians | None:
    """Return new Gaussians where the edited frames of `target` match on a surface in front of the scene's: an inserted
    object would otherwise be painted onto what lies behind it. They are as dense in the frames as the scene's; None
    where there is no such surface. `unedited`: the scene's renders from the cameras of `target`, uint8 [T, H, W, 3].
    `mask` [T, H, W]: how much of each pixel changed."""
    positions = gaussians.means.cpu().numpy()
    sweep = plane_sweep(target, positions)
    depths = inverse_depths(gaussians, sweep.cameras)[0].cpu()
    # A surface that the scene's own renders seem to have in front of it, as round outlines, is an artefact of matching.
    artefacts = F.max_pool2d(_matches_nearer(plane_sweep(replace(target, images=unedited), positions), depths), 3, 1, 1)
    changed = F.interpolate(mask[sweep.views][:, None], depths.shape[1:], mode="area")[:, 0]
    weights = changed * _matches_nearer(sweep, depths) * (1 - artefacts)
    count = round(len(gaussians) * float(weights.mean()))
    if not count:
        return None
    added = isotropic_gaussians(*sample_surfaces(sweep, count, generator, weights))
    return added.with_degree(gaussians.degree).to(gaussians.means.device)


def _matches_nearer(sweep: Sweep, inverse: Tensor) -> Tensor:
    """Return 1 where a sweep's views match clearly better nearer than at inverse depths [V, h, w], else 0."""
    best = 1 / sweep.depths
    (cost, visible), (least, _) = sweep.at(inverse), sweep.at(best)
    return ((best > inverse) & (cost - least > MIN_COST_GAIN) & visible).float()


@torch.no_grad()
def inverse_depths(gaussians: Gaussians, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Render the inverse depth of each pixel, along its camera's axis and weighted by opacity, so that it is 0 where
    nothing is, and the opacity, both [C, H, W]."""
    depths, alphas = [], []
    for k, view in enumerate(torch.from_numpy(cameras.world_to_camera).to(gaussians.means)):
        depth = (gaussians.means @ view[:3, :3].T + view[:3, 3])[:, 2:].clamp(min=1e-6)
        plain = replace(gaussians, sh=colour_to_sh((1 / depth).expand(-1, 3))[:, None])
        rendered = render(plain, cameras[[k]])
        depths.append(rendered.colours[0, ..., 0])
        alphas.append(rendered.alphas[0])
    return torch.stack(depths), torch.stack(alphas)


def _changed_in_front(positions: Tensor, cameras: Cameras, mask: Tensor) -> Tensor:
    """Return the mean of a mask [T, H, W] at the pixels of positions [N, 3], over the frames that they lie in, [N]; 0
    where there is none."""
    total, frames = torch.zeros(len(positions)), torch.zeros(len(positions))
    size = torch.tensor([cameras.width, cameras.height])
    for view, matrix, frame in zip(cameras.world_to_camera, cameras.intrinsics, mask, strict=True):
        local = positions.double() @ torch.from_numpy(view[:3, :3]).T + torch.from_numpy(view[:3, 3])
        pixels = local @ torch.from_numpy(matrix).T
        pixels = (pixels[:, :2] / pixels[:, 2:].clamp(min=1e-9)).floor()
        inside = (local[:, 2] > 0) & (pixels >= 0).all(1) & (pixels < size).all(1)
        columns, rows = pixels[inside].long().T
        total[inside] += frame[rows, columns]
        frames[inside] += 1
    return total / frames.clamp(min=1)
