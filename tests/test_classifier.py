"""The scene classifier on fresh clips of any size and length, and what is taken for a clip of primitives.

Of 100 fresh clips the present weights read floor and sky of 97 % rightly, styles of 98, shapes and colours of 88,
motions of 68, cameras of 62; the thresholds leave room for others, and for another processor's rounding."""

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from v2edit import video
from v2edit.primitives.captions import describe
from v2edit.primitives.classifier import SceneClassifier, matches_scene, preprocess
from v2edit.primitives.parsing import is_caption
from v2edit.primitives.questions import MIN_VISIBLE, QUESTIONS, SLOTS, scene_labels
from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import Scene, sample_scene
from v2edit.video.stream import as_stream

FRESH = 1_700_000_000  # no seed of the training set
LEAST = {"shape": 0.75, "floor": 0.8, "sky": 0.8, "style": 0.85, "balloon": 0.85, "colour": 0.75, "camera": 0.4,
         "motion": 0.4}  # fmt: skip


def shares_right(scenes: list[Scene], **size: int) -> dict[str, float]:
    """Return the share of right answers by field, of what is seen."""
    right: dict[str, list[bool]] = {}
    for scene in scenes:
        clip = render_clip(scene, samples=1, **size)
        pixels = (clip.coverage > 0.5).sum((1, 2, 3)) * 64 * 96 // (clip.coverage.shape[2] * clip.coverage.shape[3])
        labels, read = scene_labels(scene, pixels), SceneClassifier.load().read(clip.frames)
        for (_, _, field), own, seen in zip(QUESTIONS, labels, read, strict=True):
            if own >= 0:
                right.setdefault(field, []).append(own == seen)
    return {field: float(np.mean(hits)) for field, hits in right.items()}


def test_fresh_clips_are_read_rightly():
    shares = shares_right([sample_scene(Random(FRESH + k)) for k in range(40)])
    assert {field: shares[field] for field, least in LEAST.items() if shares[field] < least} == {}


@pytest.mark.heavy
def test_many_fresh_clips_are_read_rightly():
    shares = shares_right([sample_scene(Random(FRESH + 1000 + k)) for k in range(200)])
    assert {field: shares[field] for field, least in LEAST.items() if shares[field] < least + 0.04} == {}


def test_other_sizes_and_lengths_are_read_as_well():
    scenes = [sample_scene(Random(FRESH + 100 + k), style="photo") for k in range(4)]
    shares = shares_right(scenes, frames=17, height=128, width=192)
    assert shares["shape"] > 0.6 and shares["floor"] >= 0.5 and shares["sky"] >= 0.5
    square = render_clip(scenes[0], 17, 48, 48).frames
    wide = preprocess(square)  # of whose rows the outer ones are not read
    torch.testing.assert_close(preprocess(as_stream(square)), wide, rtol=0, atol=0)
    torch.testing.assert_close(preprocess(square[:, 8:40]), wide, rtol=0, atol=0)


def test_a_still_shows_floor_and_sky():
    right = 0
    for k in range(8):
        scene = sample_scene(Random(FRESH + 200 + k), style="photo")
        result = SceneClassifier.load().classify(render_clip(scene).frames[:1])
        right += (result.floor == scene.floor) + (result.sky == scene.sky)
    assert right >= 12


def test_what_is_read_can_be_said_and_rendered_even_of_nothing():
    for value in (0, 255):
        frames = np.full((9, 64, 96, 3), value, np.uint8)
        scene = SceneClassifier.load().classify(frames)
        assert is_caption(describe(scene)) and not matches_scene(frames, scene)
    empty = replace(sample_scene(Random(3), style="photo"), objects=(), balloon=None)
    assert render_clip(empty, 2).coverage.shape == (0, 2, 64, 96) and is_caption(describe(empty))


def test_clips_of_primitives_match_their_scene_and_others_do_not(data: Path, tmp_path: Path):
    scenes = [sample_scene(Random(FRESH + 300 + k)) for k in range(6)]
    scenes += [
        sample_scene(Random(FRESH + 400 + k), style=style) for k, style in enumerate(("pencil", "night", "snow"))
    ]
    matches = []
    for k, scene in enumerate(scenes):
        path = tmp_path / f"{k}.mp4"
        video.write(render_clip(scene).frames, path, fps=8)
        clip = video.read(path).frames
        matches.append(matches_scene(clip, SceneClassifier.load().classify(clip)))
    assert sum(matches) >= len(scenes) - 1  # one sky in a hundred is misread
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3), dtype=np.uint8)
    real = [video.read(path, max_frames=9).frames for path in sorted((data / "videos").glob("*.mp4"))[:8]]
    for clip in (noise, *real):
        assert not matches_scene(clip, SceneClassifier.load().classify(clip))


def test_labels_are_answers_and_nothing_is_asked_of_what_is_hidden():
    for k in range(100):
        scene = sample_scene(Random(k))
        count = len(scene.objects) + (scene.balloon is not None)
        seen, hidden = (scene_labels(scene, np.full(count, pixels)) for pixels in (MIN_VISIBLE, MIN_VISIBLE - 1))
        assert len(seen) == len(QUESTIONS)
        assert all(-1 <= label < len(answers) for label, answers in zip(seen, QUESTIONS.values(), strict=True))
        for (place, row, field), one, other in zip(QUESTIONS, seen, hidden, strict=True):
            if any((obj.place, obj.row) == (place, row) for obj in scene.objects):
                assert other == -1 and (field != "shape" or one > 0)


@torch.no_grad()
def test_slots_answer_by_one_network_and_tell_together_where_the_light_comes_from():
    torch.manual_seed(0)
    classifier, clips = SceneClassifier().eval(), torch.rand(2, 9, 3, 64, 96) * 2 - 1
    before = classifier(clips)
    classifier.queries[[0, 3]] = classifier.queries[[3, 0]]
    after = classifier(clips)
    other = {SLOTS[0]: SLOTS[3], SLOTS[3]: SLOTS[0]}
    for place, row, field in QUESTIONS:
        asked = (*other.get((place, row), (place, row)), field)
        torch.testing.assert_close(after[asked], before[place, row, field])
    assert not torch.allclose(before[*SLOTS[0], "shape"], before[*SLOTS[3], "shape"])
    classifier.queries[0] += 1
    moved = classifier(clips)
    assert not torch.allclose(moved["", "", "light from"], after["", "", "light from"])
    torch.testing.assert_close(moved["", "", "camera"], after["", "", "camera"])
