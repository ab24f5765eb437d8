"""Colours: their drift, a flash and steps at joints are measured; an edit is held to its source's colours, and its own
colours stay."""

import numpy as np
import pytest
from support.clips import PAIR
from support.models import pipeline_of

from v2edit import video
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.editing import EditConfig, Editor
from v2edit.editing.local import LocalEdit
from v2edit.metrics.drift import measure_drift
from v2edit.primitives.edits import render_truth, sample_edit
from v2edit.video.colour_hold import SIDE, cell_means, estimate_drift, hold_colours

T, H, W = 12, 96, 128
TINT = np.array([7.0, -5.0, 3.0])


@pytest.fixture(scope="module", params=["wolf.mp4", "cof-office.mp4"])
def source(request, data) -> np.ndarray:
    frames = video.read(data / "videos" / request.param, max_frames=T).frames
    step = min(frames.shape[1] // H, frames.shape[2] // W)
    return np.ascontiguousarray(frames[:, : H * step : step, : W * step : step])


@pytest.fixture(scope="module")
def region(source) -> np.ndarray:
    """A third of the frame, bool [T, H, W, 1]."""
    mask = np.zeros((len(source), H, W, 1), bool)
    mask[:, 24:80, 16:90] = True
    return mask


@pytest.fixture(scope="module")
def edit(source, region) -> np.ndarray:
    """A local edit without drift: other colours in the region, grain everywhere; float."""
    grain = np.random.default_rng(0).normal(0, 2, source.shape)
    return np.where(region, 255 - np.roll(source, 1, -1), source) + grain


def to_bytes(v: np.ndarray) -> np.ndarray:
    return np.rint(v).clip(0, 255).astype(np.uint8)


def apart(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """How far two videos' colours are apart in the cells of a mask, root mean square levels."""
    inside = cell_means(np.repeat(where, 3, -1).astype(np.uint8))[0] > 0.9
    return float(np.sqrt(np.square(cell_means(a)[0] - cell_means(b)[0])[inside].mean()))


def hold(source: np.ndarray, edited: np.ndarray, share: np.ndarray | None = None) -> np.ndarray:
    return hold_colours(edited, estimate_drift(source, edited, share))


def measured(source: np.ndarray, edited: np.ndarray, share: np.ndarray | None = None, joints: tuple[int, ...] = ()):
    return measure_drift(estimate_drift(source, edited, share), joints)


def flashing(v: np.ndarray) -> np.ndarray:
    return np.concatenate([v[:1] * 1.04 + 6, v[1:]])


DRIFTS = {
    "offset": lambda v: v + TINT,
    "contrast": lambda v: (v - 128) * 0.92 + 128,
    "flash": flashing,
    "slow": lambda v: v + TINT * np.linspace(0, 1.5, len(v))[:, None, None, None],
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_a_drift_is_measured_and_taken_out_and_the_edits_own_colours_stay(source, edit, region, drift):
    ideal, edited = to_bytes(edit), to_bytes(DRIFTS[drift](edit))
    for share in (None, region[..., 0].astype(np.float32)):
        held = hold(source, edited, share)
        whole = apart(edited, ideal, ~region)
        assert apart(held, ideal, ~region) < 0.35 * whole and whole > 1
        assert apart(held, ideal, region) < 0.6 * apart(edited, ideal, region)
        found = measured(source, edited, share)["colour"]
        assert found == pytest.approx(whole, rel=0.3)


def test_a_tint_is_measured_by_channel_and_frame(source, edit):
    drift = estimate_drift(source, to_bytes(edit + TINT))
    assert drift is not None
    np.testing.assert_allclose(drift.mean, np.tile(TINT, (T, 1)), atol=1)


def test_without_a_drift_no_bit_changes(source, edit):
    for edited in (source, to_bytes(edit), to_bytes(source + np.random.default_rng(1).normal(0, 3, source.shape))):
        np.testing.assert_array_equal(hold(source, edited), edited)


def test_equal_videos_measure_zero(source):
    assert measured(source, source, joints=(5, 9)) == {"colour": 0, "flash": 0, "joints": 0}
    assert measured(source[:1], source[:1]) == {"colour": 0, "flash": None, "joints": None}


def test_a_flash_is_seen_and_taken_out(source, edit):
    edited = to_bytes(flashing(edit))
    flash = measured(source, edited)["flash"]
    assert flash is not None and flash > 6
    after = measured(source, hold(source, edited))["flash"]
    assert after is not None and after < 1


@pytest.mark.parametrize(
    "look",
    [
        lambda v: v * [0.3, 0.35, 0.5],
        lambda v: v * [1.1, 0.85, 0.6],
        lambda v: v + (235 - v) * 0.6,
        lambda v: np.roll(v, (30, 50), (1, 2)),
    ],
    ids=["night", "sunset", "snow", "another picture"],
)
def test_a_look_of_the_whole_video_is_not_undone(source, look):
    edited = to_bytes(look(source.astype(float)))
    assert apart(hold(source, edited), edited, np.ones((*source.shape[:3], 1), bool)) < 0.5


def test_where_nothing_is_unchanged_nothing_is_told(source):
    other = np.random.default_rng(2).integers(0, 256, source.shape, dtype=np.uint8)
    assert measured(source, other)["colour"] is None
    np.testing.assert_array_equal(hold(source, other), other)


def test_jumps_at_joints_are_seen_against_the_steps_between(source, edit, region):
    """Steps that a drift makes all the time are none; neither is what moves in the edit, or in the source."""
    joints, time = (5, 9), np.arange(T)[:, None, None, None]
    wandering = edit + 0.5 * time
    jumping = wandering + 4 * np.digitize(time, joints)
    for share in (None, region[..., 0].astype(np.float32)):
        smooth, jumps = (measured(source, to_bytes(v), share, joints)["joints"] for v in (wandering, jumping))
        assert smooth == pytest.approx(1, abs=0.3)
        assert jumps is not None and jumps > 4
    assert measured(source, source)["joints"] is None


def test_the_truths_of_the_built_in_world_stay_as_they_are():
    """Floors and skies fill half the frame."""
    from random import Random

    for kind in ("floor", "sky", "recolour"):
        truth = render_truth(sample_edit(Random(5), kind))
        np.testing.assert_array_equal(hold(truth.source.frames, truth.target.frames), truth.target.frames)


def test_an_edit_is_held_before_it_is_composited(monkeypatch, source):
    """A model that returns its video with a tint: kept, the tint goes; free, it stays. Chunks' joints are told."""
    backbone = CogVideoX(pipeline_of("5b"))
    clip = np.ascontiguousarray(np.concatenate([source, source[::-1]])[:17, :64, :64])
    tinted = to_bytes(clip + TINT)
    monkeypatch.setattr(backbone, "decode", lambda latents, loop=False: tinted)
    config = EditConfig(steps=2, subtasks=2)
    results = [Editor(backbone).edit(clip, PAIR, config, local=LocalEdit(keep_colours=keep)) for keep in (True, False)]
    for kept, free in zip(*(result.subtasks for result in results), strict=True):
        np.testing.assert_array_equal(free, tinted)
        assert apart(kept, clip, np.ones((*clip.shape[:3], 1), bool)) < 1
    assert results[0].joints == [9]


@pytest.mark.parametrize("size", [(37, 51), (9, 300), (200, 120)])
def test_means_over_cells_are_those_of_the_known_pixels(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    frame, known = rng.integers(0, 256, (*size, 3), np.uint8), rng.random(size) < 0.7
    known[: size[0] // 2] = True
    means, weights = cell_means(frame[None], known[None])
    side = max(4, -(-min(size) // SIDE))
    for y, x in np.ndindex(means.shape[1:3]):
        ends = ((k + 1) * side if k + 1 < n else None for k, n in zip((y, x), means.shape[1:3], strict=True))
        cell = tuple(slice(k * side, end) for k, end in zip((y, x), ends, strict=True))
        assert np.allclose(means[0, y, x], frame[cell][known[cell]].mean(0), atol=1e-4)
        assert np.isclose(weights[0, y, x], known[cell].mean() if known[cell].mean() > 0.5 else 0)
