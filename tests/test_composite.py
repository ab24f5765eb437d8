"""Compositing an edit over its source, and cutting out and pasting back windows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.videos import clip

from v2edit.video.composite import composite, find_drift
from v2edit.video.crop import extract, paste, plan_crop
from v2edit.video.feather import feathered_share

HEIGHT, WIDTH = 48, 64


def noise(seed: int, count: int = 4, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def square(count: int = 4) -> np.ndarray:
    mask = np.zeros((count, HEIGHT, WIDTH), np.float32)
    mask[:, 14:34, 20:44] = 1
    return mask


@pytest.mark.parametrize("seam", ["feather", "match"])
def test_the_source_stays_to_the_last_bit_where_nothing_may_change(seam: str) -> None:
    source, edited, share = noise(1), noise(2), feathered_share(square())
    result = composite(source, edited, share, seam)
    assert result.dtype == np.uint8 and (result[share == 0] == source[share == 0]).all()
    assert (composite(source, edited, np.zeros_like(share), seam) == source).all()
    assert (composite(source, edited, np.ones_like(share), seam) == edited).all()


def test_shares_mix() -> None:
    source, edited, share = noise(1), noise(2), feathered_share(square())
    result = composite(source, edited, share, "feather")
    assert (result[share == 1] == edited[share == 1]).all()
    mixed = source + share[..., None].astype(np.float64) * (edited.astype(float) - source)
    assert np.abs(result - mixed).max() < 0.51


@pytest.mark.parametrize("seam", ["feather", "match"])
def test_an_edit_without_drift_is_taken_as_it_is(seam: str) -> None:
    """Colours that the edit has within its mask are its own, however far they are from the source's."""
    source, mask = clip(4), square()
    edited = np.where(mask[..., None] > 0, 255 - source, source).astype(np.uint8)
    result = composite(source, edited, feathered_share(mask), seam)
    assert (result[mask == 1] == edited[mask == 1]).all()


def test_drift_is_taken_off_within_the_mask() -> None:
    """A drift that grows across the picture, beside an edit that shows beyond its mask on one side."""
    source, mask = clip(4), square()
    share = feathered_share(mask)
    truth = np.where(mask[..., None] > 0, np.uint8([150, 90, 60]), source).astype(np.float32)
    shift = np.linspace(4, 8, WIDTH)[:, None] * np.array([1, -0.7, 0.5])
    edited = truth + shift
    edited[:, 18:26, 46:50] += 70
    edited = edited.clip(0, 255).round().astype(np.uint8)
    inside = mask == 1
    errors = {
        seam: np.abs(composite(source, edited, share, seam) - truth)[inside].mean() for seam in ("feather", "match")
    }
    assert errors["feather"] > 3 and errors["match"] < 1


def test_what_is_too_large_for_drift_is_the_edits() -> None:
    source, share = clip(4), feathered_share(square())
    assert find_drift(source, (source // 4), share).norm(dim=1).max() < 20  # a night: up to 187 darker, each colour
    assert not find_drift(source, source, share).any()


# --- windows ----------------------------------------------------------------------------------------


def moving(
    count: int, places: list[tuple[int, int]], side: int = 16, height: int = 180, width: int = 320
) -> np.ndarray:
    share = np.zeros((count, height, width), np.float32)
    for one, (top, left) in zip(share, places, strict=True):
        one[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0.5
    return share


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(4, 30))
def test_windows_contain_what_may_change(seed: int, count: int, side: int) -> None:
    generator = np.random.default_rng(seed)
    walk = (generator.integers(0, 150, 2) + generator.integers(-25, 26, (count, 2)).cumsum(0)).clip(-side, 300)
    share = moving(count, [(int(y), int(x)) for y, x in walk], side)
    share[generator.random(count) < 0.2] = 0
    boxes = plan_crop(share, 48, 64)
    if boxes is None:
        assert not share.any()
        return
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 180).all() and (left + width <= 320).all()
    assert len(set(height)) == 1 and len(set(width)) == 1 and abs(width[0] / height[0] - 64 / 48) < 0.06
    assert height[0] <= 108 and width[0] <= 192
    assert extract(share, boxes).sum() == share.sum()


def test_windows_move_smoothly() -> None:
    """An object that trembles stands still in a window that does; one that runs is followed, no faster than it is."""
    generator = np.random.default_rng(0)
    trembling = [(80 + int(y), 150 + int(x)) for y, x in generator.integers(-2, 3, (30, 2))]
    boxes = plan_crop(moving(30, trembling), 48, 64)
    assert boxes is not None and np.ptp(boxes, 0).max() <= 1
    running = [(80, 20 + 6 * k + int(generator.integers(-2, 3))) for k in range(40)]
    boxes = plan_crop(moving(40, running), 48, 64)
    assert boxes is not None and np.diff(boxes[:, 1]).min() >= 0 and np.abs(np.diff(boxes[:, 1])).max() <= 10
    steps = np.diff(boxes[5:-5, 1], 2)
    assert np.abs(steps).max() <= 3 < np.abs(np.diff([x for _, x in running], 2)).max()


def test_large_regions_have_no_window() -> None:
    assert plan_crop(np.ones((3, 180, 320), np.float32), 48, 64) is None
    assert plan_crop(moving(2, [(10, 10), (10, 10)], 100), 48, 64) is None
    assert plan_crop(moving(1, [(10, 10)], 8, 48, 64), 96, 128) is None  # of a clip smaller than the model's


def test_a_large_mask_is_not_matched_in_colour_unless_that_is_asked_for() -> None:
    """What is known of the drift beside it says nothing of its inside."""
    source = clip(3, 48, 64)
    edited = (source.astype(int) + 6).clip(0, 255).astype(np.uint8)
    for width, chosen in ((16, "match"), (48, "feather")):
        share = np.zeros((3, 48, 64), np.float32)
        share[:, :, :width] = 1
        both = {seam: composite(source, edited, share, seam) for seam in ("match", "feather")}
        assert (both["match"] != both["feather"]).any()
        np.testing.assert_array_equal(composite(source, edited, share), both[chosen])


def test_pasting_undoes_extracting() -> None:
    frames, share = noise(3, 3, 180, 320), moving(3, [(60, 100), (64, 110), (66, 120)])
    boxes = plan_crop(share, 48, 64)
    assert boxes is not None
    same = extract(frames, boxes)
    assert same.shape == (3, *boxes[0, 2:], 3) and (paste(frames, same, boxes) == frames).all()
    black = paste(frames, np.zeros_like(same), boxes)
    changed = (black != frames).any(-1)
    assert not extract(black, boxes).any()
    assert changed.sum() == extract(changed, boxes).sum()  # outside the windows all is as it was
