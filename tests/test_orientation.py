"""Orbits around splats, which come without cameras: which way is up, and that nothing is cut off."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.scenes import gaussians_of

from v2edit.errors import UserError
from v2edit.scenes.camera_paths import orbit_around
from v2edit.scenes.cameras import Cameras, up_of
from v2edit.scenes.formats.ply import read_points
from v2edit.scenes.formats.splats import write_splat
from v2edit.scenes.orientation import AXES, box_of, estimate_up
from v2edit.scenes.reading import choose_path, read_scene


def rotation_of(seed: int) -> np.ndarray:
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return matrix * np.linalg.det(matrix)


def positions_of(path: Path) -> np.ndarray:
    gaussians = read_scene(path).gaussians
    assert gaussians is not None
    return gaussians.means.double().numpy()


def degrees(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))


def share_inside(positions: np.ndarray, cameras: Cameras) -> np.ndarray:
    """The share of the points that each camera has in its image, [C]."""
    local = positions @ cameras.world_to_camera[:, :3, :3].transpose(0, 2, 1) + cameras.world_to_camera[:, None, :3, 3]
    pixels = local @ cameras.intrinsics.transpose(0, 2, 1)
    pixels = pixels[..., :2] / pixels[..., 2:]
    inside = (local[..., 2] > 0) & ((pixels >= 0) & (pixels <= [cameras.width, cameras.height])).all(-1)
    return inside.mean(1)


AXIS_PAIRS = [("x", "y"), ("y", "z"), ("z", "-x"), ("x", "-z"), ("-z", "x"), ("-y", "x")]


@pytest.mark.parametrize("turn", [np.stack([AXES[a], AXES[b], np.cross(AXES[a], AXES[b])]) for a, b in AXIS_PAIRS])
def test_up_is_away_from_the_ground(data, turn):
    scene = read_scene(data / "faults" / "p_zup.ply")
    positions = positions_of(data / "faults" / "p_zup.ply") @ turn.T
    np.testing.assert_allclose(estimate_up(positions), turn @ [0, 0, 1], atol=1e-9)
    path = choose_path("orbit", scene, 8, 64)
    np.testing.assert_allclose(up_of(path.cameras), [0, 0, 1], atol=1e-6)
    assert (path.cameras.centres[:, 2] > 0.3).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_tilted_ground_is_found_as_it_is(data, seed):
    turn = rotation_of(seed)
    assert degrees(estimate_up(positions_of(data / "faults" / "p_zup.ply") @ turn.T), turn @ [0, 0, 1]) < 5.1


@pytest.mark.parametrize(("name", "within"), [("dinosaur", 5), ("stone_horse", 10)])
def test_up_in_real_captures(data, name, within):
    """The sparse points of captures in the open, against the way their cameras were held. The wall behind the horse
    holds more points than its ground of lawns and kerbs, and is as wide."""
    folder = data / "scenes" / name
    facts = json.loads((folder / "transforms.json").read_text())  # its images say nothing of the way up
    poses = np.array([frame["transform_matrix"] for frame in facts["frames"]])
    cameras, points = (
        Cameras(np.tile(np.eye(3), (len(poses), 1, 1)), poses, 1, 1),
        read_points(folder / facts["ply_file_path"]),
    )
    assert points is not None
    for turn in (np.eye(3), np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]), np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])):
        assert degrees(estimate_up(points.positions @ turn.T), turn @ up_of(cameras)) < within


def test_up_in_a_garden(data):
    garden = np.load(data / "scenes" / "test_garden.npz")["means3d"].astype(np.float64)
    assert degrees(estimate_up(garden), AXES["z"]) < 8


def test_a_guitar_stands_and_keeps_its_neck(data):
    """Its face is as flat as a ground and holds most of its points; its head is the last hundredth of them."""
    scene = read_scene(data / "scenes" / "guitar.ply")
    path = choose_path("auto", scene, 12, 160)
    np.testing.assert_allclose(up_of(path.cameras), [0, -1, 0], atol=1e-6)
    assert share_inside(positions_of(scene.path), path.cameras).min() > 0.999


@pytest.mark.parametrize("axis", AXES)
def test_symmetry_tells_the_vertical_axis(axis):
    """A pawn: round about its axis, wide below, its head above; no ground."""
    rng = np.random.default_rng(0)
    height = rng.beta(1, 2.2, 6000)
    angle, radius = rng.uniform(0, 2 * np.pi, 6000), (1.05 - height) * np.sqrt(rng.random(6000)) * 0.7
    pawn = np.stack([radius * np.cos(angle), radius * np.sin(angle), 3 * height], axis=1)
    side = AXES["y" if "x" in axis else "x"]
    turn = np.stack([side, np.cross(AXES[axis], side), AXES[axis]], axis=1)
    assert estimate_up(pawn @ turn.T) @ AXES[axis] == pytest.approx(1)


@given(st.integers(0, 10**6), st.sampled_from([3, 9, 40]))
def test_no_camera_of_an_orbit_cuts_the_box_off(seed, count):
    rng = np.random.default_rng(seed)
    positions = rng.normal(size=(200, 3)) * rng.uniform(0.05, 3, 3) @ rotation_of(seed) + rng.normal(size=3) * 9
    up = rotation_of(seed + 1)[0]
    path = orbit_around(positions, count, 64, up)
    low, high = box_of(positions, axes := np.stack([*np.linalg.svd(up[None])[2][1:], up]))
    local = positions @ axes.T
    assert share_inside(positions[((local >= low) & (local <= high)).all(1)], path.cameras).min() == 1
    distances = np.linalg.norm(path.cameras.centres - (low + high) / 2 @ axes, axis=1)
    assert distances.max() < 5 * np.linalg.norm(high - low) / 2
    np.testing.assert_allclose(up_of(path.cameras), up, atol=1e-6)


def test_the_header_and_the_option_go_before_the_data(data, tmp_path):
    path = tmp_path / "a.ply"
    head, rest = (data / "faults" / "p_zup.ply").read_bytes().split(b"\n", 1)
    path.write_bytes(head + b"\ncomment Vertical Axis: y\n" + rest)
    for option, up in (("auto", AXES["y"]), ("-x", AXES["-x"]), ("z", AXES["z"])):
        cameras = choose_path("orbit", read_scene(path), 8, 64, option).cameras
        np.testing.assert_allclose(up_of(cameras), up, atol=1e-6)
    with pytest.raises(UserError, match="--up is 'w'"):
        choose_path("orbit", read_scene(path), 8, 64, "w")


def test_what_cannot_be_seen_does_not_count(tmp_path):
    scene = gaussians_of(0)
    scene.logit_opacities[:] = 3
    near = choose_path("orbit", read_scene(write_splat(tmp_path / "a.ply", scene)), 4, 64).cameras
    scene.means[:10] *= 100
    scene.logit_opacities[:10] = -8
    cameras = choose_path("orbit", read_scene(write_splat(tmp_path / "b.ply", scene)), 4, 64).cameras
    assert np.linalg.norm(cameras.centres - near.centres, axis=1).max() < 0.5 * np.linalg.norm(near.centres[0])


def test_a_capture_in_the_open_is_orbited_in_its_middle():
    rng = np.random.default_rng(0)
    middle = rng.normal(size=(900, 3))
    around = 60 * rng.normal(size=(100, 3))
    cameras = orbit_around(np.concatenate([middle, around]), 8, 64, AXES["z"]).cameras
    assert np.linalg.norm(cameras.centres, axis=1).max() < 20


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_points_have_an_orbit(count):
    cameras = orbit_around(torch.randn(count, 3, generator=torch.Generator().manual_seed(0)).double().numpy(), 4, 16)
    assert np.isfinite(cameras.cameras.camera_to_world).all()
