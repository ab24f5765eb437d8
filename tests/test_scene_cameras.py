"""Cameras and images as other programs name, number, turn and leave them out, in COLMAP's and nerfstudio's formats."""

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.scenes import dataset_of, ring, write_colmap

from v2edit.errors import UserError
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.formats.nerfstudio import write_transforms
from v2edit.scenes.reading import read_scene

GIVEN = dataset_of(ring(4))


def read(folder: Path) -> Dataset:
    dataset = read_scene(folder).dataset
    assert dataset is not None
    return dataset


def grey(level: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), (level, level, level)).save(path)


def posed_by_nerfstudio(folder: Path, names: list[str]) -> None:
    frames = [{"file_path": name, "transform_matrix": np.eye(4).tolist()} for name in names]
    facts = {"fl_x": 20.0, "w": 16, "h": 12, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(facts))


def posed_by_colmap(folder: Path, names: list[str], points: str = "") -> Path:
    """Write a text model by hand, its poses without a rotation, its lines of observations empty."""
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    (model / "cameras.txt").write_text("# Cameras\n1 SIMPLE_PINHOLE 16 12 20 8 6\n")
    poses = [f"{k} 1 0 0 0 {k} 0 0 1 {name}\n\n" for k, name in enumerate(names, start=1)]
    (model / "images.txt").write_text("".join(poses))
    (model / "points3D.txt").write_text(points)
    return model


FILES = {
    "00": "00.JPG",
    "v1.00": "v1.00.png",
    "webp": "webp.webp",
    "tif": "tif.TIF",
    "UPPER.PNG": "upper.png",
    "a\\b.png": "a/b.png",
    "Folder/c.png": "folder/c.PNG",
    "50%s %20.png": "50%s %20.png",
    unicodedata.normalize("NFC", "é.png"): unicodedata.normalize("NFD", "é.png"),
    "./d.png": "d.png",
    "../images/e.png": "e.png",
}


@pytest.mark.parametrize("write", [posed_by_nerfstudio, posed_by_colmap])
def test_images_are_found_as_other_systems_name_them(tmp_path, caplog, write):
    folder = tmp_path / "images"  # COLMAP's names are within it, nerfstudio's beside the file
    for level, file in enumerate(FILES.values()):
        grey(20 * level, folder / file)
    write(folder if write is posed_by_nerfstudio else tmp_path, list(FILES))
    dataset = read(folder if write is posed_by_nerfstudio else tmp_path)
    levels = {name: int(image[0, 0, 0]) for name, image in zip(dataset.names, dataset.images, strict=True)}
    assert levels == {name: 20 * level for level, name in enumerate(FILES)} and not caplog.records


def test_of_several_files_the_likeliest_is_taken_and_none_of_another_view(tmp_path, caplog):
    for level, name in enumerate(["a.tiff", "a.JPG", "a.png", "b.png"]):
        grey(50 * level, tmp_path / name)
    posed_by_nerfstudio(tmp_path, ["a", "b.png", "B.png"])
    dataset = read(tmp_path)
    assert dict(zip(dataset.names, dataset.images[:, 0, 0, 0], strict=True)) == {"a": 100, "b.png": 150}
    assert ["B.png" in line and "missing" in line for line in caplog.messages] == [True]


def test_images_that_are_listed_twice_are_noted(tmp_path, caplog):
    grey(0, tmp_path / "a.png")
    posed_by_nerfstudio(tmp_path, ["a.png", "./a.png"])
    assert len(read(tmp_path)) == 2 and "more than once: a.png" in caplog.text


def test_where_no_image_is_found_one_is_named_whole(tmp_path):
    posed_by_nerfstudio(tmp_path, ["/elsewhere/0.png", "/elsewhere/1.png"])
    with pytest.raises(UserError, match=r"there is no /elsewhere/0\.png"):
        read(tmp_path)


def test_smaller_copies_are_taken_where_there_are_no_others(tmp_path, caplog):
    write_colmap(tmp_path, GIVEN, "PINHOLE", [20.0, 21.0, 8.2, 5.9])
    (tmp_path / "images").rename(tmp_path / "images_2")
    for file in (tmp_path / "images_2").iterdir():
        Image.open(file).resize((8, 6)).save(file)
    dataset = read(tmp_path)
    assert dataset.images.shape == (4, 6, 8, 3) and "images_2" in caplog.text
    np.testing.assert_allclose(dataset.cameras.intrinsics[0], [[10, 0, 4.1], [0, 10.5, 2.95], [0, 0, 1]])


def test_a_turned_photograph_is_upright_where_its_camera_is(tmp_path):
    write_colmap(tmp_path, GIVEN, "PINHOLE", [20.0, 21.0, 8.2, 5.9])
    for file, image in zip(sorted((tmp_path / "images").iterdir()), GIVEN.images, strict=True):
        picture = Image.fromarray(np.rot90(image))
        exif = picture.getexif()
        exif[0x0112] = 6  # to be turned by 90 degrees clockwise
        picture.save(file, exif=exif)
    np.testing.assert_array_equal(read(tmp_path).images, GIVEN.images)
    Image.fromarray(np.rot90(GIVEN.images[0])).save(tmp_path / "images" / "v000.png")
    with pytest.raises(UserError, match=r"v000\.png is 12x16 and its camera 16x12"):
        read(tmp_path)


def test_poses_of_three_decimals_are_rotations(tmp_path):
    poses = GIVEN.cameras.camera_to_world
    write_transforms(tmp_path, replace(GIVEN, cameras=replace(GIVEN.cameras, camera_to_world=poses.round(3))))
    back = read(tmp_path).cameras.camera_to_world
    np.testing.assert_allclose(back, poses, atol=2e-3)
    np.testing.assert_allclose(
        back[:, :3, :3] @ back[:, :3, :3].transpose(0, 2, 1), np.tile(np.eye(3), (4, 1, 1)), atol=1e-12
    )


@pytest.mark.parametrize("observations", ["\n", "", "5.5 6.5 9 7 8 -1\n"])
def test_a_text_model_need_not_agree_on_its_observations(tmp_path, observations):
    """Other programs write points with tracks into images without observations, or leave the empty lines out."""
    points = "# error of -1: unknown\n7 1 2 3 300 -5 30.6 -1 1 0 2 5\n"
    model = posed_by_colmap(tmp_path, ["0.png", "1.png", "2.png"], points)
    text = (model / "images.txt").read_text()
    (model / "images.txt").write_text(text.replace("\n\n", f"\n{observations}"))
    for k in range(3):
        grey(k, tmp_path / "images" / f"{k}.png")
    dataset = read(tmp_path)
    assert dataset.names == ("0.png", "1.png", "2.png")
    np.testing.assert_allclose(dataset.cameras.centres, [[-1, 0, 0], [-2, 0, 0], [-3, 0, 0]])
    assert dataset.points is not None and dataset.points.positions.tolist() == [[1, 2, 3]]
    assert dataset.points.colours.tolist() == [[255, 0, 31]]


@pytest.mark.parametrize(
    ("file", "line", "says"),
    [
        ("images.txt", "1 nan 0 0 0 0 0 0 1 0.png\n\n", "images.txt: line 1 has 'nan'"),
        ("images.txt", "1 0 0 0 0 0 0 0 1 0.png\n\n", "0.png has no rotation"),
        ("images.txt", "1 1 0 0\n\n", "line 1 has 4 words"),
        ("points3D.txt", "\n1 0 inf 0 1 2 3 -1\n", "points3D.txt: line 2 has 'inf'"),
        ("cameras.txt", "1 FOV 16 12 20 20 8 6 0.1\n", "camera model FOV"),
        ("cameras.txt", "1 SIMPLE_PINHOLE 16 12 -20 8 6\n", "not above 0"),
    ],
)
def test_a_wrong_number_of_a_text_model_is_named(tmp_path, file, line, says):
    (posed_by_colmap(tmp_path, ["0.png", "1.png"]) / file).write_text(line)
    with pytest.raises(UserError) as refused:
        read(tmp_path)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_a_model_without_images_is_refused_by_that(tmp_path):
    (posed_by_colmap(tmp_path, []) / "images.txt").unlink()
    with pytest.raises(UserError, match=r"has no images\.txt"):
        read(tmp_path)
