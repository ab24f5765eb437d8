"""A mask painted over one view of a scene: what it selects in space, as seen from elsewhere, and what it leaves."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.scenes import UP, ball, ring, surface

from v2edit.cli.app import main
from v2edit.errors import UserError
from v2edit.jobs.regions import RegionOptions, load_region, save_region
from v2edit.scenes.cameras import Cameras, look_at
from v2edit.scenes.distortion import Distortion
from v2edit.scenes.formats.splats import read_splat, write_splat
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.masks import weights_on
from v2edit.scenes.painting import Chosen, Painted, choose_painted, select_painted
from v2edit.scenes.primitives import write_task
from v2edit.scenes.rasterise import render
from v2edit.scenes.reading import read_scene
from v2edit.scenes.regions import Region, shown_share

SIDE = 48
RED, BLUE, GREY = (0.8, 0.2, 0.1), (0.1, 0.2, 0.8), (0.5, 0.5, 0.5)
BALLS = {"red": ((1.0, 2.0, 0.5), RED), "blue": ((1.0, 3.3, 0.5), BLUE)}


@pytest.fixture(scope="module")
def parts() -> tuple[Gaussians, torch.Tensor, Cameras]:
    """Two balls on a floor, which of them each Gaussian belongs to (2: the floor), and cameras around the red one; the
    blue one is behind it from the side, at 270 degrees."""
    x, y = np.meshgrid(np.linspace(-1.5, 3.5, 60), np.linspace(-0.5, 5, 66))
    floor = surface(np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], 1), GREY, 0.06)
    balls = [ball(*one) for one in BALLS.values()]
    owner = torch.cat([torch.full((len(one),), k) for k, one in enumerate([*balls, floor])])
    scene = balls[0].joined(balls[1]).joined(floor)
    ring_ = ring(8, height=SIDE, width=SIDE)
    matrix = np.array([[60.0, 0, SIDE / 2], [0, 60, SIDE / 2], [0, 0, 1]])
    return scene, owner, Cameras(np.tile(matrix, (8, 1, 1)), ring_.camera_to_world, SIDE, SIDE)


def true_masks(scene: Gaussians, owner: torch.Tensor, which: int, cameras: Cameras) -> np.ndarray:
    return shown_share(scene, owner == which, cameras, 0.5)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float(((one > 0) & (other > 0)).sum() / ((one > 0) | (other > 0)).sum())


@pytest.mark.parametrize(("which", "view"), [(0, 0), (0, 3), (0, 6), (1, 0), (1, 4)])
def test_a_ball_painted_from_one_side_is_selected_all_around(parts, which, view):
    scene, owner, cameras = parts
    true = true_masks(scene, owner, which, cameras)
    assert true[view].sum() > 40
    within = select_painted(scene, Painted(true[view], cameras[[view]]))
    assert within[owner == which].float().mean() > 0.85
    assert within[owner != which].float().mean() < 0.03  # neither the floor nor what is behind it
    seen = shown_share(scene, within, cameras, 0.5)
    overlaps = [overlap(seen[k], true[k]) for k in range(len(cameras)) if true[k].sum() > 40]
    assert len(overlaps) >= 6 and min(overlaps) > 0.8


def test_a_mask_over_everything_selects_all_that_is_visible(parts):
    scene, _, cameras = parts
    everything = np.ones((SIDE, SIDE), np.float32)
    within = select_painted(scene, Painted(everything, cameras[[0]]))
    inside, total = weights_on(scene, cameras[[0]], torch.ones(1, SIDE, SIDE), torch.ones(1, SIDE, SIDE))
    image = render(scene, cameras[[0]])
    assert within[total > 0.5].float().mean() > 0.98 and (inside == total).all()
    shown = shown_share(scene, within, cameras[[0]], 0.5)[0]
    assert shown[image.alphas[0].numpy() > 0.9].mean() > 0.98


def test_a_wall_behind_what_is_painted_is_not_selected(parts):
    """Of the same colour, even: it is another part of the scene, a good way behind."""
    scene, owner, cameras = parts
    y, z = np.meshgrid(np.linspace(-0.5, 4.5, 60), np.linspace(0, 2, 30))
    wall = surface(np.stack([np.full(y.size, -1.5), y.ravel(), z.ravel()], 1), RED, 0.06)
    joined = scene.joined(wall)
    whose = torch.cat([owner, torch.full((len(wall),), 3)])
    front = look_at(np.array([[4.0, 2.0, 0.9]]), np.array([1.0, 2, 0.5]), UP)
    camera = Cameras(cameras.intrinsics[:1], front, SIDE, SIDE)
    within = select_painted(joined, Painted(true_masks(joined, whose, 0, camera)[0], camera))
    assert within[whose == 0].float().mean() > 0.85 and within[whose == 3].float().mean() < 0.03


def test_what_is_new_is_within_where_it_is_near_to_what_was_chosen(parts):
    scene, owner, cameras = parts
    chosen = choose_painted(scene, Painted(true_masks(scene, owner, 0, cameras)[0], cameras[[0]]))
    assert torch.equal(chosen.contains(scene.means), chosen.within)
    near, far, beside_the_other = [1.0, 2.0, 1.05], [1.0, 2.0, 3.0], [1.0, 3.3, 1.05]
    assert chosen.contains(torch.tensor([near, far, beside_the_other])).tolist() == [True, False, False]
    nothing = Chosen(scene.means, torch.zeros(len(scene), dtype=torch.bool), 1.0)
    assert not nothing.contains(scene.means).any()


def test_a_mask_of_the_sky_has_nothing_to_carry(parts):
    scene, _, cameras = parts
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[:3, :3] = 1
    with pytest.raises(UserError, match="not seen"):
        Region(painted=Painted(mask, cameras[[0]])).seen_from(scene, cameras)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    write_task(3, folder, "recolour", views=4, side=32)
    return folder


def write_mask(path: Path, width: int = 64, height: int = 64, white: bool = True) -> str:
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 255 * white
    Image.fromarray(mask).save(path)
    return str(path)


def test_a_view_is_named_by_its_image_or_the_number_of_a_frame(scene, tmp_path):
    read = read_scene(scene)
    assert read.dataset is not None
    mask = write_mask(tmp_path / "view_002.png")
    by_itself, by_name = (RegionOptions(mask, **more).build(read) for more in ({}, {"mask_view": "view_001"}))
    assert by_itself is not None and by_itself.painted is not None and by_itself.painted.mask.shape == (32, 32)
    np.testing.assert_array_equal(by_itself.painted.camera.camera_to_world[0], read.dataset.cameras.camera_to_world[2])
    assert by_name is not None and by_name.painted is not None
    np.testing.assert_array_equal(by_name.painted.camera.camera_to_world[0], read.dataset.cameras.camera_to_world[1])
    options = RegionOptions(mask, 3)  # pyright: ignore[reportArgumentType]
    path = ring(5, height=32, width=32)
    region = options.on_path(options.build(read), read, path)
    assert region is not None and region.painted is not None
    np.testing.assert_array_equal(region.painted.camera.camera_to_world[0], path.camera_to_world[3])
    save_region(region, tmp_path)
    again = load_region(tmp_path, options.facts)
    assert again is not None and again.painted is not None and options.facts["mask_view"] == "3"
    np.testing.assert_array_equal(again.painted.mask, region.painted.mask)
    np.testing.assert_array_equal(again.painted.camera.intrinsics, region.painted.camera.intrinsics)


def test_a_mask_over_a_distorted_photograph_lies_where_its_image_shows_it(scene, tmp_path):
    folder = tmp_path / "lens"
    shutil.copytree(scene, folder)
    facts = json.loads((folder / "transforms.json").read_text())
    (folder / "transforms.json").write_text(json.dumps(facts | {"k1": -0.35}))
    read = read_scene(folder)
    assert read.dataset is not None
    mask = np.zeros((32, 32), np.uint8)
    mask[3:12, 3:12] = 255
    Image.fromarray(mask).save(tmp_path / "view_001.png")
    (tmp_path / "masks").mkdir()
    shutil.copy(tmp_path / "view_001.png", tmp_path / "masks")
    # Where each pixel of the image comes from in the photograph, by the lens's formula.
    (fx, _, cx), (_, fy, cy), _ = read.dataset.cameras.intrinsics[1]
    y, x = np.mgrid[:32, :32] + 0.5
    x, y = Distortion(k1=-0.35).distort((x - cx) / fx, (y - cy) / fy)
    rows, columns = np.floor(fy * y + cy), np.floor(fx * x + cx)
    expected = (rows >= 3) & (rows < 12) & (columns >= 3) & (columns < 12)
    for given in (tmp_path / "view_001.png", tmp_path / "masks"):
        region = RegionOptions(str(given)).build(read)
        assert region is not None
        found = region.painted.mask if region.painted is not None else region.masks
        assert found is not None
        assert overlap(np.squeeze(found) > 0.5, expected) > 0.93 > 0.88 > overlap(mask > 0, expected)


def test_photographs_of_any_names_are_found_and_a_name_of_two_is_refused(scene, tmp_path):
    read = read_scene(scene)
    assert read.dataset is not None
    cameras = read.dataset.cameras
    names = ("images/IMG_001.png", "a/003.png", "b/003.png", "images/2-IMG_4.png")
    read = replace(read, dataset=replace(read.dataset, names=names))
    for number, named in enumerate(["IMG 001", "a/003.png", "b/003.png", "IMG 4.jpg"]):
        region = RegionOptions(write_mask(tmp_path / "m.png"), named).build(read)
        assert region is not None and region.painted is not None
        np.testing.assert_array_equal(region.painted.camera.camera_to_world[0], cameras.camera_to_world[number])
    with pytest.raises(UserError, match="2 views"):
        RegionOptions(write_mask(tmp_path / "003.png")).build(read)
    (tmp_path / "masks").mkdir()
    write_mask(tmp_path / "masks" / "003.png")
    with pytest.raises(UserError, match="2 of the scene's images"):
        RegionOptions(str(tmp_path / "masks")).build(read)


@pytest.mark.parametrize(
    ("make", "view", "says"),
    [
        ({"white": False}, "view_001", "black everywhere"),
        ({"width": 96}, "view_001", "96x64 and the view 32x32"),
        ({}, "nowhere", "expected one of the scene's images, such as view_000.png"),
        ({}, None, "mask.png is named as no view"),
        ({}, "77", "the path has 9 frames"),
    ],
)
def test_what_cannot_be_carried_is_refused_in_a_line(make, view, says, scene, tmp_path, capsys):
    words = ["--mask", write_mask(tmp_path / "mask.png", **make), *([] if view is None else ["--mask-view", view])]
    command = ["scene", str(scene), "make it blue", "--source-prompt", "a", "--target-prompt", "b", "--dry-run"]
    assert main([*command, *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert main([*command, "--mask-view", "view_001"]) == 2 and "--mask FILE" in capsys.readouterr().err


def test_outside_what_a_painted_mask_selects_no_gaussian_changes(scene, tiny_model, tmp_path):
    """The whole command, on a splat, the mask painted over a frame of its path; run.json and the state have it."""
    task = json.loads((scene / "scene.json").read_text())
    options = ["--steps", "2", "--gaussians", "400", "--fit-steps", "30", "--refit-steps", "10", "--subtasks", "1"]
    options += ["--model", str(tiny_model)]
    mask = ["--mask", write_mask(tmp_path / "view_001.png")]
    assert main(["scene", str(scene), task["instruction"], "-o", str(tmp_path / "r"), *options, *mask]) == 0
    facts = json.loads((tmp_path / "r" / "run.json").read_text())
    assert facts["local"]["mask"] == mask[1]
    with Image.open(tmp_path / "r" / "mask.png") as sheet:  # the path's frames, and what may change of them
        light = np.asarray(sheet.convert("L")).astype(float)
    above, below = np.array_split(light, 2)
    assert light.shape[1] > light.shape[0] and 0.1 * above.std() < below.std() and below.mean() < 0.8 * above.mean()
    before, after = (read_splat(tmp_path / "r" / name) for name in ("scene.ply", "edited.ply"))
    region = RegionOptions(mask[1]).build(read_scene(scene))
    assert region is not None
    within = region.contains(before)
    assert 0 < within.sum() < len(before)
    kept = {tuple(row) for row in after.means.tolist()}
    assert all(tuple(row) in kept for row in before.means[~within].tolist())
    assert not torch.equal(before.sh, after.sh[: len(before)])
    splat = write_splat(tmp_path / "a.ply", before)
    told = ["--source-prompt", "a", "--target-prompt", "b", "--dry-run", "--mask-view", "2", *mask]
    assert main(["scene", str(splat), "make it blue", *told]) == 0
