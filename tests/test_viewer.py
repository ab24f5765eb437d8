"""The viewer of scenes: what is shown, the wipe between before and after, and the way along the path."""

import math
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.scenes import gaussians_of, ring

from v2edit.cli.app import main
from v2edit.scenes.camera_paths import CameraPath, write_path
from v2edit.scenes.cameras import FLIP
from v2edit.scenes.formats.splats import read_splat_file, write_splat
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.viewer import WIPE, Viewer, rotation_matrix, start, surface_point

CAMERAS = replace(ring(6), intrinsics=np.tile([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]], (6, 1, 1)))


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    run = tmp_path_factory.mktemp("run")
    write_splat(run / "scene.ply", gaussians_of(0, 300, 0))
    write_splat(run / "edited.ply", gaussians_of(1, 400, 0))
    write_path(run / "camera_path.json", CameraPath(CAMERAS, True), 8)
    viewer = start(run, 0)
    yield viewer
    viewer.server.stop()


def client_camera(k: int) -> SimpleNamespace:
    """A browser's camera at a view of the path, in viser's terms."""
    pose = CAMERAS.camera_to_world[k] @ FLIP
    w = math.sqrt(max(0, 1 + np.trace(pose[:3, :3]))) / 2
    xyz = [pose[2, 1] - pose[1, 2], pose[0, 2] - pose[2, 0], pose[1, 0] - pose[0, 1]]
    wxyz = np.array([w, *(value / (4 * w) for value in xyz)])
    np.testing.assert_allclose(rotation_matrix(wxyz), pose[:3, :3], atol=1e-6)
    fov = 2 * math.atan(0.5 * CAMERAS.height / 20)
    return SimpleNamespace(position=pose[:3, 3], wxyz=wxyz, fov=fov, aspect=CAMERAS.width / CAMERAS.height)


def opacities(viewer: Viewer) -> dict[str, np.ndarray]:
    return {name: handle.buffer[:, 7:8].view(np.uint8)[:, 3] for name, handle in viewer.handles.items()}


def test_it_starts_on_the_path_with_the_edit_shown(viewer):
    camera = viewer.server.initial_camera
    np.testing.assert_allclose(camera.position, CAMERAS.centres[0], atol=1e-6)
    ahead = (camera.look_at - camera.position) / np.linalg.norm(camera.look_at - camera.position)
    np.testing.assert_allclose(ahead, CAMERAS.directions[0], atol=1e-6)
    assert camera.fov == pytest.approx(2 * math.atan(0.5 * CAMERAS.height / 20))
    assert viewer.choice.value == "after"
    assert {name: handle.visible for name, handle in viewer.handles.items()} == {"before": False, "after": True}


@pytest.mark.parametrize(
    ("chosen", "visible"), [("before", [True, False]), (WIPE, [True, True]), ("after", [False, True])]
)
def test_one_or_both_are_shown(viewer, chosen, visible):
    viewer.choice.value = chosen
    viewer.show()
    assert [handle.visible for handle in viewer.handles.values()] == visible


@pytest.mark.parametrize("percent", [0, 30, 100])
def test_a_wipe_parts_before_and_after_on_screen(viewer, percent):
    whole = opacities(viewer)
    camera, k = client_camera(2), 2
    viewer.choice.value, viewer.wipe.value = WIPE, percent
    viewer.part(camera)
    parted = opacities(viewer)
    for name, means in viewer.means.items():
        local = means @ CAMERAS.world_to_camera[k][:3, :3].T + CAMERAS.world_to_camera[k][:3, 3]
        column = CAMERAS.intrinsics[k, 0, 0] * local[:, 0] / local[:, 2] + CAMERAS.intrinsics[k, 0, 2]
        left, seen = column < CAMERAS.width * percent / 100, local[:, 2] > 0.1
        shown = left if name == "before" else ~left
        np.testing.assert_array_equal((parted[name] > 0)[seen], (shown & (whole[name] > 0))[seen])
    viewer.choice.value = "after"
    viewer.show()
    for name, alpha in opacities(viewer).items():
        np.testing.assert_array_equal(alpha, whole[name])


def test_a_click_tells_where_what_is_seen_lies(viewer):
    """Two opaque discs behind a haze: the nearer one is seen, and beside it the further one."""
    discs = Gaussians(
        means=torch.tensor([[0.0, 0, 1], [0, 0, 3], [0, 0, 5]]),
        quats=torch.tensor([[1.0, 0, 0, 0]] * 3),
        log_scales=torch.tensor([[1.0, 1, 0.1], [0.3, 0.3, 0.01], [3, 3, 0.01]]).log(),
        logit_opacities=torch.tensor([-2.0, 4, 4]),
        sh=torch.zeros(3, 1, 3),
    )
    origin, ahead = np.zeros(3), np.array([0.0, 0, 1])
    np.testing.assert_allclose(surface_point(discs, origin, ahead), [0, 0, 3], atol=1e-6)
    np.testing.assert_allclose(surface_point(discs, np.array([2.0, 0, 0]), ahead), [2, 0, 5], atol=1e-6)
    assert surface_point(discs, origin, -ahead) is None
    viewer.choice.value = "after"
    viewer.locate((0.0, 0.0, 99.0), (0.0, 0.0, 1.0))
    assert viewer.point.value == "nothing is there"
    mean = viewer.means["after"][viewer.opacities["after"].argmax()]
    viewer.locate(tuple(mean - [0, 0, 20]), (0.0, 0.0, 1.0))
    x, y, _ = map(float, viewer.point.value.split(","))
    np.testing.assert_allclose([x, y], mean[:2], atol=1e-3)


def test_the_path_is_played_round_and_round(viewer):
    frames = []
    viewer.playing.value = True
    for _ in range(8):
        viewer.advance()
        frames.append(viewer.frame.value)
    viewer.playing.value = False
    viewer.advance()
    assert frames == [1, 2, 3, 4, 5, 0, 1, 2] and viewer.frame.value == 2


def test_a_splat_alone_is_seen_from_an_orbit(data: Path, monkeypatch: pytest.MonkeyPatch):
    reads = []
    for module in ("viewer", "reading"):
        name = f"v2edit.scenes.{module}.read_splat_file"
        monkeypatch.setattr(name, lambda path: reads.append(path) or read_splat_file(path))
    viewer = start(data / "scenes" / "guitar.ply", 0)
    try:
        assert len(reads) == 1  # a splat may take gigabytes
        np.testing.assert_allclose(viewer.up, [0, -1, 0], atol=1e-6)
        assert not viewer.wipe.visible and viewer.choice.value == "scene"
        assert len(viewer.path.cameras) > 8 and np.linalg.norm(viewer.server.initial_camera.position) > 4
    finally:
        viewer.server.stop()


@pytest.mark.parametrize("port", [99999, 65536, 0, -1, None])
def test_a_port_that_cannot_be_had_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], port: int | None):
    splat = write_splat(tmp_path / "a.ply", gaussians_of(0, 3, 0))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1] if port is None else port
        assert main(["view", str(splat), "--port", str(number)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"v2edit: error: --port is {number}, ") and printed.count("\n") == 1
