"""Scenes as others' programs write them: masks, images, names, seeds and entries that once went wrong in silence."""

import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import make_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.scenes import dataset_of, ring, write_colmap

from v2edit.errors import UserError
from v2edit.jobs.prompts import source_prompt_beside_scene
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.formats.nerfstudio import write_transforms
from v2edit.scenes.formats.ply import write_points
from v2edit.scenes.gaussians import PARAMETERS
from v2edit.scenes.reading import choose_path, fingerprint, is_unchanged, read_scene


@pytest.fixture
def fault(data: Path, tmp_path: Path) -> Callable[[str], Path]:
    def unpack(name: str) -> Path:
        with tarfile.open(data / "faults" / f"{name}.tgz") as archive:
            archive.extractall(tmp_path, filter="data")
        return tmp_path / name

    return unpack


def read(folder: Path) -> Dataset:
    dataset = read_scene(folder).dataset
    assert dataset is not None
    return dataset


def change(folder: Path, facts: dict, frames: Sequence[dict] = ()) -> None:
    """Change what transforms.json says of all its frames, and of each."""
    old = json.loads((folder / "transforms.json").read_text()) | facts
    for frame, changed in zip(old["frames"], frames, strict=False):
        frame.update(changed)
    (folder / "transforms.json").write_text(json.dumps(old))


def nerfstudio_mask(path: Path) -> np.ndarray:
    """nerfstudio's `get_image_mask_tensor_from_path`: what is not 0 is kept, of a palette by its indices."""
    return np.array(Image.open(path)).astype(bool)


@pytest.mark.parametrize("name", ["s_mask01", "s_mask_palette"])
def test_masks_of_others_keep_what_is_not_0(fault, name):
    folder = fault(name)
    dataset = read(folder)
    kept = np.stack([nerfstudio_mask(file) for file in sorted((folder / "masks").iterdir())])
    assert kept.all() and dataset.masks is None  # everywhere valid


@pytest.mark.parametrize("kind", ["1", "L", "P", "I;16", "I", "F", "RGB", "LA", "RGBA"])
def test_masks_of_each_kind_of_image(tmp_path, kind):
    dataset = dataset_of(ring(4))
    write_transforms(tmp_path, dataset)
    (tmp_path / "masks").mkdir()
    low = np.random.default_rng(0).integers(0, 3, (4, 12, 16)).astype(np.uint8)  # 0, 1, 2: all dark, one masked out
    for k, values in enumerate(low):
        single = {"I;16": np.uint16, "I": np.int32, "F": np.float32}.get(kind)
        picture = Image.fromarray(values.astype(single)) if single else Image.fromarray(values)
        if kind == "1":
            picture = Image.fromarray(values > 0)
        if kind == "P":
            picture.putpalette([255, 255, 255, 0, 0, 0, 0, 255, 0])  # white: what index 0 looks like does not count
        if len(kind.rstrip("16;")) > 1:
            picture = picture.convert(kind)
        picture.save(tmp_path / "masks" / f"{k}.tiff")
    change(tmp_path, {}, [{"mask_path": f"masks/{k}.tiff"} for k in range(4)])
    np.testing.assert_array_equal(read(tmp_path).masks, low > 0)


def test_views_without_a_valid_pixel_are_named(tmp_path, caplog):
    dataset = dataset_of(ring(4), masks=True)
    assert dataset.masks is not None
    dataset.masks[2] = False
    write_transforms(tmp_path, replace(dataset, is_held_out=np.zeros(4, bool)))
    read(tmp_path)
    assert ["1 of 4 views" in line and "v002.png" in line for line in caplog.messages] == [True]
    for file in (tmp_path / "masks").iterdir():
        Image.new("L", (16, 12)).save(file)
    with pytest.raises(UserError, match="leave no pixel to train on"):
        read(tmp_path)


def test_deep_grey_images_keep_their_levels(fault):
    folder = fault("s_gray16")
    expected = [np.array(Image.open(file)) >> 8 for file in sorted((folder / "images").iterdir())]
    images = read(folder).images
    np.testing.assert_array_equal(images, np.repeat(np.stack(expected)[..., None], 3, axis=3))


def test_transparent_pixels_are_masked_whatever_the_format(fault, tmp_path):
    folder = fault("s_webpa")
    expected = [np.array(Image.open(file))[..., 3] > 127 for file in sorted((folder / "images").iterdir())]
    np.testing.assert_array_equal(read(folder).masks, np.stack(expected))
    write_transforms(tmp_path, dataset_of(ring(3)))
    cut = np.zeros((12, 16, 4), np.uint8)
    cut[:, 5:, 3] = 255
    for end in ("tif", "png"):
        for k in range(3):
            Image.fromarray(cut).save(tmp_path / "images" / f"v{k:03d}.{end}")
        change(tmp_path, {}, [{"file_path": f"images/v{k:03d}.{end}"} for k in range(3)])
        np.testing.assert_array_equal(read(tmp_path).masks, np.repeat(cut[None, ..., 3] > 0, 3, axis=0))


def test_views_are_in_natural_order(fault, tmp_path):
    assert [Path(name).stem for name in read(fault("s_unpadded")).names] == [f"frame_{k}" for k in range(12)]
    names = [f"rig{a}/f{k}.png" for a in (2, 10) for k in (1, 9, 10)]
    dataset = replace(dataset_of(ring(6)), names=tuple(names))
    (tmp_path / "colmap").mkdir()
    write_colmap(tmp_path / "colmap", dataset, "PINHOLE", [20.0, 21.0, 8.2, 5.9])
    assert read(tmp_path / "colmap").names == dataset.names


@settings(max_examples=20)
@given(st.permutations(range(12)), st.sampled_from(["{}", "a_{}", "{}b", "v1/{}"]))
def test_the_order_in_a_file_does_not_matter(tmp_path_factory, order, pattern):
    from v2edit.scenes.formats.nerfstudio import read_transforms

    folder = tmp_path_factory.mktemp("order")
    Image.new("RGB", (2, 2)).save(folder / "one.png")
    facts = {"w": 2, "h": 2, "fl_x": 2.0, "frames": []}
    for k in order:
        image = folder / f"{pattern.format(k)}.png"
        image.parent.mkdir(exist_ok=True)
        image.hardlink_to(folder / "one.png")
        facts["frames"].append({"file_path": str(image.relative_to(folder)), "transform_matrix": np.eye(4).tolist()})
    (folder / "transforms.json").write_text(json.dumps(facts))
    assert read_transforms(folder / "transforms.json").names == tuple(f"{pattern.format(k)}.png" for k in range(12))


def test_colmap_names_have_blanks_in_text_as_in_binary(fault, tmp_path):
    assert read(fault("c_spacetxt")).names == tuple(f"my photo ({k:02}).png" for k in range(12))
    names = tuple(f"a  b {k} c.png" for k in range(3))
    write_colmap(tmp_path / "two", replace(dataset_of(ring(3)), names=names), "PINHOLE", [20.0, 21.0, 8.2, 5.9])
    binary = read(tmp_path / "two")
    model = tmp_path / "two" / "sparse" / "0"
    pycolmap.Reconstruction(str(model)).write_text(str(model))
    for file in model.glob("*.bin"):
        file.unlink()
    assert binary.names == read(tmp_path / "two").names == names


def test_of_several_colmap_models_the_largest_is_read(fault, caplog):
    folder = fault("c_sub1")
    assert len(read(folder)) == 12
    (line,) = caplog.messages
    assert "2 models: taking 1" in line and "0: 3" in line
    caplog.clear()
    (folder / "sparse" / "0").rename(folder / "sparse" / "10")
    assert len(read(folder)) == 12 and "taking 1," in caplog.text
    caplog.clear()
    (folder / "sparse" / "1").rename(folder / "1")
    assert len(read(folder)) == 3 and not caplog.records


@pytest.mark.parametrize("text", [False, True])
def test_a_colmap_model_needs_no_points(fault, text):
    folder = fault("c_nopts")
    model = folder / "sparse" / "0"
    if text:
        (model / "points3D.bin").write_bytes(bytes(8))
        pycolmap.Reconstruction(str(model)).write_text(str(model))
        for file in [*model.glob("*.bin"), model / "points3D.txt"]:
            file.unlink()
    dataset = read(folder)
    assert len(dataset) == 12 and dataset.points is None


def test_seed_points_may_have_faces(fault, tmp_path):
    points = read(fault("s_face0")).points
    assert points is not None and points.positions.tolist() == [[0, 0, 0], [1, 1, 1]]
    dataset = dataset_of(ring(3))
    write_transforms(tmp_path, dataset)
    assert dataset.points is not None
    file = write_points(tmp_path / "sparse_pc.ply", dataset.points)
    head, body = file.read_bytes().split(b"end_header\n", 1)
    faces = b"element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    file.write_bytes(head + faces + body + b"\x03" + np.arange(3, dtype="<i4").tobytes())
    back = read(tmp_path).points
    assert back is not None
    np.testing.assert_array_equal(back.positions, dataset.points.positions)


NULLS = ["fl_y", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "w", "h", "camera_model", "is_fisheye", "ply_file_path"]
NULLS += ["applied_transform", "train_filenames", "val_filenames", "camera_angle_x"]


def test_an_entry_that_is_null_is_none(fault, tmp_path):
    matrix = read(fault("s_nulls")).cameras.intrinsics[0]
    np.testing.assert_allclose(matrix, [[131.8789161, 0, 48], [0, 131.8789161, 48], [0, 0, 1]])
    write_transforms(tmp_path, dataset_of(ring(6)))
    file = tmp_path / "transforms.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in facts.items() if key not in NULLS}))
    without = read(tmp_path)
    change(tmp_path, dict.fromkeys(NULLS), [{"mask_path": None}] * 6)
    nulls = read(tmp_path)
    np.testing.assert_array_equal(nulls.cameras.intrinsics, without.cameras.intrinsics)
    np.testing.assert_array_equal(nulls.images, without.images)
    change(tmp_path, {}, [{"transform_matrix": None}])
    with pytest.raises(UserError, match="has no pose"):
        read(tmp_path)


@pytest.mark.parametrize("written", [True, 1, "true", "True"])
@pytest.mark.parametrize("per_frame", [False, True])
def test_is_fisheye_is_opencvs_fisheye(fault, per_frame, written):
    """instant-ngp's word for a lens, as its colmap2nerf.py writes it."""
    folder = fault("s_isfish")
    own = {"is_fisheye": written}
    change(folder, *(({"is_fisheye": 0}, [own] * 12) if per_frame else (own,)))
    images = read(folder).images
    change(folder, {"camera_model": "opencv_fisheye"})
    np.testing.assert_array_equal(images, read(folder).images)
    change(folder, {"camera_model": "OPENCV", "is_fisheye": False}, [{"is_fisheye": False}] * 12)
    assert (images != read(folder).images).any()
    change(folder, {}, [{"is_fisheye": "perhaps"}])
    with pytest.raises(UserError, match="expected true or false"):
        read(folder)


@pytest.mark.parametrize("side", [None, 12])
def test_images_that_are_read_much_smaller_are_noted(tmp_path, caplog, side):
    write_transforms(tmp_path, dataset_of(ring(3, height=24, width=32)))
    assert read_scene(tmp_path, side=side).dataset is not None
    assert ["32x24" in line and "12x9" in line for line in caplog.messages] == ([] if side is None else [True])


@pytest.mark.parametrize("given", ["room", "room/transforms.json", "room.ply", "linked", "."])
def test_only_what_belongs_to_a_scene_says_what_it_shows(tmp_path, monkeypatch, given):
    """A stranger's file beside a scene may be about anything: a video of the same name, a download's metadata."""
    (tmp_path / "room").mkdir()
    write_transforms(tmp_path / "room", dataset_of(ring(3)))
    (tmp_path / "linked").symlink_to("room")
    (tmp_path / "room.ply").touch()
    for name in ("room.json", "linked.json", "room/room.json", "room/transforms.json.json", f"{tmp_path.name}.json"):
        (tmp_path / name).write_text(json.dumps({"source_prompt": "a stranger"}))
    monkeypatch.chdir(tmp_path / "room" if given == "." else tmp_path)
    assert source_prompt_beside_scene(Path(given)) is None
    (tmp_path / "room" / "scene.json").write_text(json.dumps({"source_prompt": "a room"}))
    assert source_prompt_beside_scene(Path(given)) == (None if given == "room.ply" else "a room")


@pytest.mark.parametrize(("name", "says"), [("s_maskmissing", "12 of 12 masks"), ("s_plymissing", "nope.ply")])
def test_files_that_are_named_and_missing_are_noted(fault, caplog, name, says):
    assert len(read(fault(name))) == 12
    assert [says in line and "missing" in line for line in caplog.messages] == [True]


def test_a_splat_of_before_it_could_be_antialiased_is_unchanged(data):
    """A run begun then has a checksum of the five parameters; Gaussians that differ, or are antialiased, are others."""
    scene = read_scene(data / "scenes" / "tiny.ply")
    assert scene.splat is not None
    path = choose_path("orbit", scene, 4, 32)
    before = make_dataclass("Before", PARAMETERS)(**scene.splat.gaussians.tensors())
    recorded = fingerprint(cast(Any, SimpleNamespace(dataset=None, gaussians=before)), path)
    gaussians = scene.splat.gaussians
    others = replace(gaussians, antialiased=True), replace(gaussians, means=gaussians.means + 1)
    assert recorded != fingerprint(scene, path) and is_unchanged(scene, path, recorded)
    assert is_unchanged(scene, path, fingerprint(scene, path))
    for other in others:
        assert not is_unchanged(replace(scene, splat=replace(scene.splat, gaussians=other)), path, recorded)
