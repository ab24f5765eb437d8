"""Clips that are read from their files again and again, a few frames at a time: the same frames as in memory."""

import logging
import os
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from support.videos import clip, error_of

from v2edit import video
from v2edit.errors import UserError
from v2edit.video import Video, reading, rereading, stream
from v2edit.video.stream import FrameStream

ODD = [
    *("faults/cat_reset.ts", "faults/sy5.mkv", "faults/sy_h264.avi", "odd/rotate90.mov", "odd/hdr10.mp4"),
    *("odd/transparent.webm", "odd/sar-16-9.mp4", "odd/corrupted.mp4"),
]


def assert_same(path: Path, most: int | None = None) -> None:
    """Assert that a clip has the same frames and times as a stream as in memory, read in pieces and twice."""
    whole, streamed = (video.read(path, most, streamed=one) for one in (False, True))
    frames = streamed.frames
    assert isinstance(frames, FrameStream) and isinstance(whole.frames, np.ndarray)
    assert frames.shape == whole.frames.shape and streamed.fps == whole.fps and streamed.names == whole.names
    assert np.array_equal(streamed.times, whole.times)
    middle = len(frames) // 2
    parts = [frames[:middle], frames[middle:], frames[middle - 1 : middle + 1], frames]
    for part, expected in zip(parts, (whole.frames[:middle], whole.frames[middle:],
                                      whole.frames[middle - 1 : middle + 1], whole.frames), strict=True):  # fmt: skip
        for k, frame in enumerate(part):
            assert np.array_equal(frame, expected[k]), (path.name, k)
        assert len(part) == len(expected)


@pytest.mark.parametrize("name", ODD)
def test_a_damaged_or_odd_file_is_the_same_as_a_stream(data: Path, name: str) -> None:
    assert_same(data / name, 12)


@pytest.mark.heavy
@pytest.mark.parametrize("folder", ["odd", "faults", "videos"])
def test_every_file_is_the_same_as_a_stream(data: Path, folder: str) -> None:
    """Or refused in the same words."""
    for path in sorted(one for one in (data / folder).iterdir() if one.suffix not in ("", ".json")):
        refusals = []
        for streamed in (False, True):
            try:
                video.read(path, streamed=streamed)
            except UserError as error:
                refusals.append(str(error))
        assert len(set(refusals)) == len(refusals) / 2, (path, refusals)
        if not refusals:
            assert_same(path)


def test_a_cropped_file_with_uneven_times_is_the_same_as_a_stream(tmp_path: Path) -> None:
    times = np.array([0, 0.1, 0.5, 0.6, 1.3, 1.4, 1.5])
    assert_same(video.write(Video(clip(7, 37, 51), Fraction(4), times), tmp_path / "odd.mp4"))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".webm"])
def test_animated_pictures_are_the_same_as_a_stream(tmp_path: Path, suffix: str) -> None:
    assert_same(video.write(clip(9, 32, 48), tmp_path / f"a{suffix}", 10))


def test_images_are_the_same_as_a_stream_which_says_nothing_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from PIL import Image

    for k, frame in enumerate(clip(5, 20, 30)):
        video.write_still(frame, tmp_path / f"{k}.png")
    pages = [Image.fromarray(frame) for frame in clip(2, 20, 30)]
    pages[0].save(tmp_path / "5.tif", save_all=True, append_images=pages[1:])
    streamed = video.read(tmp_path, streamed=True)
    logged = len(caplog.messages)
    assert logged == 1 and len(np.asarray(streamed.frames)) == 6 and len(caplog.messages) == logged
    assert_same(tmp_path)


def test_a_clip_beyond_the_limit_is_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = video.write(clip(9, 32, 48), tmp_path / "a.mp4", 10)
    monkeypatch.setattr(stream, "STREAM_LIMIT", 8 * 32 * 48 * 3)
    assert isinstance(video.read(path).frames, FrameStream) and isinstance(video.read(path, 8).frames, np.ndarray)
    monkeypatch.setattr(reading, "MAX_FRAMES", 8)
    assert "too long" in error_of(lambda: video.read(path))


def test_a_reader_goes_on_where_another_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two of them read the same file in turn: stretches cost no more than the whole."""
    opened, open_container = [], reading.open_container
    path = video.write(clip(24, 32, 48), tmp_path / "a.mp4", 10)
    streamed = video.read(path, streamed=True).frames
    monkeypatch.setattr(reading, "open_container", lambda path: opened.append(path) or open_container(path))
    for k in range(0, 24, 8):
        for _ in range(2):
            assert len(np.asarray(streamed[k : k + 8])) == 8
    assert len(opened) == 2


def test_readers_in_step_decode_a_clip_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them a few frames ahead, as where an edit is composited; and nothing stays in memory behind them."""
    path, converted = video.write(clip(24, 32, 48), tmp_path / "a.mp4", 10), []
    expected, streamed = video.read(path).frames, video.read(path, streamed=True).frames
    assert isinstance(streamed, FrameStream) and isinstance(streamed.read, rereading.Rereader)
    convert = reading.Conversion.__call__
    monkeypatch.setattr(
        reading.Conversion, "__call__", lambda self, one: converted.append(one.presented) or convert(self, one)
    )
    behind, ahead = iter(streamed), iter(streamed)
    seen = [next(ahead) for _ in range(8)]
    for k, frame in enumerate(behind):
        seen += [one for one in [next(ahead, None)] if one is not None]
        assert np.array_equal(frame, expected[k]) and np.array_equal(seen[k], expected[k])
    assert len(converted) == 24
    with pytest.raises(ValueError, match="read-only"):
        seen[0][0, 0] = 0
    del ahead
    assert not streamed.read._recent
    monkeypatch.setattr(rereading, "RECENT_BYTES", 2 * seen[0].nbytes)
    far = [np.stack(pair) for pair in zip(streamed[:20], streamed[4:], strict=True)]  # farther apart than that
    assert np.array_equal(np.stack(far, 1), np.stack([expected[:20], expected[4:]]))


def test_a_file_that_is_gone_or_another_is_one_clear_line(tmp_path: Path) -> None:
    first, other = (video.write(clip(count, 32, 48), tmp_path / f"{count}.mp4", 10) for count in (9, 8))
    path = shutil.copy(first, tmp_path / "a.mp4")
    streamed = video.read(path, streamed=True).frames
    shutil.copy(other, path)
    assert "changed" in error_of(lambda: list(streamed))
    os.remove(path)
    assert "gone" in error_of(lambda: list(streamed))
    again = video.read(shutil.copy(first, tmp_path / "b.mp4"), streamed=True).frames
    assert isinstance(again, FrameStream) and isinstance(again.read, reading.Rereader)
    again.read.count = 10  # one more than there are, as where a file ends early without having changed
    with pytest.raises(UserError, match="no longer"):
        list(again.read(0, 10))
    assert logging.getLogger("v2edit").level == logging.NOTSET
