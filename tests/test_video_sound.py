"""The sound of one file in another: copied untouched and in step, or encoded."""

import logging
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from support.videos import clip, make, sound_of, tone

from v2edit import video
from v2edit.video import Video


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
    out = video.write(Video(255 - np.asarray(read.frames), read.fps, read.times, read.path), tmp_path / "out.mp4")
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
