"""The kinds of files that video is written as: frames, sizes, times and sound come back from each."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support.sync import find_flashes, flash_and_beep, rewritten_skew
from support.videos import NTSC, clip, error_of, sound_of

from v2edit import video
from v2edit.metrics.pixels import psnr
from v2edit.video import Video
from v2edit.video.formats import FORMATS

SUFFIXES = list(FORMATS)
CLOCKS = {".gif": 0.01, ".webp": 0.001}  # seconds, where a file's times are rounded for good
UNEVEN = np.array([0, 0.1, 0.15, 0.4, 0.43, 0.7, 0.8])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("height", "width"), [(48, 64), (33, 49), (2, 1)])
def test_frames_come_back(tmp_path: Path, suffix: str, height: int, width: int) -> None:
    frames = clip(7, height, width)
    back = video.read(video.write(frames, tmp_path / f"a{suffix}", 10))
    assert back.frames.shape == frames.shape and back.fps == 10
    assert np.allclose(back.times, np.arange(7) / 10, rtol=0, atol=1e-9) and back.duration == Fraction(7, 10)
    assert psnr(back.frames, frames) > (28 if suffix == ".gif" else 38)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("fps", [Fraction(8), NTSC, Fraction(50)])
def test_rates_come_back(tmp_path: Path, suffix: str, fps: Fraction) -> None:
    frames, clock = clip(9, 16, 16), CLOCKS.get(suffix)
    back = video.read(video.write(frames, tmp_path / f"a{suffix}", fps))
    assert len(back.frames) == 9
    if clock is None:
        assert back.fps == fps and back.duration == 9 / fps
    assert np.allclose(back.times, np.arange(9) / float(fps), rtol=0, atol=clock or 1e-9)
    assert float(back.duration) == pytest.approx(float(9 / fps), abs=clock or 1e-9)


@pytest.mark.parametrize("still", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_variable_rates_come_back(tmp_path: Path, suffix: str, still: bool) -> None:
    """Also where all frames are equal, which encoders of animations merge into one."""
    frames = clip(1).repeat(7, axis=0) if still else clip(7)
    back = video.read(video.write(Video(frames, Fraction(7), UNEVEN), tmp_path / f"a{suffix}"))
    assert np.allclose(back.times, UNEVEN, rtol=0, atol=1e-4) and float(back.duration) == pytest.approx(1, abs=1e-4)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken away here")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    """On another number of cores too."""
    source = flash_and_beep(tmp_path / "source.avi", ("libx264", "pcm_s16le"), 0)
    frames = np.random.default_rng(1).integers(0, 255, (4, 140, 190, 3), np.uint8)
    cores = os.sched_getaffinity(0)
    one = video.write(frames, tmp_path / f"one{suffix}", 10, source).read_bytes()
    try:
        os.sched_setaffinity(0, {min(cores)})
        two = video.write(frames, tmp_path / f"two{suffix}", 10, source).read_bytes()
    finally:
        os.sched_setaffinity(0, cores)
    assert one == two


@pytest.mark.parametrize("suffix", [".webm", ".mov"])
@pytest.mark.parametrize(
    ("source", "codecs", "copied"),
    [
        ("mp4", ("libx264", "aac"), [".mov"]),
        ("webm", ("libvpx-vp9", "libopus"), [".webm"]),
        ("avi", ("libx264", "pcm_s16le"), [".mov"]),
    ],
)
def test_sound_stays_in_step(
    tmp_path: Path, source: str, codecs: tuple[str, str], copied: list[str], suffix: str
) -> None:
    path, out = flash_and_beep(tmp_path / f"a.{source}", codecs, 0), tmp_path / f"out{suffix}"
    assert abs(rewritten_skew(path, out)[0]) < 0.005
    clip, back = video.read(path), video.read(out)
    assert find_flashes(back.frames, back.times) == find_flashes(clip.frames, clip.times) == [1]
    with av.open(str(out)) as opened:
        found = opened.streams.audio[0].codec_context.name
    assert found == ({".webm": "opus", ".mov": "pcm_s16le"}[suffix] if suffix not in copied else found)
    if suffix in copied and source != "avi":  # whose packets are of another size
        assert [packet for packet, _ in sound_of(out)] == [packet for packet, _ in sound_of(path)]


def test_quality(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    for suffix in (".mp4", ".webm"):
        sizes = [video.write(frames, tmp_path / f"{crf}{suffix}", 8, crf=crf).stat().st_size for crf in (5, 25, 45)]
        assert sizes[0] > sizes[1] > sizes[2]
        assert "--crf is -1" in error_of(lambda s=suffix: video.write(frames, tmp_path / f"a{s}", 8, crf=-1))
    assert "0 to 51" in error_of(lambda: video.write(frames, tmp_path / "a.mp4", 8, crf=52))
    for suffix in (".gif", ".webp", ".mov"):
        assert "only mp4 and webm" in error_of(lambda s=suffix: video.write(frames, tmp_path / f"a{s}", 8, crf=20))


def test_what_a_format_cannot_show_is_refused(tmp_path: Path) -> None:
    fast, uneven = Video(clip(5), Fraction(60)), Video(clip(3), Fraction(3), np.array([0, 0.01, 0.5]))
    for one, rate in ((fast, "60"), (uneven, "100")):
        for call in (video.check_format, video.write):
            assert f"here are {rate}" in error_of(lambda one=one, call=call: call(one, tmp_path / "a.gif"))
    video.check_format(fast, "a.webp")
    assert not list(tmp_path.iterdir())


def test_a_gif_repeats_and_holds_its_last_frame(tmp_path: Path) -> None:
    path = video.write(Video(clip(7), Fraction(7), UNEVEN), tmp_path / "a.gif")
    assert b"NETSCAPE2.0\x03\x01\x00\x00" in path.read_bytes()
    from PIL import Image

    with Image.open(path) as image:
        delays = [(image.seek(k), image.info["duration"])[1] for k in range(7)]
    assert delays == [100, 50, 250, 30, 270, 100, 200]
