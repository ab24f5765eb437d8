"""Awkward real files: each comes in as a player shows it and goes out again, or is refused with one line.

What is expected was established with ffprobe and ffmpeg; the colours are those of ffmpeg's scale filter, told the
matrix where a file names none, and where H.264 has its colour samples.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support.models import pipeline_of

from v2edit import video
from v2edit.editing import EditConfig
from v2edit.errors import UserError
from v2edit.jobs.functions import edit_video
from v2edit.metrics.pixels import psnr

NTSC = Fraction(30000, 1001)
AT_MOST = 50  # frames read where not all of a file is asked for


@dataclass(frozen=True)
class Shown:
    """What a player shows: frames, (width, height), frames a second, streams of sound, and the first frame's mean."""

    frames: int
    size: tuple[int, int]
    fps: Fraction | int
    colour: tuple[float, float, float]
    sound: int = 0


FILES: dict[str, Shown | str] = {
    "rotate90.mov": Shown(3, (320, 568), 30, (105.5, 95.2, 86.7)),
    "rotate0.mov": Shown(3, (568, 320), 30, (111.6, 100.5, 91.0)),
    "corrupted.mp4": Shown(49, (1280, 720), Fraction(49, 5), (122.8, 128.4, 128.9)),  # a frame is lost, its time is not
    "pancake.mkv": Shown(310, (426, 240), 30, (120.2, 90.4, 82.4), 1),
    "av1.mkv": Shown(125, (640, 360), 25, (120.4, 129.9, 128.1)),
    "h264-10bit.mp4": Shown(30, (200, 200), 30, (115.0, 118.3, 126.4)),
    "h265.mp4": Shown(10, (128, 128), 10, (12.2, 12.1, 252.9)),
    "nasa-multistream.mp4": Shown(325, (320, 180), 25, (9.4, 9.0, 14.8), 2),
    "pigs-vintage.gif": Shown(30, (314, 273), 10, (46.4, 46.4, 46.4)),
    "smpte-2997.mp4": Shown(251, (1920, 1080), 25, (69.4, 69.2, 76.5), 1),
    "no-duration.webm": Shown(74, (1280, 720), Fraction(15000, 1001), (2.1, 6.0, 4.3), 1),
    "transparent.webm": Shown(150, (200, 200), 30, (1.2, 0.0, 0.0), 1),
    "dash-name-.mp4": Shown(5, (1, 1), 1, (254, 0, 0)),
    "bbb-30s.webm": Shown(720, (1280, 720), 24, (0, 0, 0), 1),
    "libopenshot-run.mp4": Shown(150, (720, 400), NTSC, (116.8, 111.3, 108.2)),
    "flower.ogv": Shown(900, (320, 240), 30, (25.6, 25.7, 140.3)),
    "carphone-qcif.mp4": Shown(120, (193, 144), NTSC, (96.3, 100.1, 94.2)),
    "scene-cuts.mp4": Shown(250, (1280, 272), 25, (173.9, 169.8, 168.4)),
    "one-frame-h263.3gp": Shown(1, (216, 144), 30, (0, 0, 0)),
    "hdr10.mp4": Shown(3, (2, 2), 25, (0, 0, 0)),
    "sar-16-9.mp4": Shown(1, (1138, 480), 25, (255, 255, 255)),
    "finetrainers-hiker-tiny.mp4": Shown(49, (368, 240), 8, (132.9, 132.1, 121.5)),
    "sam2-dog.mp4": Shown(289, (1280, 720), NTSC, (145.8, 144.9, 125.4), 1),
    "cof-pants-portrait.mp4": Shown(33, (336, 592), 8, (142.6, 145.0, 148.8)),
    "vfr-open.mp4": Shown(26, (320, 320), Fraction(260, 19), (138.2, 133.7, 119.6)),
    "two-frames.mp4": Shown(2, (512, 512), 20, (137.3, 132.7, 118.9)),
    "chunk-out-of-range.mp4": "damaged",
    "init-only-encrypted.mp4": "no frame that can be decoded",
    "audio-only.mp4": "only sound",
    "lfs-pointer.mp4": "git lfs pull",
    "truncated-no-moov.mp4": "moov",
    "empty.mp4": "empty",
}
SHOWN = {name: found for name, found in FILES.items() if isinstance(found, Shown)}
REFUSED = {name: words for name, words in FILES.items() if isinstance(words, str)}


@pytest.fixture
def odd(data: Path) -> Path:
    return data / "odd"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pipeline_of("5b").save_pretrained(folder)
    return folder


def sounds(path: Path) -> list[tuple[str, list[bytes]]]:
    """Each stream of sound: its codec and its packets."""
    with av.open(str(path)) as source:
        found = {s.index: (s.codec_context.codec.canonical_name, []) for s in source.streams.audio}
        for packet in source.demux(*source.streams.audio) if found else ():
            if packet.size:
                found[packet.stream_index][1].append(bytes(packet))
    return list(found.values())


# --- reading --------------------------------------------------------------------------------------


def test_every_file_has_an_expectation(odd: Path) -> None:
    assert {path.name for path in odd.iterdir() if path.is_file()} - {"index.json", "README.md"} == FILES.keys()


@pytest.mark.parametrize("name", SHOWN)
def test_it_is_read_as_shown(odd: Path, name: str, capfd: pytest.CaptureFixture) -> None:
    expected, most = SHOWN[name], 6 if SHOWN[name].size[0] >= 1280 else AT_MOST
    most = None if expected.fps != 25 and expected.frames <= AT_MOST else most  # rates told by the average need it all
    shown = video.read(odd / name, most)
    count = min(expected.frames, most or expected.frames)
    assert shown.frames.shape == (count, *expected.size[::-1], 3) and shown.frames.dtype == np.uint8
    assert shown.fps == expected.fps and shown.duration == count / shown.fps
    assert shown.times[0] == 0 and (np.diff(shown.times) > 0).all() and shown.times[-1] < shown.duration
    assert np.abs(shown.frames[0].mean((0, 1)) - expected.colour).max() < 0.1
    assert len(sounds(odd / name)) == expected.sound
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_one_line(odd: Path, name: str, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match=REFUSED[name]) as told:
        video.read(odd / name)
    assert name in str(told.value) and "\n" not in str(told.value)
    assert capfd.readouterr() == ("", "")


def test_rotation_turns_clockwise(odd: Path) -> None:
    """A keyboard filmed with the phone upright: turned this way its letters can be read."""
    with av.open(str(odd / "rotate90.mov")) as source:
        stored = np.stack([f.to_ndarray(format="rgb24") for f in source.decode(video=0)])
    shown = video.read(odd / "rotate90.mov").frames
    assert psnr(shown, np.rot90(stored, -1, axes=(1, 2))) > 35
    assert psnr(shown, np.rot90(stored, 1, axes=(1, 2))) < 20


def test_a_variable_rate_keeps_its_gaps(odd: Path) -> None:
    ticks = (video.read(odd / "vfr-open.mp4").times * 20).round(6)
    assert ticks[:6].tolist() == [0, 1, 3, 4, 6, 7]  # every third frame is missing


def test_transparency_is_black(odd: Path) -> None:
    frames = video.read(odd / "transparent.webm", 45).frames
    assert (frames[:, 0, 0] == 0).all() and frames.max() > 100


# --- through an edit ------------------------------------------------------------------------------


def check_edit(source: Path, out: Path, expected: Shown) -> None:
    """As many frames as the source has, when it has them, of its size, and with its sound."""
    before, edited = video.read(source), video.read(out / "edited.mp4")
    assert edited.frames.shape == before.frames.shape == (expected.frames, *expected.size[::-1], 3)
    assert edited.fps == before.fps == expected.fps
    np.testing.assert_allclose(edited.times, before.times, rtol=0, atol=1e-4)
    assert len(video.read(out / "compare.mp4", 1).frames) == 1
    heard, told = sounds(source), sounds(out / "edited.mp4")
    assert len(told) == expected.sound
    for (codec, packets), (kept, written) in zip(heard, told, strict=True):
        if codec in ("aac", "mp3", "opus"):
            assert kept == codec and written == packets[: len(written)] and len(written) > 0.7 * len(packets)
        else:
            assert kept == "aac" and written


@pytest.mark.parametrize(
    "name", ["rotate90.mov", "vfr-open.mp4", "dash-name-.mp4", "one-frame-h263.3gp", "transparent.webm", "hdr10.mp4"]
)
def test_it_goes_through_an_edit(odd: Path, model: Path, name: str, tmp_path: Path) -> None:
    config = EditConfig(steps=2)
    edit_video(odd / name, source_prompt="a ball", target_prompt="a cube", model=str(model), config=config,
               out=tmp_path / "run")  # fmt: skip
    check_edit(odd / name, tmp_path / "run", SHOWN[name])


@pytest.mark.heavy
@pytest.mark.parametrize("name", FILES)
def test_the_command_edits_or_refuses_it(odd: Path, model: Path, name: str, tmp_path: Path) -> None:
    words = ["--source-prompt", "a ball", "--target-prompt", "a cube", "--steps", "2", "--model", str(model)]
    told = subprocess.run([sys.executable, "-m", "v2edit", "edit", str(odd / name), *words, "-o", "run"],
                          cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=1200)  # fmt: skip
    expected = FILES[name]
    if isinstance(expected, Shown):
        assert told.returncode == 0, told.stderr
        check_edit(odd / name, tmp_path / "run", expected)
    else:
        assert told.returncode == 2 and told.stderr.count("\n") == 1 and expected in told.stderr
        assert list(tmp_path.iterdir()) == []
