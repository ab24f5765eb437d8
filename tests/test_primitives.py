"""The built-in world of primitives: captions, grammar, renderer, cameras and true edits."""

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from v2edit import video
from v2edit.errors import UserError
from v2edit.primitives.captions import caption, is_caption, parse_caption, parse_wording, sample_wording
from v2edit.primitives.edits import KINDS, render_truth, sample_edit
from v2edit.primitives.grammar import edit_prompt
from v2edit.primitives.render import render_clip
from v2edit.primitives.sample import write_sample
from v2edit.primitives.scene import COLOURS, SHAPES, Object, Scene, sample_scene

seeds = st.integers(0, 2**40)


def plain(scene: Scene) -> Scene:
    """Return the scene without the jitter that captions do not mention."""
    objects = tuple(replace(one, dx=0.0, dy=0.0, yaw=0.6) for one in scene.objects)
    return replace(scene, objects=objects, azimuth=0.0, floor_phase=(0.0, 0.0))


@given(seeds)
def test_a_caption_parses_to_its_scene_and_wording(seed):
    rng = Random(seed)
    scene = sample_scene(rng)
    text = caption(scene, sample_wording(rng))
    assert parse_caption(text) == plain(scene)
    assert caption(parse_caption(text), parse_wording(text)) == text
    empty = caption(replace(scene, objects=()), sample_wording(rng))
    assert parse_caption(empty) == plain(replace(scene, objects=()))


@given(seeds, st.data())
def test_a_caption_with_a_word_more_or_less_is_refused(seed, data):
    """The parser guesses and skips nothing."""
    rng = Random(seed)
    text = caption(sample_scene(rng), sample_wording(rng))
    words = text.replace(",", "").split()
    at = data.draw(st.integers(0, len(words) - 1))
    assert not is_caption(" ".join(words[:at] + words[at + 1 :]))
    word = data.draw(st.sampled_from(["cinematic", "35mm", "7", "red", "ball", "a", "球"]))
    assert not is_caption(" ".join([*words[:at], word, *words[at:]]))


def test_case_spelling_punctuation_and_a_missing_camera_are_accepted():
    text = "Under a blue sky a Big red ball, on the left, rests on a grey floor"
    assert caption(parse_caption(text), parse_wording(text)) == (
        "under a blue sky, a big red ball on the left rests on a gray floor, the camera is still."
    )


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("a cinematic shot of a big red cube on a gray floor under a blue sky, 35mm", "'cinematic', 'shot', 'of'"),
        ("a big red ball on the left hops under a blue sky", "no floor"),
        ("on the left", "no object and no floor and no sky"),
        ("a red ball on a gray floor under a blue sky", "size, colour, shape, place and motion"),
    ],
)
def test_another_prompt_is_refused_with_an_example(prompt, names):
    with pytest.raises(UserError, match=names) as error:
        edit_prompt(prompt, "make the ball green")
    assert "'a big red ball in the middle stays still on a gray floor" in str(error.value)


@given(seeds, st.sampled_from(KINDS))
def test_an_instruction_turns_the_source_prompt_into_the_target_prompt(seed, kind):
    edit = sample_edit(Random(seed), kind)
    pair = edit_prompt(edit.source_prompt, edit.instruction)
    assert pair.source == edit.source_prompt
    assert parse_caption(pair.target) == plain(edit.target)
    if kind != "insert":  # the instruction does not mention the motion of an inserted object
        assert pair.target == edit.target_prompt


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("Turn the red ball into a blue cube!", "a small blue cube on the left hops"),
        ("make the ball bigger", "a big red ball on the left hops"),
        ("make the ball bigger and green", "a big green ball on the left hops"),
        ("turn it into a cone and yellow, then big", "a big yellow cone on the left hops"),
        ("make the sphere yellow and the sky pink", "a small yellow ball on the left hops"),
        ("add a big green cone on the right", "a big green cone on the right stays still"),
        ("make the red one purple", "a small purple ball on the left hops"),
        ("make the ball slide left", "a small red ball on the left slides left"),
        ("put the red ball on the right", "a small red ball on the right hops on a gray floor"),
        ("move it to the middle", "a small red ball in the middle hops on a gray floor"),
        ("put a cube on the right and the ball in the middle", "red ball in the middle hops and a big red cube on"),
        ("remove the ball", "nothing stands on a gray floor"),
    ],
)
def test_plain_instructions(instruction, expected):
    source = "a small red ball on the left hops on a gray floor under a blue sky, the camera is still."
    assert expected in edit_prompt(source, instruction).target


@pytest.mark.parametrize(
    ("source", "instruction"),
    [
        ("a cat sleeps on a sofa", "make the cat blue"),
        ("a big red ball on the left rests on a gray floor under a blue sky", "remove the green cube"),
        ("a big red ball on the left rests on a gray floor under a blue sky", "make it nicer"),
        ("a big red ball on the left rests on a gray floor under a blue sky", "make the ball red"),
        ("a big red ball on the left rests on a gray floor under a blue sky", "   "),
        ("a big red ball on the left rests on a gray floor under a blue sky", "add a blue cube on the left"),
        ("a big red ball on the left rests on a gray floor under a blue sky", "put the blue cube on the right"),
        ("a big red ball on the left rests on a gray floor under a blue sky", "put the ball on the left"),
        (
            "a big red ball on the left rests and a big blue ball on the right rests on a gray floor under a blue sky",
            "put the red ball on the right",
        ),
        (
            "a big red ball on the left rests and a big blue ball on the right rests on a gray floor under a blue sky",
            "turn the ball into a cube",
        ),
    ],
)
def test_other_instructions_are_refused_in_one_line(source, instruction):
    with pytest.raises(UserError) as error:
        edit_prompt(source, instruction)
    assert "\n" not in str(error.value)


@settings(max_examples=8)
@given(seeds)
def test_the_same_seed_renders_the_same_bytes(seed):
    one, two = (render_clip(sample_scene(Random(seed)), 3, 32, 48) for _ in range(2))
    assert one.frames.shape == (3, 32, 48, 3) and one.frames.dtype == np.uint8
    assert np.array_equal(one.frames, two.frames)
    assert np.array_equal(one.cameras.camera_to_world, two.cameras.camera_to_world)


@settings(max_examples=12)
@given(seeds)
def test_the_cameras_project_onto_the_frames(seed):
    """A ball's centre, projected by the stored camera, lies at the centre of the pixels that the ball fills."""
    scene = replace(sample_scene(Random(seed), count=1), camera="orbit right")
    scene = scene.with_object(0, shape="ball", place="middle", motion="hop")
    clip = render_clip(scene, 5, 48, 64)
    for frame in range(5):
        x, y, z = scene.objects[0].position(frame, 5)
        point = np.linalg.inv(clip.cameras.camera_to_world[frame]) @ [x, y, z + scene.objects[0].radius, 1.0]
        assert point[2] < 0  # OpenGL: the camera looks along -z
        u, v, depth = clip.cameras.intrinsics @ [point[0], -point[1], -point[2]]
        rows, columns = np.nonzero(clip.coverage[0, frame] > 0.5)
        assert abs(columns.mean() + 0.5 - u / depth) < 0.6 and abs(rows.mean() + 0.5 - v / depth) < 0.6


@settings(max_examples=16)
@given(seeds, st.sampled_from(KINDS))
def test_the_changed_region_is_where_the_two_clips_differ(seed, kind):
    edit = sample_edit(Random(seed), kind)
    clips = render_truth(edit, 5, 32, 32)
    outside = ~clips.changed
    difference = np.abs(clips.source.frames.astype(int) - clips.target.frames.astype(int))
    assert clips.changed.any() and difference[outside].max(initial=0) <= 6
    if kind == "recolour":  # only pixels that the object touches change
        assert clips.target.coverage[edit.subject][clips.changed].min() > 0


def test_every_shape_has_a_silhouette_and_a_colour_of_its_own():
    def draw(shape: str, colour: str) -> tuple[np.ndarray, np.ndarray]:
        clip = render_clip(Scene((Object(shape, colour, "big", "middle"),), "gray", "blue"), 1, 64, 64)
        return clip.coverage[0, 0] > 0.5, clip.frames[0]

    masks = [draw(shape, "red")[0] for shape in SHAPES]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert (one ^ other).sum() > 0.08 * (one | other).sum()
    means = [frame[mask].mean(0) for mask, frame in (draw("ball", colour) for colour in COLOURS)]
    assert min(np.abs(a - b).max() for i, a in enumerate(means) for b in means[:i]) > 40


def test_a_sample_on_disk_describes_its_edit(tmp_path):
    write_sample(3, tmp_path, kind="recolour")
    facts = json.loads((tmp_path / "clip.json").read_text())
    edit = sample_edit(Random(3), "recolour")
    assert (
        facts["target_prompt"] == edit.target_prompt == edit_prompt(facts["source_prompt"], facts["instruction"]).target
    )
    clip = video.read(tmp_path / "truth.mp4")
    error = clip.frames.astype(int) - render_truth(edit).target.frames.astype(int)
    assert clip.frames.shape == (9, 64, 64, 3) and np.abs(error).mean() < 3
    assert np.array(facts["camera_to_world"]).shape == (9, 4, 4)
    with pytest.raises(UserError, match="no kind of edit"):
        write_sample(3, tmp_path, kind="explode")
