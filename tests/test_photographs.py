"""Photographs as people have them: damaged ones, animations and masks among them, some taken upright."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support.captures import arc, photograph, write_photos
from support.servers import completion, serve

from benchmarks.poses import compare_poses
from v2edit.bench.suite_files import read_suite
from v2edit.cli.app import main
from v2edit.errors import UserError
from v2edit.jobs.cameras import CameraOptions, FoundCameras, read_or_find, stand_in_scene
from v2edit.scenes.formats.nerfstudio import read_transforms
from v2edit.scenes.poses.find import PictureSource, find_poses
from v2edit.scenes.poses.pictures import Picture, join_turned
from v2edit.scenes.poses.writing import matrix_of, stand_camera_up
from v2edit.scenes.reading import choose_path, read_scene


@pytest.fixture(scope="module")
def pictures():
    return photograph(arc(10))


def damage(folder: Path, name: str) -> None:
    """Cut a photograph off in its middle."""
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def add_animations(folder: Path) -> None:
    frames = [Image.new("RGB", (32, 24), (80 * k, 0, 0)) for k in range(3)]
    frames[0].save(folder / "b.webp", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "c.png", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "a.gif")


def warnings_of(caplog) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


def test_what_is_no_photograph_is_said_once_and_recorded(pictures, tmp_path, caplog):
    """Four of 14 files cannot be read, cut off or no images at all; three are animations. The rest is a scene."""
    folder = write_photos(tmp_path / "photos", np.concatenate([pictures, pictures[:3]]))
    for number in (10, 11, 12):
        damage(folder, f"IMG_{number:04d}.jpg")
    (folder / "IMG_0013.jpg").write_text("no image")
    add_animations(folder)
    unread = {
        "animated": ["a.gif", "b.webp", "c.png"],
        "damaged": ["IMG_0013.jpg", "IMG_0010.jpg", "IMG_0011.jpg", "IMG_0012.jpg"],
    }
    scene, stand_ins = read_or_find(folder, CameraOptions(), tmp_path, 32, find=False)
    assert scene.dataset is not None and len(scene.dataset) == 10
    assert stand_ins is not None and stand_ins.facts["unread"] == unread
    lines = [line for line in warnings_of(caplog) if "left out" in line]
    assert len(lines) == 2 and all("\n" not in line for line in lines)
    assert "3 files are left out, GIFs and animations: a.gif, b.webp, c.png" in lines[0]
    assert "4 files are left out, damaged" in lines[1] and "and 1 more" in lines[1]
    scene, found = read_or_find(folder, CameraOptions(), tmp_path, 32, find=True, source=stand_ins.source)
    lines = [line for line in warnings_of(caplog) if "left out" in line]
    assert found is not None and found.report is not None and len(lines) == 2  # not once more
    assert found.report.pictures == 10 and found.report.unread == unread == found.facts["unread"]
    # They are known again, by the same files; a file that is new beside them is said, too.
    shutil.copy(folder / "a.gif", folder / "d.gif")
    again = read_or_find(folder, CameraOptions(), tmp_path, 32, find=False)[1]
    assert isinstance(again, FoundCameras) and again.folder == found.folder and again.report == found.report
    assert again.facts["unread"]["animated"] == ["a.gif", "d.gif", "b.webp", "c.png"]


def test_where_damaged_photographs_leave_too_few_they_are_named(pictures, tmp_path, capsys):
    folder = write_photos(tmp_path / "photos", pictures[:6])
    for number in (1, 4):
        damage(folder, f"IMG_{number:04d}.jpg")
    words = ["--source-prompt", "a", "--target-prompt", "b", "-o", str(tmp_path / "run")]
    assert main(["scene", str(folder), *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "4 pictures" in error and "IMG_0001.jpg, IMG_0004.jpg left out, damaged" in error


def write_masks(folder: Path, count: int, black: set[int]) -> None:
    masks = np.full((count, 192, 256), 255, np.uint8)
    masks[sorted(black)] = 0
    write_photos(folder / "masks", masks, [f"IMG_{k:04d}.png" for k in range(count)])


def test_black_masks_are_said_to_be_such_and_not_blur(pictures, tmp_path, caplog):
    folder = write_photos(tmp_path / "photos", pictures)
    write_masks(folder, 10, set(range(10)))
    with pytest.raises(UserError, match=r"masks of .* leave nothing of 10 of its 10 pictures") as error:
        find_poses(PictureSource(folder), tmp_path / "out")
    assert "\n" not in str(error.value) and "blur" not in str(error.value)
    shutil.rmtree(folder / "masks")
    write_masks(folder, 10, {3})
    report = find_poses(PictureSource(folder), tmp_path / "others")
    assert report.left_out == ["IMG_0003.jpg"] and report.registered == 9
    assert any("1 of 10 pictures are masked out whole: IMG_0003.jpg" in line for line in warnings_of(caplog))


def test_a_folder_in_a_mask_s_place_is_named(pictures, tmp_path):
    folder = write_photos(tmp_path / "photos", pictures)
    (folder / "masks" / "IMG_0001.jpg").mkdir(parents=True)
    with pytest.raises(UserError, match=r"IMG_0001\.jpg is a folder, expected the mask of IMG_0001\.jpg") as error:
        read_or_find(folder, CameraOptions(), tmp_path, 32, find=False)
    assert "\n" not in str(error.value)


def test_stand_ins_promise_no_loop(tmp_path):
    """Sixteen stood on a full circle, which a model that makes loops of 16 frames took for one."""
    folder = write_photos(tmp_path / "photos", photograph(arc(16)))
    scene = stand_in_scene(PictureSource(folder), 32)
    assert not any(choose_path("views", scene, count, 32).closed for count in (5, 9, 16))
    assert not choose_path("orbit", scene, 16, 32).closed
    assert "no loop" in FoundCameras(PictureSource(folder), folder, None).remark(timed=False)[1]


LENS = {"w": 64, "h": 48, "fl_x": 50.0, "fl_y": 52.0, "cx": 33.0, "cy": 22.0, "k1": 0.1, "k2": 0.01, "p1": 0.02,
        "p2": -0.03}  # fmt: skip


def pixels_of(lens: dict, pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    distortion = np.array([lens[name] for name in ("k1", "k2", "p1", "p2")])
    turn = cv2.Rodrigues(pose[:3, :3])[0]
    return cv2.projectPoints(points, turn, pose[:3, 3], matrix_of(lens), distortion)[0][:, 0]


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_a_camera_that_stands_up_sees_every_point_where_its_picture_shows_it(turns):
    rng = np.random.default_rng(0)
    points = rng.uniform([-1, -1, 3], [1, 1, 5], (40, 3))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(np.array([0.1, -0.2, 0.3]))[0], [0.1, 0.2, 0.3]
    x, y = pixels_of(LENS, pose, points).T
    lens, stood = stand_camera_up(LENS, pose, turns)
    assert (lens["w"], lens["h"]) == (64, 48)
    upright = {0: (x, y), 1: (48 - y, x), 3: (y, 64 - x)}[turns]  # of a picture that `np.rot90` turned so
    across, down = {0: ((1, 0), (1, 0)), 1: ((36 / 48, 14), (48 / 64, 0)), 3: ((36 / 48, 14), (48 / 64, 0))}[turns]
    expected = np.stack([upright[0] * across[0] + across[1], upright[1] * down[0] + down[1]], axis=1)
    np.testing.assert_allclose(pixels_of(lens, stood, points), expected, atol=1e-6)


def test_pictures_that_the_camera_was_turned_for_share_its_intrinsics():
    wide, tall = (48, 64), (64, 48)
    main = [Picture(f"{k}", wide, (*wide, "maker", "model", None, 28, 0)) for k in range(3)]
    turned = Picture("turned", tall, (*tall, "maker", "model", None, 28, 0), stored=1)
    unknown = replace(turned, name="unknown", stored=0)  # as HEIC readers turn them
    foreign = replace(turned, name="foreign", camera=(*tall, "maker", "another", None, 28, 0))
    joined = join_turned([*main, turned, unknown, foreign])
    assert [one.turns for one in joined] == [0, 0, 0, 1, 1, 0]
    assert joined[3].camera == joined[4].camera == main[0].camera and joined[5].camera == foreign.camera
    # Where most are upright, those that were taken across are turned, the other way round.
    most = [replace(turned, name=f"{k}") for k in range(3)]
    assert [one.turns for one in join_turned([*most, main[0]])] == [0, 0, 0, 3]
    square = Picture("square", (48, 48), (48, 48, None))
    assert join_turned([square]) == [square]


@pytest.mark.heavy
def test_a_picture_that_exif_turns_has_the_known_camera(data, tmp_path):
    """Of a real capture, one picture lies on its side by its EXIF orientation: a phone held upright."""
    scene = data / "scenes" / "stone_horse"
    known = read_transforms(scene / "transforms.json")
    near = np.linalg.norm(known.cameras.centres - known.cameras.centres[0], axis=1).argsort()[:14]
    files = sorted(scene / known.names[k] for k in near)
    folder, side = tmp_path / "photos", 6
    folder.mkdir()
    for k, file in enumerate(files):
        exif = Image.Exif()
        exif[0x0112] = 6 if k == side else 1
        Image.open(file).resize((683, 512)).save(folder / file.name, quality=95, exif=exif)  # as it was taken
    report = find_poses(PictureSource(folder), tmp_path / "out")
    assert report.registered == 14 and len(report.intrinsics) == 1
    found = read_scene(tmp_path / "out").dataset
    assert found is not None
    names = {Path(name).stem: k for k, name in enumerate(known.names)}
    truth = known.cameras[[names[Path(name).stem] for name in found.names]]
    turn = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # its x was the sensor's y
    poses = truth.camera_to_world.copy()
    poses[side] = poses[side] @ turn
    rotation, position = compare_poses(found.cameras.camera_to_world, poses)
    assert rotation[side] < 3 and position[side] < 3 and np.median(rotation) < 3
    height, width = found.images.shape[1:3]
    focal = found.cameras.intrinsics[:, 0, 0]
    assert focal[side] == pytest.approx(np.delete(focal, side).mean() * height / width, rel=0.01)
    assert np.delete(focal, side).mean() == pytest.approx(truth.intrinsics[0, 1, 1], rel=0.1)


def test_suites_and_suggestions_tell_how_photographs_become_scenes(pictures, tmp_path, caplog):
    """They take scenes whose cameras are known: one line says how these are found."""
    folder = write_photos(tmp_path / "photos", pictures)
    line = {"scene": "photos", "source_prompt": "a room", "target_prompt": "a green room"}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=r"has no cameras: v2edit scene .* finds them first") as error:
        read_suite(tmp_path / "tasks.jsonl")
    assert "\n" not in str(error.value)
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    Image.fromarray(pictures[0]).save(folder / "IMG_0000.jpg", exif=exif)
    with serve(completion({"edits": []})) as server:
        words = ["suggest", str(folder), "--lvlm", "m", "--lvlm-url", server.url, "-o", str(tmp_path / "suite.jsonl")]
        assert main(words) == 2
        assert not server.requests
    assert any("has no cameras" in line for line in warnings_of(caplog))
