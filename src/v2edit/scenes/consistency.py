"""View error: how far neighbouring frames along a camera path disagree about the same points of a scene.

As the warping error of videos (Lai et al. 2018, Eq. 11), but along the scene's own depth instead of optical flow: what
moves a pixel from a frame to the next is the camera alone, and that is known. Unlike optical flow it does not follow
what slides over a surface, so it tells a video that looks smooth from one that a solid scene could show.

Letters: T frames of the path, H and W their sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from v2edit.scenes.cameras import Cameras
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.masks import inverse_depths
from v2edit.video.flow import warp

OPAQUE = 0.8  # opacity from which a pixel has a surface
SAME_DEPTH = 0.05  # share by which two frames' depths of a point may differ, for it to be seen in both


@dataclass(frozen=True, eq=False)
class Correspondence:
    """Where the points of each frame but the last lie in the next one: an offset (x, y) in pixels, `flow` float32 [T-1,
    H, W, 2], and whether they are seen there, `visible` bool [T-1, H, W]."""

    flow: np.ndarray
    visible: np.ndarray


def match_neighbours(scene: Gaussians, cameras: Cameras) -> Correspondence:
    """Return where the points that each camera of a path sees of a scene lie in the next camera's image."""
    inverse, alphas = (images.cpu().numpy() for images in inverse_depths(scene, cameras))
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(alphas >= OPAQUE, inverse / alphas, np.nan)
    pairs = [_match(inverse[k], inverse[k + 1], cameras[[k, k + 1]]) for k in range(len(cameras) - 1)]
    if not pairs:
        shape = 0, cameras.height, cameras.width
        return Correspondence(np.zeros((*shape, 2), np.float32), np.zeros(shape, bool))
    return Correspondence(*(np.stack(parts) for parts in zip(*pairs, strict=True)))


def view_error(frames: np.ndarray, correspondence: Correspondence) -> float | None:
    """Return the mean squared difference, of values 0 to 1 and in thousandths, between the points of each frame, uint8
    [T, H, W, 3], and the same points in the next one, where both show them; None where no two frames do."""
    errors = []
    for k, (flow, visible) in enumerate(zip(correspondence.flow, correspondence.visible, strict=True)):
        if visible.any():
            following = warp(frames[k + 1].astype(np.float32), flow)
            errors.append(float(np.square((frames[k] - following)[visible] / 255).mean()))
    return 1000 * math.fsum(errors) / len(errors) if errors else None


def _match(now: np.ndarray, after: np.ndarray, pair: Cameras) -> tuple[np.ndarray, np.ndarray]:
    """Return the flow [H, W, 2] between two cameras by their inverse depths [H, W], nan where no surface is, and where
    it leads to what the other camera sees, bool [H, W]."""
    rows, columns = np.mgrid[: pair.height, : pair.width] + 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = 1 / now
        rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(pair.intrinsics[0]).T
        there = pair.world_to_camera[1] @ np.linalg.inv(pair.world_to_camera[0])
        points = depth[..., None] * rays @ there[:3, :3].T + there[:3, 3]
        pixels = points @ pair.intrinsics[1].T
        x, y = pixels[..., 0] / points[..., 2], pixels[..., 1] / points[..., 2]
        flow = np.stack([x - columns, y - rows], axis=-1).astype(np.float32)
        inside = (points[..., 2] > 0) & (x >= 0.5) & (x <= pair.width - 0.5) & (y >= 0.5) & (y <= pair.height - 0.5)
        seen = warp(after.astype(np.float32), np.where(inside[..., None], flow, 0))
        visible = inside & (np.abs(seen * points[..., 2] - 1) < SAME_DEPTH)  # not where either has no surface: nan
    return np.where(visible[..., None], flow, 0), visible
