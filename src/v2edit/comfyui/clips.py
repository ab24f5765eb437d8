"""ComfyUI's IMAGE, AUDIO and MASK, as clips and masks of files, and back. Loads no ComfyUI: these types are tensors."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from v2edit.errors import UserError
from v2edit.video.clip import Video
from v2edit.video.masks import read_share
from v2edit.video.stream import STREAM_LIMIT, clip_size

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}  # of sound, by its channels
SOUND_PIECE = 4096  # samples of a packet
CLOCK_LIMIT = 1_000_000  # largest numerator and denominator of a frame rate


def write_source(
    images: torch.Tensor, fps: Fraction | float, folder: Path, audio: Mapping[str, Any] | None = None
) -> Path:
    """Write an IMAGE batch as a video file without loss, named after its content, and return its path.

    Args:
        images: Float [T, H, W, 3 or 4] of 0..1; a fourth channel, alpha, is left out.
        fps: Frames a second.
        folder: Where to write it. The same content is one file, with the same bytes.
        audio: ComfyUI's AUDIO, `waveform` float [1, C, N] and `sample_rate`; it ends with the frames.

    Raises `UserError` for another shape, and where the file cannot be written."""
    if images.ndim != 4 or images.shape[-1] not in (3, 4) or 0 in images.shape:
        raise UserError(f"images are [T, H, W, 3], and these are {list(images.shape)}")
    rate = Fraction(fps).limit_denominator(CLOCK_LIMIT)
    if not 0 < rate <= CLOCK_LIMIT:
        raise UserError(f"fps is {fps}, expected frames a second above 0")
    with _named_by_content(folder, ".mov") as file:
        _encode(images, rate, file.part, audio)
    return file.path


def write_bytes(content: bytes, suffix: str, folder: Path) -> Path:
    """Write a video file that is in memory, named after its content, and return its path. Raises `UserError` where it
    cannot be written."""
    with _named_by_content(folder, suffix) as file:
        file.part.write_bytes(content)
    return file.path


@dataclass
class _NamedFile:
    """A file to write, `part`, and the `path` that it is at in the end."""

    part: Path
    path: Path


@contextmanager
def _named_by_content(folder: Path, suffix: str) -> Iterator[_NamedFile]:
    """Yield a file to write, which in the end is moved to the name that its content gives it. Raises `UserError` where
    it cannot be written."""
    file = _NamedFile(folder / f".{secrets.token_hex(8)}.part", folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield file
        with file.part.open("rb") as content:
            file.path = folder / f"{hashlib.file_digest(content, 'sha256').hexdigest()[:16]}{suffix}"
        file.part.replace(file.path)
    except OSError as error:
        raise UserError(f"cannot write the video to edit to {folder}: {error.strerror or error}") from error
    finally:
        file.part.unlink(missing_ok=True)


def _encode(images: torch.Tensor, rate: Fraction, path: Path, audio: Mapping[str, Any] | None) -> None:
    """Encode frames in RGB without loss, one at a time, and sound as it is."""
    # Without threads and B-frames the bytes are the same on every machine, and each frame's time is its packet's.
    settings = {"qp": "0", "preset": "ultrafast", "bf": "0", "threads": "1"}
    with av.open(str(path), "w", format="mov", options={"fflags": "+bitexact"}) as opened:
        out: Any = opened
        stream = out.add_stream("libx264rgb", rate=rate, options=settings)
        stream.height, stream.width, stream.pix_fmt = images.shape[1], images.shape[2], "rgb24"
        stream.codec_context.time_base = 1 / rate
        sound = None if audio is None else _open_sound(out, audio)
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(to_levels(image), "rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if audio is not None and sound is not None:
            _encode_sound(out, sound, audio, len(images) / rate)


def _open_sound(out: Any, audio: Mapping[str, Any]) -> Any:
    """Add the stream of an AUDIO to a file; None where it has no samples."""
    waveform = audio["waveform"]
    if waveform.ndim != 3 or 0 in waveform.shape:
        return None
    stream = out.add_stream("pcm_f32le", rate=int(audio["sample_rate"]))
    channels = waveform.shape[1]
    stream.layout = LAYOUTS.get(channels, "stereo")
    return stream


def _encode_sound(out: Any, stream: Any, audio: Mapping[str, Any], seconds: Fraction) -> None:
    """Encode an AUDIO up to a time, as ComfyUI does when it saves one."""
    rate, channels = int(audio["sample_rate"]), stream.layout.nb_channels
    samples = audio["waveform"][0, :channels, : math.ceil(seconds * rate)].float().cpu().numpy()
    for first in range(0, samples.shape[1], SOUND_PIECE):
        piece = np.ascontiguousarray(samples[:, first : first + SOUND_PIECE].T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(piece, "flt", layout=stream.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def to_levels(image: torch.Tensor) -> np.ndarray:
    """Return a picture, float [H, W, 3 or 4] of 0..1, as uint8 [H, W, 3]; what is no number is black."""
    levels = (image[..., :3].detach().float() * 255).nan_to_num(0.0).clamp(0, 255).round()
    return np.ascontiguousarray(levels.to("cpu", torch.uint8).numpy())


def to_images(video: Video) -> torch.Tensor:
    """Return a video's frames as an IMAGE batch, float32 [T, H, W, 3] of 0..1. A clip that is read as a stream is never
    in memory twice."""
    count, height, width = clip_size(video.frames)
    images = torch.empty(count, height, width, 3)
    for number, frame in enumerate(video.frames):
        torch.div(torch.from_numpy(np.array(frame)), 255, out=images[number])
    return images


def to_mask(path: Path, video: Video) -> torch.Tensor:
    """Return what of a video was edited as a MASK batch, float32 [T, H, W] of 0..1, by the mask in a run folder; 1
    everywhere where there is none."""
    count, height, width = clip_size(video.frames)
    if not path.exists():
        return torch.ones(count, height, width)
    mask = torch.empty(count, height, width)
    for number, share in enumerate(read_share(path)):
        mask[number] = torch.from_numpy(np.array(share))
    return mask


def fits_a_batch(video: Video) -> bool:
    """Whether a video is short enough to be in memory whole, four bytes a number, as ComfyUI's batches are."""
    return math.prod(video.frames.shape) <= STREAM_LIMIT


def to_mask_array(mask: torch.Tensor) -> np.ndarray:
    """Return a MASK, float [T, H, W], [1, H, W] or [H, W] of 0..1, as the array that `--mask` takes."""
    array = mask.detach().float().cpu().numpy()
    if array.ndim == 4 and array.shape[1] == 1:  # some nodes keep the channel
        array = array[:, 0]
    return array


def fingerprint_array(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's shape and content."""
    content = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()
