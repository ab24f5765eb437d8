"""Films of scenes: smooth flights through a path's cameras, turntables, before and after in one picture."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.scenes import gaussians_of, ring
from support.splats import SIX

from v2edit import video
from v2edit.cli.app import main
from v2edit.jobs.fly import Fly
from v2edit.scenes.camera_paths import CameraPath, write_path
from v2edit.scenes.flights import fly_along, framed
from v2edit.scenes.formats.splats import write_splat

CAMERAS = replace(ring(8), intrinsics=np.tile([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]], (8, 1, 1)))


def turns(poses: np.ndarray) -> np.ndarray:
    """Return the angles between neighbouring poses, in degrees."""
    traces = np.einsum("kij,kij->k", poses[1:, :3, :3], poses[:-1, :3, :3])
    return np.degrees(np.arccos(np.clip((traces - 1) / 2, -1, 1)))


@pytest.mark.parametrize("closed", [False, True])
def test_a_flight_goes_through_the_cameras_of_its_path(closed):
    path = CameraPath(CAMERAS, closed)
    flight = fly_along(path, 8 * 5 if closed else 7 * 5 + 1)
    np.testing.assert_allclose(flight.camera_to_world[::5], CAMERAS.camera_to_world, atol=1e-9)
    np.testing.assert_allclose(flight.intrinsics[::5], CAMERAS.intrinsics, atol=1e-9)
    rotations = flight.camera_to_world[:, :3, :3]
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (len(flight), 1, 1)), atol=1e-9
    )


def test_a_closed_flight_has_no_jerk_where_it_closes():
    flight = fly_along(CameraPath(CAMERAS, True), 80)
    around = np.concatenate([flight.camera_to_world, flight.camera_to_world[:2]])
    steps = np.linalg.norm(np.diff(around[:, :3, 3], axis=0), axis=1)
    assert steps.max() < 1.1 * steps.min()
    assert turns(around).max() < 1.1 * turns(around).min()


def test_a_path_of_one_camera_is_a_film_that_stands_still():
    flight = fly_along(CameraPath(CAMERAS[[3]], False), 4)
    assert len(flight) == 4 and (flight.camera_to_world == CAMERAS.camera_to_world[3]).all()


@pytest.mark.parametrize("height, width", [(24, 32), (12, 48), (60, 20)])
def test_another_shape_keeps_pixels_square_and_shows_less_or_more(height, width):
    for whole in (False, True):
        new = framed(CAMERAS, height, width, whole)
        scale = new.intrinsics[0, 0, 0] / CAMERAS.intrinsics[0, 0, 0]
        assert new.intrinsics[0, 1, 1] == pytest.approx(scale * CAMERAS.intrinsics[0, 1, 1])
        # The middle of the picture stays where it was; the corners leave it, or do not.
        np.testing.assert_allclose(
            new.intrinsics[0, :2, 2] - [width / 2, height / 2],
            scale * (CAMERAS.intrinsics[0, :2, 2] - [CAMERAS.width / 2, CAMERAS.height / 2]),
        )
        room = np.array([width, height]) - scale * np.array([CAMERAS.width, CAMERAS.height])
        assert (room >= -1e-9).all() if whole else (room <= 1e-9).all()


def test_a_turntable_of_an_arc_goes_along_it_and_back(tmp_path):
    write_splat(tmp_path / "edited.ply", gaussians_of(0, 300, 0))
    write_path(tmp_path / "camera_path.json", CameraPath(CAMERAS[:3], False), 8)
    there, back = (film(tmp_path, tmp_path / f"{name}.mov", "--path", "turntable")[part].astype(int)
                   for name, part in (("a", slice(1, 4)), ("b", slice(7, 4, -1))))  # fmt: skip
    assert np.abs(there - back).mean() < 2 and np.abs(there[0] - there[2]).mean() > 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_splat(folder / "scene.ply", gaussians_of(0, 300, 0))
    write_splat(folder / "edited.ply", gaussians_of(1, 400, 0))
    write_path(folder / "camera_path.json", CameraPath(CAMERAS, True), 8)
    return folder


def film(run: Path, out: Path, *words: str) -> np.ndarray:
    options = ["--seconds", "1", "--fps", "8", "--size", "32x24", *words]
    assert main(["fly", str(run), "-o", str(out), *options]) == 0
    return np.asarray(video.read(out).frames)


def test_before_after_both_and_the_wipe_show_the_same_scenes(run, tmp_path):
    films = {show: film(run, tmp_path / f"{show}.mov", "--show", show) for show in ("before", "after", "side", "wipe")}
    assert films["after"].shape == (8, 24, 32, 3) and films["side"].shape == (8, 24, 64, 3)
    before, after, side, wipe = (one.astype(int) for one in films.values())
    assert np.abs(before - after).mean() > 10
    alike = [(side[:, :, :31], before[:, :, :31]), (side[:, :, 33:], after[:, :, 1:])]
    # The line is at the right edge first, at the left one in the middle, and between them in between.
    alike += [(wipe[0, :, :28], before[0, :, :28]), (wipe[4, :, 4:], after[4, :, 4:])]
    alike += [(wipe[2, :, :13], before[2, :, :13]), (wipe[2, :, 19:], after[2, :, 19:])]
    assert all(np.abs(one - other).mean() < 4 for one, other in alike)


def test_a_still_of_the_wipe_is_the_film_at_that_moment_and_else_has_the_line_half_way(run, tmp_path):
    wipe = film(run, tmp_path / "a.mov", "--show", "wipe").astype(int)
    for words, frame in ([], 2), (["--at", "0.5"], 4):
        still = tmp_path / f"{frame}.png"
        assert main(["fly", str(run), "-o", str(still), "--show", "wipe", "--size", "32x24", "--seconds", "1",
                     "--fps", "8", *words]) == 0  # fmt: skip
        picture = np.asarray(Image.open(still)).astype(int)
        apart = np.abs(wipe - picture).mean((1, 2, 3))
        assert apart.argmin() == frame and apart[frame] < 4


def test_a_turntable_of_a_splat_shows_all_of_it_on_any_background(tmp_path):
    white = film(SIX, tmp_path / "a.gif", "--background", "white")
    assert white.shape == (8, 24, 32, 3) and (white[:, 0] > 250).all() and (white < 200).any((1, 2, 3)).all()
    still = tmp_path / "thumb.png"
    assert main(["fly", str(SIX), "-o", str(still), "--size", "40x40", "--background", "#102030"]) == 0
    picture = np.asarray(Image.open(still))
    assert picture.shape == (40, 40, 3) and (picture[0, 0] == [16, 32, 48]).all()
    later = tmp_path / "later.png"
    assert main(["fly", str(SIX), "-o", str(later), "--size", "40x40", "--background", "#102030", "--at", "2"]) == 0
    assert (np.asarray(Image.open(later)) != picture).any()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--size", "big"], "--size is 'big'"),
        (["--size", "9x9"], "--size is '9x9'"),
        (["--fps", "0"], "--fps is 0"),
        (["--seconds", "0"], "--seconds is 0"),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--background", "blue"], "--background is 'blue'"),
        (["--path", "nowhere.json"], "--path is 'nowhere.json'"),
        (["--up", "w"], "--up is 'w'"),
        (["--at", "9"], "--at is 9"),
        (["--at", "1"], "--at is of a still"),
        (["--up", "x"], "--up is for --path turntable"),
        (["-o", "film.avi"], "cannot write film.avi"),
        (["-o", "film.jpg"], ".png for a still"),
        (["-o", "film.gif", "--seconds", "100"], "GiB to write"),
    ],
)
def test_what_cannot_be_filmed_is_said_in_a_line(run, tmp_path, capsys, words, said):
    out = [] if "-o" in words else ["-o", str(tmp_path / "a.mp4")]
    assert main(["fly", str(run), *out, *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_without_its_edit_and_a_splat_shown_as_two_are_refused(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["fly", str(tmp_path / "empty"), "-o", str(tmp_path / "a.mp4")]) == 2
    assert "there is no edited.ply" in capsys.readouterr().err
    assert main(["fly", str(SIX), "-o", str(tmp_path / "a.mp4"), "--show", "wipe"]) == 2
    assert "a splat is one scene" in capsys.readouterr().err
    (tmp_path / "empty" / "trained").mkdir()
    assert main(["fly", str(tmp_path / "empty"), "-o", str(tmp_path / "a.mp4")]) == 2
    assert "its films are before.mp4 and after.mp4" in capsys.readouterr().err
    (tmp_path / "b.mp4").write_bytes(b"mine")
    assert main(["fly", str(run), "-o", str(tmp_path / "b.mp4")]) == 2
    assert (tmp_path / "b.mp4").read_bytes() == b"mine"


def test_pictures_have_the_shape_of_the_paths_unless_a_size_is_given(run, tmp_path):
    Fly(run, tmp_path / "a.png").run()
    assert Image.open(tmp_path / "a.png").size == (2 * round(360 * CAMERAS.width / CAMERAS.height), 720)


def test_progress_counts_frames(run, tmp_path):
    seen = []
    Fly(run, tmp_path / "a.webp", seconds=0.5, fps=8, size="32x24").run(lambda *at: seen.append(at))
    assert seen == [(k, 4, "a.webp") for k in range(1, 5)]
