"""Measures against the truth: on cases worked out by hand, and what they must say of the true clips themselves."""

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from v2edit.metrics.attributes import attributes, match, measure
from v2edit.primitives.captions import Wording
from v2edit.primitives.edits import KINDS, Edit, EditTruth, render_truth, sample_edit
from v2edit.primitives.scene import Object, Scene

BALL = Object("ball", "red", "big", "left")
CUBE = Object("cube", "green", "small", "right", "hop")
SCENE = Scene((BALL, CUBE), "gray", "blue")


def edit(target: Scene, subject: int | None = 0, source: Scene = SCENE) -> Edit:
    return Edit("", "", source, target, Wording(), subject)


@given(st.integers(0, 2**40), st.sampled_from(KINDS))
def test_the_target_has_every_attribute_and_the_source_none_of_the_edits(seed, kind):
    one = sample_edit(Random(seed), kind)
    assert attributes(one, one.target) == (1.0, 1.0)
    assert attributes(one, one.source) == (0.0, 1.0)


# What is seen, and how many of the attributes are right then. SCENE has 14: 5 an object, 3 of the scene, no other one.
BLUE_CONE = edit(SCENE.with_object(0, shape="cone", colour="blue"))
ONE_BALL = Scene((BALL,), "gray", "blue")
INSERT = edit(SCENE, 1, ONE_BALL)
REMOVE = edit(ONE_BALL, 1)
SEEN = {
    "half of two changes": (BLUE_CONE, SCENE.with_object(0, colour="blue"), 1 / 2, 1),
    "the floor changed, too": (BLUE_CONE, replace(BLUE_CONE.target, floor="teal"), 1, 11 / 12),
    "the other object is another": (BLUE_CONE, BLUE_CONE.target.with_object(1, shape="ball", size="big"), 1, 10 / 12),
    "the edited object went": (BLUE_CONE, Scene((CUBE,), "gray", "blue"), 0, 9 / 12),
    "one too many": (BLUE_CONE, replace(BLUE_CONE.target, objects=(*BLUE_CONE.target.objects, BALL)), 1, 11 / 12),
    "put in, in another colour": (INSERT, SCENE.with_object(1, colour="blue"), 4 / 5, 1),
    "put in, elsewhere": (INSERT, SCENE.with_object(1, place="middle"), 0, 1),
    "nothing put in": (INSERT, ONE_BALL, 0, 1),
    "put in place of the other": (INSERT, Scene((CUBE,), "gray", "blue"), 1, 4 / 9),
    "taken away": (REMOVE, ONE_BALL, 1, 1),
    "not taken away": (REMOVE, SCENE, 0, 1),
    "replaced instead of taken away": (REMOVE, SCENE.with_object(1, shape="cone"), 0, 1),
    "the wrong one taken away": (REMOVE, Scene((CUBE,), "gray", "blue"), 0, 4 / 9),
    "all taken away": (REMOVE, Scene((), "gray", "blue"), 1, 4 / 9),
    "a sky": (edit(replace(SCENE, sky="pink"), None), replace(SCENE, sky="pink", camera="orbit left"), 1, 12 / 13),
}


@pytest.mark.parametrize(("one", "seen", "success", "kept"), SEEN.values(), ids=SEEN)
def test_attributes_by_hand(one, seen, success, kept):
    assert attributes(one, seen) == (pytest.approx(success), pytest.approx(kept))


def test_objects_are_matched_by_what_agrees_and_not_by_order():
    assert match((BALL, CUBE), (CUBE, BALL)) == [BALL, CUBE]
    assert match((BALL, CUBE), (CUBE,)) == [None, CUBE]
    assert match((BALL,), (CUBE, replace(BALL, dx=0.1))) == [replace(BALL, dx=0.1)]
    assert match((BALL, CUBE), ()) == [None, None]


@pytest.fixture(scope="module", params=KINDS)
def task(request) -> tuple[Edit, EditTruth]:
    one = sample_edit(Random(3), request.param)
    return one, render_truth(one)


def test_the_true_edit_scores_one_and_doing_nothing_zero(task):
    one, clips = task
    best = measure(one, clips, clips.target.frames, lambda frames: one.target)
    assert best.score == pytest.approx(1, abs=0.01) and best.ssim_inside == 1 and best.psnr_inside > 59.9
    assert best.psnr_outside > 40 and best.flicker < 1 and best.kept == 1
    nothing = measure(one, clips, clips.source.frames, lambda frames: one.source)
    assert nothing.score == 0 and nothing.ssim_outside == 1 and nothing.psnr_outside > 59.9 and nothing.flicker == 0
    assert nothing.psnr_inside < 25 and nothing.ssim_inside < best.ssim_inside
    recoloured = "recolour" in one.kind
    assert (best.hue, nothing.hue) == ((1, 0) if recoloured else (pytest.approx(math.nan, nan_ok=True),) * 2)


@settings(max_examples=5)
@given(st.integers(0, 2**40))
def test_preservation_alone_is_worth_nothing_and_neither_is_success(seed):
    one = sample_edit(Random(seed), "recolour")
    clips = render_truth(one, frames=3, samples=1)
    noise = np.random.default_rng(0).integers(0, 256, clips.source.frames.shape, dtype=np.uint8)
    assert measure(one, clips, clips.source.frames, lambda frames: one.source).score == 0
    assert measure(one, clips, noise, lambda frames: one.target).score < 0.3
