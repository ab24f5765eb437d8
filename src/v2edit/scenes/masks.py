"""What an edit of the path's frames says of the scene: which pixels it change_mask, and which Gaussians those show.

A model's autoencoder blurs whatever it is shown, and what the path does not see no frame speaks of. So a scene is
reconstructed from what the edit changed; the rest of it stays as it is.

Letters: T frames of the path, N Gaussians.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.scenes.cameras import Cameras
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.gaussians import Gaussians, colour_to_sh
from v2edit.scenes.initialise import Sweep, blobs, plane_sweep, scattered
from v2edit.scenes.rasterise import render

LEFT, TAKEN = 6.0, 18.0  # of 255: pixels that differ by less are left alone, by more are taken; between, in part
AROUND = 3  # pixels: over squares as large differences are averaged, which noise does not survive
REACH = 2  # pixels: as far around what changed its edge reaches
TOUCHED = 0.1  # of what a Gaussian shows: it may change when as much has
HIDDEN = 1e-3  # pixels: a Gaussian that covers less of all frames is not seen in them
CLEAR = 0.03  # of 1: frames that agree better than by this on a nearer surface than the scene's show a new one
BEHIND = 0.5  # of the frames: what is hidden may change when it lies behind what has changed in as many


def change_mask(before: np.ndarray, after: np.ndarray) -> Tensor:
    """How much of each pixel an edit took, float32 [T, H, W] of 0..1; frames are uint8 [T, H, W, 3]."""
    difference = torch.from_numpy(after.astype(np.float32) - before).permute(0, 3, 1, 2)
    smooth = F.avg_pool2d(difference, AROUND, 1, AROUND // 2, count_include_pad=False).abs().amax(1, keepdim=True)
    grown = F.max_pool2d(smooth, 2 * REACH + 1, 1, REACH)[:, 0]
    share = ((grown - LEFT) / (TAKEN - LEFT)).clamp(0, 1)
    return share * share * (3 - 2 * share)


def composite(kept: np.ndarray, edited: np.ndarray, share: Tensor) -> tuple[np.ndarray, Tensor]:
    """Frames `edited`, resampled, where they change_mask, and `kept` where they did not; in the size of `kept`, uint8
    [T, H, W, 3], with the share there."""
    height, width = kept.shape[1:3]
    video = torch.from_numpy(edited).permute(0, 3, 1, 2).float()
    video = F.interpolate(video, (height, width), mode="bicubic", antialias=True).clamp(0, 255).permute(0, 2, 3, 1)
    share = F.interpolate(share[:, None], (height, width), mode="bilinear")[:, 0]
    mixed = torch.lerp(torch.from_numpy(kept).float(), video, share[..., None])
    return mixed.round().to(torch.uint8).numpy(), share


def editable_mask(gaussians: Gaussians, cameras: Cameras, share: Tensor) -> Tensor:
    """The Gaussians that may change, bool [N]: those of whose weight in the frames enough lies where the frames
    change_mask, and of the hidden ones those that lie behind it: what an object leaves behind when it goes, or wears
    inside when it is recoloured, is to be seen from elsewhere."""
    # The gradient of an image's sum by a Gaussian's colour is its weight in it.
    colours = torch.zeros(len(gaussians), 1, 3, device=gaussians.means.device, requires_grad=True)
    plain = replace(gaussians, sh=colours)
    for k in range(len(cameras)):
        image = render(plain, cameras[[k]]).colours[0]
        (image[..., 0] * share[k].to(image) + image[..., 1]).sum().backward()
    assert colours.grad is not None
    within, everywhere = colours.grad[:, 0, 0], colours.grad[:, 0, 1]
    behind = _behind(gaussians.means.cpu(), cameras, share).to(within)
    hidden = everywhere <= HIDDEN
    return torch.where(hidden, behind >= BEHIND, within > TOUCHED * everywhere)


def spawn(
    gaussians: Gaussians, before: np.ndarray, target: Dataset, share: Tensor, generator: torch.Generator
) -> Gaussians | None:
    """Gaussians where the edited frames agree on a surface before those that the scene has: what is put into empty air
    would else be painted onto what lies behind it. As dense in the frames as the scene's; None when there are none.

    `before`, what the scene shows of the frames of `target`, uint8 [T, H, W, 3]; `share` [T, H, W], how much of each
    pixel changed.
    """
    places = gaussians.means.cpu().numpy()
    sweep = plane_sweep(target, places)
    had = inverse_depths(gaussians, sweep.cameras).cpu()
    # What the scene seems to have before itself, as round its outlines, is no surface in the edited frames either.
    ghosts = F.max_pool2d(_nearer(plane_sweep(replace(target, images=before), places), had), 3, 1, 1)
    there = F.interpolate(share[sweep.views][:, None], had.shape[1:], mode="area")[:, 0]
    weights = there * _nearer(sweep, had) * (1 - ghosts)
    count = round(len(gaussians) * float(weights.mean()))
    if not count:
        return None
    return blobs(*scattered(sweep, count, generator, weights)).of_degree(gaussians.degree).to(gaussians.means.device)


def _nearer(sweep: Sweep, had: Tensor) -> Tensor:
    """1 where the views of a sweep clearly agree on something before inverse depths [V, h, w], else 0."""
    best = 1 / sweep.depths
    (cost, seen), (least, _) = sweep.at(had), sweep.at(best)
    return ((best > had) & (cost - least > CLEAR) & seen).float()


@torch.no_grad()
def inverse_depths(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """One over the depth that each pixel shows, along its camera's axis, [C, H, W]; 0 where nothing is."""
    found = []
    for k, view in enumerate(torch.from_numpy(cameras.world_to_camera).to(gaussians.means)):
        depth = (gaussians.means @ view[:3, :3].T + view[:3, 3])[:, 2:].clamp(min=1e-6)
        plain = replace(gaussians, sh=colour_to_sh((1 / depth).expand(-1, 3))[:, None])
        found.append(render(plain, cameras[[k]]).colours[0, ..., 0])
    return torch.stack(found)


def _behind(places: Tensor, cameras: Cameras, share: Tensor) -> Tensor:
    """The mean share of the pixels [N] that lie before places [N, 3], over the frames that would show them; 0 where
    none would."""
    total, frames = torch.zeros(len(places)), torch.zeros(len(places))
    for view, matrix, pixels in zip(cameras.world_to_camera, cameras.intrinsics, share, strict=True):
        there = places.double() @ torch.from_numpy(view[:3, :3]).T + torch.from_numpy(view[:3, 3])
        spots = there @ torch.from_numpy(matrix).T
        spots = (spots[:, :2] / spots[:, 2:].clamp(min=1e-9)).floor()
        inside = (
            (there[:, 2] > 0) & (spots >= 0).all(1) & (spots < torch.tensor([cameras.width, cameras.height])).all(1)
        )
        columns, rows = spots[inside].long().T
        total[inside] += pixels[rows, columns]
        frames[inside] += 1
    return total / frames.clamp(min=1)
