"""Reading videos: geometry, colours, times and images as a player shows them, and what is refused."""

import math
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from support.videos import NTSC, clip, error_of, make, rgb_of, tone, yuv

from v2edit import video
from v2edit.metrics.pixels import psnr
from v2edit.video import Video, reading

# --- geometry -------------------------------------------------------------------------------------


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
    assert psnr(result, np.array(Image.fromarray(frames[0]).resize(size))) > 30


INTERLACED = {
    "mpeg2.ts": ("mpeg2video", "yuv420p", {"flags": "+ildct+ilme", "b": "20M"}),
    "h264.mp4": ("libx264", "yuv420p", {"qp": "1", "x264-params": "tff=1"}),
    "pal.dv": ("dvvideo", "yuv420p", {}),
    "prores.mov": ("prores_ks", "yuv422p10le", {"flags": "+ildct"}),
}


@pytest.mark.parametrize("name", INTERLACED)
def test_interlaced_videos_are_read(tmp_path: Path, name: str) -> None:
    codec, pixels, options = INTERLACED[name]
    turned = name == "h264.mp4"
    path = make(
        tmp_path / name,
        clip(3, 576, 720),
        *(codec, pixels, Fraction(25)),
        options=options,
        change=lambda stream: stream.set_display_rotation(90) if turned else None,
    )
    result = video.read(path)
    with av.open(str(path)) as opened:
        decoded = list(opened.decode(video=0))
    assert all(frame.interlaced_frame for frame in decoded) and result.fps == 25
    size = (768, 576) if name == "pal.dv" else (720, 576)  # 4:3
    expected = [f.to_ndarray(width=size[0], height=size[1], format="rgb24") for f in decoded]
    assert psnr(result.frames, np.rot90(expected, turned, axes=(1, 2))) > 38


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


# --- colour ---------------------------------------------------------------------------------------


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


def pq(luminance: float) -> float:
    """The signal of a luminance in cd/m2, from 0 to 1, by SMPTE ST 2084."""
    power = (luminance / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(luminance: float) -> float:
    """The signal of a grey of this luminance in cd/m2 on a display of 1000, from 0 to 1, by ITU-R BT.2100."""
    scene = (luminance / 1000) ** (1 / 1.2)
    return math.sqrt(3 * scene) if scene <= 1 / 12 else 0.17883277 * math.log(12 * scene - 0.28466892) + 0.55991073


CURVES = {16: pq, 18: hlg}  # by FFmpeg's numbers


def write_hdr(path: Path, pictures: list[av.VideoFrame] | list[float], curve: int = 16) -> Path:
    """Write pictures, or grey ones of these luminances in cd/m2."""

    def tag(stream) -> None:
        context = stream.codec_context
        context.colorspace = context.color_primaries = 9
        context.color_trc, context.color_range = curve, 1

    made = [
        p if isinstance(p, av.VideoFrame) else yuv(round(64 + 876 * CURVES[curve](p)), 512, 512, 10) for p in pictures
    ]
    return make(path, made, "ffv1", "yuv420p10le", change=tag)


@pytest.mark.parametrize(("curve", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_white_is_white(tmp_path: Path, curve: int, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Diffuse white has 203 cd/m2; nothing brighter is there to be compressed."""
    result = video.read(write_hdr(tmp_path / "hdr.mkv", [203, 26], curve)).frames[:, 20, 20].astype(int)
    bright, grey = result
    assert bright.min() >= 250 and np.ptp(result, axis=1).max() <= 1
    assert np.abs(grey - 255 * (26 / 203) ** (1 / 2.4)).max() <= 2  # BT.1886
    assert f"hdr.mkv is HDR ({name}" in caplog.text and "BT.2390" in caplog.text


def compress(luminance: float, peak: float) -> float:
    """The luminance on a display of 203 cd/m2, by the EETF of ITU-R BT.2390."""
    top = pq(203) / pq(peak)
    value, knee = pq(luminance) / pq(peak), 1.5 * top - 0.5
    if value >= knee:
        t = (value - knee) / (1 - knee)
        value = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * top
    low, high = 0.0, 10_000.0
    for _ in range(60):  # what has this signal
        low, high = ((low + high) / 2, high) if pq((low + high) / 2) < value * pq(peak) else (low, (low + high) / 2)
    return low


@pytest.mark.parametrize(("peak", "curve"), [(600, 16), (1000, 16), (4000, 16), (600, 18), (1000, 18)])
def test_hdr_highlights_are_compressed(tmp_path: Path, peak: int, curve: int) -> None:
    """Untouched below the knee, white at the peak, and steps between."""
    luminances = [5, 20, 50, 203, 400, peak]
    shown = video.read(write_hdr(tmp_path / "hdr.mkv", luminances, curve)).frames[:, 20, 20, 1].astype(int)
    expected = [255 * min(1, compress(nits, peak) / 203) ** (1 / 2.4) for nits in luminances]
    assert np.abs(shown - expected).max() <= 2.5
    assert (np.diff(shown) > 0).all() and shown[-1] >= 250


def test_hlg_colours_are_those_of_its_display(tmp_path: Path) -> None:
    """The OOTF of BT.2100 goes by luminance, not by colour; then BT.2020 becomes BT.709."""
    stored, grey = [500, 480, 560], 64 + round(876 * hlg(203))
    luma, pb, pr = (stored[0] - 64) / 876, (stored[1] - 512) / 896, (stored[2] - 512) / 896
    signal = [luma + 1.4746 * pr, luma - 0.16455 * pb - 0.57135 * pr, luma + 1.8814 * pb]
    scene = np.array(
        [s**2 / 3 if s <= 0.5 else (math.exp((s - 0.55991073) / 0.17883277) + 0.28466892) / 12 for s in signal]
    )
    light = 1000 * scene * (scene @ [0.2627, 0.6780, 0.0593]) ** 0.2 / 203
    assert light.max() < 0.5  # nothing to be compressed
    matrix = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    expected = 255 * (np.array(matrix) @ light) ** (1 / 2.4)
    shown = video.read(write_hdr(tmp_path / "hlg.mkv", [yuv(*stored, 10), yuv(grey, 512, 512, 10)], 18)).frames[
        0, 20, 20
    ]
    assert np.ptp(expected) > 30 and np.abs(shown - expected).max() <= 2


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


# --- time -----------------------------------------------------------------------------------------


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


# --- refusals -------------------------------------------------------------------------------------


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
    monkeypatch.setattr(reading, "frame_to_rgb", lambda *a, real=reading.frame_to_rgb: decoded.append(1) or real(*a))
    monkeypatch.setattr(reading, "MEMORY_LIMIT", 10 * 64 * 48 * 3)
    assert "64x48" in error_of(lambda: video.read(path, streamed=False))
    assert len(decoded) == (0 if name == "claims.mp4" else 10)
    assert len(video.read(path, 10).frames) == 10
