"""Clips of any length and size: mapped onto the sizes that a model takes, and back."""

from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.clips import PAIR, frames_of
from support.models import pipeline_of

from v2edit.backbones import Size
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.editing import EditConfig, Editor
from v2edit.editing.resize import resize_clip


@cache
def tiny_5b() -> CogVideoX:
    """Build the tiny model once for all examples."""
    return CogVideoX(pipeline_of("5b"))


@pytest.mark.parametrize(("count", "height", "width"), [(1, 32, 32), (7, 45, 31), (10, 20, 60)])
def test_any_clip_comes_back_with_its_own_length_and_size(count, height, width):
    backbone = CogVideoX(pipeline_of("5b"))
    frames = frames_of(3, count, height, width)
    assert Editor(backbone).edit(frames, PAIR, EditConfig(steps=2)).frames.shape == frames.shape


def test_fitting_keeps_the_area_and_the_aspect():
    backbone = CogVideoX(pipeline_of("5b"))
    assert backbone.nearest_size(Size(9, 32, 32)) == Size(9, 32, 32)
    assert backbone.nearest_size(Size(10, 100, 100)) == Size(17, 32, 32)
    tall = backbone.nearest_size(Size(1, 1280, 320))
    assert tall.frames == 1 and tall.height == 64 and tall.width == 16


@settings(max_examples=40)
@given(height=st.integers(1, 700), width=st.integers(1, 700))
@example(1, 1)
@example(700, 1)
@example(592, 336)
def test_any_size_is_mapped_onto_all_of_the_models_and_back(height, width):
    """Nothing is cut off or put around: a plain picture stays plain to its edges, a ramp runs from end to end."""
    backbone, own = tiny_5b(), Size(1, height, width)
    fitted, shape = backbone.nearest_size(own), (1, height, width, 3)
    side = backbone.side
    assert fitted.height % side == fitted.width % side == 0
    if max(height, width) <= 4 * min(height, width):  # a narrower one has but a few patches on its short side
        trained = backbone.native_size.height * backbone.native_size.width
        assert 0.5 < fitted.height * fitted.width / trained < 2
        assert 0.5 < (fitted.height / fitted.width) / (height / width) < 2
    plain = np.full(shape, 200, np.uint8)
    assert (resize_clip(plain, fitted) == 200).all() and np.array_equal(
        resize_clip(resize_clip(plain, fitted), own), plain
    )
    for count, few, axes in ((height, fitted.height, np.s_[:, None, None]), (width, fitted.width, np.s_[:, None])):
        ramp = np.broadcast_to(((np.arange(count) + 0.5) / count * 255).round().astype(np.uint8)[axes], shape).copy()
        back = resize_clip(resize_clip(ramp, fitted), own)
        assert np.abs(back.astype(int) - ramp).max() <= 255 / min(few, count) + 2


def test_frames_at_their_own_size_are_left_alone():
    frames = frames_of(4)
    assert np.array_equal(resize_clip(frames, Size(9, 32, 32)), frames)
    longer = resize_clip(frames, Size(12, 32, 32))
    assert np.array_equal(longer[:9], frames) and (longer[9:] == frames[-1]).all()
    assert np.array_equal(resize_clip(longer, Size(9, 32, 32)), frames)
