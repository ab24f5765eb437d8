"""Spreading of a change of colour to what no camera of the path sees of the same thing.

Changes spread as labels do (Zhu and Ghahramani 2002), along neighbours that are alike in place and colour: the back of
an object goes with its front, the whole sky with a part of it, and a neighbour of another colour with its own like,
which did not change. That is before a scene is reconstructed from edited frames: what shines through a surface then has
its colour. Removals do not spread: what they reveal would colour the rest of it. Letters: N Gaussians, T frames, M
unseen Gaussians.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from v2edit.editing.matte import smooth_step
from v2edit.scenes.cameras import Cameras
from v2edit.scenes.gaussians import Gaussians, colour_to_sh, sh_to_colour
from v2edit.scenes.masks import CHANGED, UNCHANGED, weights_on
from v2edit.scenes.painting import LEAST_OPACITY, spread_values
from v2edit.scenes.rasterise import render
from v2edit.scenes.removal import GONE
from v2edit.scenes.visibility import SEEN, visibility

COLOUR = 0.05  # of 1: the difference in colour at which neighbours count for a third as much
FEW = 0.25  # of what changes, that has gone: an edit that takes more away does not spread
HALF = 0.5  # of its pixels: a Gaussian that is edited in more has changed
CLEAR = 0.25  # the part of its pixels that changes, for a Gaussian's own change to be known
DARK = 0.05  # of 1: below it, changes of colour no longer grow with the light


@torch.no_grad()
def spread_edit(
    scene: Gaussians,
    cameras: Cameras,
    videos: tuple[np.ndarray, np.ndarray],
    mask: Tensor,
    editable: Tensor,
    allowed: Tensor,
) -> tuple[Gaussians, Tensor]:
    """Return a scene whose unseen Gaussians, where `allowed`, have changed as what is seen of the same thing, where
    that is `editable`: by the change of colour between two videos of it, uint8 [T, H, W, 3] by `cameras`; and which of
    the editable are seen: the others would drift, as no frame holds them. `allowed` and `editable` are bool [N], `mask`
    [T, H, W] is how much of each pixel is edited."""
    shown, gone = visibility(scene, cameras), editable & (scene.logit_opacities <= GONE)
    seen = shown > SEEN
    editable = editable & (seen | gone)  # what has gone is of use elsewhere
    unseen = torch.nonzero(~seen & ~gone & allowed)[:, 0]
    with torch.enable_grad():
        edited, total = weights_on(scene, cameras, mask, torch.ones_like(mask))
    changing = seen & editable & ~gone & (edited > HALF * total)
    if not len(unseen) or gone.sum() >= FEW * (gone | changing).sum():
        return scene, editable
    change, part = _changes(scene, cameras, videos, changing, total)
    old = sh_to_colour(scene.sh[:, 0]).clamp(0, 1)
    # What shows little of its own change has that of what is beside it.
    told = torch.where(seen & ~gone & (~changing | (part > CLEAR)), shown, 0)[:, None] ** 2
    values = torch.cat([told, told * old, told * change], dim=1)
    takes_part = seen & (scene.logit_opacities.sigmoid() > LEAST_OPACITY)
    parts = torch.cat([torch.nonzero(takes_part)[:, 0], unseen])
    asked = torch.arange(len(parts) - len(unseen), len(parts), device=parts.device)
    found = spread_values(scene.select(parts), values[parts], asked, COLOUR)[asked]
    reached = found[:, 0] > 0
    return _apply(scene, unseen[reached], found[reached]), editable


def _changes(
    scene: Gaussians, cameras: Cameras, videos: tuple[np.ndarray, np.ndarray], changing: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """Return by how much the colours of what is `changing`, bool [N], change between two videos, [N, 3] and 0 for the
    rest, and what part of the pixels that each makes up, `total` [N] of them, are such, [N]: the change of a pixel is
    theirs alone."""
    plain = replace(scene, sh=colour_to_sh(changing[:, None].to(scene.means).expand(-1, 3))[:, None])
    share = torch.stack([render(plain, cameras[[k]]).colours[0, ..., 0].clamp(0, 1) for k in range(len(cameras))])
    red, green, blue = ((torch.from_numpy(videos[1]).float() - torch.from_numpy(videos[0])) / 255).unbind(3)
    with torch.enable_grad():
        sums = *weights_on(scene, cameras, red, green), *weights_on(scene, cameras, blue, share)
    means = torch.stack(sums, dim=1) / total[:, None].clamp(min=1e-9)
    change, part = means[:, :3], means[:, 3]
    return torch.where(changing[:, None], change / part[:, None].clamp(min=CLEAR), 0), part


def _apply(scene: Gaussians, which: Tensor, values: Tensor) -> Gaussians:
    """Apply changes to some Gaussians of a scene, by what spread to them, [M, 7]: how much, and of that the colour
    before and the change of it. What is in less light, and what depends on the direction, changes in proportion."""
    old, change = (values[:, 1:] / values[:, :1].clamp(min=1e-30)).split(3, dim=1)
    change = change * smooth_step(255 * change.abs().amax(1, keepdim=True), UNCHANGED, CHANGED)
    gain = change / (old.mean(1, keepdim=True) + DARK)
    sh, colours = scene.sh[which], sh_to_colour(scene.sh[which, 0])
    moved = (colours + gain * (colours.mean(1, keepdim=True).clamp(0, 1) + DARK)).clamp(0, 1)
    first = torch.where(change.any(1, keepdim=True), colour_to_sh(moved), sh[:, 0])
    higher = sh[:, 1:] + sh[:, 1:].mean(2, keepdim=True) * gain[:, None]
    spread = scene.sh.clone()
    spread[which] = torch.cat([first[:, None], higher], dim=1)
    return replace(scene, sh=spread)
