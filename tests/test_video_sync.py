"""Sound in step with its pictures, whatever the container does to their timestamps."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sync import FRAMES, find_flashes, flash_and_beep, rewritten_skew

from v2edit import video
from v2edit.video.timing import resolve_times

STEP = 0.005  # seconds
H264 = ("libx264", "aac")
CONTAINERS = {
    "mkv": H264, "mp4": H264, "mov": H264, "ts": H264, "flv": H264, "mpg": ("mpeg2video", "mp2"),
    "webm": ("libvpx-vp9", "libopus"), "wmv": ("wmv2", "wmav2"), "avi": ("libx264", "pcm_s16le"), "asf": H264,
}  # fmt: skip


@pytest.mark.parametrize("b_frames", [0, 3])
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_flash_and_a_beep_stay_together(tmp_path: Path, suffix: str, b_frames: int) -> None:
    fps = 25 if suffix == "mpg" else 10  # MPEG knows few rates
    source = flash_and_beep(tmp_path / f"a.{suffix}", CONTAINERS[suffix], b_frames, fps)
    assert abs(rewritten_skew(source, tmp_path / "out.mp4")[0]) < STEP
    clip = video.read(source)
    assert clip.fps == fps and np.allclose(clip.times, np.arange(FRAMES) / fps)


def test_matroska_with_b_frames_is_in_step(data: Path, tmp_path: Path) -> None:
    """Its first packet has no decode time."""
    clip = video.read(data / "faults" / "sy5.mkv")
    out = video.write(clip, tmp_path / "out.mp4")
    flash = float(clip.times[clip.frames.mean((1, 2, 3)).argmax()])
    assert clip.fps == 5 and flash == 4 and abs(first_sound(out) - flash) < STEP


def first_sound(path: Path) -> float:
    """Return the seconds at which silence ends."""
    import av

    with av.open(str(path)) as opened:
        for frame in opened.decode(audio=0):
            loud = np.abs(frame.to_ndarray()[0]) > 0.1
            if loud.any() and frame.time is not None:
                return frame.time + float(loud.argmax()) / frame.sample_rate
    raise AssertionError("silent")


@pytest.mark.parametrize(("name", "flash"), [("sy_cut.ts", 0), ("dvb_cut.ts", 2.04)])
def test_time_0_is_the_first_frame_that_can_be_decoded(data: Path, tmp_path: Path, name: str, flash: float) -> None:
    out = video.write(video.read(data / "faults" / name), tmp_path / "out.mp4")
    assert abs(first_sound(out) - flash) < STEP


# --- a clock that jumps -----------------------------------------------------------------------------


def test_a_clock_that_starts_again_is_continued(data: Path, tmp_path: Path) -> None:
    clip = video.read(data / "faults" / "cat_reset.ts")
    assert len(clip.frames) == 200 and clip.fps == 25
    out = video.write(clip, tmp_path / "out.mp4")
    import av

    with av.open(str(out)) as opened:
        loud = [f.time for f in opened.decode(audio=0) if np.abs(f.to_ndarray()[0]).max() > 0.1 and f.time is not None]
    second = [t for t in loud if t > 4]
    assert abs(loud[0] - 2) < 0.03 and abs(second[0] - 6) < 0.03  # to a packet


@pytest.mark.parametrize(
    ("suffix", "offsets"), [("ts", (0, 0)), ("ts", (0, 3600)), ("ts", (7200, 5)), ("mpg", (0, 0)), ("mpg", (0, 3600))]
)
def test_joined_recordings_play_one_after_the_other(tmp_path: Path, suffix: str, offsets: tuple[int, int]) -> None:
    parts = []
    for k, offset in enumerate(offsets):
        parts.append(flash_and_beep(tmp_path / f"{k}.{suffix}", CONTAINERS[suffix], 2, 25, offset).read_bytes())
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(parts))
    clip = video.read(joined)
    assert len(clip.frames) >= 2 * FRAMES - 1 and abs(float(clip.duration) - 2 * FRAMES / 25) < 0.2
    skew = rewritten_skew(joined, tmp_path / "out.mp4", count=2)
    assert abs(skew[0]) < STEP and abs(skew[1]) < 0.04


# --- timestamps that do not rise --------------------------------------------------------------------


def test_h264_in_avi_is_even(data: Path) -> None:
    clip = video.read(data / "faults" / "sy_h264.avi")
    assert clip.fps == 25 and np.allclose(clip.times, np.arange(100) / 25)
    first = video.read(data / "faults" / "sy_h264.avi", 10)
    assert first.fps == 25 and np.allclose(first.times, np.arange(10) / 25)


def test_mp4_without_ctts_is_even(tmp_path: Path) -> None:
    path = flash_and_beep(tmp_path / "a.mp4", H264, 3)
    raw = path.read_bytes()
    assert b"ctts" in raw
    path.write_bytes(raw.replace(b"ctts", b"free").replace(b"elst", b"free"))
    clip = video.read(path)
    assert clip.fps == 10 and np.allclose(clip.times, np.arange(FRAMES) / 10)
    assert find_flashes(clip.frames, clip.times) == [1] and abs(rewritten_skew(path, tmp_path / "out.mp4")[0]) < 0.1


times = st.lists(st.integers(0, 400), min_size=2, max_size=40)


@given(times)
def test_times_rise_and_those_that_rose_are_kept(ticks: list[int]) -> None:
    frame = [Fraction(1, 25)] * len(ticks)
    result = resolve_times([Fraction(t) for t in ticks], [None] * len(ticks), frame)
    assert all(a < b for a, b in pairwise(result))
    rising = sorted(set(ticks))
    assert resolve_times([Fraction(t) for t in rising], [None] * len(rising), frame[: len(rising)]) == rising


def test_a_doubled_time_moves_one_frame_alone() -> None:
    for at in range(1, 29):
        ticks = [Fraction(k - (k >= at), 25) for k in range(30)]
        result = resolve_times(ticks, [None] * 30, [Fraction(1, 25)] * 30)
        assert sum(a != b for a, b in zip(ticks, result, strict=True)) == 1
    spike = [Fraction(k if k != 9 else 900, 25) for k in range(30)]
    assert resolve_times(spike, [None] * 30, [Fraction(1, 25)] * 30) == [Fraction(k, 25) for k in range(30)]


@given(st.permutations(range(30)))
def test_shuffled_times_are_sorted(order: list[int]) -> None:
    ticks = [Fraction(k, 25) for k in order]
    if sum(b <= a for a, b in pairwise(ticks)) > 1:
        assert resolve_times(ticks, [None] * 30, [Fraction(1, 25)] * 30) == sorted(ticks)


def test_frames_without_times_last_as_long_as_they_say() -> None:
    lengths = [Fraction(k + 1) for k in range(4)]
    assert resolve_times([None] * 4, [None] * 4, lengths) == [0, 1, 3, 6]
    assert resolve_times([None, None, Fraction(9), None], [None] * 4, lengths) == [6, 7, 9, 12]
