"""Video files of every kind, and the ways to look into them."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from v2edit.errors import UserError

NTSC = Fraction(30000, 1001)


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


LUMA_WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}


def rgb_of(stored: list[int], matrix: int, full: bool, bits: int) -> np.ndarray:
    """Convert as the standards define it, in floating point."""
    (y, u, v), (kr, kb) = stored, LUMA_WEIGHTS[matrix]
    one = 2 ** (bits - 8)
    luma = y / (2**bits - 1) if full else (y - 16 * one) / (219 * one)
    pb, pr = ((c - 128 * one) / (2**bits - 1 if full else 224 * one) for c in (u, v))
    red, blue = luma + 2 * (1 - kr) * pr, luma + 2 * (1 - kb) * pb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.array([red, green, blue]) * 255, 0, 255)
