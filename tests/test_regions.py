"""Regions of scenes: what of their space, and of their views, may change."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.scenes import gaussians_of, ring

import v2edit
from v2edit.cli.app import main
from v2edit.errors import UserError
from v2edit.jobs.regions import RegionOptions, load_region, save_region
from v2edit.scenes.formats.splats import read_splat, write_splat
from v2edit.scenes.primitives import write_task
from v2edit.scenes.reading import read_scene
from v2edit.scenes.regions import Region, box_share, parse_box


def test_the_ray_of_a_pixel_meets_a_box_where_points_of_the_box_are_seen():
    cameras, box = ring(6, height=48, width=64), np.array([[-1.0, -0.7, -0.8], [1.1, 0.9, 0.4]])
    share = box_share(box, cameras)
    points = np.random.default_rng(0).uniform(*box, (40_000, 3))
    for k, view in enumerate(cameras.world_to_camera):
        local = points @ view[:3, :3].T + view[:3, 3]
        pixels = local @ cameras.intrinsics[k].T
        columns, rows = np.floor(pixels[:, :2] / pixels[:, 2:]).astype(int).T
        seen = np.zeros((48, 64), bool)
        inside = (columns >= 0) & (columns < 64) & (rows >= 0) & (rows < 48) & (local[:, 2] > 0)
        seen[rows[inside], columns[inside]] = True
        assert seen.any() and (seen & (share[k] == 0)).sum() <= 0.2 * seen.sum()  # at the box's outline
        grown = np.pad(seen, 1)
        near = np.max([grown[y : y + 48, x : x + 64] for y in range(3) for x in range(3)], axis=0)
        assert not (share[k] > near).any()


def test_a_box_behind_the_camera_is_not_seen_and_one_around_it_is_seen_everywhere():
    cameras = ring(1)
    behind = cameras.centres[0] - 2 * cameras.directions[0]
    assert box_share(np.stack([behind - 0.1, behind + 0.1]), cameras).max() == 0
    assert box_share(np.stack([cameras.centres[0] - 0.1, cameras.centres[0] + 0.1]), cameras).min() == 1
    with pytest.raises(UserError, match="not seen"):
        Region(np.stack([behind - 0.1, behind + 0.1])).seen_from(gaussians_of(0), cameras)


@pytest.mark.parametrize("text", ["", "1,2,3", "0,0,0,1,1,0", "a,b,c,d,e,f", "0,0,0,1,1,inf", "nan,0,0,1,1,1"])
def test_what_is_no_box_is_refused(text):
    with pytest.raises(UserError, match="--box3d"):
        parse_box(text)


def test_corners_may_come_in_any_order():
    np.testing.assert_array_equal(parse_box("1,-1,0,-1,1,2"), [[-1, -1, 0], [1, 1, 2]])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    write_task(3, folder, "recolour", views=4, side=32)
    return folder


def test_masks_of_views_tell_which_gaussians_may_change(scene, tmp_path):
    read = read_scene(scene)
    for k in (0, 2):
        mask = np.zeros((64, 64), np.uint8)  # of another size than the views
        mask[:, :32] = 255
        Image.fromarray(mask).save(tmp_path / f"view_{k:03d}.png")
    region = RegionOptions(mask=str(tmp_path)).build(read)
    assert region is not None and region.masks is not None and region.masks.shape == (2, 32, 32)
    gaussians = gaussians_of(1)
    within = region.contains(gaussians)
    assert 0 < within.sum() < len(gaussians)
    save_region(region, tmp_path)
    again = load_region(tmp_path, {"mask": "m", "box3d": None})
    with pytest.raises(UserError, match="is gone"):
        load_region(tmp_path / "none", {"mask": "m", "box3d": None})
    assert load_region(tmp_path / "none", {"mask": None, "box3d": None}) is None
    assert again is not None and torch.equal(again.contains(gaussians), within)


def test_masks_that_belong_to_no_view_are_refused(scene, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "other.png")
    with pytest.raises(UserError, match="view_000"):
        RegionOptions(mask=str(tmp_path)).build(read_scene(scene))
    with pytest.raises(UserError, match="expected a folder"):
        RegionOptions(mask=str(tmp_path / "none")).build(read_scene(scene))


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_box_that_is_not_seen_is_refused_before_the_scene_is_reconstructed(scene, tmp_path, capsys, more):
    command = ["scene", str(scene), "make it blue", "-o", str(tmp_path / "r"), "--source-prompt", "a", *more]
    assert main([*command, "--target-prompt", "b", "--box3d=0,0,900,1,1,901"]) == 2
    assert "not seen" in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_a_dry_run_tells_how_much_of_the_scene_may_change(scene, tmp_path, capsys):
    splat = write_splat(tmp_path / "a.ply", gaussians := gaussians_of(1))
    options = {"source_prompt": "a", "target_prompt": "b"}
    low, high = gaussians.means.amin(0), gaussians.means.amax(0)
    some = v2edit.estimate_scene(splat, **options, box3d=[*low.tolist(), *((low + high) / 2).tolist()])
    assert set(some.limits) == {"box", "scene"} and some.limits["box"] in some.text
    within = (gaussians.means <= (low + high) / 2).all(1).sum()
    assert some.limits["scene"].startswith(f"{within} of its {len(gaussians)} ")
    command = ["scene", str(scene), "make it blue", "--source-prompt", "a", "--target-prompt", "b", "--dry-run"]
    assert main([*command, "--box3d=-0.1,-0.1,-0.1,0.1,0.1,0.1"]) == 0
    assert "% of the path's pictures" in capsys.readouterr().out


def test_outside_a_box_no_gaussian_of_the_scene_changes(scene, tmp_path):
    instruction = json.loads((scene / "scene.json").read_text())["instruction"]
    options = ["--steps", "2", "--gaussians", "300", "--fit-steps", "20", "--refit-steps", "10", "--subtasks", "2"]
    box = ["--box3d=-2,-2,-0.6,2,2,3"]  # around a third of so few Gaussians, of which a fifth is seen
    assert main(["scene", str(scene), instruction, "-o", str(tmp_path / "r"), *options, *box]) == 0
    before, after = (read_splat(tmp_path / "r" / name) for name in ("scene.ply", "edited.ply"))
    low, high = torch.from_numpy(parse_box(box[0].partition("=")[2])).float()
    outside = ~((before.means >= low) & (before.means <= high)).all(1)
    kept = len(before)
    assert 0 < outside.sum() < kept
    for name, tensor in before.tensors().items():
        assert torch.equal(tensor[outside], after.tensors()[name][:kept][outside]), name
    assert not torch.equal(before.sh[~outside], after.sh[:kept][~outside])
