"""Damaged and cut files: the same pictures at each reading, those that FFmpeg shows, and a note."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from support.sync import flash_and_beep
from support.videos import clip, error_of, make

from v2edit import video
from v2edit.video.colour import frame_to_rgb

KINDS = {
    "h264.mp4": ("libx264", {"crf": "23", "bf": "2"}),
    "slices.mkv": ("libx264", {"crf": "23", "x264-params": "slices=4"}),
    "baseline.ts": ("libx264", {"coder": "0", "bf": "0"}),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=0"}),
    "hash.mp4": ("libx265", {"x265-params": "log-level=0:hash=1"}),
    "mpeg4.avi": ("mpeg4", {}),
    "msmpeg4v2.avi": ("msmpeg4v2", {}),
    "msmpeg4v3.avi": ("msmpeg4", {}),
    "vp8.webm": ("libvpx", {"crf": "20", "b": "1M"}),
    "vp9.webm": ("libvpx-vp9", {"crf": "20"}),
    "av1.mkv": ("libsvtav1", {"svtav1-params": "lp=1"}),
    "prores.mov": ("prores_ks", {}),
    "mjpeg.avi": ("mjpeg", {}),
    "ffv1.mkv": ("ffv1", {"level": "3", "slicecrc": "1"}),
    "plain.mkv": ("ffv1", {"level": "1"}),
    "huffyuv.avi": ("huffyuv", {}),
    "qtrle.mov": ("qtrle", {}),
}
PIXELS = {"prores.mov": "yuv422p10le", "mjpeg.avi": "yuvj420p", "huffyuv.avi": "yuv422p", "qtrle.mov": "rgb24"}
UNCHECKED = {"hevc.mp4", "vp8.webm", "vp9.webm", "plain.mkv", "huffyuv.avi", "qtrle.mov"}  # almost any bytes are valid

VP8 = ("libvpx", "yuv420p")
OTHER_KINDS = {"a.webm": VP8, "a.ogv": VP8, "a.gif": ("gif", "rgb8"), "a.apng": ("apng", "rgb24")}
OTHER_KINDS["a.mxf"] = ("mpeg2video", "yuv420p")
CODECS = {"a.avi": ("libx264", "libmp3lame"), "a.wmv": ("wmv2", "wmav2")}


def noisy(count: int = 30) -> np.ndarray:
    """Return drifting frames with enough detail for bytes to damage."""
    rng = np.random.default_rng(1)
    detail = rng.integers(0, 90, (96, 128, 1)).astype(np.uint8)  # of brightness: converters share colours differently
    return np.stack([frame + np.roll(detail, 3 * k, 1) for k, frame in enumerate(clip(count, 96, 128))])


def damage(path: Path, seed: int, spots: int = 12) -> None:
    """Change 8 bytes at each of several places in a file's pictures."""
    rng = np.random.default_rng(seed)
    with av.open(str(path)) as opened:
        spans = [(p.pos, p.size) for p in opened.demux(video=0) if p.size and p.pos is not None]
    raw = bytearray(path.read_bytes())
    for _ in range(spots):
        at, size = spans[rng.integers(len(spans))]
        for k in range(at + (place := rng.integers(size)), min(at + place + 8, at + size)):
            raw[k] ^= int(rng.integers(1, 256))
    path.write_bytes(raw)


def conceal(path: Path) -> np.ndarray:
    """Return what FFmpeg shows of a file on one thread, in the colours of the package."""
    frames, reformatter = [], VideoReformatter()
    with av.open(str(path)) as opened:
        stream = opened.streams.video[0]
        stream.thread_count = 1
        for packet in opened.demux(stream):
            try:
                frames += [frame_to_rgb(f, (f.width, f.height), reformatter) for f in stream.decode(packet)]
            except FFmpegError:
                continue
    return np.stack(frames)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", KINDS)
def test_damage_is_concealed_the_same_way_each_time(
    tmp_path: Path, name: str, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    codec, options = KINDS[name]
    path = make(tmp_path / name, noisy(16), codec, PIXELS.get(name, "yuv420p"), options=options)
    assert len(video.read(path).frames) == 16 and caplog.text == ""
    damage(path, seed)
    first, *others = (video.read(path) for _ in range(3))
    assert all(first.frames.tobytes() == v.frames.tobytes() and first.fps == v.fps for v in others)
    expected = conceal(path)
    assert first.frames.shape == expected.shape
    assert np.abs(first.frames.astype(int) - expected).mean() < 1
    if name not in UNCHECKED:
        assert caplog.text.count("damaged") == 3 and name in caplog.text


def test_a_damaged_container_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Packets that the container lost are missed by no decoder whose pictures are all whole."""
    path = make(tmp_path / "a.mkv", noisy(16), "ffv1", container={"cluster_time_limit": "100"})
    raw = bytearray(path.read_bytes())
    at = raw.index(b"\x1f\x43\xb6\x75", len(raw) // 2)  # a cluster of pictures
    raw[at : at + 16] = bytes(16)
    path.write_bytes(raw)
    assert 8 < len(video.read(path).frames) < 16 and "damaged" in caplog.text


@pytest.mark.parametrize("name", ["hevc.mp4", "vp8.webm", "vp9.webm"])
def test_no_frame_is_lost_in_silence(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    codec, options = KINDS[name]
    whole = make(tmp_path / name, noisy(16), codec, options=options).read_bytes()
    losses = 0
    for seed in range(117, 129):
        (tmp_path / name).write_bytes(whole)
        damage(tmp_path / name, seed, spots=40)
        caplog.clear()
        is_lost = len(video.read(tmp_path / name).frames) < 16
        assert "damaged" in caplog.text or not is_lost
        losses += is_lost
    assert losses


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["wolf", "hiker", "cog-kitten", "puff"])
def test_real_clips_with_damage(data: Path, tmp_path: Path, name: str, seed: int) -> None:
    path = tmp_path / "damaged.mp4"
    path.write_bytes((data / "videos" / f"{name}.mp4").read_bytes())
    damage(path, seed, spots=25)
    first = video.read(path).frames
    assert first.tobytes() == video.read(path).frames.tobytes()
    assert np.abs(first.astype(int) - conceal(path)).mean() < 1


def test_a_clip_of_many_slices_is_the_same_on_several_threads(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", noisy(), options={"crf": "23", "x264-params": "slices=8"})
    assert (video.read(path).frames == conceal(path)).all()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.flv", "a.avi", "a.wmv"])
@pytest.mark.parametrize("has_sound", [False, True])
def test_a_file_that_is_cut_off_says_so(
    tmp_path: Path, name: str, has_sound: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if has_sound:
        path = flash_and_beep(tmp_path / name, CODECS.get(name, ("libx264", "aac")), 0)
    else:
        codec, options = ("wmv2", {}) if name == "a.wmv" else ("libx264", {"bf": "0"})
        path = make(tmp_path / name, noisy(20), codec, options=options)
    whole = video.read(path)
    assert caplog.text == ""
    if name == "a.mp4":
        path = video.write(whole, tmp_path / "front.mp4")  # with its index in front
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    result = video.read(path)
    assert 4 <= len(result.frames) < 20 and "cut off" in caplog.text
    assert "of about 2" in caplog.text or name in CODECS  # which do not say
    assert result.fps == whole.fps and np.array_equal(result.times, whole.times[: len(result.frames)])
    caplog.clear()
    assert len(video.read(path, 3).frames) == 3 and caplog.text == ""


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.flv", "a.ts", *OTHER_KINDS])
def test_the_last_tenth_of_a_second_is_missed(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    codec, pixels = OTHER_KINDS.get(name, ("libx264", "yuv420p"))
    options = {} if codec == "libx264" else {"b": "1M"}
    path = make(tmp_path / name, noisy(10), codec, pixels, Fraction(25), options=options)  # MXF knows few rates
    whole = video.read(path)
    if name == "a.mp4":
        path = video.write(whole, tmp_path / "front.mp4")  # with its index in front
    assert len(whole.frames) == 10 and caplog.text == ""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10 // 188 * 188 + 100])
    assert len(video.read(path).frames) < 10 or name == "a.gif"  # which shows a part of a picture
    assert "cut off" in caplog.text


def test_a_file_cut_off_before_its_first_frame_says_so(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", noisy(4), container={"movflags": "faststart"})
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.index(b"mdat") + 50])
    assert "cut off" in error_of(lambda: video.read(path))


@pytest.mark.parametrize("name", ["late.mkv", "late.nut", "late.flv", "slow.flv", "stray.ts"])
def test_a_whole_file_is_not_called_cut_off(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """One whose clock starts at 3 s, whose pictures come in another order than stored, or with bytes behind its end."""
    start, fps = (30 if name.startswith("late") else 0), Fraction(1, 2) if name == "slow.flv" else Fraction(10)
    path = make(tmp_path / name, clip(20), fps=fps, pts=[start + k for k in range(20)])
    if name == "stray.ts":
        path.write_bytes(path.read_bytes() + b"stray" * 201)
    result = video.read(path)
    assert (len(result.frames), result.fps, caplog.text) == (20, fps, "")


HOLES = {
    "a.apng": ("apng", "rgb24"),
    "a.avi": ("huffyuv", "yuv422p"),
    "a.wmv": ("wmv2", "yuv420p"),
    "a.ts": ("libx265", "yuv420p"),
}


@pytest.mark.parametrize("name", HOLES)
def test_frames_lost_to_a_hole_are_missed(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """No decoder misses what the container did not find, and no header says where it was."""
    options = {"x265-params": "log-level=0:keyint=4"} if name == "a.ts" else {"b": "2M"} if name == "a.wmv" else {}
    path = make(tmp_path / name, noisy(30), *HOLES[name], options=options)
    assert len(video.read(path).frames) == 30 and caplog.text == ""
    raw = bytearray(path.read_bytes())
    at, size = len(raw) * 4 // 10, len(raw) // 10
    raw[at : at + size] = bytes(size)
    path.write_bytes(raw)
    assert len(video.read(path).frames) < 30 and "a." in caplog.text and "damaged" in caplog.text


def test_one_frame_lasts_as_long_as_its_file(tmp_path: Path) -> None:
    path = make(tmp_path / "one.webm", clip(1), "libvpx-vp9", options={"crf": "20"})
    raw = path.read_bytes()
    at = raw.index(b"\x44\x89\x88") + 3  # Duration, a double, in milliseconds
    path.write_bytes(raw[:at] + np.array(2500.0, ">f8").tobytes() + raw[at + 8 :])
    result = video.read(path)
    assert len(result.frames) == 1 and float(result.duration) == pytest.approx(2.5)
