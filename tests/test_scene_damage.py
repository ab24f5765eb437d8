"""Scenes whose files are damaged, cut off or spelled in other ways: nothing is read wrongly without a word."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from support.scenes import dataset_of, ring, write_colmap

from v2edit.errors import UserError
from v2edit.jobs.inputs import is_scene
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.formats.nerfstudio import write_transforms
from v2edit.scenes.reading import read_scene

LENSES = {"PINHOLE": [20.0, 21, 8, 6], "OPENCV": [20.0, 21, 8, 6, 0, 0, 0, 0], "SIMPLE_RADIAL": [20.0, 8, 6, 0]}


def read(folder: Path) -> Dataset:
    dataset = read_scene(folder).dataset
    assert dataset is not None
    return dataset


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_colmap(tmp_path, dataset_of(ring(4)), "PINHOLE", LENSES["PINHOLE"])
    return tmp_path / "sparse" / "0"


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("part", ["cameras", "rigs", "images", "points3D", "frames"])
def test_a_binary_model_that_is_cut_anywhere_is_refused(tmp_path, lens, part):
    write_colmap(tmp_path, dataset_of(ring(4)), lens, LENSES[lens])
    read(tmp_path)
    file = tmp_path / "sparse" / "0" / f"{part}.bin"
    whole = file.read_bytes()
    for length in {len(whole) - 1, len(whole) - 4, len(whole) - 7, len(whole) // 2, 8, 3, 0}:
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"{part}.bin says it holds more than it does"):
            read(tmp_path)


def posed(folder: Path, **facts: object) -> Path:
    """Write eight frames, images/v000.png and so on, whose transforms.json says `facts`, too."""
    folder.mkdir(exist_ok=True)
    write_transforms(folder, replace(dataset_of(ring(8)), is_held_out=np.zeros(8, bool)))
    file = folder / "transforms.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    return folder


SPELLINGS: dict[str, Callable[[str, Path], str]] = {
    "as in the frames": lambda name, folder: name,
    "without ending": lambda name, folder: name[:-4],
    "absolute": lambda name, folder: str(folder.resolve() / name),
    "another case": lambda name, folder: name.upper(),
    "another system": lambda name, folder: ".\\" + name.replace("/", "\\"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(
    ("train", "val", "held_out"), [([], [1, 6], [1, 6]), (range(6), [], [6, 7]), ([0, 1, 2], [6], [3, 4, 5, 6, 7])]
)
def test_a_split_is_read_as_its_frames_are(tmp_path, monkeypatch, caplog, spelling, train, val, held_out):
    monkeypatch.chdir(tmp_path)

    def names(views):
        return [SPELLINGS[spelling](f"images/v{k:03d}.png", Path("scene")) for k in views]

    scene = posed(Path("scene"), train_filenames=names(train), val_filenames=names(val))
    assert np.flatnonzero(read(scene).is_held_out).tolist() == held_out and not caplog.messages


def test_names_of_a_split_that_are_of_no_frame_are_noted(tmp_path, caplog):
    folder = posed(tmp_path, val_filenames=["images/v001.png", "images/nothing.png"], test_filenames=["v7.png"])
    assert np.flatnonzero(read(folder).is_held_out).tolist() == [1]
    assert ["nothing.png" in line and "1 of 2" in line for line in caplog.messages] == [True, False]
    posed(tmp_path / "none", train_filenames=["other/a.png"])
    assert np.flatnonzero(read(tmp_path / "none").is_held_out).tolist() == [4]  # as without a split


@pytest.fixture
def text_model(model: Path) -> Path:
    pycolmap.Reconstruction(str(model)).write_text(str(model))
    for file in model.glob("*.bin"):
        file.unlink()
    for name in ("rigs.txt", "frames.txt"):  # which other programs do not write
        (model / name).unlink()
    return model


@pytest.mark.parametrize(
    ("colours", "read_as"),
    [
        ("0.2 1.0 0", [51, 255, 0]),
        ("1 0 1", [1, 0, 1]),
        ("255.0 51.0 0.0", [255, 51, 0]),
        ("1.0 1.0 0.0", [255, 255, 0]),
    ],
)
def test_colours_of_points_in_text_are_in_any_range(text_model, caplog, colours, read_as):
    (text_model / "points3D.txt").write_text(f"1 0.5 2 3 {colours} 0.1 1 0\n")
    points = read(text_model.parents[1]).points
    assert points is not None and points.colours.tolist() == [read_as] and not caplog.messages


def test_byte_order_marks_before_text_are_skipped(text_model):
    expected = read(text_model.parents[1])
    for file in text_model.glob("*.txt"):
        text = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        file.write_text("\n".join(text), encoding="utf-8-sig")
    again = read(text_model.parents[1])
    np.testing.assert_array_equal(again.cameras.intrinsics, expected.cameras.intrinsics)
    assert again.names == expected.names and again.points is not None and len(again.points.positions) == 7


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


@pytest.mark.parametrize("name", ["transforms.json", "images/v002.png", "sparse_pc.ply", "sparse/0/images.bin"])
def test_pointers_of_git_lfs_and_empty_files_are_called_that(tmp_path, name):
    posed(tmp_path) if "sparse/" not in name else write_colmap(
        tmp_path, dataset_of(ring(4)), "PINHOLE", LENSES["PINHOLE"]
    )
    for content, says in ((POINTER, "is a Git LFS pointer"), (b"", "is an empty file|holds more than it does")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=says):
            read(tmp_path)


WRONG_CAMERAS = {
    "1 PINHOLE 16 12 20 20 8": "line 1 has 3 parameters, expected 4 of PINHOLE",
    "# a\n1 PINHOLE 16 12 20 20 8 6 5": "line 2 has 5 parameters",
    "1 PINHOLE 16 12 20,5 20,5 8 6": "'20,5', expected a finite number",
    "1 LENS 16 12 20": "the camera model 'LENS', which COLMAP does not have",
    "7 PINHOLE 16 12 20 20 8 6": "damaged or incomplete, or not of one COLMAP model",
}


@pytest.mark.parametrize("line", WRONG_CAMERAS)
def test_what_is_wrong_with_cameras_is_said_in_words(text_model, line):
    (text_model / "cameras.txt").write_text(f"{line}\n")
    with pytest.raises(UserError) as refused:
        read(text_model.parents[1])
    assert WRONG_CAMERAS[line] in str(refused.value) and not re.search(r"::|>>|\(\)", str(refused.value))


def test_blender_scenes_are_read_with_their_splits(tmp_path):
    expected = read(posed(tmp_path / "one"))
    facts = json.loads((tmp_path / "one" / "transforms.json").read_text())
    height, width = expected.cameras.height, expected.cameras.width
    for first, split in enumerate(("train", "val", "test")):
        frames = [frame | {"file_path": "./" + frame["file_path"][:-4]} for frame in facts["frames"][first::3]]
        # Each file may have a camera of its own.
        angle = {"camera_angle_x": 2 * np.arctan(width / 2 / (20 + first))}
        (tmp_path / "one" / f"transforms_{split}.json").write_text(json.dumps(angle | {"frames": frames}))
    (tmp_path / "one" / "transforms.json").unlink()
    dataset = read(tmp_path / "one")
    assert is_scene(tmp_path / "one") and (dataset.cameras.height, dataset.cameras.width) == (height, width)
    np.testing.assert_array_equal(dataset.images, expected.images)
    np.testing.assert_allclose(dataset.cameras.intrinsics[:, 0, 0], 20 + np.arange(8) % 3)
    np.testing.assert_array_equal(dataset.is_held_out, np.arange(8) % 3 > 0)
