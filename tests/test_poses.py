"""Cameras of photographs and videos: found where they are, told where not, kept, and edited by one command."""

import json
import shutil
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support.captures import FOCAL, HEIGHT, WIDTH, arc, matrix_of, photograph, turning, write_photos
from support.processes import RunningCommand

from benchmarks.poses import compare_poses, measure
from v2edit import video
from v2edit.cli.app import main
from v2edit.errors import UserError
from v2edit.jobs.cameras import CameraOptions, read_or_find, time_finding
from v2edit.jobs.functions import estimate_scene, preview_edit
from v2edit.scenes.cameras import Cameras
from v2edit.scenes.poses.find import PictureSource, find_poses
from v2edit.scenes.poses.frames import choose_frames
from v2edit.scenes.poses.pairs import choose_pairs
from v2edit.scenes.poses.writing import read_report, smooth_path
from v2edit.scenes.reading import read_scene

CAMERAS = arc(12)
ORDER = [7, 2, 11, 0, 5, 9, 3, 1, 10, 6, 4, 8]  # the photographs' names are in no order
PORTRAIT, PROMPTS = 6, ["--source-prompt", "a room", "--target-prompt", "a green room"]
QUICK = ["--side", "32", "--frames", "5", "--steps", "2", "--subtasks", "1", "--gaussians", "300", "--fit-steps", "6",
         "--refit-steps", "2", "--quality", "draft"]  # fmt: skip


@pytest.fixture(scope="module")
def pictures():
    return photograph(CAMERAS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory, pictures):
    """Photographs in no order, one of them taken upright: its pixels lie on their side, and EXIF says so."""
    folder = write_photos(tmp_path_factory.mktemp("poses") / "photos", pictures, [f"IMG_{k}.jpg" for k in ORDER])
    pose = CAMERAS.camera_to_world[[PORTRAIT]]
    upright = photograph(Cameras(matrix_of(WIDTH, HEIGHT)[None], pose, WIDTH, HEIGHT))[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.rot90(upright))
    stored.save(folder / f"IMG_{ORDER[PORTRAIT]}.jpg", quality=95, exif=exif)
    return folder


@pytest.fixture(scope="module")
def run(photos):
    """The whole command, on the photographs, with the built-in model."""
    with redirect_stderr(StringIO()) as told, redirect_stdout(StringIO()):
        assert main(["scene", str(photos), *PROMPTS, *QUICK, "-o", str(photos.parent / "run")]) == 0
    return photos.parent / "run", told.getvalue()


def dataset_of(run: Path) -> Path:
    return Path(json.loads((run / "run.json").read_text())["cameras"]["dataset"])


def test_photographs_become_an_edited_scene_by_one_command(run, photos):
    folder, told = run
    facts = json.loads((folder / "run.json").read_text())["cameras"]
    assert facts["pictures"] == facts["registered"] == 12 and facts["left_out"] == [] and facts["error"] < 1
    assert facts["source"] == str(photos) and len(facts["intrinsics"]) == 1  # the upright one's, too
    assert facts["intrinsics"][0]["fl_x"] == pytest.approx(FOCAL, rel=0.02)
    assert all(f"{phase}, step" in told for phase in ("features", "matching", "mapping"))
    assert (folder / "edited.ply").is_file() and "12 of 12 pictures" in told
    assert told.index("expect nonsense") < told.index("features, step")  # said before anybody waits
    assert sorted(one.name for one in photos.parent.iterdir()) == ["cameras", "photos", "run"]


def test_the_cameras_are_where_they_were(run):
    dataset = read_scene(dataset_of(run[0])).dataset
    assert dataset is not None and dataset.points is not None and dataset.images.shape[1:3] == (HEIGHT, WIDTH)
    numbers = [ORDER.index(int(Path(name).stem.split("_")[1])) for name in dataset.names]
    rotation, position = compare_poses(dataset.cameras.camera_to_world, CAMERAS.camera_to_world[numbers])
    assert np.median(rotation) < 1 and np.median(position) < 1  # degrees, per cent
    assert rotation[numbers.index(PORTRAIT)] < 1 and rotation.max() < 5
    lens = dataset.cameras.intrinsics[numbers.index(PORTRAIT)]
    assert lens[0, 0] == pytest.approx(FOCAL * HEIGHT / WIDTH, rel=0.02) and lens[1, 1] == pytest.approx(lens[0, 0])
    assert (dataset.cameras.camera_to_world[:, 2, 1] > 0.8).all()  # z is up
    assert np.linalg.norm(dataset.cameras.centres, axis=1).max() == pytest.approx(1)
    # The upright picture is whole within the others' size, and what is beside it counts for nothing.
    assert dataset.masks is not None
    shown = dataset.masks.mean((1, 2))
    assert shown[numbers.index(PORTRAIT)] == pytest.approx((HEIGHT / WIDTH) ** 2, abs=0.03)
    assert (np.delete(shown, numbers.index(PORTRAIT)) > 0.9).all()


def test_the_path_is_smooth_whatever_the_names(run):
    dataset = read_scene(dataset_of(run[0]), 32).dataset
    assert dataset is not None
    cameras = smooth_path(dataset.cameras, 60).cameras
    steps = np.linalg.norm(np.diff(cameras.centres, axis=0), axis=1)
    assert steps.max() < 0.1 and steps.sum() < 2  # an arc of 1.2 radians, once along
    assert len(json.loads((run[0] / "camera_path.json").read_text())["camera_path"]) == 5


def test_what_was_found_is_used_again(run, photos, tmp_path):
    """By the same pictures elsewhere, too; resuming and dry runs read it."""
    before = (dataset_of(run[0]) / "transforms.json").stat().st_mtime_ns
    moved = shutil.copytree(photos, tmp_path / "photos")
    with redirect_stderr(StringIO()) as told, redirect_stdout(StringIO()):
        words = ["scene", str(moved), *PROMPTS, *QUICK, "-o", str(photos.parent / "again")]
        assert main([*words, "--dry-run"]) == 0
        assert main(words) == 0
    assert "matching" not in told.getvalue()
    assert (dataset_of(photos.parent / "again") / "transforms.json").stat().st_mtime_ns == before
    assert dataset_of(photos.parent / "again") == dataset_of(run[0])
    for one in ("edited.ply", "scene.ply"):
        assert (run[0] / one).read_bytes() == (photos.parent / "again" / one).read_bytes()
    shutil.rmtree(photos.parent / "again")


def test_cameras_whose_record_is_damaged_are_found_anew(run, photos, tmp_path, caplog):
    kept = dataset_of(run[0])
    copy = shutil.copytree(kept, tmp_path / "cameras" / kept.name)
    for text in ("{}", "no JSON"):
        (copy / "cameras.json").write_text(text)
        found = read_or_find(photos, CameraOptions(), tmp_path, 32, find=False)[1]
        assert found is not None
        read_or_find(photos, CameraOptions(), tmp_path, 32, find=False, source=found.source)  # says nothing again
    assert len([line for line in caplog.messages if "found anew" in line]) == 2


def test_before_cameras_are_found_an_edit_is_estimated_and_its_prompts_shown(photos, tmp_path):
    options = {"source_prompt": "a room", "target_prompt": "a green room", "frames": 5, "side": 32}
    estimate = estimate_scene(photos, **options, steps=2, out=tmp_path / "run")
    assert estimate.frames == 5 and any("12 pictures" in remark for remark in estimate.remarks)
    assert " s, and finding the cameras, and the reconstructions: " in estimate.text
    assert time_finding(PictureSource(photos)) > 0
    del options["frames"], options["side"]
    assert preview_edit(photos, **options).prompts.target == "a green room"
    assert not list(tmp_path.iterdir())  # nothing was found, and nothing is left


def test_equal_pictures_give_equal_cameras(run, photos, tmp_path):
    """But for the rounding of other numbers of threads and cores."""
    find_poses(PictureSource(photos), tmp_path / "again", threads=1)
    one, other = (
        json.loads((folder / "transforms.json").read_text()) for folder in (tmp_path / "again", dataset_of(run[0]))
    )
    assert [frame["file_path"] for frame in one["frames"]] == [frame["file_path"] for frame in other["frames"]]
    first, second = (np.array([frame["transform_matrix"] for frame in facts["frames"]]) for facts in (one, other))
    size = np.ptp(first[:, :3, 3], axis=0).max()
    assert np.abs(first[:, :3, :3] - second[:, :3, :3]).max() < 0.02
    assert np.abs(first[:, :3, 3] - second[:, :3, 3]).max() < 0.02 * size


def write_video(path: Path, pictures: np.ndarray, repeats: int = 1) -> Path:
    video.write(np.repeat(pictures, repeats, axis=0), path, fps=12)
    return path


def test_a_video_is_a_scene_by_its_sharp_frames(tmp_path):
    """Every other frame is blurred, as where a hand shakes."""
    cameras = arc(24)
    frames = photograph(cameras)
    frames[1::2] = [cv2.blur(one, (9, 9)) for one in frames[1::2]]
    report = find_poses(PictureSource(write_video(tmp_path / "phone.mp4", frames), 12), tmp_path / "out")
    dataset = read_scene(tmp_path / "out").dataset
    assert dataset is not None and report.registered == report.pictures == len(dataset) >= 8
    numbers = [int(Path(name).stem.split("-")[1]) for name in dataset.names]
    assert np.mean([k % 2 == 0 for k in numbers]) > 0.7 and len(report.intrinsics) == 1
    rotation, position = compare_poses(dataset.cameras.camera_to_world, cameras.camera_to_world[numbers])
    assert np.median(rotation) < 1 and np.median(position) < 1


def test_masks_leave_out_what_does_not_stand_still(tmp_path, pictures):
    """A sticker on the lens, of more texture than all else, is in no point of the scene."""
    stuck = pictures.copy()
    stuck[:, 30:150, 20:130] = photograph(arc(1), seed=3)[0, 30:150, 20:130]
    folder, mask = write_photos(tmp_path / "stuck" / "images", stuck), np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[26:154, 16:134] = 0
    write_photos(
        tmp_path / "stuck" / "masks", np.stack([mask] * len(stuck)), [f"{f.stem}.png" for f in folder.iterdir()]
    )
    find_poses(PictureSource(tmp_path / "stuck"), tmp_path / "out")
    dataset = read_scene(tmp_path / "out").dataset
    assert dataset is not None and dataset.masks is not None and not dataset.masks[:, 40:140, 30:120].any()
    numbers = [int(Path(name).stem.split("_")[1]) for name in dataset.names]
    rotation, position = compare_poses(dataset.cameras.camera_to_world, CAMERAS.camera_to_world[numbers])
    assert len(numbers) > 8 and np.median(rotation) < 4 and np.median(position) < 2


def moving(pictures: np.ndarray) -> np.ndarray:
    """Pictures of pieces that each go their own way."""
    rng, out = np.random.default_rng(1), np.full_like(pictures[:6], 128)
    for k in range(len(out)):
        for y in range(0, HEIGHT - 31, 64):
            for x in range(0, WIDTH - 31, 64):
                dy, dx = (int(rng.integers(0, 1 + n)) for n in (HEIGHT - 32, WIDTH - 32))
                out[k, dy : dy + 32, dx : dx + 32] = pictures[0, y : y + 32, x : x + 32]
    return out


BAD = {
    "few": (lambda p: p[:3], "3 pictures"),
    "blurred": (lambda p: np.stack([cv2.GaussianBlur(one, (0, 0), 6) for one in p]), "too blurred"),
    "turning": (lambda p: photograph(turning(9)), "turns on the spot"),
    "two places": (lambda p: np.concatenate([p[:6], photograph(arc(6), seed=1)[:6]]), "parts that do not fit"),
    "apart": (lambda p: np.stack([photograph(arc(1), seed=k)[0] for k in range(8)]), "overlap too little"),
    "moving": (moving, "moves from picture to picture"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_pictures_that_tell_no_cameras_are_refused_in_a_line(name, pictures, tmp_path, capsys):
    make, says = BAD[name]
    write_photos(tmp_path / "in", make(pictures))
    with pytest.raises(UserError, match=says) as error:
        find_poses(PictureSource(tmp_path / "in"), tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_part_that_fits_no_other_is_left_out_and_named(pictures, tmp_path, caplog):
    write_photos(tmp_path / "in", np.concatenate([pictures[:8], photograph(arc(1), seed=5)]))
    report = find_poses(PictureSource(tmp_path / "in"), tmp_path / "out")
    assert report.registered == 8 and report.left_out == ["IMG_0008.jpg"] and "IMG_0008.jpg" in caplog.text
    assert read_report(tmp_path / "out") == report and len(list((tmp_path / "out" / "images").iterdir())) == 8


@pytest.mark.parametrize(
    ("make", "says"),
    [(lambda p: np.repeat(p[:1], 12, axis=0), "does not move"), (lambda p: p[:4], "4 pictures")],
    ids=["still", "short"],
)
def test_videos_without_a_scene_are_refused_by_the_command(make, says, pictures, tmp_path, capsys):
    clip = write_video(tmp_path / "clip.mp4", make(pictures))
    assert main(["scene", str(clip), *PROMPTS, "-o", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and [one.name for one in tmp_path.iterdir()] in (
        ["clip.mp4"], ["clip.mp4", "cameras"], ["cameras", "clip.mp4"],
    )  # fmt: skip


def test_without_pycolmap_it_is_said(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(UserError, match="pip install"):
        find_poses(PictureSource(photos), tmp_path / "out")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_it_and_leave_nothing(end, photos, tmp_path):
    process = RunningCommand("scene", photos, *PROMPTS, "--json", "-o", tmp_path / "run")
    for line in process.stdout:
        if json.loads(line).get("stage") == "features":
            process.send_signal(end)
            break
    rest = [json.loads(line) for line in process.stdout]
    assert process.wait(60) == 130 and rest[-1]["event"] == "error"
    assert not any(one.get("stage") == "mapping" for one in rest)
    assert not list(tmp_path.rglob("*"))


def test_frames_are_even_in_motion_and_sharp():
    moved = np.concatenate([np.full(100, 0.001), np.full(100, 0.02), np.zeros(50)])
    sharpness = np.where(np.arange(250) % 3 == 0, 2.0, 1.0)
    chosen = choose_frames(moved, sharpness, 40)
    assert chosen == sorted(set(chosen)) and 35 <= len(chosen) <= 40
    assert np.mean([k % 3 == 0 for k in chosen]) > 0.5
    assert sum(100 <= k < 200 for k in chosen) > 3 * sum(k < 100 for k in chosen)
    assert choose_frames(np.full(9, 0.1), np.ones(9), 40) == list(range(9))


def test_a_long_capture_is_matched_with_its_neighbours_and_where_it_comes_back():
    rng = np.random.default_rng(0)
    places = rng.integers(0, 256, (80, 40, 128), np.uint8)
    seen = [places[k % 80] for k in range(160)]  # a second round
    pairs, way = choose_pairs(seen, is_video=True)
    assert way == "sequential" and len(pairs) < 160 * 159 / 4 and all(i < j for i, j in pairs)
    assert {(k, k + 1) for k in range(159)} <= set(pairs)
    assert sum((k, k + 80) in set(pairs) for k in range(80)) > 70
    pairs, way = choose_pairs([places[k] for k in range(70)] + [places[k] for k in range(70)], is_video=False)
    assert sum((k, k + 70) in set(pairs) for k in range(70)) > 60
    assert len(choose_pairs(seen[:20], is_video=False)[0]) == 190


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["dinosaur", "stone_horse"])
def test_cameras_of_real_captures_are_where_they_were(data, name):
    scene, pictures, registered, rotation, _, position, *_ = measure(data / "scenes" / name, 1, "photos", None)
    assert scene == name and int(registered) > 0.9 * int(pictures)
    assert float(rotation) < 1 and float(position) < 1  # medians: degrees, per cent of the scene's size
