"""Masks, crops, composites and held colours of streams: what they are of arrays, a frame at a time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.videos import error_of

from v2edit import video
from v2edit.jobs.masks import MaskOptions, load_local, save_share, share_facts
from v2edit.metrics.drift import measure_drift
from v2edit.video import Video, stream
from v2edit.video.colour_hold import STRETCH, estimate_drift, hold_colours
from v2edit.video.composite import composite
from v2edit.video.crop import extract, paste, plan_crop
from v2edit.video.extent import measure_extent
from v2edit.video.feather import feathered_share, spread_in_time
from v2edit.video.spool import open_spool, spool
from v2edit.video.stream import FrameStream, as_stream, pick

T, H, W = 23, 40, 60


def moving_mask(count: int = T) -> np.ndarray:
    """Return a mask of a square that moves, and is away for some frames."""
    mask = np.zeros((count, H, W), np.float32)
    for k in range(count):
        if k % 9 != 4:
            mask[k, 8 + k % 7 : 22 + k % 7, 5 + k % 20 : 20 + k % 20] = 1
    return mask


def noise(seed: int, count: int = T) -> np.ndarray:
    """Return a clip of coarse noise."""
    some = np.random.default_rng(seed).integers(0, 256, (count, H // 4, W // 4, 3), np.uint8)
    return some.repeat(4, 1).repeat(4, 2)


def assert_like(streamed: object, expected: np.ndarray) -> None:
    """Assert that a stream has the frames of an array, wherever it is read from."""
    assert isinstance(streamed, FrameStream) and streamed.shape == expected.shape
    assert np.dtype(streamed.dtype) == expected.dtype
    np.testing.assert_array_equal(np.asarray(streamed), expected)
    np.testing.assert_array_equal(np.asarray(streamed[7:12]), expected[7:12])


@pytest.mark.parametrize("seam", ["match", "feather", None])
def test_a_composite_of_streams(seam) -> None:
    source, edited, share = noise(0), noise(1) // 8 + noise(0) // 8 * 7, feathered_share(moving_mask(), grow=3)
    expected = composite(source, edited, share, seam)
    assert isinstance(expected, np.ndarray) and (expected != source).any()
    for mixed in ([as_stream(source), as_stream(edited), as_stream(share)], [source, as_stream(edited), share]):
        assert_like(composite(*mixed, seam), expected)
    nothing = as_stream(np.zeros_like(share))
    assert_like(composite(as_stream(source), as_stream(edited), nothing), source)


@pytest.mark.parametrize("grow", [0, 3, None])
@pytest.mark.parametrize("is_kept", [False, True])
def test_the_feather_of_a_stream(grow: int | None, is_kept: bool) -> None:
    mask, keep = moving_mask(), np.zeros((T, H, W), np.float32)
    keep[:, 10:16, 20:30] = 1
    expected = feathered_share(mask, keep if is_kept else None, grow)
    streamed = feathered_share(as_stream(mask), as_stream(keep) if is_kept else None, grow)
    assert_like(streamed, expected)
    assert_like(spread_in_time(streamed), spread_in_time(expected))
    assert share_facts(streamed) == share_facts(expected)
    extents = [measure_extent(one) for one in (expected, streamed)]
    assert extents[0].window(4) == extents[1].window(4) and extents[0].mean == pytest.approx(extents[1].mean)


def test_a_crop_of_a_stream() -> None:
    frames, mask = noise(2), moving_mask()
    mask[:, :, 40:] = 0
    boxes = plan_crop(mask, 24, 24)
    assert boxes is not None and np.array_equal(plan_crop(as_stream(mask), 24, 24), boxes)
    windows = extract(frames, boxes)
    assert_like(extract(as_stream(frames), boxes), windows)
    assert_like(paste(as_stream(frames), 255 - windows, boxes), paste(frames, 255 - windows, boxes))


def test_held_colours_of_a_stream() -> None:
    """A short one has the drift of an array; that of a long one, in stretches, is near it, and the frames are, too."""
    for count, tolerance in ((T, 0), (2 * STRETCH + 70, 1)):
        source = np.clip(noise(3, count), 30, 220)
        fade = np.linspace(0, 1, count)[:, None, None, None]
        edited = (source + 4 + 2 * fade).astype(np.uint8)
        expected, found = (estimate_drift(source, one) for one in (edited, as_stream(edited)))
        assert expected is not None and found is not None and found.mean.shape == expected.mean.shape == (count, 3)
        assert np.abs(found.mean - expected.mean).max() <= tolerance / 2
        held = hold_colours(as_stream(edited), found)
        assert isinstance(held, FrameStream) and hold_colours(as_stream(edited), None) is not None
        difference = np.abs(np.asarray(held).astype(int) - hold_colours(edited, expected))
        assert difference.max() <= tolerance
        figures = [measure_drift(one, joints=[8, 16]) for one in (expected, found)]
        assert all(figures[0][name] == pytest.approx(figures[1][name], abs=0.2) for name in figures[0])


@settings(max_examples=25)
@given(st.lists(st.integers(0, T - 1), min_size=1, max_size=40))
def test_picked_frames_of_a_stream(numbers: list[int]) -> None:
    frames, index = noise(4), np.array(numbers)
    np.testing.assert_array_equal(np.asarray(pick(as_stream(frames), index)), frames[index])
    np.testing.assert_array_equal(np.asarray(pick(frames, index, streamed=True)[1:]), frames[index][1:])


def test_a_mask_of_a_long_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file of another rate, a picture, an array, a box and a time: the shares of arrays, never whole in memory;
    and a run that resumes has them."""
    mask = (moving_mask(12) * 255).astype(np.uint8)[..., None].repeat(3, 3)
    video.write(mask, tmp_path / "mask.mp4", 5)
    video.write_still(mask[3], tmp_path / "keep.png")
    clip = Video(noise(5), Fraction(10))
    options = [
        MaskOptions(mask=str(tmp_path / "mask.mp4")),
        MaskOptions(mask=str(tmp_path / "mask.mp4"), grow=0, time="0.3-1.5"),
        MaskOptions(keep=str(tmp_path / "keep.png"), box="4,4,40,30"),
        MaskOptions(mask=moving_mask() > 0),  # type: ignore[arg-type]
        MaskOptions(mask=mask[3, ::2, ::2, 0]),  # type: ignore[arg-type]
    ]
    expected = [one.build(clip, slice(2, 20)).share for one in options]
    monkeypatch.setattr(stream, "STREAM_LIMIT", 3 * H * W * 5)
    for number, (one, share) in enumerate(zip(options, expected, strict=True)):
        long = Video(as_stream(clip.frames), Fraction(10))
        local = one.build(long, slice(2, 20))
        assert isinstance(share, np.ndarray) and share.any()
        assert_like(local.share, share)
        (folder := tmp_path / str(number)).mkdir()
        save_share(local, folder)
        assert_like(load_local({"local": one.facts}, folder).share, share)


def test_a_spool_is_exact_and_small(tmp_path: Path) -> None:
    share = feathered_share(moving_mask(), grow=5)
    still = share[np.zeros(200, int)]
    for frames in (share, still, np.zeros_like(share)):
        assert_like(spool(as_stream(frames), tmp_path / "a.zip"), frames)
        assert_like(open_spool(tmp_path / "a.zip"), frames)
        assert (tmp_path / "a.zip").stat().st_size < frames.nbytes / 5
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:300])
    assert "damaged" in error_of(lambda: open_spool(tmp_path / "a.zip"))
