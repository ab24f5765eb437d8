"""Clips of more frames a second than the model's: what is edited of them, and how the change is carried on."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.survival import contents

import v2edit
from v2edit import video
from v2edit.editing.editor import EditResult
from v2edit.editing.local import EVERYWHERE, LocalEdit
from v2edit.editing.rates import edit_every, follows_motion, frames_apart
from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import Object, Scene
from v2edit.video.flow import estimate_flow, warp
from v2edit.video.stream import FrameStream

SIDE, COUNT = 160, 14


@pytest.fixture(scope="module")
def texture() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (240, 240, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.rint((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def slide(picture: np.ndarray, count: int = COUNT) -> np.ndarray:
    """A clip that slides over a picture by two pixels a frame, and down by one."""
    return np.stack([picture[20 + k : 20 + k + SIDE, 20 + 2 * k : 20 + 2 * k + SIDE] for k in range(count)])


@pytest.fixture(scope="module")
def clips(texture) -> tuple[np.ndarray, np.ndarray]:
    """A clip, and the same with a red square painted onto what it shows."""
    painted = texture.copy()
    painted[90:120, 90:120] = (255, 0, 0)
    return slide(texture), slide(painted)


def lazily(frames: np.ndarray) -> FrameStream:
    return FrameStream(lambda first, stop: iter(frames[first:stop]), frames.shape, frames.dtype)


@pytest.mark.parametrize(("x", "y"), [(3, 0), (-5, 4), (0, -7), (0, 0)])
def test_the_flow_of_a_shifted_picture_is_its_shift(texture, x, y):
    one, other = texture[40:200, 40:200], texture[40 - y : 200 - y, 40 - x : 200 - x]
    flow, inner = estimate_flow(one, other), np.s_[16:-16, 16:-16]
    np.testing.assert_allclose(flow[inner], np.broadcast_to([x, y], (SIDE, SIDE, 2))[inner], atol=0.2)
    assert np.abs(warp(other, flow)[inner].astype(int) - one[inner]).max() <= 6


def test_the_distance_of_frames_is_the_nearest_to_the_models_rate():
    assert [frames_apart(fps, 8) for fps in (4, 8, 10, 12, 16, 24, 25, 30, 60)] == [1, 1, 1, 2, 2, 3, 3, 4, 8]
    assert [frames_apart(fps, 24) for fps in (24, 25, 30, 50, 59.94)] == [1, 1, 1, 2, 3]


@pytest.mark.parametrize("every", [2, 4, 5, 13])
def test_the_change_moves_with_what_it_is_on(clips, every):
    source, true = clips
    given: list[tuple[int, float]] = []

    def edit(some: np.ndarray, fps: float, local: LocalEdit) -> EditResult:
        given.append((len(some), fps))
        chosen = [k for k in range(COUNT) if any(np.array_equal(source[k], one) for one in some)]
        return EditResult([true[chosen]])

    result = edit_every(edit, source, every, 30.0, EVERYWHERE)
    assert given == [(len(range((COUNT - 1) % every // 2, COUNT, every)), 30 / every)]
    assert result.share is None and result.frames.shape == source.shape
    assert np.abs(result.frames.astype(int) - true).mean() < 0.1
    red = (np.abs(true.astype(int) - [255, 0, 0]).max(-1) == 0).sum((1, 2))
    found = (np.abs(result.frames.astype(int) - [255, 0, 0]).max(-1) < 40).sum((1, 2))
    assert (np.abs(found - red) <= 0.05 * red).all()


def test_where_nothing_changes_the_source_stays_to_the_last_bit(clips):
    source, _true = clips
    result = edit_every(lambda some, fps, local: EditResult([np.asarray(some)]), source, 4, 30.0, EVERYWHERE)
    np.testing.assert_array_equal(result.frames, source)
    share = np.zeros(source.shape[:3], np.float32)
    share[:, :, 100:] = 1

    def edit(some: np.ndarray, fps: float, local: LocalEdit) -> EditResult:
        assert local.share is not None and local.share.shape == some.shape[:3]
        return EditResult([np.full_like(some, 255)], np.asarray(local.share))

    result = edit_every(edit, source, 4, 30.0, LocalEdit(share))
    assert result.share is share
    np.testing.assert_array_equal(result.frames[:, :, :100], source[:, :, :100])
    assert (result.frames[:, :, 120:] > 240).mean() > 0.95


def test_a_share_that_the_model_finds_is_carried_and_limits_what_is_given(clips):
    source, _true = clips

    def edit(some: np.ndarray, fps: float, local: LocalEdit) -> EditResult:
        found = np.zeros(some.shape[:3], np.float32)
        found[:, 40:90, 40:90] = 1
        return EditResult([np.asarray(some)], found)

    carried = edit_every(edit, source, 4, 30.0, LocalEdit(find=True)).share
    assert carried is not None and carried.shape == source.shape[:3] and 0 <= carried.min() < carried.max() <= 1
    given = np.ones_like(carried)
    given[:, :60] = 0
    limited = edit_every(edit, source, 4, 30.0, LocalEdit(given, find=True)).share
    np.testing.assert_array_equal(limited, np.minimum(carried, given))


@pytest.mark.parametrize("loop", [False, True])
def test_streams_give_what_arrays_give_from_any_frame_on(clips, loop):
    source, true = clips
    first = 0 if loop else (COUNT - 1) % 5 // 2

    def edit(some: object, fps: float, local: LocalEdit) -> EditResult:
        return EditResult([true[first::5]])

    whole = edit_every(edit, source, 5, 30.0, EVERYWHERE, loop).frames
    stream = edit_every(edit, lazily(source), 5, 30.0, EVERYWHERE, loop).frames
    assert isinstance(stream, FrameStream) and isinstance(whole, np.ndarray)
    for part in (slice(0, COUNT), slice(0, 1), slice(3, 9), slice(COUNT - 2, COUNT)):
        np.testing.assert_array_equal(np.asarray(stream[part]), whole[part])


@pytest.fixture(scope="module")
def fast(tmp_path_factory) -> Path:
    """A clip of 32 frames a second."""
    scene = Scene((Object("ball", "red", "big", "middle"),), "gray", "blue", "orbit left")
    return video.write(render_clip(scene, 25, 32, 32).frames, tmp_path_factory.mktemp("fast") / "clip.mp4", fps=32)


def test_a_clip_keeps_its_frames_and_times_and_the_model_sees_its_own_rate(fast, tiny_model, tmp_path, caplog):
    options = {"source_prompt": "a red ball", "target_prompt": "a blue cube", "model": str(tiny_model), "steps": 2}
    options |= {"show_progress": False}
    caplog.set_level("INFO")
    run = v2edit.edit_video(fast, **options, out=tmp_path / "auto")
    source, edited = video.read(fast), video.read(run.folder / "edited.mp4")
    assert len(edited.frames) == 25 and edited.fps == 32
    np.testing.assert_array_equal(edited.times, source.times)
    plan = next(one.message for one in caplog.records if one.message.startswith("plan:"))
    assert plan.startswith("plan: 25 frames of 32x32, edited by 7 of them as ")
    facts = json.loads((run.folder / "run.json").read_text())
    assert facts["shot_options"]["model_fps"] == "auto"
    same = v2edit.edit_video(fast, **options, out=tmp_path / "given", model_fps=8)
    assert contents(same.folder) == contents(run.folder)
    estimate = v2edit.estimate_edit(fast, **{k: v for k, v in options.items() if k != "show_progress"})
    assert estimate.frames == 7 and estimate.limits["frames"] == "7 of 25 frames are given to the model"
    timed = v2edit.estimate_edit(
        fast, **{k: v for k, v in options.items() if k != "show_progress"}, timed=True, box="4,4,16,16"
    )
    assert min(timed.seconds[part] for part in ("encoding", "denoising", "decoding", "carrying", "writing")) > 0


def test_a_clip_that_the_model_takes_whole_is_edited_whole(fast, tiny_model, tmp_path):
    options = {"source_prompt": "a red ball", "target_prompt": "a blue cube", "model": str(tiny_model), "steps": 2}
    short = options | {"end": 0.25, "show_progress": False}
    one, other = (v2edit.edit_video(fast, **short, out=tmp_path / fps, model_fps=fps) for fps in ("auto", "source"))
    assert contents(one.folder) == contents(other.folder)


def hopping(frames: int, side: int, period: float) -> np.ndarray:
    """A ball on a textured ground that hops, once in `period` frames."""
    ground = np.random.default_rng(1).integers(60, 120, (side, side, 3)).astype(np.uint8)
    ground, clip = cv2.GaussianBlur(ground, (0, 0), 2), []
    for k in range(frames):
        picture, height = ground.copy(), 0.35 * side * abs(np.sin(np.pi * k / period))
        cv2.circle(picture, (side // 2, round(0.75 * side - height)), side // 10, (220, 30, 30), -1, cv2.LINE_AA)
        clip.append(picture)
    return np.stack(clip)


def test_frames_are_left_out_as_far_as_the_motion_allows(texture):
    slow = slide(texture, 30)
    assert all(follows_motion(slow, every) for every in (1, 2, 3, 5, 40))
    hops = hopping(48, 96, 8.0)
    assert follows_motion(hops, 1) and not follows_motion(hops, 3)
    assert follows_motion(hopping(96, 96, 48.0), 3)  # the same, slowly
    assert follows_motion(np.repeat(slow[:1], 30, 0), 4)  # nothing moves


def test_fast_motion_is_edited_frame_by_frame_and_a_rate_that_loses_it_is_warned_of(tmp_path, tiny_model, caplog):
    frames = np.concatenate([slide(hopping(1, 240, 8.0)[0], 24)[:, ::2, ::2], hopping(24, 80, 8.0)])
    path = video.write(frames, tmp_path / "clip.mp4", fps=24)
    options = {"source_prompt": "a red ball", "target_prompt": "a blue cube", "model": str(tiny_model), "shots": 1}
    given = v2edit.estimate_edit(path, **options)
    assert given.limits["frames"] == "2 shots, 32 of 48 frames are given to the model"
    with caplog.at_level("WARNING"):
        given = v2edit.estimate_edit(path, **options, model_fps=8)
    assert given.limits["frames"] == "2 shots, 16 of 48 frames are given to the model"
    assert next(one.message for one in caplog.records if "--model-fps" in one.message).startswith(
        "--model-fps: in the shot at 1 s things move too fast"
    )
