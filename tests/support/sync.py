"""Clips with a flash and a beep at one moment, and how far apart they are in a file."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from v2edit import video

RATE = 48000  # of the sound
FLASH = 10  # the frame
FRAMES = 20


def flash_and_beep(
    path: Path, codecs: tuple[str, str], b_frames: int, fps: int = 10, offset: int = 0, pts: list[int] | None = None
) -> Path:
    """Write a clip in whose frame FLASH the screen turns white and a beep begins; its clock starts at `offset` s."""
    with av.open(str(path), "w") as opened:
        out: Any = opened
        pictures = out.add_stream(codecs[0], rate=fps, options={"g": "12"})
        pictures.width, pictures.height, pictures.pix_fmt, pictures.bit_rate = 64, 48, "yuv420p", 400_000
        if codecs[0] != "wmv2":
            pictures.options = {**pictures.options, "bf": str(b_frames)}
        sound = out.add_stream(codecs[1], rate=RATE)
        sound.layout, sound.bit_rate = "stereo", 128_000
        background = np.random.default_rng(0).integers(20, 60, (48, 64, 3)).astype(np.uint8)
        packets = []
        for k in range(FRAMES):
            pixels = np.full_like(background, 230) if FLASH <= k < FLASH + 3 else np.roll(background, k, 1)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = (pts[k] if pts else k) + offset * fps, Fraction(1, fps)
            packets += pictures.encode(frame)
        resampler = av.AudioResampler(sound.format, "stereo", RATE, frame_size=sound.frame_size or 1024)
        whole = av.AudioFrame.from_ndarray(np.stack([beep_wave(FRAMES / fps, FLASH / fps)] * 2), "fltp", "stereo")
        whole.sample_rate, whole.pts, whole.time_base = RATE, offset * RATE, Fraction(1, RATE)
        packets += pictures.encode(None)
        for piece in [*resampler.resample(whole), *resampler.resample(None)]:
            packets += sound.encode(piece)
        for packet in sorted([*packets, *sound.encode(None)], key=lambda p: p.dts * p.time_base):
            out.mux(packet)
    return path


def beep_wave(seconds: float, at: float) -> np.ndarray:
    """Return silence with a rising tone of 50 ms, whose place correlation finds to a sample."""
    wave, t = np.zeros(int(seconds * RATE), np.float32), np.arange(RATE // 20) / RATE
    wave[int(at * RATE) :][: len(t)] = 0.6 * np.sin(2 * np.pi * (500 + 20_000 * t) * t)
    return wave


def find_beeps(path: Path, count: int = 1) -> list[float]:
    """Return the seconds at which the beeps begin, by correlation with what they are."""
    with av.open(str(path)) as opened:
        frames: list[Any] = list(opened.decode(audio=0))
    start = min(float(f.pts * f.time_base) for f in frames)
    length = round((max(float(f.pts * f.time_base) for f in frames) - start) * RATE) + 8192
    wave = np.zeros(length)
    for frame in frames:
        at = round((float(frame.pts * frame.time_base) - start) * RATE)
        samples = frame.to_ndarray()
        left = samples[0] if frame.format.is_planar else samples[0, :: frame.layout.nb_channels]
        wave[at : at + len(left)] = left / (32768 if "s16" in frame.format.name else 1)
    beep = beep_wave(0.05, 0)
    match = np.abs(np.fft.irfft(np.fft.rfft(wave, 2 * length) * np.conj(np.fft.rfft(beep, 2 * length)))[:length])
    found = []
    for _ in range(count):
        found.append(start + int(match.argmax()) / RATE)
        match[max(0, match.argmax() - RATE // 4) : match.argmax() + RATE // 4] = 0
    return sorted(found)


def find_flashes(frames: np.ndarray, times: np.ndarray) -> list[float]:
    """Return the seconds at which the screen turns white."""
    bright = frames.mean((1, 2, 3)) > 120
    return [float(times[k]) for k in range(1, len(bright)) if bright[k] and not bright[k - 1]]


def rewritten_skew(source: Path, out: Path, count: int = 1) -> list[float]:
    """Return by how many seconds beeps come after their flashes once a file is read and written again."""
    clip = video.read(source)
    video.write(clip, out)
    flashes, beeps = find_flashes(clip.frames, clip.times), find_beeps(out, count)
    assert len(flashes) == count
    return [beep - flash for beep, flash in zip(beeps, flashes, strict=True)]
