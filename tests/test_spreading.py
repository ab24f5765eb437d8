"""Spreading of an edit to what the camera path does not see of the same thing, and to nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.scenes import ball, ring, surface

from v2edit.scenes.cameras import Cameras
from v2edit.scenes.gaussians import Gaussians, colour_to_sh, sh_to_colour
from v2edit.scenes.masks import change_mask
from v2edit.scenes.removal import GONE
from v2edit.scenes.rer import prepare_refit, render_video
from v2edit.scenes.visibility import SEEN, visibility

SIDE, COUNT = 48, 500
RED, BLUE, GREY, GREEN = (0.8, 0.2, 0.1), (0.1, 0.2, 0.8), (0.5, 0.5, 0.5), (0.2, 0.8, 0.1)
CENTRE = (1.0, 2.0, 0.55)


def around(count: int, turn: float = 2 * np.pi) -> Cameras:
    """Cameras around the red ball, from a little above."""
    matrix = np.array([[60.0, 0, SIDE / 2], [0, 60, SIDE / 2], [0, 0, 1]])
    poses = ring(count, turn).camera_to_world
    return Cameras(np.tile(matrix, (count, 1, 1)), poses, SIDE, SIDE)


@pytest.fixture(scope="module")
def parts() -> tuple[Gaussians, torch.Tensor]:
    """A red ball, a blue one beside it and the floor, and which of them each Gaussian belongs to."""
    x, y = np.meshgrid(np.linspace(-1.5, 3.5, 34), np.linspace(-0.5, 5, 38))
    floor = surface(np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], 1), GREY, 0.1)
    balls = [ball(CENTRE, RED, COUNT), ball((1.0, 3.2, 0.55), BLUE, COUNT)]
    owner = torch.cat([torch.full((len(one),), k) for k, one in enumerate([*balls, floor])])
    return balls[0].joined(balls[1]).joined(floor), owner


def start_of(scene: Gaussians, edited: Gaussians, spread: bool) -> tuple[Gaussians, torch.Tensor, torch.Tensor]:
    """Return what is reconstructed from after an edit that is seen from one side, what may change of it, and what is
    not seen."""
    cameras = around(4, 0.8)
    before, after = render_video(scene, cameras), render_video(edited, cameras)
    start, _, editable = prepare_refit(scene, cameras, after, change_mask(before, after), 0, None, spread)
    return start.select(torch.arange(len(scene))), editable[: len(scene)], visibility(scene, cameras) <= SEEN


def painted(scene: Gaussians, which: torch.Tensor, colour: tuple[float, float, float]) -> Gaussians:
    """Return a scene in which some Gaussians have another colour, in the light that they are in."""
    sh = scene.sh.clone()
    light = sh_to_colour(sh[which, 0]).amax(1, keepdim=True) / 0.8
    sh[which, 0] = colour_to_sh(light * torch.tensor(colour))
    return replace(scene, sh=sh)


def test_a_surface_is_seen_and_what_is_behind_it_or_outside_is_not(parts):
    scene, owner = parts
    cameras = around(1)
    seen = visibility(scene, cameras)
    towards = torch.from_numpy(cameras.centres[0] - np.array(CENTRE)).float()
    facing = ((scene.means - torch.tensor(CENTRE)) / 0.5) @ (towards / towards.norm())
    assert (seen[(owner == 0) & (facing > 0.6)] > SEEN).float().mean() > 0.95
    assert seen[(owner == 0) & (facing < -0.2)].max() < SEEN
    assert seen.max() <= 1
    turned = replace(cameras, camera_to_world=cameras.camera_to_world @ np.diag([-1.0, 1, -1, 1]))
    assert visibility(scene, turned).max() == 0


def test_the_unseen_side_of_a_thing_takes_the_edited_colour_and_nothing_else_does(parts):
    scene, owner = parts
    spread, _, unseen = start_of(scene, painted(scene, owner == 0, GREEN), True)
    back = unseen & (owner == 0)
    assert back.sum() > COUNT / 4
    red, green, _ = sh_to_colour(spread.sh[back, 0]).clamp(0, 1).T
    assert (green > 2 * red).float().mean() > 0.95
    error = (sh_to_colour(spread.sh - painted(scene, owner == 0, GREEN).sh)[back, 0] - 0.5).abs().mean()
    assert error < 0.05  # in its own light
    assert torch.equal(spread.logit_opacities[back], scene.logit_opacities[back])
    visibly = (sh_to_colour(spread.sh) - sh_to_colour(scene.sh)).abs().amax((1, 2)) > 0.02
    for k in (1, 2):  # the floor under the ball is lit like it, and a few Gaussians next to it go with it
        others = unseen & (owner == k)
        assert others.sum() > COUNT / 10 and visibly[others].float().mean() < 0.05


def test_what_no_frame_holds_stays_out_of_the_optimisation(parts):
    scene, owner = parts
    edited = painted(scene, owner == 0, GREEN)
    _, editable, unseen = start_of(scene, edited, True)
    assert editable.any() and not editable[unseen].any()
    assert start_of(scene, edited, False)[1][unseen].any()  # which it is not by itself


def test_without_spreading_nothing_unseen_takes_the_edit_over(parts):
    scene, owner = parts
    start, _, unseen = start_of(scene, painted(scene, owner == 0, GREEN), False)
    for name, tensor in scene.tensors().items():
        assert torch.equal(tensor[unseen], start.tensors()[name][unseen]), name


def test_what_a_removal_reveals_colours_nothing_that_is_unseen(parts):
    scene, owner = parts
    without = replace(scene, logit_opacities=torch.where(owner == 0, -12.0, scene.logit_opacities))
    start, _, _ = start_of(scene, without, True)
    gone = start.logit_opacities <= GONE
    assert gone[owner == 0].float().mean() > 0.3 and not gone[owner != 0].any()
    assert torch.equal(start.sh, scene.sh)


def test_a_sky_changes_as_a_whole():
    points = np.random.default_rng(0).normal(size=(900, 3))
    dome = surface(20 * points / np.linalg.norm(points, axis=1, keepdims=True), BLUE, 1.5)
    start, _, unseen = start_of(dome, painted(dome, torch.ones(len(dome), dtype=torch.bool), (0.8, 0.6, 0.1)), True)
    red, _, blue = sh_to_colour(start.sh[unseen, 0]).T
    assert 0.4 < unseen.float().mean() < 0.98 and (red > blue).float().mean() > 0.95
