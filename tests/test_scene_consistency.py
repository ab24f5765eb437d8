"""View error: neighbouring frames compared along the depth of a scene, on walls whose flow can be calculated."""

import numpy as np
import pytest
import torch
from support.scenes import gaussians_of, ring

from v2edit.scenes.cameras import Cameras, look_at
from v2edit.scenes.consistency import Correspondence, match_neighbours, view_error
from v2edit.scenes.gaussians import Gaussians, colour_to_sh
from v2edit.scenes.rer import render_video

SIDE, FOCAL = 48, 60.0
NEAR, FAR = 3.0, 6.0


def slide(count: int, step: float) -> Cameras:
    """Cameras that look along -z and move to the right by `step`."""
    poses = np.stack([np.eye(4)] * count)
    poses[:, 0, 3] = step * np.arange(count)
    intrinsics = np.tile([[FOCAL, 0, SIDE / 2], [0, FOCAL, SIDE / 2], [0, 0, 1.0]], (count, 1, 1))
    return Cameras(intrinsics, poses, SIDE, SIDE)


def wall(depth: float, left: float, right: float) -> Gaussians:
    """An opaque wall of small flat Gaussians of random colours, across the cameras' axes."""
    spacing = depth / FOCAL
    x, y = torch.meshgrid(torch.arange(left, right, spacing), torch.arange(-4.0, 4.0, spacing), indexing="ij")
    count, generator = x.numel(), torch.Generator().manual_seed(0)
    colours = torch.rand(count, 1, 3, generator=generator)
    scales = torch.tensor([0.7 * spacing, 0.7 * spacing, 1e-3]).log().expand(count, 3)
    return Gaussians(
        torch.stack([x.flatten(), y.flatten(), torch.full((count,), -depth)], dim=1),
        torch.tensor([1.0, 0, 0, 0]).expand(count, 4), scales, torch.full((count,), 6.0), colour_to_sh(colours),
    )  # fmt: skip


def test_the_flow_of_a_wall_is_what_its_distance_says():
    cameras = slide(3, 0.15)
    shared = match_neighbours(wall(NEAR, -6, 6), cameras)
    assert shared.flow.shape == (2, SIDE, SIDE, 2)
    shift = FOCAL * 0.15 / NEAR  # 3 pixels to the left
    assert shared.visible[:, :, 4:].all() and not shared.visible[:, :, :2].any()  # what leaves the picture is not seen
    np.testing.assert_allclose(
        shared.flow[shared.visible], np.broadcast_to([-shift, 0], (shared.visible.sum(), 2)), atol=0.02
    )


def test_what_another_wall_hides_is_not_compared():
    """The nearer wall covers the left half; moving to the right uncovers what is behind it, and hides nothing there;
    moving back hides a strip as wide as the difference of their flows."""
    scene, cameras = wall(NEAR, -6, 0).joined(wall(FAR, -12, 12)), slide(2, 0.4)
    forwards = match_neighbours(scene, cameras).visible[0]
    backwards = match_neighbours(scene, cameras[[1, 0]]).visible[0]
    edge, middle = round(SIDE / 2 - FOCAL * 0.4 / NEAR), slice(4, -4)
    strip = slice(edge + 2, edge + round(FOCAL * 0.4 * (1 / NEAR - 1 / FAR)) - 1)
    assert not backwards[middle, strip].any()
    assert forwards[middle, SIDE // 2 + 2 :].mean() > 0.97 and backwards[middle, SIDE // 2 + 2 : -6].mean() > 0.97


def test_frames_that_disagree_by_so_many_levels_have_their_square():
    scene, cameras = wall(NEAR, -6, 6), slide(3, 0.15)
    shared = match_neighbours(scene, cameras)
    grey = np.full((3, SIDE, SIDE, 3), 100, np.uint8)
    assert view_error(grey, shared) == 0
    grey[1] += 10  # a frame that flashes: both its neighbours disagree with it
    assert view_error(grey, shared) == pytest.approx(1000 * (10 / 255) ** 2)
    grey[1, :, :4] = 255  # outside what the first two share, and inside what the others do
    assert view_error(grey, Correspondence(shared.flow[:1], shared.visible[:1] & (np.arange(SIDE) > 24))) == (
        pytest.approx(1000 * (10 / 255) ** 2)
    )


def test_a_scene_agrees_with_itself_and_frames_in_another_order_do_not():
    scene, cameras = wall(NEAR, -6, 6), slide(4, 0.1)  # 2 pixels: the wall's grid falls on the same pixels
    shared, frames = match_neighbours(scene, cameras), render_video(scene, cameras)
    own = view_error(frames, shared)
    assert own is not None and own < 0.1
    slid = view_error(frames[[0, 0, 0, 0]], shared)  # a picture that slides along, as painted onto the lens
    assert slid is not None and slid > 20 * own


def test_no_figure_where_no_two_frames_show_the_same():
    scene = gaussians_of(0, 50, 0)
    assert view_error(np.zeros((1, 8, 8, 3), np.uint8), match_neighbours(scene, ring(1, height=8, width=8))) is None
    away = look_at(np.array([[0.0, 0, 50], [0, 0, 60]]), np.array([0.0, 0, 100]), np.array([0.0, 1, 0]))
    cameras = Cameras(np.tile(np.diag([10.0, 10, 1]), (2, 1, 1)), away, 8, 8)
    assert not match_neighbours(scene, cameras).visible.any()
    assert view_error(np.zeros((2, 8, 8, 3), np.uint8), match_neighbours(scene, cameras)) is None
