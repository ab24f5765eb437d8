"""Captions of primitives: they name some of a scene and leave the rest out, and are read as they were written."""

from dataclasses import fields, replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scenes_told import says_nothing_wrong

from v2edit.errors import UserError
from v2edit.primitives.captions import (
    EXAMPLE,
    TEXT_LENGTH,
    VOCABULARY,
    Named,
    Wording,
    caption,
    count_words,
    describe,
    sample_named,
    sample_wording,
)
from v2edit.primitives.parsing import is_caption, parse_caption
from v2edit.primitives.questions import scene_labels, scene_of
from v2edit.primitives.scene import COLOURS, Object, Pattern, Scene, sample_scene

seeds = st.integers(0, 2**40)
NEVER_NAMED = {
    "floor_pattern", "floor_angle", "floor_phase", "backdrop", "light_azimuth", "light_elevation", "azimuth",
}  # fmt: skip


def sample_text(seed: int) -> tuple[Scene, Named, Wording, str]:
    rng = Random(seed)
    scene = sample_scene(rng)
    named, wording = sample_named(rng, scene), sample_wording(rng)
    return scene, named, wording, caption(scene, named, wording)


@settings(max_examples=40)
@given(seeds)
def test_a_caption_says_what_it_names_and_nothing_else(seed):
    scene, named, wording, text = sample_text(seed)
    assert set(text.replace(",", " ,").replace(".", " .").split()) <= VOCABULARY
    other = sample_scene(Random(seed + 1))
    details = {f.name: getattr(other, f.name) for f in fields(Scene) if f.name in NEVER_NAMED}
    assert caption(replace(scene, **details), named, wording) == text
    for field, value in (("floor", "gray"), ("sky", "pink"), ("light", "warm"), ("camera", "pan left")):
        same = caption(replace(scene, **{field: value}), named, wording) == text
        assert same == (field not in named.scene or getattr(scene, field) == value)
    for k, (obj, names) in enumerate(zip(scene.objects, named.objects, strict=True)):
        other = next(c for c in COLOURS if c != obj.colour)
        objects = [replace(o, colour=other) if i == k else o for i, o in enumerate(scene.objects)]
        same = caption(replace(scene, objects=tuple(objects)), named, wording) == text
        assert same == (names is None or "colour" not in names)
        plain = replace(obj, pattern=Pattern(), dx=0.0, dy=0.0, yaw=0.0)
        objects = [plain if i == k else o for i, o in enumerate(scene.objects)]
        assert caption(replace(scene, objects=tuple(objects)), named, wording) == text


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_a_caption_is_read_as_it_was_written(seed):
    *_, text = sample_text(seed)
    assert is_caption(text) and parse_caption(text).text == text


@settings(max_examples=100, deadline=None)
@given(seeds, st.data())
def test_a_caption_with_another_word_is_refused(seed, data):
    """The reader guesses and skips nothing."""
    *_, text = sample_text(seed)
    words = text.replace(",", "").split()
    at = data.draw(st.integers(0, len(words)))
    for word in ("cinematic", "35mm", "7", "球"):
        assert not is_caption(" ".join([*words[:at], word, *words[at:]]))


@pytest.mark.parametrize(
    "text",
    ["a red red ball", "a red blue ball", "a ball ball", "a ball on the left on the right", "balls", "a cat", "",
     "on the", "a ball on a gray floor on a teal floor", "two balls", "a ball hops rests", "the camera",
     "a red gold ball"],
)  # fmt: skip
def test_what_is_said_twice_or_not_at_all_is_no_caption(text):
    assert not is_caption(text)


def test_case_spelling_punctuation_and_what_goes_without_saying_are_accepted():
    text = "Under a blue sky a Big red ball, on the left, rests on a grey floor"
    assert parse_caption(text).text == "under a blue sky, a big red ball on the left rests, on a gray floor."
    assert parse_caption("a cube beside a ball on the floor").text == "a cube beside a ball."
    assert is_caption(caption(EXAMPLE))


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("a cinematic shot of a big red cube on a gray floor under a blue sky, 35mm", "'35mm'"),
        ("a cinematic shot of a big red cube on a gray floor under a blue sky", "'cinematic', 'shot', 'of'"),
        ("a dragon in the sky", "'dragon'"),
        ("on the left", "does not understand 'on the left'"),
        ("", "names nothing"),
    ],
)
def test_another_prompt_is_refused_in_a_line_with_an_example_that_works(prompt, names):
    with pytest.raises(UserError, match=names) as error:
        parse_caption(prompt)
    message = str(error.value)
    assert "\n" not in message and is_caption(message.rpartition("an example is ")[2].strip("'"))


def test_nothing_named_is_a_caption_of_shapes_alone():
    scene = Scene(
        (Object("ball", "red", "big", "left"), Object("star", "blue", "small", "right", copies=3)), "gray", "blue"
    )
    assert caption(scene, Named((frozenset(), frozenset()), frozenset())) == "a ball and three stars."
    assert caption(scene, Named((frozenset({"colour"}), None), frozenset({"sky"})), Wording()) == (
        "a red ball, under a blue sky."
    )


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_a_scene_is_told_by_the_answers_about_it_and_its_description_fits(seed):
    scene = replace(sample_scene(Random(seed)), style="photo")
    everything = np.full(6, 1000)
    labels = np.array(scene_labels(scene, everything))
    read = scene_of(np.maximum(labels, 0))
    again = np.array(scene_labels(read, everything))
    assert (again[labels >= 0] == labels[labels >= 0]).all()
    text = describe(read)
    assert count_words(text) < TEXT_LENGTH
    assert says_nothing_wrong(text, scene) and len(parse_caption(text).scene.objects) == len(scene.objects)


def test_scenes_with_the_same_answers_have_the_same_captions():
    captions: dict[tuple[int, ...], str] = {}
    for k in range(300):
        scene = replace(sample_scene(Random(k)), style="photo")
        labels = tuple(scene_labels(scene, np.full(6, 1000)))
        named = caption(replace(scene, balloon=scene.balloon and replace(scene.balloon, place="middle")))
        assert captions.setdefault(labels, named) == named
