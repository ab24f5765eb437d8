"""Scenes in and out: what is written comes back, conventions meet, and bad input is refused in one line."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.scenes import cameras_of, dataset_of, gaussians_of, ring, write_colmap

from v2edit.errors import UserError
from v2edit.scenes.camera_paths import (
    read_path,
)
from v2edit.scenes.cameras import focus_of, from_opencv, up_of
from v2edit.scenes.distortion import Distortion, sample_bilinear, undistort
from v2edit.scenes.formats.colmap import MODELS
from v2edit.scenes.formats.nerfstudio import file_names, write_transforms
from v2edit.scenes.formats.ply import read_points
from v2edit.scenes.formats.splats import read_splat, write_splat
from v2edit.scenes.reading import read_scene
from v2edit.video.stills import natural_key


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_a_dataset_comes_back_from_transforms_json(tmp_path, masks, shared):
    cameras = ring(10)
    if not shared:
        cameras = replace(cameras, intrinsics=cameras.intrinsics * np.linspace(1, 1.5, 10)[:, None, None])
        cameras.intrinsics[:, 2, 2] = 1
    given_in = dataset_of(cameras, masks=masks)
    write_transforms(tmp_path, given_in)
    back = read_scene(tmp_path).dataset
    assert back is not None and back.names == given_in.names and back.applied is not None
    assert back.points is not None and given_in.points is not None
    np.testing.assert_array_equal(back.images, given_in.images)
    np.testing.assert_array_equal(back.is_held_out, given_in.is_held_out)
    np.testing.assert_allclose(back.cameras.intrinsics, cameras.intrinsics, rtol=0, atol=1e-6)
    np.testing.assert_allclose(back.cameras.camera_to_world, cameras.camera_to_world, rtol=0, atol=1e-6)
    np.testing.assert_allclose(back.points.positions, given_in.points.positions, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(back.points.colours, given_in.points.colours)
    np.testing.assert_allclose(back.applied, given_in.applied, rtol=0, atol=1e-6)
    assert (back.masks is None) == (not masks)
    if masks:
        np.testing.assert_array_equal(back.masks, given_in.masks)


def test_views_of_several_cameras_keep_their_names_apart_and_their_order(tmp_path):
    names = [f"rig/cam{camera}/{k:03d}.jpg" for camera in (1, 0) for k in range(5)]
    given_in = replace(dataset_of(ring(10)), names=tuple(names))
    write_transforms(tmp_path, given_in)
    back = read_scene(tmp_path).dataset
    assert back is not None
    np.testing.assert_array_equal(back.images, given_in.images)
    np.testing.assert_array_equal(back.is_held_out, given_in.is_held_out)


@given(st.lists(st.text(st.sampled_from("aAb/._- 0é"), min_size=1, max_size=5), max_size=6))
def test_file_names_are_plain_apart_and_in_order(names):
    made = file_names(names)
    assert len({name.lower() for name in made}) == len(names)
    assert sorted((f"{name}.png" for name in made), key=natural_key) == [f"{name}.png" for name in made]
    assert not any({"/", " "} & set(name) or name.startswith(".") for name in made)


def test_a_split_is_found_however_its_names_are_written(tmp_path):
    given_in = dataset_of(ring(10))
    path = write_transforms(tmp_path, given_in)
    facts = json.loads(path.read_text())
    for key in ("val_filenames", "test_filenames"):
        facts[key] = [f"./{name}" for name in facts[key]]
    path.write_text(json.dumps(facts))
    back = read_scene(tmp_path).dataset
    assert back is not None and given_in.is_held_out.any()
    np.testing.assert_array_equal(back.is_held_out, given_in.is_held_out)


def test_pictures_are_taken_as_they_are_stored(tmp_path):
    """COLMAP and nerfstudio pose the pixels of a file, whatever its EXIF tag says of how it was held."""
    given_in = dataset_of(ring(3))
    write_transforms(tmp_path, given_in)
    for file, image in zip(sorted((tmp_path / "images").iterdir()), given_in.images, strict=True):
        picture = Image.fromarray(image)
        exif = picture.getexif()
        exif[0x0112] = 3  # upside down
        picture.save(file, exif=exif)
    back = read_scene(tmp_path).dataset
    assert back is not None
    np.testing.assert_array_equal(back.images, given_in.images)


def test_a_dataset_comes_back_from_colmap(tmp_path):
    given_in = dataset_of(ring(10))
    write_colmap(tmp_path, given_in, "PINHOLE", [20.0, 21.0, 8.2, 5.9])
    back = read_scene(tmp_path).dataset
    assert back is not None and back.points is not None and given_in.points is not None
    assert list(np.nonzero(back.is_held_out)[0]) == [4]
    np.testing.assert_array_equal(back.images, given_in.images)
    np.testing.assert_allclose(back.cameras.intrinsics, given_in.cameras.intrinsics, rtol=0, atol=1e-6)
    np.testing.assert_allclose(back.cameras.camera_to_world, given_in.cameras.camera_to_world, rtol=0, atol=1e-6)
    positions, expected = (one[np.lexsort(one.T)] for one in (back.points.positions, given_in.points.positions))
    np.testing.assert_allclose(positions, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "bends"),
    [
        ("SIMPLE_RADIAL", [0.1]),
        ("OPENCV", [0.1, -0.05, 0.02, -0.01]),
        ("OPENCV_FISHEYE", [0.1, -0.05, 0.02, -0.01]),
        ("FULL_OPENCV", [0.1, -0.05, 0.02, -0.01, 0.03, 0.2, -0.1, 0.04]),
    ],
)
def test_distortion_is_colmaps_own(model, bends):
    """Our formula against COLMAP's projection, point by point."""
    focal = [300.0] if model.startswith("SIMPLE") else [300.0, 310.0]
    camera = pycolmap.Camera(model=model, width=400, height=300, params=[*focal, 210.0, 140.0, *bends])
    ours = Distortion(**dict(zip(MODELS[model], bends, strict=True)), fisheye="FISHEYE" in model)
    xy = np.random.default_rng(0).uniform(-0.6, 0.6, (50, 2))
    theirs = camera.img_from_cam(np.concatenate([xy, np.ones((50, 1))], axis=1))
    u, v = ours.distort(xy[:, 0], xy[:, 1])
    np.testing.assert_allclose(np.stack([u * focal[0] + 210, v * focal[-1] + 140], axis=1), theirs, atol=1e-9)


def test_an_undistorted_image_shows_what_a_pinhole_sees():
    """A smooth pattern painted through a distorting lens, read back, is the pattern painted through a pinhole."""
    lens, matrix = Distortion(k1=-0.2, k2=0.05, p1=0.01), np.array([[60.0, 0, 40], [0, 60, 30], [0, 0, 1]])

    def pattern(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.stack([128 + 100 * np.sin(3 * x), 128 + 100 * np.cos(4 * y), 128 + 90 * x * y], axis=-1)

    columns, rows = np.meshgrid(np.arange(80) + 0.5, np.arange(60) + 0.5)
    x, y = (columns - 40) / 60, (rows - 30) / 60
    bent = np.stack([x, y])  # where the ray of each pixel of the distorted image really goes: found by iteration
    for _ in range(50):
        bent = bent + np.stack([x, y]) - np.stack(lens.distort(*bent))
    painted = np.round(pattern(*bent)).astype(np.uint8)
    image, inside = undistort(painted, matrix, lens)
    assert inside.mean() > 0.5
    assert np.abs(image.astype(float) - pattern(x, y))[inside].max() < 4


def test_nothing_is_shown_where_a_lens_turns_back():
    """r (1 + k1 r^2) falls beyond 1 / sqrt(-3 k1): rays from there would show what is nearer to the centre."""
    matrix = np.array([[20.0, 0, 40], [0, 20, 30], [0, 0, 1]])
    _, inside = undistort(np.zeros((60, 80, 3), np.uint8), matrix, Distortion(k1=-0.4))
    columns, rows = np.meshgrid(np.arange(80) + 0.5, np.arange(60) + 0.5)
    radii, fold = np.hypot((columns - 40) / 20, (rows - 30) / 20), 1 / np.sqrt(1.2)
    assert inside[radii < 0.99 * fold].all() and not inside[radii > 1.01 * fold].any()


def test_a_wild_lens_shows_the_little_it_can():
    """Where the polynomial leaves the numbers, nothing is shown; the centre of the image stays where it is."""
    matrix = np.array([[60.0, 0, 40.5], [0, 60, 30.5], [0, 0, 1]])
    painted = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    for lens in (Distortion(k1=1e308, k2=-1e308), Distortion(k4=1e300, fisheye=True), Distortion(p1=1e307, p2=-1e307)):
        image, inside = undistort(painted, matrix, lens)
        assert inside[30, 40] and not inside[0, 0]
        np.testing.assert_array_equal(image[30, 40], painted[30, 40])


def test_a_lens_that_is_none_is_refused(tmp_path):
    write_transforms(tmp_path, dataset_of(ring(6, height=24, width=32)))
    file = tmp_path / "transforms.json"
    transforms = json.loads(file.read_text())
    for bend, why in ((float("nan"), "expected a number"), (1e8, "leaves nothing of it")):
        file.write_text(json.dumps(transforms | {"k1": bend, "k2": bend}))
        with pytest.raises(UserError, match=why):
            read_scene(tmp_path)


def test_bilinear_keeps_the_pixels_themselves():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    columns, rows = np.meshgrid(np.arange(7) + 0.5, np.arange(5) + 0.5)
    np.testing.assert_array_equal(sample_bilinear(image, columns, rows), image)


def test_images_are_made_smaller_with_their_cameras(tmp_path):
    write_transforms(tmp_path, dataset_of(ring(6, height=24, width=32)))
    small = read_scene(tmp_path, side=16).dataset
    assert small is not None and small.images.shape == (6, 12, 16, 3)
    np.testing.assert_allclose(small.cameras.intrinsics[0], [[10, 0, 4.1], [0, 10.5, 2.95], [0, 0, 1]])


@given(st.integers(0, 10**6))
def test_poses_between_opengl_and_opencv(seed):
    cameras = cameras_of(seed, 3)
    np.testing.assert_allclose(from_opencv(cameras.world_to_camera), cameras.camera_to_world, atol=1e-9)
    # What a camera looks at is before it, and what is above is up in the image.
    ahead = cameras.world_to_camera @ np.append(np.zeros(3), 1)
    np.testing.assert_allclose(ahead[:, :3], [[0, 0, 4]] * 3, atol=1e-9)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_splat_comes_back(tmp_path, degree):
    scene = gaussians_of(degree, 20, degree)
    back = read_splat(write_splat(tmp_path / "scene.ply", scene))
    for name, one in scene.tensors().items():
        torch.testing.assert_close(getattr(back, name), one, rtol=0, atol=1e-6)


def test_higher_harmonics_are_channel_major_in_the_file(tmp_path):
    """All of red's, then green's, then blue's, as every viewer expects them."""
    from plyfile import PlyData

    scene = gaussians_of(0, 5, 2)
    vertex = PlyData.read(str(write_splat(tmp_path / "scene.ply", scene)))["vertex"]
    np.testing.assert_array_equal(vertex["f_rest_0"], scene.sh[:, 1, 0])
    np.testing.assert_array_equal(vertex["f_rest_8"], scene.sh[:, 1, 1])
    np.testing.assert_array_equal(vertex["f_rest_16"], scene.sh[:, 1, 2])


def test_real_scenes_are_read(data):
    for name in ("dinosaur", "stone_horse"):
        found = read_scene(data / "scenes" / name, side=32).dataset
        assert found is not None and len(found) > 80 and found.points is not None
        # The sparse points lie where the cameras look: their coordinates are the poses'.
        view = found.cameras.world_to_camera[0]
        ahead = found.points.positions @ view[:3, :3].T + view[:3, 3]
        assert (ahead[:, 2] > 0).mean() > 0.8
        (path_file,) = (data / "scenes" / name / "camera_paths").iterdir()
        path = read_path(path_file, found.cameras.camera_to_world, found.applied).cameras
        to_focus = focus_of(found.cameras) - path.centres
        to_focus /= np.linalg.norm(to_focus, axis=1, keepdims=True)
        assert ((to_focus * path.directions).sum(1) > 0.99).all() and up_of(path) @ up_of(found.cameras) > 0.9
    assert len(read_splat(data / "scenes" / "guitar.ply")) == 80_000


# Bad input: what is done to a good dataset, and what the one line must say.


def edited(change: Callable[[dict], object]) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        path = folder / "transforms.json"
        facts = json.loads(path.read_text())
        change(facts)
        path.write_text(json.dumps(facts))
        return folder

    return spoil


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return spoil


def other_size(folder: Path) -> Path:
    Image.new("RGB", (32, 24)).save(folder / "images" / "v001.png")
    return folder


def turned_mask(folder: Path) -> Path:
    Image.new("L", (12, 16), 255).save(folder / "mask.png")
    return edited(lambda facts: facts["frames"][3].update(mask_path="mask.png"))(folder)


def broken_image(folder: Path) -> Path:
    (folder / "images" / "v001.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


class Dangerous:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return __import__, ("this_would_have_been_run",)


def header(text: str) -> bytes:
    return f"ply\nformat binary_little_endian 1.0\n{text}\nend_header\n".encode()


COLUMNS = "x y z f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
SPLAT = "\n".join(f"property float {name}" for name in COLUMNS.split())
MISTAKES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nowhere": (lambda folder: folder / "nowhere", "no such scene"),
    "an empty folder": (lambda folder: folder / "images", "expected a folder with transforms.json"),
    "no frames": (edited(lambda facts: facts.update(frames=[])), "lists no frames"),
    "no pose": (edited(lambda facts: facts["frames"][3].pop("transform_matrix")), "has no pose"),
    "a pose of letters": (edited(lambda facts: facts["frames"][3].update(transform_matrix="abc")), "no 4x4 matrix"),
    "a singular pose": (
        edited(lambda facts: facts["frames"][3]["transform_matrix"].__setitem__(0, [0, 0, 0, 0])),
        "no rotation and translation",
    ),
    "a pose with NaN": (
        edited(lambda facts: facts["frames"][3]["transform_matrix"].__setitem__(0, [float("nan"), 0, 0, 0])),
        "finite numbers",
    ),
    "a scaled pose": (
        edited(lambda facts: facts["frames"][3].update(transform_matrix=np.diag([2.0, 2, 2, 1]).tolist())),
        "axes of lengths 2, 2, 2",
    ),
    "a flat applied_transform": (
        edited(lambda facts: facts.update(applied_transform=np.zeros((4, 4)).tolist())),
        "applied_transform cannot be undone",
    ),
    "a focal length in widths": (edited(lambda facts: facts.update(fl_x=0.6, fl_y=0.6)), "expected pixels of its"),
    "a width of true": (edited(lambda facts: facts.update(w=True)), "w is True, expected a number"),
    "no focal length": (edited(lambda facts: facts.pop("fl_x")), "has no focal length"),
    "a negative focal length": (edited(lambda facts: facts.update(fl_x=-3.0)), "not above 0"),
    "an unknown camera": (edited(lambda facts: facts.update(camera_model="EQUIRECTANGULAR")), "EQUIRECTANGULAR"),
    "one view": (edited(lambda facts: facts.update(frames=facts["frames"][:1])), "has 1 view: a scene takes two"),
    "images of different sizes": (other_size, "have 2 sizes (16x12, 32x24)"),
    "a mask of another aspect": (turned_mask, "mask.png is 12x16 and its image 16x12"),
    "a broken image": (broken_image, "not an image"),
    "no JSON": (written("transforms.json", b"{ nope"), "is no JSON"),
    "a pickle": (written("model.ckpt", pickle.dumps(Dangerous())), "is not opened"),
    "a pickle called .ply": (written("model.ply", pickle.dumps(Dangerous())), "is no PLY file"),
    "nerfstudio's config": (written("config.yml", b"!!python/object/apply:os.system [true]"), "is not opened"),
    "a PLY that claims 2 GB": (
        written("huge.ply", header(f"element vertex 40000000\n{SPLAT}") + b"\0" * 560),
        "says it holds 2,240,000,000 bytes and has 560",
    ),
    "a PLY of points": (written("points.ply", header("element vertex 0\nproperty float x")), "no Gaussian splat"),
    "a PLY of NaNs": (
        written("nan.ply", header(f"element vertex 2\n{SPLAT}") + np.full(28, np.nan, np.float32).tobytes()),
        "holds no Gaussian that can be used",
    ),
    "a PLY of nonsense": (written("odd.ply", header("element vertex -5\nproperty float x")), "makes no sense"),
    "a PLY without an end": (written("endless.ply", b"ply\nformat ascii 1.0\n" + b"comment\n" * 10), "no end"),
    "some other file": (written("notes.txt", b"hello"), "is no scene"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_input_is_refused_in_one_line(mistake, tmp_path):
    write_transforms(tmp_path, dataset_of(ring(10)))
    spoil, says = MISTAKES[mistake]
    with pytest.raises(UserError) as refused:
        read_scene(spoil(tmp_path))
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_a_broken_colmap_model_is_refused_in_one_line(tmp_path):
    write_colmap(tmp_path, dataset_of(ring(10)), "PINHOLE", [20.0, 21.0, 8.2, 5.9])
    model = tmp_path / "sparse" / "0" / "images.bin"
    model.write_bytes(model.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot read the COLMAP model") as refused:
        read_scene(tmp_path)
    assert "\n" not in str(refused.value)


def test_missing_images_are_skipped_with_a_note(tmp_path, caplog):
    write_transforms(tmp_path, dataset_of(ring(10)))
    (tmp_path / "images" / "v002.png").unlink()
    found = read_scene(tmp_path).dataset
    assert found is not None and len(found) == 9 and "images/v002.png" not in found.names
    assert [record.message for record in caplog.records] == [
        f"1 of 10 images of {tmp_path / 'transforms.json'} are missing: v002.png"
    ]


def test_points_that_are_no_numbers_are_left_out_with_a_note(tmp_path, caplog):
    path = tmp_path / "points.ply"
    kinds = "".join(f"property double {axis}\n" for axis in "xyz").rstrip()
    path.write_bytes(header(f"element vertex 2\n{kinds}") + np.array([1, 2, 3, np.nan, 5, np.inf]).tobytes())
    found = read_points(path)
    assert found is not None and found.positions.tolist() == [[1, 2, 3]] and "1 of 2 points" in caplog.text
