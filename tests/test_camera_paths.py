"""Camera paths: what is written comes back, also in nerfstudio's frame; loops and orbits are recognised."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.scenes import UP, dataset_of, ring

from v2edit.errors import UserError
from v2edit.scenes.camera_paths import CameraPath, along_views, nerfstudio_frame, orbit, read_path, write_path
from v2edit.scenes.cameras import distance_of, look_at


def test_a_path_comes_back(tmp_path):
    cameras = ring(9, turn=2.0)
    cameras.intrinsics[:] = [[30.0, 0, 8], [0, 30, 6], [0, 0, 1]]
    write_path(tmp_path / "path.json", CameraPath(cameras, False), fps=8)
    back = read_path(tmp_path / "path.json", ring(5).camera_to_world)
    assert not back.closed
    np.testing.assert_allclose(back.cameras.camera_to_world, cameras.camera_to_world, atol=1e-6)
    np.testing.assert_allclose(back.cameras.intrinsics, cameras.intrinsics, atol=1e-6)


def test_a_path_in_nerfstudios_frame_lands_in_the_datasets(tmp_path):
    """The viewer saves what it trained in; both ways of getting back agree, and undo it."""
    views, expected = ring(12).camera_to_world, ring(5, turn=1.0).camera_to_world
    frame = nerfstudio_frame(views)
    np.testing.assert_allclose((frame @ views)[:, :3, 3].mean(0), 0, atol=1e-9)
    assert np.abs((frame @ views)[:, :3, 3]).max() == pytest.approx(1)
    saved = frame @ expected
    saved[:, :3, :3] /= np.cbrt(np.linalg.det(saved[:, :3, :3]))[:, None, None]
    listed = [{"camera_to_world": one.flatten().tolist(), "fov": 50.0} for one in saved]
    facts = {"render_height": 12, "render_width": 16, "camera_path": listed}
    (tmp_path / "path.json").write_text(json.dumps(facts))
    applied = dataset_of(ring(2)).applied
    np.testing.assert_allclose(read_path(tmp_path / "path.json", views).cameras.camera_to_world, expected, atol=1e-9)
    scale = float(np.cbrt(np.linalg.det(frame[:3, :3])))
    note = {"transform": (np.diag([1 / scale] * 3 + [1]) @ frame @ applied)[:3].tolist(), "scale": scale}
    (tmp_path / "dataparser_transforms.json").write_text(json.dumps(note))
    there = read_path(tmp_path / "path.json", np.tile(np.eye(4), (2, 1, 1)), applied)
    np.testing.assert_allclose(there.cameras.camera_to_world, expected, atol=1e-9)


def test_a_note_about_a_path_is_found_from_wherever_one_stands(tmp_path, monkeypatch):
    (tmp_path / "saved").mkdir()
    path = write_path(tmp_path / "saved" / "path.json", CameraPath(ring(5, turn=1.0), False), fps=8)
    (path.parent / "dataparser_transforms.json").rename(tmp_path / "dataparser_transforms.json")
    views = 2 * ring(12).camera_to_world
    expected = read_path(path, views).cameras.camera_to_world
    monkeypatch.chdir(path.parent)
    np.testing.assert_array_equal(read_path(Path("path.json"), views).cameras.camera_to_world, expected)


def test_how_far_away_what_cameras_look_at_is():
    """Where their axes meet; where they do not, as far as what they see; knowing nothing, in the order of their way."""
    around, nothing = ring(12, turn=2.0), np.empty((0, 3))
    distance = float(np.linalg.norm([3, 1.2]))
    assert distance_of(around, nothing) == pytest.approx(distance)
    places = around.centres[0] + 7 * around.directions[0] + np.random.default_rng(0).normal(0, 0.1, (50, 3))
    assert distance_of(around, places) == pytest.approx(distance)
    axes = around.directions[0] + 0.2 * np.eye(3)
    turning = np.concatenate([look_at(around.centres[:1], around.centres[0] + axis, UP) for axis in axes])
    sliding = np.tile(around.camera_to_world[:1], (4, 1, 1))
    sliding[:, :3, 3] += np.linspace(0, 1, 4)[:, None] * sliding[:, :3, 0]
    outwards = around.camera_to_world @ np.diag([-1.0, 1, -1, 1])
    for poses in (turning, sliding):
        cameras = replace(around[np.zeros(len(poses), int)], camera_to_world=poses)
        assert 6 < distance_of(cameras, places) < 8
        assert distance_of(cameras, nothing) >= 1
    assert distance_of(replace(around, camera_to_world=outwards), nothing) > 1


def test_closed_paths_are_recognised():
    assert along_views(ring(20)).closed and not along_views(ring(20, turn=3.0)).closed
    assert not along_views(replace(ring(20), camera_to_world=np.tile(ring(1).camera_to_world, (20, 1, 1)))).closed
    assert orbit(ring(20), 12).closed and not orbit(ring(20, turn=2.0), 12).closed


@pytest.mark.parametrize("turn", [2.0, 2 * np.pi])
def test_an_orbit_is_written_and_read_as_one(turn, tmp_path):
    path = orbit(ring(20, turn=turn), 12)
    write_path(tmp_path / "orbit.json", path, 8)
    assert read_path(tmp_path / "orbit.json", None).closed is path.closed


@pytest.mark.parametrize("turn", [1.5, 2 * np.pi])
def test_an_orbit_passes_through_the_views_of_one(turn):
    views = ring(16, turn)
    path = orbit(views, 16)
    apart = np.linalg.norm(path.cameras.centres[:, None] - views.centres[None], axis=-1)
    np.testing.assert_allclose(apart.min(1), 0, atol=1e-6)
    assert len({*apart.argmin(1)}) == 16
    np.testing.assert_allclose(path.cameras.directions, views.directions[apart.argmin(1)], atol=1e-6)


def test_a_closed_path_is_sampled_without_doubling_its_seam():
    loop = along_views(ring(20)).sampled(5)
    steps = np.linalg.norm(np.diff(loop.cameras.centres, axis=0, append=loop.cameras.centres[:1]), axis=1)
    np.testing.assert_allclose(steps, steps[0])
    line = along_views(ring(21, turn=2.0)).sampled(5)
    np.testing.assert_allclose(line.cameras.centres[[0, -1]], ring(21, turn=2.0).centres[[0, -1]])


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ([], "is no camera path"),
        ({"camera_path": []}, "is no camera path"),
        ({"camera_path": [{}], "render_height": 9, "render_width": 9}, "no camera_to_world"),
        ({"camera_path": [{}], "render_height": 0, "render_width": 9}, "render_height is 0"),
        (
            {
                "camera_path": [{"camera_to_world": [0] * 16, "fov": 50}],
                "render_height": 9,
                "render_width": 9,
            },
            "singular",
        ),
    ],
)
def test_a_bad_path_is_refused_in_one_line(tmp_path, facts, says):
    (tmp_path / "path.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=says) as refused:
        read_path(tmp_path / "path.json", ring(4).camera_to_world)
    assert "\n" not in str(refused.value)
