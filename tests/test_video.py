"""Video in and out: files are read as a player shows them; frames, rate, times, colours and sound are written again."""

import logging
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

from v2edit import video
from v2edit.errors import UserError
from v2edit.metrics.pixels import psnr
from v2edit.video import Video, reading, writing

NTSC = Fraction(30000, 1001)
ROOT = Path(__file__).resolve().parent.parent


# --- building files --------------------------------------------------------------------------------


def clip(count: int = 6, height: int = 48, width: int = 64) -> np.ndarray:
    """Return a drifting smooth picture without symmetry: every frame and every rotation of it differs."""
    y, x = np.mgrid[0:height, 0:width]
    frames = []
    for k in range(count):
        red = 40 + min(2, 170 / width) * x
        green = 40 + min(2, 170 / height) * y
        blue = 60 + 25 * (k % 6) + 0 * x
        frames.append(np.stack([red, green, blue], -1))
    return np.stack(frames).round().astype(np.uint8)


def make(
    path: Path,
    frames: np.ndarray | list[av.VideoFrame],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: Fraction = Fraction(10),
    pts: list[int] | None = None,
    time_base: Fraction | None = None,
    options: dict[str, str] | None = None,
    change: Callable = lambda stream: None,
    container: dict[str, str] | None = None,
) -> Path:
    """Write a file of frames, encoded as nearly losslessly as the codec allows."""
    with av.open(str(path), "w", options=container) as opened:
        out: Any = opened  # PyAV types a stream by its codec's name, which varies here
        pictures = [
            f if isinstance(f, av.VideoFrame) else av.VideoFrame.from_ndarray(f, "rgba" if f.shape[2] == 4 else "rgb24")
            for f in frames
        ]
        stream = out.add_stream(codec, rate=fps, options=options or ({"qp": "1"} if codec == "libx264" else {}))
        stream.width, stream.height, stream.pix_fmt = pictures[0].width, pictures[0].height, pix_fmt
        if time_base:
            stream.codec_context.time_base = time_base
        change(stream)
        for k, picture in enumerate(pictures):
            picture = picture.reformat(format=pix_fmt) if picture.format.name != pix_fmt else picture
            picture.pts = pts[k] if pts else k
            picture.time_base = time_base or 1 / fps
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return path


def yuv(y: int, u: int, v: int, bits: int = 8, size: tuple[int, int] = (64, 48)) -> av.VideoFrame:
    """Return a picture of one stored value."""
    frame = av.VideoFrame(*size, "yuv420p" if bits == 8 else f"yuv420p{bits}le")
    for plane, value in zip(frame.planes, (y, u, v), strict=True):
        kind = np.uint8 if bits == 8 else np.uint16
        plane.update(np.full(plane.buffer_size // kind().itemsize, value, kind).tobytes())
    return frame


def tone(
    path: Path,
    codec: str,
    seconds: float,
    rate: int = 48000,
    pictures: np.ndarray | None = None,
    late: int = 0,
):
    """Write a file with a 440 Hz tone and, at 10 fps, pictures that begin `late` frames after it."""
    with av.open(str(path), "w") as opened:
        out: Any = opened
        stream = None
        if pictures is not None:
            vp9 = path.suffix == ".webm"
            stream = out.add_stream("libvpx-vp9" if vp9 else "libx264", rate=10, options={} if vp9 else {"bf": "0"})
            stream.width, stream.height, stream.pix_fmt = pictures.shape[2], pictures.shape[1], "yuv420p"
        sound = out.add_stream(codec, rate=rate)
        sound.layout = "stereo"
        wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate).astype(np.float32)
        resampler = av.AudioResampler(sound.format, "stereo", rate, frame_size=sound.frame_size or 960)
        whole = av.AudioFrame.from_ndarray(np.stack([wave, np.zeros_like(wave)]), "fltp", "stereo")
        whole.sample_rate, whole.pts, whole.time_base = rate, 0, Fraction(1, rate)
        packets = []
        for k, frame in enumerate([] if pictures is None else pictures):
            picture = av.VideoFrame.from_ndarray(frame, "rgb24")
            picture.pts, picture.time_base = k + late, Fraction(1, 10)
            packets += out.streams.video[0].encode(picture)
        packets += stream.encode(None) if stream else []
        for piece in [*resampler.resample(whole), *resampler.resample(None)]:
            packets += sound.encode(piece)
        for packet in sorted([*packets, *sound.encode(None)], key=lambda p: p.dts * p.time_base):
            out.mux(packet)
    return path


def sound_of(path: Path | str, index: int = 0) -> list[tuple[bytes, float]]:
    """Return the packets of a sound stream, each with its time."""
    with av.open(str(path)) as source:
        stream = source.streams.audio[index]
        packets: list[Any] = [p for p in source.demux(stream) if p.dts is not None]
        return [(bytes(p), float(p.pts * p.time_base)) for p in packets]


def error_of(call: Callable[[], object]) -> str:
    """Return the one-line message with which a call is refused."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert text and "\n" not in text
    return text


# --- real files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["odd/pancake.mkv", "odd/nasa-multistream.mp4", "videos/mallard-water.mp4"])
def test_real_sound_is_copied_untouched(data: Path, tmp_path: Path, name: str) -> None:
    source = video.read(data / name)
    out = video.write(source.frames[:, ::4, ::4], tmp_path / "out.mp4", source.fps, data / name, source.times)
    with av.open(str(out)) as written:
        streams = len(written.streams.audio)
        assert streams
    for index in range(streams):
        before, after = sound_of(data / name, index), sound_of(out, index)
        assert [p for p, _ in before] == [p for p, _ in after]
        assert np.allclose([t for _, t in before], [t for _, t in after], atol=2e-3)
    back = video.read(out)
    assert (len(back.frames), back.fps, back.duration) == (len(source.frames), source.fps, source.duration)


# --- reading: geometry ----------------------------------------------------------------------------


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_display_matrix(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    frames = clip(2)
    path = make(tmp_path / "turned.mp4", frames, change=lambda s: s.set_display_rotation(degrees, hflip=mirrored))
    expected = np.rot90(frames, degrees // 90, axes=(1, 2))
    if mirrored:
        expected = expected[:, :, ::-1]
    assert psnr(video.read(path).frames, expected) > 35


@pytest.mark.parametrize(("aspect", "size"), [((4, 3), (85, 48)), ((1, 2), (64, 96)), ((1, 1), (64, 48))])
def test_pixels_become_square_by_stretching(tmp_path: Path, aspect: tuple, size: tuple) -> None:
    def change(stream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)

    frames = clip(1)
    result = video.read(make(tmp_path / "wide.mp4", frames, change=change)).frames[0]
    assert result.shape == (size[1], size[0], 3)
    assert psnr(result, np.asarray(Image.fromarray(frames[0]).resize(size))) > 30


@pytest.mark.parametrize("name", ["odd.mkv", "odd.gif"])
def test_odd_sizes(tmp_path: Path, name: str) -> None:
    frames = clip(3, 143, 175)
    if name.endswith("gif"):
        images = [Image.fromarray(f).quantize(256) for f in frames]
        images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=100)
    else:
        make(tmp_path / name, frames, "ffv1", "yuv444p")
    result = video.read(tmp_path / name)
    assert result.fps == 10
    assert psnr(result.frames, frames) > 25


@pytest.mark.parametrize("name", ["film.mp4", "song.mp3"])
def test_a_cover_picture_is_not_the_video(tmp_path: Path, name: str) -> None:
    from av.stream import Disposition

    path, frames = tmp_path / name, clip(4)
    with av.open(str(path), "w") as opened:
        out: Any = opened
        main = out.add_stream("libx264", rate=10) if name == "film.mp4" else out.add_stream("libmp3lame", rate=44100)
        cover = out.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = Disposition.attached_pic
        packets = cover.encode(av.VideoFrame.from_ndarray(clip(1, 16, 16)[0], "rgb24"))
        if name == "film.mp4":
            main.width, main.height, main.pix_fmt = 64, 48, "yuv420p"
            parts = [av.VideoFrame.from_ndarray(frame, "rgb24") for frame in frames]
        else:
            parts = [av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), "fltp", "stereo")]
            parts[0].sample_rate = 44100
        for part in [*parts, None]:
            packets += main.encode(part)
        out.mux(packets)
    with av.open(str(path)) as made:
        assert any(s.disposition & Disposition.attached_pic for s in made.streams.video)
    if name == "film.mp4":
        assert video.read(path).frames.shape == frames.shape
    else:
        assert "only sound" in error_of(lambda: video.read(path))


# --- reading: colour ------------------------------------------------------------------------------

KR_KB = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}


def rgb_of(stored: list[int], matrix: int, full: bool, bits: int) -> np.ndarray:
    """Convert as the standards define it, in floating point."""
    (y, u, v), (kr, kb) = stored, KR_KB[matrix]
    one = 2 ** (bits - 8)
    luma = y / (2**bits - 1) if full else (y - 16 * one) / (219 * one)
    pb, pr = ((c - 128 * one) / (2**bits - 1 if full else 224 * one) for c in (u, v))
    red, blue = luma + 2 * (1 - kr) * pr, luma + 2 * (1 - kb) * pb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.array([red, green, blue]) * 255, 0, 255)


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 5, 9])
def test_colours_follow_the_tags(tmp_path: Path, matrix: int, full: bool, bits: int) -> None:
    stored = [c * 2 ** (bits - 8) for c in (120, 90, 170)]

    def tag(stream) -> None:
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1

    pictures = [yuv(*stored, bits=bits)]
    path = make(tmp_path / "tagged.mkv", pictures, "ffv1", pictures[0].format.name, change=tag)
    assert np.abs(video.read(path).frames[0, 20, 20] - rgb_of(stored, matrix, full, bits)).max() <= 1.5


@pytest.mark.parametrize(("size", "matrix"), [((640, 480), 5), ((720, 576), 5), ((1280, 534), 1), ((800, 720), 1)])
def test_untagged_colours_go_by_size(tmp_path: Path, size: tuple[int, int], matrix: int) -> None:
    path = make(tmp_path / "plain.mp4", [yuv(120, 90, 170, size=size)])
    result = video.read(path).frames[0, 20, 20]
    assert np.abs(result - rgb_of([120, 90, 170], matrix, False, 8)).max() <= 2


def test_hdr_white_is_white(tmp_path: Path) -> None:
    def tag(stream) -> None:
        context = stream.codec_context
        context.colorspace = context.color_primaries = 9
        context.color_trc, context.color_range = 16, 1

    white, middle = 573, 393  # 10-bit PQ: 203 cd/m2, which is diffuse white, and 26 of it
    pictures = [yuv(luma, 512, 512, 10) for luma in (white, middle)]
    path = make(tmp_path / "hdr.mkv", pictures, "ffv1", "yuv420p10le", change=tag)
    bright, grey = video.read(path).frames[:, 20, 20].astype(int)
    assert bright.min() >= 240 and np.ptp(bright) <= 3
    assert 60 <= grey.min() <= grey.max() <= 150


def transparent(kind: str, folder: Path) -> Path:
    """Orange at full, half and no opacity, in stripes."""
    picture = np.full((30, 30, 4), (240, 120, 40, 255), np.uint8)
    picture[:, 10:20, 3], picture[:, 20:, 3] = 128, 0
    images = [Image.fromarray(picture)] * 2
    if kind == "webm":
        return make(folder / "a.webm", np.stack([picture] * 2), "libvpx-vp9", "yuva420p", options={"crf": "4"})
    if kind == "mov":
        return make(folder / "a.mov", np.stack([picture] * 2), "png", "rgba")
    if kind == "folder":
        for k, image in enumerate(images):
            image.save(folder / f"{k}.png")
        return folder
    images[0].save(folder / f"a.{kind}", save_all=kind != "png", append_images=images[1:], duration=100)
    return folder / f"a.{kind}"


@pytest.mark.parametrize("kind", ["webm", "mov", "gif", "png", "apng", "folder"])
def test_transparency_is_laid_over_black(tmp_path: Path, kind: str) -> None:
    result = video.read(transparent(kind, tmp_path)).frames[0].astype(int)
    orange = np.array([240, 120, 40])
    assert np.abs(result[15, 5] - orange).max() <= 12
    assert result[15, 25].max() <= 3
    if kind != "gif":  # whose pixels are all or nothing
        assert np.abs(result[15, 15] - orange * 128 / 255).max() <= 12


# --- reading: time --------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [Fraction(24), Fraction(30), NTSC, Fraction(24000, 1001), Fraction(25, 2)])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_constant_rates_are_exact(tmp_path: Path, fps: Fraction, suffix: str) -> None:
    """Matroska rounds to milliseconds; the rate and the times are exact all the same."""
    path = make(tmp_path / f"clip{suffix}", clip(40, 16, 16), fps=fps)
    for most in (None, 40, 7, 1):
        result = video.read(path, most)
        assert len(result.frames) == (most or 40)
        if most != 1 or suffix == ".mp4":  # one rounded time tells no rate
            assert result.fps == fps and result.duration == len(result.frames) / fps
        assert np.allclose(result.times, np.arange(len(result.frames)) / float(fps), rtol=0, atol=1e-9)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_variable_rate_keeps_timestamps(tmp_path: Path, suffix: str) -> None:
    milliseconds = [0, 100, 130, 400, 410, 900]
    path = make(tmp_path / f"clip{suffix}", clip(6), fps=Fraction(10), pts=milliseconds, time_base=Fraction(1, 1000))
    result = video.read(path)
    assert np.allclose(result.times, np.array(milliseconds) / 1000)
    assert result.duration == 6 / result.fps and 0.9 < result.duration < 2


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi"])
def test_a_missing_frame_is_variable_rate(tmp_path: Path, name: str) -> None:
    """One long frame must not pass for a constant rate, not even where a frame is but one tick (AVI)."""
    result = video.read(make(tmp_path / name, clip(6), "ffv1" if "avi" in name else "libx264", pts=[0, 1, 2, 4, 5, 6]))
    assert np.allclose(result.times * 10, [0, 1, 2, 4, 5, 6])
    assert result.fps == Fraction(6 * 10, 7)


def test_a_long_last_frame_is_kept(tmp_path: Path) -> None:
    """GIFs often rest on their last picture."""
    images = [Image.fromarray(f).quantize(64) for f in clip(4)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[100, 100, 100, 2000])
    result = video.read(tmp_path / "a.gif")
    assert np.allclose(result.times, [0, 0.1, 0.2, 0.3]) and result.duration == Fraction(23, 10)
    assert video.read(video.write(result, tmp_path / "out.mp4")).duration == Fraction(23, 10)


def test_damage_in_the_middle_is_skipped(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    path = make(tmp_path / "clip.mp4", clip(60, 96, 128), options={"g": "5", "bf": "0"})
    with av.open(str(path)) as whole:
        hit = [p for p in whole.demux(video=0) if p.size][20:23]
        spans = [(p.pos or 0, p.size) for p in hit]
    raw = bytearray(path.read_bytes())
    for at, size in spans:
        raw[at : at + size] = b"\xff" * size
    path.write_bytes(raw)
    result = video.read(path)
    assert 50 <= len(result.frames) < 60
    assert psnr(result.frames[:20], clip(20, 96, 128)) > 35
    assert psnr(result.frames[-1], clip(60, 96, 128)[-1]) > 35
    assert result.times[-1] == pytest.approx(5.9) and result.duration == 6
    assert capfd.readouterr() == ("", "")


def test_a_cut_file_is_read_up_to_the_cut(tmp_path: Path) -> None:
    path = video.write(np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), np.uint8), tmp_path / "a.mp4", 10)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = video.read(path)
    assert 5 <= len(result.frames) < 15 and result.fps == 10


def test_a_video_shows_itself_in_one_line() -> None:
    one = Video(clip(3), NTSC, path=Path("a.mp4"))
    assert repr(one) == "Video('a.mp4', 3 frames of 64x48, 29.97 fps)"
    assert repr(Video(clip(2), Fraction(8))) == "Video(2 frames of 64x48, 8 fps)"


# --- reading: images ------------------------------------------------------------------------------


def test_a_folder_of_images_is_a_video_in_natural_order(tmp_path: Path) -> None:
    for k in (1, 2, 10, 9):
        Image.new("RGB", (20, 10), (k, 0, 0)).save(tmp_path / f"frame{k}.PNG")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / "._frame3.png").write_bytes(b"what a Mac leaves")
    result = video.read(tmp_path)
    assert result.frames[:, 0, 0, 0].tolist() == [1, 2, 9, 10]
    assert result.fps == 8 and result.duration == Fraction(1, 2) and result.path is None
    assert len(video.read(tmp_path, 2).frames) == 2
    assert video.read(tmp_path, image_fps=NTSC).fps == NTSC
    Image.new("RGB", (21, 10)).save(tmp_path / "frame11.png")
    assert "20x10" in error_of(lambda: video.read(tmp_path))


def test_stills(tmp_path: Path) -> None:
    still = clip(1)[0]
    picture = Image.fromarray(still)
    exif = picture.getexif()
    exif[0x0112] = 6  # turn clockwise to show
    picture.save(tmp_path / "phone.jpg", exif=exif, quality=98)
    assert psnr(video.read(tmp_path / "phone.jpg").frames[0], np.rot90(still, -1)) > 30
    Image.fromarray(np.full((4, 5), 0x8040, np.uint16)).save(tmp_path / "deep.png")
    assert (video.read(tmp_path / "deep.png").frames == 0x80).all()
    Image.new("P", (4, 5)).save(tmp_path / "palette.gif")
    assert video.read(tmp_path / "palette.gif").frames.shape == (1, 5, 4, 3)


def test_an_animated_png_moves(tmp_path: Path) -> None:
    images = [Image.fromarray(f) for f in clip(4)]
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:], duration=50)
    result = video.read(tmp_path / "a.png")
    assert (result.frames == clip(4)).all() and result.fps == 20


# --- reading: refusals ----------------------------------------------------------------------------


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Return files that a user may name by mistake, and words of the message."""
    (folder / "void").mkdir()
    texts = {
        "empty.mp4": b"",
        "notes.txt": b"hello, this is no video\n" * 40,
        "notes.mp4": b"hello\n" * 40,
        "page.html": b"<!doctype html><p>404" * 40,
        "noise.mkv": np.random.default_rng(0).bytes(4000),
        "pointer.mp4": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "broken.png": b"\x89PNG\r\n\x1a\n" + bytes(40),
        "text.jpg": b"hello",
    }
    for name, content in texts.items():
        (folder / name).write_bytes(content)
    cut = make(folder / "cut.mp4", clip(20))
    cut.write_bytes(cut.read_bytes()[:-200])  # libavformat puts the index last
    images = [Image.new("RGB", (8, 8), (90 * k, 0, 0)) for k in range(3)]
    images[0].save(folder / "moving.webp", save_all=True, append_images=images[1:])
    return {
        "missing": (folder / "nowhere.mp4", "no such file"),
        "a name like a protocol": (Path("http://example.invalid/a.mp4"), "no such file"),
        "folder": (folder / "void", "without images"),
        "empty": (folder / "empty.mp4", "empty"),
        "text": (folder / "notes.txt", "not a video"),
        "text as mp4": (folder / "notes.mp4", "not a video"),
        "html": (folder / "page.html", "not a video"),
        "noise": (folder / "noise.mkv", "not a video"),
        "pointer": (folder / "pointer.mp4", "git lfs pull"),
        "sound": (tone(folder / "song.m4a", "aac", 0.3), "only sound"),
        "cut": (cut, "moov"),
        "broken image": (folder / "broken.png", "not an image"),
        "text as image": (folder / "text.jpg", "not an image"),
        "animated WebP": (folder / "moving.webp", "WebP"),
        "device": (Path(os.devnull), "not a file"),
    }


def test_files_that_are_no_video_are_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    for path, words in bad_files(tmp_path).values():
        text = error_of(lambda path=path: video.read(path))
        assert words in text and path.name in text
    error_of(lambda: video.read(tmp_path, 0))
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.mp4").touch(0o000)
    assert "cannot be read" in error_of(lambda: video.read(tmp_path / "mine.mp4"))


@pytest.mark.parametrize("name", ["claims.mp4", "silent.mkv"])
def test_too_much_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """By what the file claims before anything is decoded; by what comes out where it claims nothing."""
    path = make(tmp_path / name, clip(20), container={"live": "1"} if name == "silent.mkv" else {})
    if name == "silent.mkv":
        with av.open(str(path)) as live:
            assert live.duration is None and live.streams.video[0].frames == 0
    decoded = []
    monkeypatch.setattr(reading, "_frame_to_rgb", lambda *a, real=reading._frame_to_rgb: decoded.append(1) or real(*a))
    monkeypatch.setattr(reading, "MEMORY_LIMIT", 10 * 64 * 48 * 3)
    assert "64x48" in error_of(lambda: video.read(path))
    assert len(decoded) == (0 if name == "claims.mp4" else 10)
    assert len(video.read(path, 10).frames) == 10


# --- writing --------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 90)])
def test_tiny_frames_give_the_same_bytes_too(tmp_path: Path, height: int, width: int) -> None:
    """Whatever lay in the memory that the encoder gets: about one write in a hundred shows it where it matters."""
    rng = np.random.default_rng(0)
    blocks = rng.normal(128, 2, (1, 8, 12, 3)).repeat(8, 1).repeat(8, 2)[:, :height, :width]
    frames = (blocks + rng.normal(0, 0.6, (9, height, width, 3))).round()
    found = set()
    for k in range(150):
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
        writing.encode_mp4(failing(), (6, 48, 64), tmp_path / "out.mp4", Fraction(10), None, None)
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


# --- sound ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "aac"),
        ("a.mkv", "aac"),
        ("a.mkv", "libopus"),
        ("a.mkv", "libmp3lame"),
        ("a.webm", "libopus"),
    ],
)
def test_sound_is_copied_untouched_and_in_time(tmp_path: Path, name: str, codec: str) -> None:
    source = tone(tmp_path / name, codec, 1.0, pictures=clip(10))
    read = video.read(source)
    out = video.write(Video(255 - read.frames, read.fps, read.times, read.path), tmp_path / "out.mp4")
    before, after = sound_of(source), sound_of(out)
    assert [p for p, _ in before] == [p for p, _ in after]
    assert np.allclose([t for _, t in before], [t for _, t in after], atol=1.1e-3)
    if codec != "libopus":  # no jitter of a container's milliseconds is left
        assert np.ptp(np.diff([t for _, t in after])) < 1e-4
    assert len(video.read(out).frames) == 10


def test_a_shorter_clip_gets_shorter_sound(tmp_path: Path) -> None:
    source = tone(tmp_path / "a.mp4", "aac", 2.0, pictures=clip(20))
    out = video.write(video.read(source, 5), tmp_path / "out.mp4")
    packets, times = zip(*sound_of(out), strict=True)
    assert list(packets) == [p for p, _ in sound_of(source)][: len(packets)]
    assert 0.45 < times[-1] < 0.5


def test_sound_stays_in_step_with_late_pictures(tmp_path: Path) -> None:
    """Pictures begin 0.3 s into the file; written, they begin at 0, and the sound moves with them."""
    source = tone(tmp_path / "a.mkv", "aac", 1.3, pictures=clip(10), late=3)
    out = video.write(video.read(source), tmp_path / "out.mp4")
    before, after = sound_of(source), sound_of(out)
    assert [p for p, _ in before] == [p for p, _ in after]
    assert np.allclose([t - 0.3 for _, t in before], [t for _, t in after], atol=2e-3)
    back = video.read(out)
    assert back.times[0] == 0 and back.duration == 1
    with av.open(str(out)) as written:
        assert written.streams.video[0].start_time == 0


def test_sound_that_mp4_cannot_hold_becomes_aac(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tone(tmp_path / "a.mkv", "pcm_s16le", 1.0, pictures=clip(10))
    with caplog.at_level(logging.WARNING):
        out = video.write(video.read(source), tmp_path / "out.mp4")
    assert "AAC" in caplog.text
    with av.open(str(out)) as written:
        assert written.streams.audio[0].codec_context.name == "aac"
        wave = np.concatenate([f.to_ndarray()[0] for f in written.decode(audio=0)])
    spectrum = np.abs(np.fft.rfft(wave[4800:43200]))
    assert spectrum.argmax() * 48000 / 38400 == pytest.approx(440, abs=2)
    assert len(wave) / 48000 == pytest.approx(1, abs=0.05)
    assert np.sqrt(np.mean(wave[4800:43200] ** 2)) == pytest.approx(np.sqrt(0.125), rel=0.05)


def test_sound_whose_times_waver_is_encoded_in_step(tmp_path: Path) -> None:
    """The container rounds to milliseconds, which is no whole number of samples; no encoder takes times that go back.
    A click marks the middle."""
    path = tmp_path / "a.asf"
    with av.open(str(path), "w") as opened:
        out: Any = opened
        stream = out.add_stream("wmv2", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = out.add_stream("wmav2", rate=44100)
        sound.layout, sound.bit_rate = "stereo", 128_000
        wave = np.zeros((2, 44100), np.float32)
        wave[:, 22050:22150] = 0.9
        packets = []
        for frame in clip(10):
            packets += stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24"))
        for at in range(0, 44100, 441):
            piece = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, at : at + 441]), "fltp", "stereo")
            piece.sample_rate, piece.pts = 44100, at
            packets += sound.encode(piece)
        for packet in sorted([*packets, *stream.encode(None), *sound.encode(None)], key=lambda p: p.dts * p.time_base):
            out.mux(packet)

    def click(file: Path) -> float:
        """Seconds from the first picture to the loudest moment."""
        with av.open(str(file)) as read:
            frames = list(read.decode(video=0, audio=0))
        start = min(f.time for f in frames if isinstance(f, av.VideoFrame))
        sounds = [(np.abs(f.to_ndarray()[0]), f.time) for f in frames if isinstance(f, av.AudioFrame)]
        loudest, at = max(((x, t) for x, t in sounds if t is not None), key=lambda sound: sound[0].max())
        return at + loudest.argmax() / 44100 - start

    assert click(video.write(video.read(path), tmp_path / "out.mp4")) == pytest.approx(click(path), abs=0.03)


def test_no_edit_is_lost_for_its_sound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever becomes of the sound: its packets are noise."""
    source = tone(tmp_path / "a.mkv", "aac", 1.0, pictures=clip(10))
    raw = bytearray(source.read_bytes())
    for packet, _ in sound_of(source):
        at = raw.index(packet)
        raw[at : at + len(packet)] = np.random.default_rng(0).bytes(len(packet))
    source.write_bytes(raw)
    assert len(video.read(video.write(clip(10), tmp_path / "out.mp4", 10, source)).frames) == 10
    songs = tone(tmp_path / "b.mkv", "pcm_s16le", 0.2, pictures=clip(2))
    songs.write_bytes(songs.read_bytes().replace(b"A_PCM/INT/LIT", b"A_MS/ACM\0\0\0\0\0"))
    assert len(video.read(video.write(clip(2), tmp_path / "out.mp4", 10, songs)).frames) == 2


def test_sound_from_a_song_and_from_a_silent_file(tmp_path: Path) -> None:
    song = tone(tmp_path / "song.m4a", "aac", 2.0)
    times = [t for _, t in sound_of(video.write(clip(10), tmp_path / "out.mp4", 10, song))]
    assert 0.95 < times[-1] < 1
    silent = make(tmp_path / "silent.mp4", clip(10))
    with av.open(str(video.write(clip(10), tmp_path / "quiet.mp4", 10, silent))) as written:
        assert not written.streams.audio


# --- comparisons and contact sheets --------------------------------------------------------------------------


def test_compare_shows_both_in_step(tmp_path: Path) -> None:
    source = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 1), np.uint8).repeat(3, axis=3)
    edited = 255 - source
    audio = tone(tmp_path / "a.mp4", "aac", 0.5, pictures=source)
    back = video.read(video.write_compare(source, edited, tmp_path / "compare.mp4", NTSC, audio))
    assert back.fps == NTSC and len(back.frames) == 5 and sound_of(tmp_path / "compare.mp4")
    left, right = back.frames[:, -256:, :256], back.frames[:, -256:, -256:]
    for result, small in ((left, source), (right, edited)):
        assert psnr(result, small.repeat(4, axis=1).repeat(4, axis=2)) > 30


def test_compare_of_unlike_sizes_keeps_proportions(tmp_path: Path) -> None:
    back = video.read(video.write_compare(clip(2, 300, 400), clip(2, 150, 160), tmp_path / "compare.mp4", 10))
    height, width = back.frames.shape[1:3]
    assert (height, width) == (300 + 24, 400 + 8 + 320)


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
