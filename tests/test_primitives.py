"""The built-in world of primitives: shapes, patterns, cameras, true edits, clips and posed scenes to try them on."""

import json
import math
from dataclasses import fields, replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from v2edit import video
from v2edit.errors import UserError
from v2edit.primitives.captions import TEXT_LENGTH, count_words
from v2edit.primitives.edits import KINDS, render_truth, sample_edit
from v2edit.primitives.grammar import edit_prompt
from v2edit.primitives.posed import POSED_KINDS, path_of, posed_truth, sample_posed_edit, views_of
from v2edit.primitives.questions import MIN_VISIBLE
from v2edit.primitives.render import HEIGHT, ClipCameras, orbit_cameras, render_clip
from v2edit.primitives.sample import write_sample
from v2edit.primitives.scene import COLOURS, PATTERNS, SHAPES, Backdrop, Object, Pattern, Scene, sample_scene
from v2edit.primitives.shapes import FAR, intersect_shape

seeds = st.integers(0, 2**40)


def is_inside(shape: str, p: np.ndarray) -> np.ndarray:
    """Tell which points [..., 3] are inside a shape of radius 1, written down anew."""
    x, y, z = np.moveaxis(p, -1, 0)
    around = np.hypot(x, y)
    if shape == "ball":
        return np.linalg.norm(p - [0, 0, 1], axis=-1) < 1
    if shape == "cube":
        return (np.abs(x) < 0.8) & (np.abs(y) < 0.8) & (z > 0) & (z < 1.6)
    if shape == "cylinder":
        return (around < 0.72) & (z > 0) & (z < 1.8)
    if shape == "cone":
        return (z > 0) & (around < 1 - z / 2)
    if shape == "tower":
        body = (np.abs(x) < 0.48) & (np.abs(y) < 0.48) & (z > 0) & (z < 2.1)
        return body | ((z >= 2.1) & (around < 0.75 * (3.0 - z) / 0.9))
    if shape == "ring":
        return np.hypot(np.hypot(x, z - 1) - 0.72, y) < 0.28
    turn = np.pi / 5 * np.arange(10)  # The star's corners: tips and notches in turn.
    reach = np.where(np.arange(10) % 2 == 0, 1.12, 0.55)
    corners = np.stack([reach * np.sin(turn), 1 + reach * np.cos(turn)], -1)
    crossings = np.zeros(x.shape, int)
    for (ax, az), (bx, bz) in zip(corners, np.roll(corners, -1, 0), strict=True):
        crossings += ((az > z) != (bz > z)) & (x < ax + (z - az) / (bz - az) * (bx - ax))
    return (crossings % 2 == 1) & (np.abs(y) < 0.26)


@pytest.mark.parametrize("shape", SHAPES)
def test_rays_meet_a_shape_where_it_begins(shape):
    rng = np.random.default_rng(0)
    eyes = rng.normal(size=(400, 3)) * [1, 1, 0.4]
    eyes = 5 * eyes / np.linalg.norm(eyes, axis=1, keepdims=True) + [0, 0, 1.2]
    aims = rng.uniform([-0.9, -0.9, 0.05], [0.9, 0.9, 2.6], (400, 3))
    rays = (aims - eyes) / np.linalg.norm(aims - eyes, axis=1, keepdims=True)
    distance, normal = intersect_shape(shape, 1.0, torch.from_numpy(eyes).float(), torch.from_numpy(rays).float())
    along = np.arange(2.0, 8.0, 0.004)
    inside = is_inside(shape, eyes[:, None] + along[None, :, None] * rays[:, None])
    expected = np.where(inside.any(1), along[inside.argmax(1)], FAR)
    agree = np.abs(distance.numpy() - expected) < 0.02
    assert agree.mean() > 0.985  # Rays that graze an edge may fall on either side.
    hit = (distance.numpy() < FAR) & agree
    assert 0.15 < hit.mean() < 1
    assert ((normal.numpy() * rays).sum(1)[hit] < 1e-3).all()  # towards the eye
    assert np.allclose(np.linalg.norm(normal.numpy()[hit], axis=1), 1, atol=1e-4)


def draw(shape: str, colour: str) -> tuple[np.ndarray, np.ndarray]:
    """Return where a big object in the middle is, bool [H, W], and the picture, uint8 [H, W, 3]."""
    clip = render_clip(Scene((Object(shape, colour, "big", "middle"),), "gray", "blue"), 1)
    return clip.coverage[0, 0] > 0.5, clip.frames[0]


def test_every_shape_has_a_silhouette_and_every_colour_a_look_of_its_own():
    masks = [draw(shape, "red")[0] for shape in SHAPES]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert (one ^ other).sum() > 0.08 * (one | other).sum()
    means = [frame[mask].mean(0) for mask, frame in (draw("ball", colour) for colour in COLOURS)]
    assert min(np.abs(a - b).max() for i, a in enumerate(means) for b in means[:i]) > 40


@pytest.mark.parametrize("kind", PATTERNS[1:])
def test_a_pattern_is_seen_on_its_object_and_turns_with_its_angle(kind):
    obj = Object("cube", "red", "big", "middle", yaw=0.0)
    scene = Scene((obj,), "gray", "blue", backdrop=Backdrop())
    plain = render_clip(scene, 1)
    seen, turned = (
        render_clip(scene.with_object(0, pattern=Pattern(kind, "white", angle, 0.2)), 1)
        for angle in (0.3, 0.3 + math.pi / 2)
    )
    changed = np.abs(seen.frames.astype(int) - plain.frames).max(-1) > 40
    on_object = plain.coverage[0] > 0.99
    assert 0.1 < changed[on_object].mean() < 0.7 and not changed[plain.coverage[0] == 0].any()
    if kind != "checks" and kind != "dots":  # These are nearly the same after a quarter turn.
        assert (np.abs(seen.frames.astype(int) - turned.frames).max(-1) > 40)[on_object].mean() > 0.05


# --- clips and their cameras ------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_the_same_seed_renders_the_same_bytes(seed):
    one, two = (render_clip(sample_scene(Random(seed)), 3, 32, 48) for _ in range(2))
    assert one.frames.shape == (3, 32, 48, 3) and one.frames.dtype == np.uint8
    assert np.array_equal(one.frames, two.frames)
    assert np.array_equal(one.cameras.camera_to_world, two.cameras.camera_to_world)


def project(cameras: ClipCameras, frame: int, point: tuple[float, float, float]) -> tuple[float, float]:
    """Return the pixel of a point of the world, by the stored camera. OpenGL: it looks along -z, y up."""
    x, y, z, _ = np.linalg.inv(cameras.camera_to_world[frame]) @ [*point, 1.0]
    assert z < 0
    u, v, depth = cameras.intrinsics @ [x, -y, -z]
    return u / depth, v / depth


@settings(max_examples=12, deadline=None)
@given(seeds, st.sampled_from(["orbit right", "pan left", "come nearer"]))
def test_the_cameras_project_onto_the_frames(seed, camera):
    """A ball's centre, projected by the stored camera, lies at the centre of the pixels that the ball fills."""
    scene = replace(sample_scene(Random(seed), count=1, style="photo"), camera=camera, balloon=None)
    scene = scene.with_object(0, shape="ball", place="middle", motion="hop", material="matt", hat=None, copies=1)
    clip = render_clip(scene, 5, 48, 72)
    for frame in range(5):
        x, y, z = scene.objects[0].position(frame, 5)
        u, v = project(clip.cameras, frame, (x, y, z + scene.objects[0].radius))
        rows, columns = np.nonzero(clip.coverage[0, frame] > 0.5)
        assert abs(columns.mean() + 0.5 - u) < 0.6 and abs(rows.mean() + 0.5 - v) < 0.6


def test_a_scene_is_seen_from_other_cameras_too():
    scene = replace(sample_scene(Random(8), style="photo"), camera="still", azimuth=0.1)
    own = render_clip(scene, 2, 32, 48)
    again = render_clip(scene, 2, 32, 48, cameras=orbit_cameras([(0.1, HEIGHT)] * 2, 32, 48))
    assert np.array_equal(own.frames, again.frames)
    side = render_clip(scene, 2, 32, 48, cameras=orbit_cameras([(0.1, HEIGHT), (0.5, HEIGHT)], 32, 48))
    assert np.array_equal(side.frames[0], own.frames[0]) and not np.array_equal(side.frames[1], own.frames[1])


# --- edits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(seed=seeds)
def test_an_edit_changes_one_thing_and_both_prompts_say_which(kind, seed):
    edit = sample_edit(Random(seed), kind)
    assert edit.source_prompt != edit.target_prompt
    kept = {f.name for f in fields(Scene)} - {"objects", "floor", "sky", "style", "balloon"}
    assert all(getattr(edit.source, name) == getattr(edit.target, name) for name in kept)
    before, after = set(edit.source.objects), set(edit.target.objects)
    added, removed = {"insert": (1, 0), "behind": (1, 0), "remove": (0, 1), "uncover": (0, 1), "exchange": (2, 2)}.get(
        kind, (0, 0) if edit.subject is None else (1, 1)
    )
    assert (len(after - before), len(before - after)) == (added, removed)
    if kind in ("recolour", "reshape", "outline", "resize", "motion", "wear", "multiply"):
        (old,), (new,) = before - after, after - before
        assert (old.pattern, old.dx, old.dy, old.yaw) == (new.pattern, new.dx, new.dy, new.yaw)
    assert edit.instruction and max(map(count_words, (edit.source_prompt, edit.target_prompt))) < TEXT_LENGTH


def test_what_is_put_behind_something_is_seen():
    for seed in (2_000_011_000, 2_000_011_057):  # a tower wholly behind a tower, and a cone behind a cube with a hat
        edit = sample_edit(Random(seed), "behind")
        assert (render_truth(edit).target.coverage[edit.subject] > 0.5).sum() > MIN_VISIBLE


def test_of_two_things_of_gold_an_instruction_says_where_the_one_stands():
    assert sample_edit(Random(6104), "resize").instruction == "make the gold cube on the left in front small"


@pytest.mark.parametrize("kind", ["recolour", "uncover", "air", "style"])
def test_the_change_is_seen_and_the_rest_is_equal(kind):
    truth = render_truth(sample_edit(Random(3), kind), frames=2)
    difference = np.abs(truth.source.frames.astype(int) - truth.target.frames).max(-1)
    assert truth.changed.any() and difference[~truth.changed].max() <= 6
    assert kind == "style" or truth.changed.mean() < 0.5


def test_a_recoloured_object_changes_only_the_pixels_that_it_touches():
    for seed in range(6):
        edit = sample_edit(Random(seed), "recolour")  # of a matt object; glass shows what is behind it
        source, target = (
            scene.with_objects([replace(one, material="matt") for one in scene.objects])
            for scene in (edit.source, edit.target)
        )
        clips = render_truth(replace(edit, source=source, target=target), 2, 32, 48)
        assert clips.changed.any() and clips.target.coverage[edit.subject][clips.changed].min() > 0


# --- samples and posed scenes -----------------------------------------------------------------------


def test_a_sample_on_disk_describes_its_edit(tmp_path):
    write_sample(3, tmp_path, kind="recolour")
    facts = json.loads((tmp_path / "clip.json").read_text())
    edit = sample_edit(Random(3), "recolour")
    assert facts["target_prompt"] == edit.target_prompt and facts["instruction"] == edit.instruction
    assert edit_prompt(facts["source_prompt"], facts["instruction"]).source
    clip = video.read(tmp_path / "truth.mp4")
    error = clip.frames.astype(int) - render_truth(edit).target.frames.astype(int)
    assert clip.frames.shape == (9, 64, 96, 3) and np.abs(error).mean() < 3
    assert np.array(facts["camera_to_world"]).shape == (9, 4, 4)
    with pytest.raises(UserError, match="no kind of edit"):
        write_sample(3, tmp_path, kind="explode")


def test_posed_scenes_know_the_kinds_of_edit_that_do_not_move_and_leave_something_as_it_is():
    assert {"motion", "style"}.isdisjoint(POSED_KINDS) and set(POSED_KINDS) <= set(KINDS) and len(POSED_KINDS) > 12


@pytest.mark.parametrize("kind", POSED_KINDS)
def test_a_posed_scene_is_still_and_seen_from_all_over_its_path(kind):
    edit = sample_posed_edit(Random(4), kind)
    for scene in (edit.source, edit.target):
        assert {one.motion for one in scene.objects} <= {"stay"} and scene.camera.startswith("orbit")
    assert edit.source_prompt != edit.target_prompt
    path, views = path_of(edit), views_of(edit, 12, 24)
    truth = posed_truth(edit, path, samples=1)
    assert truth.source.frames.shape == (9, 64, 96, 3) and truth.changed.any() and not truth.changed.all()
    assert posed_truth(edit, views, samples=1).source.frames.shape == (12, 24, 24, 3)
    angles = [[math.atan2(pose[0, 3], -pose[1, 3]) for pose in cameras.camera_to_world] for cameras in (path, views)]
    assert min(angles[1]) < min(angles[0]) and max(angles[1]) > max(angles[0])
    # What the path shows at its sides is in the photographs, too: both are as wide.
    wide = [2 * math.atan(cameras.intrinsics[0, 2] / cameras.intrinsics[0, 0]) for cameras in (path, views)]
    assert wide[0] == pytest.approx(wide[1])


def test_a_still_scene_looks_the_same_in_a_photograph_and_on_the_path():
    edit = sample_posed_edit(Random(4), "recolour")
    path = path_of(edit, 3)
    own = posed_truth(edit, path, samples=1).source.frames[1]
    again = ClipCameras(path.intrinsics, path.camera_to_world[1:2])
    assert np.array_equal(posed_truth(edit, again, samples=1).source.frames[0], own)
