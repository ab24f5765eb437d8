"""Write frames to MP4 files that any player plays, with the sound of the source, or to PNG files."""

from __future__ import annotations

import math
import shutil
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from v2edit.errors import UserError
from v2edit.files import atomic_path
from v2edit.video.clip import Video, frame_times
from v2edit.video.colour import BT709, LIMITED
from v2edit.video.decoding import open_container
from v2edit.video.reading import SIZE_TAG
from v2edit.video.sound import decode_time, transfer_sound

if TYPE_CHECKING:
    from av import Packet
    from av.filter import Graph

ENCODER_THREADS = 4  # x264's output depends on how many there are, so not on how many cores the machine has
# Ticks a second for variable frame rates: a frame of any usual rate lasts a whole number of them.
VARIABLE_RATE_CLOCK = 90_000


def write(
    video: Video | np.ndarray,
    path: Path | str,
    fps: Fraction | int | None = None,
    audio_from: Path | str | None = None,
    times: np.ndarray | None = None,
    crf: int = 17,
) -> Path:
    """Write an MP4 file: H.264, 4:2:0, BT.709, index in front; the same input gives the same bytes.

    4:2:0 needs even sides: an odd one is padded by its last row or column, and the file's metadata say so, by which
    `read` crops it again. The file appears whole or not at all.

    Args:
        video: Frames uint8 [T, H, W, 3], with `fps`, frames a second; or a Video, which has `fps`, `times` and sound.
        path: The file, whose name ends in .mp4.
        audio_from: The file whose sound is copied. Its packets are copied untouched and stay in step with the
            pictures; what players do not find in an MP4 file (Vorbis, PCM ...) is encoded to AAC, which is logged.
            Where the frames end before the source's pictures do, the sound ends with them.
        times: Seconds [T] at which frames appear, for a variable rate; the file lasts T / fps in any case.
        crf: x264's quality; 17 can hardly be told from the original, and 6 more halves the file.

    Raises `UserError` where the file cannot be written, or the input is none of this."""
    if isinstance(video, Video):
        times = video.times if fps is None and times is None else times
        fps, audio_from, frames = fps or video.fps, audio_from or video.path, video.frames
    else:
        frames = check_frames(video)
    if fps is None:
        raise UserError("frames without a frame rate: give fps")
    return encode_mp4(frames, frames.shape[:3], Path(path), Fraction(fps), audio_from, times, crf)


def write_still(frame: np.ndarray, path: Path | str) -> Path:
    """Write one frame, uint8 [H, W, 3], as a PNG file, whole or not at all. Raises `UserError` where it cannot."""
    from PIL import Image

    with atomic_output(Path(path)) as part:
        Image.fromarray(check_frames(frame[None])[0]).save(part, "PNG")
    return Path(path)


def write_frames(video: Video, folder: Path | str) -> list[Path]:
    """Write each frame as a PNG file into a new folder, under the names that the frames were read by, else numbered.
    Raises `UserError` where it cannot be written; then nothing is left of it."""
    folder, count = Path(folder), len(video.frames)
    stems = [Path(name).stem for name in video.names]
    if len(stems) != count or len({stem.lower() for stem in stems}) < count:  # 1.jpg and 1.png are two frames
        stems = [f"{k:0{max(5, len(str(count)))}}" for k in range(count)]
    written: list[Path] = []
    try:
        folder.mkdir()
        for stem, frame in zip(stems, video.frames, strict=True):
            written.append(folder / f"{stem}.png")
            write_still(frame, written[-1])
    except BaseException as error:
        if not isinstance(error, FileExistsError):
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write the frames to {folder}: {error.strerror or error}") from error
        raise
    return written


def check_frames(frames: np.ndarray) -> np.ndarray:
    """Return the frames. Raises `UserError` unless they are uint8 [T, H, W, 3] and not empty."""
    shape, kind = np.shape(frames), getattr(frames, "dtype", None)
    if kind != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise UserError(f"frames must be uint8 [T, H, W, 3], and these are {kind} {list(shape)}")
    return frames


def encode_mp4(
    frames: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    path: Path,
    fps: Fraction,
    audio_from: Path | str | None,
    times: np.ndarray | None,
    crf: int = 17,
) -> Path:
    """Write an MP4 file as `write` does, of frames uint8 [H, W, 3] from an iterator; `shape` is (T, H, W)."""
    import av

    if path.suffix.lower() != ".mp4":
        raise UserError(f"cannot write {path}: the name must end in .mp4")
    count, height, width = shape
    ticks, clock = _compute_ticks(count, fps, times)
    even = height + height % 2, width + width % 2
    to_yuv = _yuv_converter(*even, clock)
    if audio_from and not Path(audio_from).is_file():
        raise UserError(f"no such file to take the sound from: {Path(audio_from)}")
    with ExitStack() as stack:
        source = stack.enter_context(open_container(Path(audio_from))) if audio_from else None
        part = stack.enter_context(atomic_output(path))
        options = {"movflags": "+faststart+use_metadata_tags", "fflags": "+bitexact"}
        out = stack.enter_context(av.open(str(part), "w", format="mp4", options=options))
        if height % 2 or width % 2:
            out.metadata[SIZE_TAG] = f"{width}x{height}"
        # Without B-frames each packet's time is its frame's, to the last one's end, at any frame rate.
        # And without mbtree: where a side is no multiple of 16 it goes by memory that nobody has written, and two
        # encodings of the same frames differ now and then (of 62x80 most, of 190x160 one in 400; without it, none).
        settings = {"crf": str(crf), "bf": "0", "mbtree": "0"}
        stream = out.add_stream("libx264", rate=fps, options=settings)
        (stream.height, stream.width), stream.pix_fmt = even, "yuv420p"
        stream.time_base = stream.codec_context.time_base = clock
        stream.thread_count = ENCODER_THREADS
        stream.color_range, stream.colorspace = LIMITED, BT709
        stream.color_trc = stream.color_primaries = BT709
        sound = transfer_sound(source, out, count / fps) if source else deque()

        def mux(pictures: list[Packet], until: Fraction | float) -> None:
            """Write pictures, and before them the sound up to a time in seconds."""
            while sound and decode_time(sound[0]) <= until:
                out.mux(sound.popleft())
            for packet in pictures:
                k = bisect_left(ticks, packet.pts or 0)
                packet.duration = ticks[k + 1] - ticks[k]
                out.mux(packet)

        for k, frame in enumerate(frames):
            padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(padded, "rgb24")
            picture.pts, picture.time_base = ticks[k], clock
            to_yuv.push(picture)
            mux(stream.encode(to_yuv.vpull()), ticks[k] * clock)
        mux(stream.encode(None), math.inf)
    return path


def _yuv_converter(height: int, width: int, clock: Fraction) -> Graph:
    """Return a filter graph from RGB to YUV 4:2:0, with colour samples where H.264 has them: on the left one of the two
    columns that share them (swscale alone puts them between, half a pixel off)."""
    from av.filter import Graph
    from av.video.format import VideoFormat

    graph = Graph()
    graph.threads = 1
    graph.link_nodes(
        graph.add_buffer(width=width, height=height, format=VideoFormat("rgb24"), time_base=clock),
        graph.add(
            "scale",
            "flags=bicubic+full_chroma_inp+accurate_rnd+bitexact:in_range=full:out_range=limited:"
            "out_color_matrix=bt709:out_h_chr_pos=0:out_v_chr_pos=128",
        ),
        graph.add("format", "pix_fmts=yuv420p"),
        graph.add("buffersink"),
    )
    graph.configure()
    return graph


def _compute_ticks(count: int, fps: Fraction, times: np.ndarray | None) -> tuple[list[int], Fraction]:
    """Return the ticks [T + 1] at which frames appear and the last one ends, and the seconds of a tick."""
    if not 0 < fps <= 1000 or max(fps.numerator, fps.denominator) >= 2**31:
        raise UserError(f"the frame rate is {fps}; it must be above 0 and at most 1000 a second")
    if times is None or (len(times) == count and np.allclose(times, frame_times(count, fps), rtol=0, atol=1e-6)):
        return list(range(count + 1)), 1 / fps
    if len(times) != count:
        raise UserError(f"{count} frames, but {len(times)} times")
    # A tick that the duration is a whole number of, so that the average rate comes back exactly.
    clock = math.lcm(VARIABLE_RATE_CLOCK, (count / fps).denominator)
    longest = max(*np.diff(times), float(count / fps) - float(times[-1] - times[0]), 1)
    clock = clock if clock * longest < 2**31 else VARIABLE_RATE_CLOCK  # a frame's length in an MP4 file has 32 bits
    ticks = [round(float(t - times[0]) * clock) for t in times]
    if any(b <= a for a, b in pairwise(times)):
        raise UserError("the times of frames must rise")
    for k in range(1, count):  # two may be nearer than a tick
        ticks[k] = max(ticks[k], ticks[k - 1] + 1)
    return [*ticks, max(round(count / fps * clock), ticks[-1] + 1)], Fraction(1, clock)


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Yield a temporary path as `files.atomic_path` does. Raises `UserError` where the file cannot be written."""
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    from av.error import FFmpegError

    try:
        # An absolute path is never taken for a protocol.
        with atomic_path(path.absolute()) as part:
            yield part
    except UserError:
        raise
    except (OSError, FFmpegError) as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
