"""Removal: what edited frames no longer show goes from a scene; what they show in another colour stays."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from v2edit.scenes.cameras import Cameras
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.gaussians import Gaussians, colour_to_sh
from v2edit.scenes.masks import change_mask
from v2edit.scenes.removal import GONE, remove_vanished
from v2edit.scenes.rer import prepare_refit, render_video

SIDE, FOCAL, VIEWS = 32, 40.0, 5
NEAR, FAR = 3.0, 5.0
ORANGE, BLUE = (0.9, 0.5, 0.1), (0.1, 0.2, 0.9)


def tile(depth: float, half: float, colours: torch.Tensor | tuple[float, float, float]) -> Gaussians:
    """An opaque square of flat Gaussians across the cameras' axes; colours [3], or random ones."""
    spacing = depth / FOCAL
    x, y = torch.meshgrid(*[torch.arange(-half, half, spacing)] * 2, indexing="ij")
    count = x.numel()
    colours = torch.as_tensor(colours).expand(count, 3)
    scales = torch.tensor([0.7 * spacing, 0.7 * spacing, 1e-3]).log().expand(count, 3)
    return Gaussians(
        torch.stack([x.flatten(), y.flatten(), torch.full((count,), -depth)], dim=1),
        torch.tensor([1.0, 0, 0, 0]).expand(count, 4), scales, torch.full((count,), 5.0),
        colour_to_sh(colours)[:, None],
    )  # fmt: skip


@pytest.fixture(scope="module")
def parts() -> tuple[Gaussians, Gaussians, Cameras]:
    """A wall of many colours, a tile before it, and cameras that slide along."""
    poses = np.stack([np.eye(4)] * VIEWS)
    poses[:, 0, 3] = np.linspace(-0.3, 0.3, VIEWS)
    intrinsics = np.tile([[FOCAL, 0, SIDE / 2], [0, FOCAL, SIDE / 2], [0, 0, 1.0]], (VIEWS, 1, 1))
    wall = tile(FAR, 3.0, (0.5, 0.5, 0.5))
    tones = 0.35 + 0.3 * torch.rand(len(wall), 3, generator=torch.Generator().manual_seed(0))
    return (
        replace(wall, sh=colour_to_sh(tones)[:, None]),
        tile(NEAR, 0.5, ORANGE),
        Cameras(intrinsics, poses, SIDE, SIDE),
    )


def edit(scene: Gaussians, edited: Gaussians, cameras: Cameras) -> tuple[Dataset, torch.Tensor]:
    before, after = render_video(scene, cameras), render_video(edited, cameras)
    names = tuple(map(str, range(VIEWS)))
    return Dataset(cameras, after, names, np.zeros(VIEWS, bool)), change_mask(before, after)


def test_what_frames_no_longer_show_goes_and_what_is_behind_stays(parts):
    wall, thing, cameras = parts
    scene = wall.joined(thing)
    target, mask = edit(scene, wall, cameras)
    result = remove_vanished(scene, target, mask, torch.ones(len(scene), dtype=torch.bool), seed=0)
    gone = result.logit_opacities == GONE
    assert gone[len(wall) :].float().mean() > 0.95 and gone[: len(wall)].float().mean() < 0.02
    error = np.abs(render_video(result, cameras).astype(int) - target.images)
    assert error.mean() < 1.5 and torch.equal(result.sh, scene.sh)


def test_what_changes_its_colour_is_not_taken_away(parts):
    wall, thing, cameras = parts
    scene = wall.joined(thing)
    blue = wall.joined(replace(thing, sh=colour_to_sh(torch.tensor(BLUE)).expand_as(thing.sh)))
    target, mask = edit(scene, blue, cameras)
    result = remove_vanished(scene, target, mask, torch.ones(len(scene), dtype=torch.bool), seed=0)
    assert (result.logit_opacities == GONE).float().mean() < 0.01


def test_what_may_not_change_stays(parts):
    wall, thing, cameras = parts
    scene = wall.joined(thing)
    target, mask = edit(scene, wall, cameras)
    left = torch.arange(len(scene)) >= len(wall) + len(thing) // 2  # one half of the thing
    result = remove_vanished(scene, target, mask, left, seed=0)
    gone = result.logit_opacities == GONE
    assert not gone[~left].any() and gone[left].float().mean() > 0.8


def test_a_reconstruction_starts_without_what_the_edit_took_away(parts):
    wall, thing, cameras = parts
    scene = wall.joined(thing)
    target, mask = edit(scene, wall, cameras)
    start, _, editable = prepare_refit(scene, cameras, target.images, mask, seed=0)
    assert start.logit_opacities[len(wall) : len(scene)].sigmoid().mean() < 0.05
    assert editable[len(wall) : len(scene)].all()  # so that they are used elsewhere
