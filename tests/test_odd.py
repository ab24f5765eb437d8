"""Awkward real files: each is read as a player shows it and written again, or is refused with one line.

The expectations were established with ffprobe and ffmpeg; the colours are those of ffmpeg's scale filter, given the
matrix where a file names none, and where H.264 has its colour samples.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from v2edit import video
from v2edit.cli.app import main
from v2edit.editing import EditConfig
from v2edit.errors import UserError
from v2edit.jobs.functions import edit_video
from v2edit.metrics.pixels import psnr

NTSC = Fraction(30000, 1001)
MAX_FRAMES = 50  # that are read of a longer file


@dataclass(frozen=True)
class Readable:
    """A readable file: frames, (width, height), frames a second, streams of sound, and the first frame's mean."""

    frames: int
    size: tuple[int, int]
    fps: Fraction | int
    colour: tuple[float, float, float]
    sound: int = 0


FILES: dict[str, Readable | str] = {
    "rotate90.mov": Readable(3, (320, 568), 30, (105.5, 95.2, 86.7)),
    "rotate0.mov": Readable(3, (568, 320), 30, (111.6, 100.5, 91.0)),
    "corrupted.mp4": Readable(
        49, (1280, 720), Fraction(49, 5), (122.8, 128.4, 128.9)
    ),  # a frame is lost, its time is not
    "pancake.mkv": Readable(310, (426, 240), 30, (120.2, 90.4, 82.4), 1),
    "av1.mkv": Readable(125, (640, 360), 25, (120.4, 129.9, 128.1)),
    "h264-10bit.mp4": Readable(30, (200, 200), 30, (115.0, 118.3, 126.4)),
    "h265.mp4": Readable(10, (128, 128), 10, (12.2, 12.1, 252.9)),
    "nasa-multistream.mp4": Readable(325, (320, 180), 25, (9.4, 9.0, 14.8), 2),
    "pigs-vintage.gif": Readable(30, (314, 273), 10, (46.4, 46.4, 46.4)),
    "smpte-2997.mp4": Readable(251, (1920, 1080), 25, (69.4, 69.2, 76.5), 1),
    "no-duration.webm": Readable(74, (1280, 720), Fraction(15000, 1001), (2.1, 6.0, 4.3), 1),
    "transparent.webm": Readable(150, (200, 200), 30, (1.2, 0.0, 0.0), 1),
    "dash-name-.mp4": Readable(5, (1, 1), 1, (254, 0, 0)),
    "bbb-30s.webm": Readable(720, (1280, 720), 24, (0, 0, 0), 1),
    "libopenshot-run.mp4": Readable(150, (720, 400), NTSC, (116.8, 111.3, 108.2)),
    "flower.ogv": Readable(900, (320, 240), 30, (25.6, 25.7, 140.3)),
    "carphone-qcif.mp4": Readable(120, (193, 144), NTSC, (96.3, 100.1, 94.2)),
    "scene-cuts.mp4": Readable(250, (1280, 272), 25, (173.9, 169.8, 168.4)),
    "one-frame-h263.3gp": Readable(1, (216, 144), 30, (0, 0, 0)),
    "hdr10.mp4": Readable(3, (2, 2), 25, (0, 0, 0)),
    "sar-16-9.mp4": Readable(1, (1138, 480), 25, (255, 255, 255)),
    "finetrainers-hiker-tiny.mp4": Readable(49, (368, 240), 8, (132.9, 132.1, 121.5)),
    "sam2-dog.mp4": Readable(289, (1280, 720), NTSC, (145.8, 144.9, 125.4), 1),
    "cof-pants-portrait.mp4": Readable(33, (336, 592), 8, (142.6, 145.0, 148.8)),
    "vfr-open.mp4": Readable(26, (320, 320), Fraction(260, 19), (138.2, 133.7, 119.6)),
    "two-frames.mp4": Readable(2, (512, 512), 20, (137.3, 132.7, 118.9)),
    "chunk-out-of-range.mp4": "damaged",
    "init-only-encrypted.mp4": "no frame that can be decoded",
    "audio-only.mp4": "only sound",
    "lfs-pointer.mp4": "git lfs pull",
    "truncated-no-moov.mp4": "moov",
    "empty.mp4": "empty",
}
READABLE = {name: facts for name, facts in FILES.items() if isinstance(facts, Readable)}
REFUSED = {name: words for name, words in FILES.items() if isinstance(words, str)}


@pytest.fixture
def odd(data: Path) -> Path:
    return data / "odd"


def read_sound(path: Path) -> list[tuple[str, list[bytes]]]:
    """Return the codec and the packets of each stream of sound."""
    with av.open(str(path)) as source:
        streams = {s.index: (s.codec_context.codec.canonical_name, []) for s in source.streams.audio}
        for packet in source.demux(*source.streams.audio) if streams else ():
            if packet.size:
                streams[packet.stream_index][1].append(bytes(packet))
    return list(streams.values())


# --- reading --------------------------------------------------------------------------------------


def test_every_file_has_an_expectation(odd: Path) -> None:
    assert {path.name for path in odd.iterdir() if path.is_file()} - {"index.json", "README.md"} == FILES.keys()


@pytest.mark.parametrize("name", READABLE)
def test_it_is_read_as_a_player_shows_it(odd: Path, name: str, capfd: pytest.CaptureFixture) -> None:
    expected, max_frames = READABLE[name], 6 if READABLE[name].size[0] >= 1280 else MAX_FRAMES
    if expected.fps != 25 and expected.frames <= MAX_FRAMES:
        max_frames = None  # A rate that is an average needs all frames.
    clip = video.read(odd / name, max_frames)
    count = min(expected.frames, max_frames or expected.frames)
    assert clip.frames.shape == (count, *expected.size[::-1], 3) and clip.frames.dtype == np.uint8
    assert clip.fps == expected.fps and clip.duration == count / clip.fps
    assert clip.times[0] == 0 and (np.diff(clip.times) > 0).all() and clip.times[-1] < clip.duration
    assert np.abs(clip.frames[0].mean((0, 1)) - expected.colour).max() < 0.1
    assert len(read_sound(odd / name)) == expected.sound
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_one_line(odd: Path, name: str, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match=REFUSED[name]) as caught:
        video.read(odd / name)
    assert name in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_rotation_turns_clockwise(odd: Path) -> None:
    """A keyboard filmed with the phone upright: turned clockwise, its letters can be read."""
    with av.open(str(odd / "rotate90.mov")) as source:
        stored = np.stack([f.to_ndarray(format="rgb24") for f in source.decode(video=0)])
    frames = video.read(odd / "rotate90.mov").frames
    assert psnr(frames, np.rot90(stored, -1, axes=(1, 2))) > 35
    assert psnr(frames, np.rot90(stored, 1, axes=(1, 2))) < 20


def test_a_variable_rate_keeps_its_gaps(odd: Path) -> None:
    ticks = (video.read(odd / "vfr-open.mp4").times * 20).round(6)
    assert ticks[:6].tolist() == [0, 1, 3, 4, 6, 7]  # every third frame is missing


def test_transparency_is_black(odd: Path) -> None:
    frames = video.read(odd / "transparent.webm", 45).frames
    assert (frames[:, 0, 0] == 0).all() and frames.max() > 100


# --- through an edit ------------------------------------------------------------------------------


def check_edit(source: Path, out: Path, expected: Readable) -> None:
    """Assert that the edit has the source's frames, at its times and of its size, and its sound."""
    before, edited = video.read(source), video.read(out / "edited.mp4")
    assert edited.frames.shape == before.frames.shape == (expected.frames, *expected.size[::-1], 3)
    assert edited.fps == before.fps == expected.fps
    np.testing.assert_allclose(edited.times, before.times, rtol=0, atol=1e-4)
    assert len(video.read(out / "compare.mp4", 1).frames) == 1
    sound, edited_sound = read_sound(source), read_sound(out / "edited.mp4")
    assert len(edited_sound) == expected.sound
    for (codec, packets), (edited_codec, edited_packets) in zip(sound, edited_sound, strict=True):
        if codec in ("aac", "mp3", "opus"):
            assert edited_codec == codec and edited_packets == packets[: len(edited_packets)]
            assert len(edited_packets) > 0.7 * len(packets)
        else:
            assert edited_codec == "aac" and edited_packets


def edit_with(model: Path, path: Path, out: Path) -> None:
    prompts = {"source_prompt": "a ball", "target_prompt": "a cube"}
    edit_video(path, **prompts, model=str(model), config=EditConfig(steps=2), out=out)


@pytest.mark.parametrize("name", ["rotate90.mov", "vfr-open.mp4", "dash-name-.mp4", "one-frame-h263.3gp"])
def test_it_goes_through_an_edit(odd: Path, tiny_model: Path, name: str, tmp_path: Path) -> None:
    edit_with(tiny_model, odd / name, tmp_path / "run")
    check_edit(odd / name, tmp_path / "run", READABLE[name])


def test_real_sound_goes_through_an_edit(odd: Path, tiny_model: Path, tmp_path: Path) -> None:
    start = video.read(odd / "pancake.mkv", 9)
    source = video.write(start.frames[:, ::4, ::4], tmp_path / "start.mp4", start.fps, start.path, start.times)
    edit_with(tiny_model, source, tmp_path / "run")
    check_edit(source, tmp_path / "run", Readable(9, (107, 60), 30, (0, 0, 0), 1))


@pytest.mark.heavy
@pytest.mark.parametrize("name", FILES)
def test_the_command_edits_or_refuses_it(odd: Path, tiny_model: Path, name: str, tmp_path: Path, capsys) -> None:
    words = ["edit", str(odd / name), "--source-prompt", "a ball", "--target-prompt", "a cube", "--steps", "2"]
    code = main([*words, "--model", str(tiny_model), "-o", str(tmp_path / "run")])
    error, expected = capsys.readouterr().err, FILES[name]
    if isinstance(expected, Readable):
        assert code == 0, error
        check_edit(odd / name, tmp_path / "run", expected)
    else:
        assert code == 2 and error.count("\n") == 1 and expected in error
        assert list(tmp_path.iterdir()) == []
