"""Writing videos: frames, rates, times and colours come back; comparisons and contact sheets."""

import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.videos import NTSC, clip, error_of, make, rgb_of, sound_of, tone

from v2edit import video
from v2edit.metrics.pixels import psnr
from v2edit.video import Video
from v2edit.video.sheets import shrink_to_cell
from v2edit.video.stream import FrameStream
from v2edit.video.writing import open_writer


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fps=st.sampled_from([Fraction(8), NTSC, Fraction(24000, 1001), Fraction(25, 2), Fraction(1, 3), Fraction(120)])
    | st.fractions(Fraction(1, 10), 240, max_denominator=1001),
    count=st.integers(1, 7),
    height=st.integers(1, 50),
    width=st.integers(1, 50),
)
def test_round_trip(tmp_path: Path, fps: Fraction, count: int, height: int, width: int) -> None:
    frames = clip(count, height, width)
    back = video.read(video.write(frames, tmp_path / "out.mp4", fps))
    assert back.frames.shape == frames.shape and back.fps == fps
    assert back.duration == count / fps
    assert np.allclose(back.times, np.arange(count) / float(fps), rtol=0, atol=1e-9)
    assert psnr(back.frames, frames) > 35


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    gaps=st.lists(st.integers(1, 500), min_size=1, max_size=8),
    unit=st.sampled_from([Fraction(1, 1000), Fraction(1, 10240), 1 / NTSC]),
)
def test_round_trip_of_variable_rate(tmp_path: Path, gaps: list[int], unit: Fraction) -> None:
    """The last gap is the last frame's own."""
    times = np.cumsum([0, *gaps[:-1]]) * float(unit)
    fps = len(gaps) / (sum(gaps) * unit)
    if fps > 1000:
        return
    out = video.write(clip(len(gaps), 16, 16), tmp_path / "out.mp4", fps, times=times)
    back = video.read(out)
    assert np.allclose(back.times, times, rtol=0, atol=1e-5)
    with av.open(str(out)) as written:
        stream: Any = written.streams.video[0]
        assert stream.duration * stream.time_base == sum(gaps) * unit
    assert back.duration == pytest.approx(float(sum(gaps) * unit), rel=1e-6) or np.ptp(gaps) <= max(gaps) / 2
    again = video.read(video.write(Video(back.frames, back.fps, back.times), tmp_path / "again.mp4"))
    assert again.fps == back.fps and np.allclose(again.times, back.times, rtol=0, atol=1e-5)


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 60)])
def test_colours_come_back(tmp_path: Path, colour: tuple) -> None:
    frames = np.full((3, 48, 64, 3), colour, np.uint8)
    out = video.write(frames, tmp_path / "out.mp4", 10)
    assert np.abs(video.read(out).frames.astype(int) - frames).max() <= 3
    with av.open(str(out)) as written:
        first = next(written.decode(video=0))
        tags = first.colorspace, first.color_range, first.color_trc, first.color_primaries
        assert first.format.name == "yuv420p" and tags == (1, 1, 1, 1)
        stored = [bytes(plane)[0] for plane in first.planes]
    # Any other player takes the tags at their word.
    assert np.abs(rgb_of(stored, 1, False, 8) - colour).max() <= 3


@pytest.mark.parametrize("axis", [1, 2])
def test_colours_stay_where_they_are(tmp_path: Path, axis: int) -> None:
    """4:2:0 has one colour sample for two columns and two rows, and H.264 says where between them it lies."""
    wave = np.sin(2 * np.pi * np.arange(128) / 32)
    line = np.stack([128 + 80 * wave, 0 * wave + 100, 128 - 80 * wave], -1).round().astype(np.uint8)
    frames = np.broadcast_to(line if axis == 2 else line[:, None], (2, 128, 128, 3)).copy()
    back = video.read(video.write(frames, tmp_path / "out.mp4", 10, crf=1)).frames

    def phase(clip: np.ndarray) -> float:
        chroma = clip[0, ..., 0].astype(float) - clip[0, ..., 2]
        return float(np.angle(np.fft.fft(chroma.mean(2 - axis))[4]))

    assert abs(phase(back) - phase(frames)) / (2 * np.pi) * 32 < 0.1  # pixels


@pytest.mark.parametrize(("tagged", "result"), [(None, 64), (1, 56), (2, 64)])
def test_grey_of_limited_range(tmp_path: Path, tagged: int | None, result: int) -> None:
    frame = av.VideoFrame(64, 48, "gray")
    frame.planes[0].update(bytes([64]) * frame.planes[0].buffer_size)

    def tag(stream) -> None:
        if tagged:
            stream.codec_context.color_range = tagged

    path = make(tmp_path / "grey.mkv", [frame], "ffv1", "gray", change=tag)
    assert (video.read(path).frames == result).all()


def test_an_odd_size_repeats_its_edge_for_other_players(tmp_path: Path) -> None:
    frames = clip(2, 143, 175)
    out = video.write(frames, tmp_path / "out.mp4", 10)
    with av.open(str(out)) as written:
        stored = next(written.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert stored.shape == (144, 176, 3)
    assert np.abs(stored[-1] - stored[-2]).max() < 12 and np.abs(stored[:, -1] - stored[:, -2]).max() < 12


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken away here")
def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    """On another number of cores too."""
    frames = np.random.default_rng(1).integers(0, 255, (12, 288, 352, 3), np.uint8)
    source = tone(tmp_path / "tone.mp4", "aac", 1, pictures=clip(10))
    cores = os.sched_getaffinity(0)
    one = video.write(frames, tmp_path / "one.mp4", 10, source).read_bytes()
    try:
        os.sched_setaffinity(0, {min(cores)})
        two = video.write(frames, tmp_path / "two.mp4", 10, source).read_bytes()
    finally:
        os.sched_setaffinity(0, cores)
    assert one == two
    assert one.index(b"moov") < one.index(b"mdat")  # the index is in front: it plays while it loads


@pytest.mark.parametrize(("height", "width"), [(20, 90), (62, 80)])
def test_sides_that_are_no_multiple_of_16_give_the_same_bytes_too(tmp_path: Path, height: int, width: int) -> None:
    """Whatever lay in the memory that the encoder gets."""
    rng = np.random.default_rng(0)
    blocks = rng.normal(128, 2, (1, 8, 12, 3)).repeat(8, 1).repeat(8, 2)[:, :height, :width]
    frames = (blocks + rng.normal(0, 0.6, (9, height, width, 3))).round()
    found = set()
    for k in range(100):
        _ = [np.full(int(size), k % 256, np.uint8) for size in rng.integers(10, 200_000, 30)]
        video.write(rng.integers(0, 256, (3, height, 2 * width, 3), np.uint8), tmp_path / "other.mp4", fps=8)
        path = video.write(frames.astype(np.uint8), tmp_path / f"{k}.mp4", fps=8)
        found.add(path.read_bytes())
    assert len(found) == 1


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    old = video.write(clip(), tmp_path / "out.mp4", 10).read_bytes()

    def failing():
        yield from clip(3)
        raise RuntimeError("the model fell over")

    with pytest.raises(RuntimeError, match="fell over"):
        video.write(FrameStream(lambda first, stop: failing(), (6, 48, 64, 3)), tmp_path / "out.mp4", 10)
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == old


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """In a process of its own, whose files may not grow past 64 KiB."""
    code = f"""
import resource, signal, numpy as np
from v2edit import video
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    noise = np.random.default_rng(0).integers(0, 255, (20, 200, 200, 3), np.uint8)
    video.write(noise, {str(tmp_path / "a.mp4")!r}, 10)
except video.writing.UserError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout.startswith("cannot write") and ran.stdout.count("\n") == 1 and ran.stderr == ""
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    frames = clip()
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "text.mp4").write_text("hello")
    out = tmp_path / "out.mp4"
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: video.write(frames, tmp_path / "no" / "out.mp4", 10), "no folder"),
        (lambda: video.write(frames, tmp_path / "file" / "out.mp4", 10), "no folder"),
        (lambda: video.write(frames, tmp_path / "folder.mp4", 10), "is a folder"),
        (lambda: video.write(frames, Path("/proc/out.mp4"), 10), "cannot write"),
        (lambda: video.write(frames, tmp_path / "out.avi", 10), ".mp4"),
        (lambda: video.write(frames, out), "fps"),
        (lambda: video.write(frames, out, 0), "frame rate"),
        (lambda: video.write(frames.astype(float), out, 10), "uint8"),
        (lambda: video.write(frames[:0], out, 10), "uint8"),
        (lambda: video.write(frames[0], out, 10), "uint8"),
        (lambda: video.write(frames, out, 10, times=np.arange(3)), "times"),
        (lambda: video.write(frames, out, 10, times=np.array([0, 1, 1, 2, 3, 4])), "rise"),
        (lambda: video.write(frames, out, 10, audio_from=tmp_path / "gone.mp4"), "no such file"),
        (lambda: video.write(frames, out, 10, audio_from=tmp_path / "text.mp4"), "not a video"),
        (lambda: video.write_compare(frames, frames[:3], out, 10), "in step"),
        (lambda: video.contact_sheet({"a": frames}, tmp_path / "no" / "a.png"), "no folder"),
        (lambda: video.contact_sheet({"a": frames}, tmp_path / "a.gif"), ".png"),
        (lambda: video.contact_sheet({}, tmp_path / "a.png"), "one video"),
    ]
    for call, words in cases:
        assert words in error_of(call)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.mp4", "text.mp4"]


# --- comparisons and contact sheets ---------------------------------------------------------------


def test_compare_shows_both_in_step(tmp_path: Path) -> None:
    source = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 1), np.uint8).repeat(3, axis=3)
    edited = 255 - source
    audio = tone(tmp_path / "a.mp4", "aac", 0.5, pictures=source)
    back = video.read(video.write_compare(source, edited, tmp_path / "compare.mp4", NTSC, audio))
    assert back.fps == NTSC and len(back.frames) == 5 and sound_of(tmp_path / "compare.mp4")
    left, right = back.frames[:, -256:, :256], back.frames[:, -256:, -256:]
    for result, small in ((left, source), (right, edited)):
        assert psnr(result, small.repeat(4, axis=1).repeat(4, axis=2)) > 30


@pytest.mark.parametrize(("height", "width"), [(64, 1), (2, 300)])
def test_compare_of_a_thin_clip_can_be_encoded(tmp_path: Path, height: int, width: int) -> None:
    frames = clip(2, height, width)
    assert len(video.read(video.write_compare(frames, frames, tmp_path / "compare.mp4", 10)).frames) == 2


def test_compare_of_unlike_sizes_keeps_proportions(tmp_path: Path) -> None:
    back = video.read(video.write_compare(clip(2, 300, 400), clip(2, 150, 160), tmp_path / "compare.mp4", 10))
    height, width = back.frames.shape[1:3]
    assert (height, width) == (300 + 24, 400 + 8 + 320)


def test_compare_of_a_large_clip_is_smaller(tmp_path: Path) -> None:
    frames = np.zeros((1, 740, 801, 3), np.uint8)
    frames[:, :370] = 200
    back = video.read(video.write_compare(frames, 255 - frames, tmp_path / "compare.mp4", 10)).frames[0]
    assert back.shape[:2] == (370 + 24, 401 + 8 + 401)
    for left, level in ((0, 200), (409, 55)):
        assert (abs(back[24 + 10 : 24 + 180, left + 9 : left + 390].astype(int) - level) < 4).all()


def test_frames_that_repeat_are_written_as_any(tmp_path: Path) -> None:
    """Also where an array is filled anew, and is the same object."""
    still, moving = clip(1, 32, 48)[0], clip(6, 32, 48)
    still.flags.writeable = False
    for name, frames in (("still", [still] * 6), ("moving", moving)):
        reused = np.empty((32, 48, 3), np.uint8)
        with open_writer(tmp_path / f"{name}.mp4", (6, 32, 48), Fraction(8)) as write_frame:
            for frame in frames:
                if name == "moving":
                    reused[:] = frame
                    frame = reused
                write_frame(frame)
        video.write(np.stack(frames), tmp_path / "copies.mp4", 8)
        assert (tmp_path / f"{name}.mp4").read_bytes() == (tmp_path / "copies.mp4").read_bytes()


@pytest.mark.parametrize("size", [(300, 401), (48, 64)])
def test_a_contact_sheet_of_shrunk_frames_is_the_same(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = clip(2, *size)
    grey = np.broadcast_to(frames[..., :1], frames.shape)
    for name, change in (("whole", np.asarray), ("shrunk", shrink_to_cell)):
        rows = {"a": np.stack(list(map(change, frames))), "b": np.stack(list(map(change, grey)))}
        video.contact_sheet(rows, tmp_path / f"{name}.png")
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "shrunk.png").read_bytes()
    assert min(shrink_to_cell(frames[0]).shape[:2]) <= 288


@pytest.mark.parametrize("size", [(48, 64), (200, 150), (720, 1280)])
def test_contact_sheet(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = np.stack([np.full((*size, 3), 20 * k + 20, np.uint8) for k in range(9)])
    path = video.contact_sheet({"source": frames, "edited " * 90: frames[:3]}, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(path))
    assert list(tmp_path.iterdir()) == [path]
    # Five of nine frames, first and last among them, as shades along a line through the first row.
    cells = [v for v in sheet[100, :, 0].tolist() if v in (20, 60, 100, 140, 180)]
    runs = [v for k, v in enumerate(cells) if k == 0 or cells[k - 1] != v]
    assert runs == [20, 60, 100, 140, 180]
    width = cells.count(60)
    assert min(width, width * size[0] / size[1]) >= 128 and sheet.shape[1] < 5 * width + 80
