"""Measures against the truth: on cases worked out by hand, and what they must say of the true clips themselves."""

import math
from dataclasses import fields, replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.world import perfect_reader

from v2edit.metrics.attributes import Scores, asked_answers, attributes, measure
from v2edit.metrics.columns import COLUMNS
from v2edit.primitives.captions import Named, Wording
from v2edit.primitives.edits import KINDS, Edit, EditTruth, render_truth, sample_edit
from v2edit.primitives.questions import NEVER_CAPTIONED, QUESTIONS, scene_labels
from v2edit.primitives.scene import COLOURS, Backdrop, Object, Pattern, Scene

BALL = Object("ball", "red", "big", "left", pattern=Pattern("stripes", "white", 0.0))
CUBE = Object("cube", "green", "small", "right", motion="hop")
BEHIND = Object("cone", "yellow", "big", "middle", row="back")
SCENE = Scene((BALL, CUBE), "gray", "blue", backdrop=Backdrop("wall", 0.5, ((0.0, 0.8),)))
NOTHING = Named((frozenset(), None), frozenset())  # "a ball."


def labels_of(scene: Scene) -> np.ndarray:
    """What a perfect classifier reads off a clip of this scene in which nothing is hidden."""
    return np.array(scene_labels(scene, np.full(len(scene.objects), 1000)))


def edit_to(target: Scene, subject: int | None = 0, target_named: Named = NOTHING) -> Edit:
    return Edit("", "", SCENE, target, NOTHING, target_named, Wording(), subject)


@pytest.fixture(scope="module", params=KINDS)
def task(request: pytest.FixtureRequest) -> tuple[Edit, EditTruth]:
    one = sample_edit(Random(3), request.param)
    return one, render_truth(one)


def test_the_true_edit_scores_one_and_doing_nothing_zero(task: tuple[Edit, EditTruth]):
    one, clips = task
    read = perfect_reader(one, clips)
    best = measure(one, clips, clips.target.frames, read)
    assert best.score == pytest.approx(1, abs=0.01) and best.ssim_inside == 1 and best.psnr_inside > 59.9
    assert (best.success, best.kept, best.unsaid) == (1, 1, 1) and best.psnr_target > 59.9
    nothing = measure(one, clips, clips.source.frames, read)
    assert (nothing.score, nothing.success, nothing.kept, nothing.unsaid) == (0, 0, 1, 1)
    assert nothing.psnr_inside < 25 and nothing.ssim_inside < best.ssim_inside
    if (~clips.changed).mean() > 0.05:
        assert best.psnr_outside > 40 and best.flicker < 1
        assert nothing.ssim_outside == 1 and nothing.psnr_outside > 59.9 and nothing.flicker == 0
    recoloured = "recolour" in one.kind
    assert (best.hue, nothing.hue) == ((1, 0) if recoloured else (pytest.approx(math.nan, nan_ok=True),) * 2)


# What is seen, the share of the changes that is right then, and how many of the answers to keep are wrong, of these how
# many that the source prompt does not name. Of SCENE are asked: ten answers of the striped ball, eight of the plain
# cube (no tone and angle), the shapes at four empty slots, and nine of the whole.
BLUE_CONE = edit_to(SCENE.with_object(0, shape="cone", colour="blue"))
REMOVAL = edit_to(replace(SCENE, objects=(CUBE,)), 0, Named((None,), frozenset()))
SEEN = {
    "as asked": (BLUE_CONE, BLUE_CONE.target, 1, (0, 0)),
    "half of two changes": (BLUE_CONE, SCENE.with_object(0, colour="blue"), 1 / 2, (0, 0)),
    "the floor changed, too": (BLUE_CONE, replace(BLUE_CONE.target, floor="teal"), 1, (1, 1)),
    "the edited object went": (BLUE_CONE, replace(SCENE, objects=(CUBE,)), 0, (8, 7)),
    "one too many": (BLUE_CONE, BLUE_CONE.target.with_objects([*BLUE_CONE.target.objects, BEHIND]), 1, (1, 1)),
    "a pattern lost": (BLUE_CONE, BLUE_CONE.target.with_object(0, pattern=Pattern()), 1, (3, 3)),
    "another size": (BLUE_CONE, BLUE_CONE.target.with_object(0, size="small"), 1, (1, 1)),
    "taken away": (REMOVAL, REMOVAL.target, 1, (0, 0)),
    "replaced instead of taken away": (REMOVAL, SCENE.with_object(0, shape="cone"), 0, (0, 0)),
    "the wrong one taken away": (REMOVAL, replace(SCENE, objects=(BALL,)), 0, (8, 8)),
}  # fmt: skip
ASKED = {"BLUE_CONE": (BLUE_CONE, 2, 29, 28), "REMOVAL": (REMOVAL, 1, 21, 21)}


@pytest.mark.parametrize(("one", "changed", "kept", "unsaid"), ASKED.values(), ids=ASKED)
def test_what_is_asked_for_by_hand(one: Edit, changed: int, kept: int, unsaid: int):
    asked = asked_answers(one, render_truth(one))
    assert (asked.changed.sum(), asked.kept.sum(), asked.unsaid.sum()) == (changed, kept, unsaid)


@pytest.mark.parametrize(("one", "seen", "success", "wrong"), SEEN.values(), ids=SEEN)
def test_attributes_by_hand(one: Edit, seen: Scene, success: float, wrong: tuple[int, int]):
    asked = asked_answers(one, render_truth(one))
    found = attributes(asked, labels_of(seen))
    assert found["success"] == pytest.approx(success)
    for name, which, count in zip(("kept", "unsaid"), (asked.kept, asked.unsaid), wrong, strict=True):
        assert found[name] == pytest.approx(1 - count / which.sum())


def test_the_colour_of_gold_which_shows_its_own_is_not_asked_for():
    """Nor where it changes places with something of another colour, or something becomes gold."""
    gold = replace(BALL, material="gold", pattern=Pattern())
    left, right = (list(QUESTIONS).index((place, "front", "colour")) for place in ("left", "right"))
    exchanged = replace(SCENE, objects=(replace(CUBE, place="left"), replace(gold, place="right")))
    one = replace(edit_to(exchanged), source=replace(SCENE, objects=(gold, CUBE)))
    made = edit_to(SCENE.with_object(0, material="gold", pattern=Pattern()))
    for edit, of_gold in ((one, right), (made, left)):
        asked = asked_answers(edit, render_truth(edit, 2))
        assert asked.answers[of_gold] == -1 and not (asked.changed | asked.kept)[of_gold]
        assert asked.answers[left + right - of_gold] == list(COLOURS).index("green")


def test_what_is_misread_off_the_true_clips_is_not_asked_for():
    """So nothing succeeds that has not changed, and no classifier's error counts as an edit's."""
    asked, source, target = (
        asked_answers(BLUE_CONE, render_truth(BLUE_CONE)),
        labels_of(SCENE),
        labels_of(BLUE_CONE.target),
    )
    assert all(map(np.array_equal, vars(asked.readable(source, target)).values(), vars(asked).values()))
    colour, floor = (list(QUESTIONS).index(one) for one in (("left", "front", "colour"), ("", "", "floor")))
    for misread, answer in ((source, target[colour]), (target, source[colour])):
        before, misread[colour] = misread[colour], answer
        narrowed = asked.readable(source, target)
        assert not narrowed.changed[colour] and narrowed.changed.sum() == 1
        assert attributes(narrowed, source)["success"] == 0 and attributes(narrowed, target)["success"] == 1
        misread[colour] = before
    source[floor] = 1 - source[floor].clip(max=1)
    narrowed = asked.readable(source, target)
    assert not (narrowed.kept | narrowed.unsaid)[floor] and narrowed.kept.sum() == asked.kept.sum() - 1
    assert attributes(narrowed, source)["kept"] == 1


def test_all_may_be_taken_away():
    alone = replace(SCENE, objects=(BALL,))
    one = replace(edit_to(replace(SCENE, objects=())), source=alone, source_named=Named((frozenset(),), frozenset()),
                  target_named=Named((), frozenset({"floor"})))  # fmt: skip
    clips = render_truth(one, frames=3)
    asked = asked_answers(one, clips)
    assert asked.changed.sum() == 1 and attributes(asked, labels_of(one.target))["success"] == 1
    assert attributes(asked, labels_of(alone))["success"] == 0 and clips.changed.any()


def test_of_an_object_that_is_not_seen_no_attribute_is_right():
    asked, seen = asked_answers(BLUE_CONE, render_truth(BLUE_CONE)), labels_of(BLUE_CONE.target)
    seen[list(QUESTIONS).index(("left", "front", "shape"))] = 0  # a classifier answers all the same for the rest
    found = attributes(asked, seen)
    assert found["success"] == 0 and found["kept"] == pytest.approx(1 - 8 / asked.kept.sum())


def test_what_is_never_captioned_has_a_figure_of_its_own():
    found = attributes(
        asked_answers(BLUE_CONE, render_truth(BLUE_CONE)), labels_of(SCENE.with_object(0, pattern=Pattern()))
    )
    # The ball's pattern is gone and the cube's is there; only the ball had a tone and an angle.
    assert (found["unsaid_pattern"], found["unsaid_tone"], found["unsaid_angle"]) == (1 / 2, 0, 0)
    assert found["unsaid_backdrop"] == found["unsaid_floor_pattern"] == found["unsaid_light_from"] == 1
    figures = {one.name for one in fields(Scores)}
    assert {f"unsaid_{name.replace(' ', '_')}" for name in NEVER_CAPTIONED} < figures and figures <= COLUMNS.keys()


def test_what_only_the_target_prompt_names_of_the_hidden_is_asked_for():
    """A cube behind a ball that is taken away: its colour is asked for where the target prompt names it, and what
    neither shows nor is named is not."""
    front, back = replace(BALL, place="middle"), Object("cube", "blue", "small", "middle", row="back")
    source = Scene((front, back), "gray", "blue")
    target, names = replace(source, objects=(back,)), frozenset({"colour"})
    one = Edit(
        "", "", source, target, Named((frozenset(), None), frozenset()), Named((names,), frozenset()), Wording(), 0
    )
    clips = render_truth(one)
    hidden = replace(
        clips, source=replace(clips.source, coverage=clips.source.coverage * np.array([1, 0])[:, None, None, None])
    )
    asked = asked_answers(one, hidden)
    of_cube = {name: k for k, (place, row, name) in enumerate(QUESTIONS) if (place, row) == ("middle", "back")}
    assert asked.changed[of_cube["colour"]] and asked.changed[of_cube["shape"]]
    assert not any((asked.changed | asked.kept)[of_cube[name]] for name in ("size", "pattern", "hat"))


@settings(max_examples=5)
@given(st.integers(0, 2**40))
def test_preservation_alone_is_worth_nothing_and_neither_is_success(seed: int):
    one = sample_edit(Random(seed), "recolour")
    clips = render_truth(one, frames=3, samples=1)
    read = perfect_reader(one, clips)
    noise = np.random.default_rng(0).integers(0, 256, clips.source.frames.shape, dtype=np.uint8)
    assert measure(one, clips, clips.source.frames, read).score == 0
    assert measure(one, clips, noise, lambda x: read(clips.target.frames if x is noise else x)).score < 0.3


def test_a_style_that_changes_every_pixel_is_scored_by_what_is_kept():
    one = edit_to(replace(SCENE, style="night"), None, Named(NOTHING.objects, frozenset({"style"})))
    clips = render_truth(one, frames=3)
    everything = replace(clips, changed=np.ones_like(clips.changed))
    asked = asked_answers(one, everything)
    seen = labels_of(replace(one.target, floor="brown", sky="pink"))
    edited, read = clips.target.frames.copy(), perfect_reader(one, clips)
    found = measure(one, everything, edited, lambda frames: seen if frames is edited else read(frames))
    assert math.isnan(found.ssim_outside) and found.kept == pytest.approx(1 - 2 / asked.kept.sum())
    assert found.score == pytest.approx(2 / (1 + 1 / found.kept))
