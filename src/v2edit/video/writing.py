"""Write frames to video files that any player plays, with the sound of the source, or to PNG files."""

from __future__ import annotations

import math
import shutil
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from v2edit.errors import UserError
from v2edit.files import atomic_path
from v2edit.video.clip import Video, frame_times
from v2edit.video.colour import BT709, LIMITED
from v2edit.video.decoding import open_container
from v2edit.video.formats import PALETTE, Format, find_format
from v2edit.video.reading import SIZE_TAG
from v2edit.video.sound import decode_time, transfer_sound
from v2edit.video.stream import Frames, clip_size

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import OutputContainer
    from av.filter import Graph

ENCODER_THREADS = 4  # encoders' output may depend on how many there are, so not on how many cores the machine has
# Ticks a second for variable frame rates: a frame of any usual rate lasts a whole number of them.
VARIABLE_RATE_CLOCK = 90_000

WriteFrame: TypeAlias = Callable[[np.ndarray], None]  # takes the next frame, uint8 [H, W, 3]


def write(
    video: Video | Frames,
    path: Path | str,
    fps: Fraction | int | None = None,
    audio_from: Path | str | None = None,
    times: np.ndarray | None = None,
    crf: int | None = None,
    tags: Mapping[str, str] | None = None,
) -> Path:
    """Write a video file of the kind that its name says; the same input gives the same bytes.

    `.mp4`: H.264, 4:2:0, BT.709, index in front. `.webm`: VP9, the same colours. `.mov`: ProRes 422 HQ, 10 bits.
    `.gif`: one palette for all frames, times to 1/100 s. `.webp`: animated. GIF and WebP have no sound. An odd
    side in an MP4 file, and an odd width in a MOV file, is padded by its last row or column, and the file's metadata
    say so, by which `read` crops it again. The file appears whole or not at all.

    Args:
        video: Frames uint8 [T, H, W, 3], with `fps`, frames a second; or a Video, which has `fps`, `times` and sound.
        path: The file, whose name ends in one of these.
        audio_from: The file whose sound is copied. Its packets are copied untouched and stay in step with the
            pictures; what players do not find in such a file (Vorbis, PCM ... in MP4) is encoded to AAC (Opus in WebM,
            PCM in MOV), which is logged. Where the frames end before the source's pictures do, the sound ends with
            them.
        times: Seconds [T] at which frames appear, for a variable rate; the file lasts T / fps in any case.
        crf: Quality of MP4 (default: 17, which can hardly be told from the original; 6 more halves the file) and of
            WebM (default: 15).
        tags: More of the file's metadata, of MP4 and MOV.

    Raises `UserError` where the file cannot be written, or the input is none of this."""
    if isinstance(video, Video):
        times = video.times if fps is None and times is None else times
        fps, audio_from, frames = fps or video.fps, audio_from or video.path, video.frames
    else:
        frames = check_frames(video)
    if fps is None:
        raise UserError("frames without a frame rate: give fps")
    with open_writer(Path(path), clip_size(frames), Fraction(fps), audio_from, times, crf, tags) as write_frame:
        for frame in frames:
            write_frame(frame)
    return Path(path)


@contextmanager
def open_edit(source: Video, path: Path, crf: int | None = None) -> Iterator[WriteFrame]:
    """Yield what writes the next frame of an edit of a video, of the source's size, times and sound, as `write`."""
    with open_writer(path, clip_size(source.frames), source.fps, source.path, source.times, crf) as write_frame:
        yield write_frame


def check_format(video: Video, path: Path | str) -> None:
    """Raise `UserError` where a file of the kind that a path names cannot show a video's frames at their times."""
    _compute_ticks(len(video.frames), video.fps, video.times, find_format(Path(path)))


def write_still(frame: np.ndarray, path: Path | str) -> Path:
    """Write one frame, uint8 [H, W, 3], as a PNG file, whole or not at all. Raises `UserError` where it cannot."""
    from PIL import Image

    with atomic_output(Path(path)) as part:
        Image.fromarray(check_frames(frame[None])[0]).save(part, "PNG")
    return Path(path)


def write_frames(video: Video, folder: Path | str) -> list[Path]:
    """Write each frame as a PNG file into a new folder, under the names that the frames were read by, else numbered.
    Raises `UserError` where it cannot be written; then nothing is left of it."""
    with open_folder(video, folder) as write_frame:
        for frame in video.frames:
            write_frame(frame)
    return [Path(folder) / f"{stem}.png" for stem in _frame_stems(video)]


@contextmanager
def open_folder(video: Video, folder: Path | str) -> Iterator[WriteFrame]:
    """Yield what writes the next of a video's frames into a new folder, as `write_frames` does."""
    folder, stems = Path(folder), iter(_frame_stems(video))
    try:
        folder.mkdir()

        def write_frame(frame: np.ndarray) -> None:
            write_still(frame, folder / f"{next(stems)}.png")

        yield write_frame
    except BaseException as error:
        if not isinstance(error, FileExistsError):
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write the frames to {folder}: {error.strerror or error}") from error
        raise


def _frame_stems(video: Video) -> list[str]:
    """Return the names, without suffixes, of the files of a video's frames."""
    count, stems = len(video.frames), [Path(name).stem for name in video.names]
    if len(stems) != count or len({stem.lower() for stem in stems}) < count:  # 1.jpg and 1.png are two frames
        return [f"{k:0{max(5, len(str(count)))}}" for k in range(count)]
    return stems


def check_frames(frames: Frames) -> Frames:
    """Return the frames. Raises `UserError` unless they are uint8 [T, H, W, 3] and not empty."""
    shape, kind = np.shape(frames), getattr(frames, "dtype", None)
    if kind != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise UserError(f"frames must be uint8 [T, H, W, 3], and these are {kind} {list(shape)}")
    return frames


@contextmanager
def open_writer(
    path: Path,
    shape: tuple[int, int, int],
    fps: Fraction,
    audio_from: Path | str | None = None,
    times: np.ndarray | None = None,
    crf: int | None = None,
    tags: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[WriteFrame]:
    """Yield what writes the next frame of a video file of `shape` (T, H, W); the file is as `write` makes it, or by
    other `settings` of the encoder, and appears once the context is left."""
    import av

    kind, (count, height, width) = find_format(path, crf), shape
    ticks, clock = _compute_ticks(count, fps, times, kind)
    more = -height % kind.sides[0], -width % kind.sides[1]
    size = height + more[0], width + more[1]
    converter = _open_converter(*size, clock, kind)
    if audio_from and not Path(audio_from).is_file():
        raise UserError(f"no such file to take the sound from: {Path(audio_from)}")
    with ExitStack() as stack:
        source = stack.enter_context(open_container(Path(audio_from))) if audio_from and kind.sound else None
        part = stack.enter_context(atomic_output(path))
        options = {**kind.muxing, "fflags": "+bitexact"}
        if kind.container == "gif":
            options["final_delay"] = str(ticks[-1] - ticks[-2])
        out = stack.enter_context(av.open(str(part), "w", format=kind.container, options=options))
        out.metadata.update(tags or {})
        if any(more):
            out.metadata[SIZE_TAG] = f"{width}x{height}"
        stream = _add_stream(out, kind, size, fps, clock, crf, settings or {})
        sound = transfer_sound(source, out, count, fps, kind.sound) if source and kind.sound else deque()
        moments, pictures = iter(ticks), _Pictures(converter, more, clock)

        def mux(packets: list[Packet], until: Fraction | float) -> None:
            """Write packets of pictures, and before them the sound up to a time in seconds."""
            while sound and decode_time(sound[0]) <= until:
                out.mux(sound.popleft())
            for packet in packets:
                k = bisect_left(ticks, packet.pts or 0)
                packet.duration = ticks[k + 1] - ticks[k]
                out.mux(packet)

        def write_frame(frame: np.ndarray) -> None:
            tick = next(moments)
            with name_in_errors(path):
                for converted in pictures.convert(frame, tick):
                    mux(stream.encode(converted), tick * clock)

        yield write_frame
        for converted in _convert(converter, None):
            mux(stream.encode(converted), math.inf)
        mux(stream.encode(None), math.inf)


def _add_stream(
    out: OutputContainer,
    kind: Format,
    size: tuple[int, int],
    fps: Fraction,
    clock: Fraction,
    crf: int | None,
    settings: Mapping[str, str],
) -> VideoStream:
    """Add the stream of pictures of `size` (height, width) to a file."""
    quality = {} if kind.crf is None else {"crf": str(kind.crf if crf is None else crf)}
    stream: Any = out.add_stream(kind.codec, rate=fps, options=quality | {**kind.settings, **settings})
    (stream.height, stream.width), stream.pix_fmt = size, kind.pixels
    stream.time_base = stream.codec_context.time_base = clock
    stream.thread_count = ENCODER_THREADS
    if kind.is_yuv:
        stream.color_range, stream.colorspace = LIMITED, BT709
        stream.color_trc = stream.color_primaries = BT709
    return stream


def _open_converter(height: int, width: int, clock: Fraction, kind: Format) -> Graph:
    """Return a filter graph from RGB to a file's pixels. To YUV, with colour samples where H.264 has them: on the left
    one of the two columns that share them (swscale alone puts them between, half a pixel off). To a palette: that of
    all frames, once the last one is in."""
    from av.filter import Graph
    from av.video.format import VideoFormat

    graph = Graph()
    graph.threads = 1
    buffer = graph.add_buffer(width=width, height=height, format=VideoFormat("rgb24"), time_base=clock)
    last = graph.add("format", f"pix_fmts={kind.pixels}")
    if kind.pixels == "pal8":
        four_bytes, split = graph.add("format", "pix_fmts=bgra"), graph.add("split")
        palette, use = graph.add("palettegen"), graph.add("paletteuse", PALETTE)
        buffer.link_to(four_bytes)
        four_bytes.link_to(split)
        split.link_to(palette)
        split.link_to(use, 1)
        palette.link_to(use, 0, 1)
        use.link_to(last)
    elif kind.is_yuv:
        scale = graph.add(
            "scale",
            "flags=bicubic+full_chroma_inp+accurate_rnd+bitexact:in_range=full:out_range=limited:"
            f"out_color_matrix=bt709:out_h_chr_pos=0:out_v_chr_pos={128 if '420' in kind.pixels else 0}",
        )
        buffer.link_to(scale)
        scale.link_to(last)
    else:
        buffer.link_to(last)
    last.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


@dataclass
class _Pictures:
    """Frames in a file's pixels, padded by `more` rows and columns; one that repeats, a read-only array, is converted
    once."""

    converter: Graph
    more: tuple[int, int]
    clock: Fraction
    last: np.ndarray | None = None
    converted: Sequence[VideoFrame] = ()

    def convert(self, frame: np.ndarray, tick: int) -> Sequence[VideoFrame]:
        """Return the pictures that are ready once a frame [H, W, 3] is in, which appears at a tick."""
        from av import VideoFrame

        if not self.converted or frame is not self.last or frame.flags.writeable:
            rows, columns = self.more
            padded = np.pad(frame, ((0, rows), (0, columns), (0, 0)), mode="edge") if rows or columns else frame
            picture = VideoFrame.from_ndarray(padded, "rgb24")
            picture.pts, picture.time_base = tick, self.clock
            self.last, self.converted = frame, list(_convert(self.converter, picture))
        for one in self.converted:
            one.pts = tick
        return self.converted


def _convert(converter: Graph, picture: VideoFrame | None) -> Iterator[VideoFrame]:
    """Yield the converted pictures that are ready once `picture` is in; None ends them."""
    converter.push(picture)
    while True:
        try:
            yield converter.vpull()
        except (BlockingIOError, EOFError):
            return


def _compute_ticks(count: int, fps: Fraction, times: np.ndarray | None, kind: Format) -> tuple[list[int], Fraction]:
    """Return the ticks [T + 1] at which frames appear and the last one ends, and the seconds of a tick."""
    if not 0 < fps <= 1000 or max(fps.numerator, fps.denominator) >= 2**31:
        raise UserError(f"the frame rate is {fps}; it must be above 0 and at most 1000 a second")
    even = frame_times(count, fps)
    if times is None or (len(times) == count and np.allclose(times, even, rtol=0, atol=1e-6)):
        if kind.clock is None:
            return list(range(count + 1)), 1 / fps
        times = even
    if len(times) != count:
        raise UserError(f"{count} frames, but {len(times)} times")
    longest = max(*np.diff(times), float(count / fps) - float(times[-1] - times[0]), 1)
    # A tick that the duration is a whole number of, so that the average rate comes back exactly.
    clock = kind.clock or math.lcm(VARIABLE_RATE_CLOCK, (count / fps).denominator)
    clock = clock if clock * longest < 2**31 else VARIABLE_RATE_CLOCK  # a frame's length in an MP4 file has 32 bits
    ticks = [round(float(t - times[0]) * clock) for t in times]
    if any(b <= a for a, b in pairwise(times)):
        raise UserError("the times of frames must rise")
    least = float(np.diff(times).min(initial=float(1 / fps)))
    if kind.shortest > 1 and least * clock < kind.shortest - 1e-6:
        most = clock // kind.shortest
        raise UserError(
            f"a {kind.container.upper()} file shows {most} frames a second at most, and here are {1 / least:.4g}: "
            f"choose fewer (--fps {most // 2})"
        )
    for k in range(1, count):  # two may be nearer than a tick
        ticks[k] = max(ticks[k], ticks[k - 1] + kind.shortest)
    return [*ticks, max(round(count / fps * clock), ticks[-1] + kind.shortest)], Fraction(1, clock)


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Yield a temporary path as `files.atomic_path` does. Raises `UserError` where the file cannot be written."""
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    # An absolute path is never taken for a protocol.
    with name_in_errors(path), atomic_path(path.absolute()) as part:
        yield part


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Raise `UserError`, with the name of the file, where it cannot be written."""
    from av.error import FFmpegError

    try:
        yield
    except UserError:
        raise
    except (OSError, FFmpegError) as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
