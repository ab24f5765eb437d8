"""Regions of a scene: the part of its space, and of its views, that an edit may change.

Letters: C views, T frames of a path, N Gaussians.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.errors import UserError
from v2edit.scenes.cameras import FLIP, Cameras
from v2edit.scenes.gaussians import Gaussians, colour_to_sh
from v2edit.scenes.masks import editable_mask
from v2edit.scenes.painting import Chosen, Painted, choose_painted
from v2edit.scenes.rasterise import render

MARGIN = 2  # pixels: masks of a path's frames are grown by them, as Gaussians are soft at their edges
SHOWN = 0.02  # the share of a pixel's colour that comes from what may change, for the pixel to be edited
CLEARLY_SHOWN = 0.25  # the same, of what a painted mask selects, whose outline is known


@dataclass(frozen=True, eq=False)
class Region:
    """What of a scene may change: what lies in a `box` of space, float64 [2, 3] (its least and greatest coordinates),
    what the `masks` of some views show, float32 [C, H, W] of 0 to 1 with their `cameras`, and what one `painted` in a
    single view selects: of a scene, where it was `chosen` in that already, else of the one that is asked about."""

    box: np.ndarray | None = None
    masks: np.ndarray | None = None
    cameras: Cameras | None = None
    painted: Painted | None = None
    chosen: Chosen | None = None

    def contains(self, gaussians: Gaussians) -> Tensor:
        """Return which Gaussians may change, bool [N]."""
        within = torch.ones(len(gaussians), dtype=torch.bool, device=gaussians.means.device)
        if self.box is not None:
            low, high = torch.from_numpy(self.box).to(gaussians.means)
            within &= ((gaussians.means >= low) & (gaussians.means <= high)).all(1)
        if self.masks is not None and self.cameras is not None:
            within &= editable_mask(gaussians, self.cameras, torch.from_numpy(self.masks))
        if self.chosen is not None:
            within &= self.chosen.contains(gaussians.means)
        elif self.painted is not None:
            within &= choose_painted(gaussians, self.painted).within
        return within

    def box_share(self, cameras: Cameras) -> np.ndarray:
        """Return where a path's cameras see the box, float32 [T, H, W] of 0 and 1. Raises `UserError` where none."""
        share = np.ones((len(cameras), cameras.height, cameras.width), np.float32)
        if self.box is not None and not (share := box_share(self.box, cameras)).any():
            raise UserError("--box3d is not seen from any camera of the path: its corners are in the scene's own units")
        return share

    def seen_from(self, gaussians: Gaussians | None, cameras: Cameras) -> SeenRegion:
        """Return the region as a path's cameras see it: where the box is, and what may change of the scene shows, which
        masks take `gaussians` for. Raises `UserError` where that is nowhere."""
        share, region = self.box_share(cameras), self
        if self.painted is not None:
            assert gaussians is not None
            region = replace(self, chosen=choose_painted(gaussians, self.painted))
        if self.masks is not None or self.painted is not None:
            assert gaussians is not None
            least = SHOWN if self.painted is None else CLEARLY_SHOWN
            share = np.minimum(share, shown_share(gaussians, region.contains(gaussians), cameras, least))
        if not share.any():
            raise UserError("what may change is not seen from any camera of the path")
        grown = F.max_pool2d(torch.from_numpy(share)[:, None], 2 * MARGIN + 1, 1, MARGIN)
        return SeenRegion(region, F.avg_pool2d(grown, 3, 1, 1, count_include_pad=False)[:, 0].numpy())


@dataclass(frozen=True, eq=False)
class SeenRegion:
    """A region and how much of the edit each pixel of a path's frames may take, `share` float32 [T, H, W]."""

    region: Region
    share: np.ndarray


def parse_box(text: str) -> np.ndarray:
    """Read a box of space from two opposite corners, `x,y,z,x,y,z`, as float64 [2, 3]. Raises `UserError` for another
    form, or corners that enclose nothing."""
    try:
        corners = np.array([float(part) for part in text.split(",")]).reshape(2, 3)
    except ValueError:
        corners = np.full((2, 3), np.nan)
    box = np.stack([corners.min(0), corners.max(0)])
    if not np.isfinite(box).all() or not (box[0] < box[1]).all():
        raise UserError(f"--box3d is {text!r}, expected two opposite corners in the scene's units, as -1,-1,0,1,1,2")
    return box


def box_share(box: np.ndarray, cameras: Cameras) -> np.ndarray:
    """Return 1 where the ray through a pixel's centre meets a box in front of the camera, else 0, float32 [C, H, W]."""
    rows, columns = np.mgrid[: cameras.height, : cameras.width] + 0.5
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
    share = np.empty((len(cameras), cameras.height, cameras.width), np.float32)
    for k, (intrinsics, pose) in enumerate(zip(cameras.intrinsics, cameras.camera_to_world @ FLIP, strict=True)):
        rays = pixels @ np.linalg.inv(intrinsics).T @ pose[:3, :3].T
        with np.errstate(divide="ignore", invalid="ignore"):  # rays along a side of the box
            ends = np.sort((box[:, None, None] - pose[:3, 3]) / rays, axis=0)
        enter, leave = np.nanmax(ends[0], axis=-1), np.nanmin(ends[1], axis=-1)
        share[k] = leave >= np.maximum(enter, 0)
    return share


@torch.no_grad()
def shown_share(gaussians: Gaussians, within: Tensor, cameras: Cameras, least: float = SHOWN) -> np.ndarray:
    """Return 1 where Gaussians `within`, bool [N], have a share of a pixel above the `least`, which can be seen, else
    0, float32 [C, H, W]."""
    colours = colour_to_sh(within[:, None].to(gaussians.means).expand(-1, 3))[:, None]
    plain = replace(gaussians, sh=colours)
    images = [render(plain, cameras[[k]]).colours[0, ..., 0].cpu() for k in range(len(cameras))]
    return (torch.stack(images) > least).float().numpy()
