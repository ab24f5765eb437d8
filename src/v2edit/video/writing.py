"""Frames to MP4 files that any player plays, with the sound of the source."""

from __future__ import annotations

import io
import logging
import math
import os
import secrets
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
from v2edit.video.clip import Video, frame_times
from v2edit.video.reading import BT709, LIMITED, SIZE_TAG, opened, packets, picture_stream

if TYPE_CHECKING:
    from av import AudioFrame, AudioStream, Packet
    from av.container import InputContainer, OutputContainer
    from av.filter import Graph

log = logging.getLogger(__name__)

# Sound that players find in an MP4 file; anything else (Vorbis, PCM, WMA ...) becomes AAC.
MP4_SOUND = {"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"}
AAC_RATES = {8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000}
MOST_SOUNDS = 64  # streams; each one that is encoded takes a megabyte
TINY = 32  # pixels, two macroblocks: there x264's mbtree goes by memory that nobody has written, and files differ
THREADS = 4  # x264's output depends on how many there are, so not on how many cores the machine has
WAVER, HOUR = Fraction(1, 10), 3600  # seconds: what times may be off by, and more than any sound is beside its pictures
CLOCK = 90_000  # ticks a second for variable frame rates: a whole number of them in a frame of any usual rate


def write(
    video: Video | np.ndarray,
    path: Path | str,
    fps: Fraction | int | None = None,
    audio_from: Path | str | None = None,
    times: np.ndarray | None = None,
    crf: int = 17,
) -> Path:
    """Writes an MP4 file: H.264, 4:2:0, BT.709, index in front; the same input gives the same bytes.

    video: uint8 [T, H, W, 3], with its `fps`; or a Video, which brings `fps`, `times` and `audio_from`.
    times: seconds [T] at which frames appear, for a variable rate; the file lasts T / fps in any case.
    audio_from: the file whose sound goes in. Its packets are copied untouched and stay in step with the
        pictures; what players do not find in an MP4 file (Vorbis, PCM ...) is encoded to AAC, and a log line
        says so. Where the frames end before the source's pictures do, the sound ends with them.
    crf: x264's quality; 17 can hardly be told from the original, and 6 more halves the file.

    4:2:0 needs even sides: an odd one gets its last row or column twice in the file, and a note there by
    which `read` takes it off again. The file appears whole or not at all. Raises UserError where it cannot be
    written.
    """
    if isinstance(video, Video):
        times = video.times if fps is None and times is None else times
        fps, audio_from, frames = fps or video.fps, audio_from or video.path, video.frames
    else:
        frames = checked(video)
    if fps is None:
        raise UserError("frames without a frame rate: give fps")
    return encode(frames, frames.shape[:3], Path(path), Fraction(fps), audio_from, times, crf)


def write_still(frame: np.ndarray, path: Path | str) -> Path:
    """Writes one frame, uint8 [H, W, 3], as a PNG file, whole or not at all. Raises UserError where it cannot."""
    from PIL import Image

    with whole_or_not_at_all(Path(path)) as part:
        Image.fromarray(checked(frame[None])[0]).save(part, "PNG")
    return Path(path)


def write_frames(video: Video, folder: Path | str) -> list[Path]:
    """Writes each frame as a PNG file into a new folder: under the names that the frames were read by, else numbered.

    Raises UserError where it cannot be written; then nothing is left of it.
    """
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


def checked(frames: np.ndarray) -> np.ndarray:
    """The frames themselves; UserError unless they are uint8 [T, H, W, 3] with nothing empty."""
    shape, kind = np.shape(frames), getattr(frames, "dtype", None)
    if kind != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise UserError(f"frames must be uint8 [T, H, W, 3], and these are {kind} {list(shape)}")
    return frames


def encode(
    frames: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    path: Path,
    fps: Fraction,
    audio_from: Path | str | None,
    times: np.ndarray | None,
    crf: int = 17,
) -> Path:
    """`write` for frames uint8 [H, W, 3] that come one at a time; `shape` is (T, H, W)."""
    import av

    if path.suffix.lower() != ".mp4":
        raise UserError(f"cannot write {path}: the name must end in .mp4")
    count, height, width = shape
    ticks, clock = _ticks(count, fps, times)
    even = height + height % 2, width + width % 2
    to_yuv = _to_yuv(*even, clock)
    with ExitStack() as stack:
        source = stack.enter_context(opened(_existing(Path(audio_from)))) if audio_from else None
        part = stack.enter_context(whole_or_not_at_all(path))
        options = {"movflags": "+faststart+use_metadata_tags", "fflags": "+bitexact"}
        out = stack.enter_context(av.open(str(part), "w", format="mp4", options=options))
        if height % 2 or width % 2:
            out.metadata[SIZE_TAG] = f"{width}x{height}"
        # Without B-frames each packet's time is its frame's, to the last one's end, at any frame rate.
        settings = {"crf": str(crf), "bf": "0"} | ({"mbtree": "0"} if min(even) <= TINY else {})
        stream = out.add_stream("libx264", rate=fps, options=settings)
        (stream.height, stream.width), stream.pix_fmt = even, "yuv420p"
        stream.time_base = stream.codec_context.time_base = clock
        stream.thread_count = THREADS
        stream.color_range, stream.colorspace = LIMITED, BT709
        stream.color_trc = stream.color_primaries = BT709
        sound = _sound(source, out, count / fps) if source else deque()

        def mux(pictures: list[Packet], until: Fraction | float) -> None:
            """Writes pictures, and before them the sound that belongs there."""
            while sound and _when(sound[0]) <= until:
                out.mux(sound.popleft())
            for packet in pictures:
                k = bisect_left(ticks, packet.pts or 0)
                packet.duration = ticks[k + 1] - ticks[k]
                out.mux(packet)

        for k, frame in enumerate(frames):
            whole = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(whole, "rgb24")
            picture.pts, picture.time_base = ticks[k], clock
            to_yuv.push(picture)
            mux(stream.encode(to_yuv.vpull()), ticks[k] * clock)
        mux(stream.encode(None), math.inf)
    return path


def _to_yuv(height: int, width: int, clock: Fraction) -> Graph:
    """From RGB to what is encoded. Colour samples lie where H.264 says they do, on the left one of the two columns that
    share them (swscale alone puts them between, half a pixel off)."""
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


def _ticks(count: int, fps: Fraction, times: np.ndarray | None) -> tuple[list[int], Fraction]:
    """When frames appear, then when the last one goes, in ticks [T + 1]; and the seconds of a tick."""
    if not 0 < fps <= 1000 or max(fps.numerator, fps.denominator) >= 2**31:
        raise UserError(f"the frame rate is {fps}; it must be above 0 and at most 1000 a second")
    if times is None or (len(times) == count and np.allclose(times, frame_times(count, fps), rtol=0, atol=1e-6)):
        return list(range(count + 1)), 1 / fps
    if len(times) != count:
        raise UserError(f"{count} frames, but {len(times)} times")
    # A tick that the duration is a whole number of, so that the average rate comes back exactly.
    clock = math.lcm(CLOCK, (count / fps).denominator)
    longest = max(*np.diff(times), float(count / fps) - float(times[-1] - times[0]), 1)
    clock = clock if clock * longest < 2**31 else CLOCK  # a frame's length in an MP4 file has 32 bits
    ticks = [round(float(t - times[0]) * clock) for t in times]
    if any(b <= a for a, b in pairwise(times)):
        raise UserError("the times of frames must rise")
    for k in range(1, count):  # two may be nearer than a tick
        ticks[k] = max(ticks[k], ticks[k - 1] + 1)
    return [*ticks, max(round(count / fps * clock), ticks[-1] + 1)], Fraction(1, clock)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"no such file to take the sound from: {path}")
    return path


@contextmanager
def whole_or_not_at_all(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it once all went well; errors of the disk are UserErrors."""
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    from av.error import FFmpegError

    part = path.absolute().with_name(f".v2edit-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    except UserError:
        raise
    except (OSError, FFmpegError) as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


# --- sound ----------------------------------------------------------------------------------------


def _sound(source: InputContainer, out: OutputContainer, duration: Fraction) -> deque[Packet]:
    """All sound of a file, as packets of new streams of `out`, in order; time 0 is its first picture.

    What cannot be taken over is left out, with a note: pictures are never lost for their sound.
    """
    streams = [s for s in source.streams.audio if s.codec_context and s.rate and s.channels]
    if len(streams) > MOST_SOUNDS:
        log.warning("of %d streams of sound the first %d are taken over", len(streams), MOST_SOUNDS)
        del streams[MOST_SOUNDS:]
    if not streams:
        return deque()
    pictures = picture_stream(source)
    found: dict[int, list[Packet]] = {s.index: [] for s in streams}
    shown, gone = [], []
    for packet in packets(source, *streams, *([pictures] if pictures else [])):
        if packet is None or packet.dts is None or packet.pts is None:
            continue
        if packet.stream_index in found:
            found[packet.stream_index].append(packet)
        elif not packet.is_discard:
            shown.append(packet.pts * packet.time_base)
            gone.append(shown[-1] + (packet.duration or 0) * packet.time_base)
    first = min(shown, default=Fraction(0))
    # All of it, to the last packet, with all of the pictures; else as much as there are pictures for.
    cut = not shown or duration < (max(gone) - first) * Fraction(len(shown) - 1, len(shown))
    result: list[Packet] = []
    for stream in streams:
        kept = []
        for packet in found[stream.index]:
            shift = round(first / packet.time_base)
            packet.dts, packet.pts = (packet.dts or 0) - shift, (packet.pts or 0) - shift
            if -HOUR < packet.pts * packet.time_base < (duration if cut else duration + HOUR):
                kept.append(packet)
        if kept:
            result += _copied(kept, stream, out) or _encoded(kept, stream, out)
    return deque(sorted(result, key=_when))


def _when(packet: Packet) -> Fraction:
    return (packet.dts or 0) * packet.time_base


def _copied(sound: list[Packet], stream: AudioStream, out: OutputContainer) -> list[Packet]:
    """The packets themselves in a new stream of `out`; none where an MP4 file does not take them as they are."""
    import av
    from av.error import FFmpegError

    if stream.codec_context.codec.canonical_name not in MP4_SOUND:
        return []
    _to_sample_clock(sound, stream)
    try:
        with av.open(io.BytesIO(), "w", format="mp4") as trial:
            copy = trial.add_stream_from_template(stream)
            for packet in sound:
                packet.stream = copy
                trial.mux(packet)
    except (FFmpegError, ValueError):
        return []
    copy = out.add_stream_from_template(stream)
    _label(copy, stream)
    for packet in sound:
        packet.stream = copy
    return sound


def _to_sample_clock(sound: list[Packet], stream: AudioStream) -> None:
    """Restores exact times, in samples, of packets whose container rounded them to something coarser."""
    rate, expected = stream.rate, None
    for packet in sound:
        tick = packet.time_base * rate  # in samples
        at = round((packet.dts or 0) * tick)
        if tick > 1 and expected is not None and abs(at - expected) <= tick:
            at = expected
        length = stream.codec_context.frame_size or round((packet.duration or 0) * tick)
        packet.pts = packet.dts = at
        packet.duration, packet.time_base = length, Fraction(1, rate)
        expected = at + length


def _encoded(sound: list[Packet], stream: AudioStream, out: OutputContainer) -> list[Packet]:
    """The same sound as AAC, mono or stereo, in a new stream of `out`; none where nothing can be decoded."""

    name, layout = stream.codec_context.codec.canonical_name, "mono" if stream.channels == 1 else "stereo"
    pieces = _continuous(sound, stream, layout, stream.rate if stream.rate in AAC_RATES else 48000)
    if (piece := next(pieces, None)) is None:
        log.warning("the %s sound cannot be decoded and is left out", name)
        return []
    log.warning("%s sound cannot live in an MP4 file as it is, so it is encoded to AAC", name)
    copy = out.add_stream("aac", rate=piece.sample_rate)
    _label(copy, stream)
    copy.layout, copy.bit_rate = layout, 192_000
    encoded = [packet for frame in [piece, *pieces] for packet in copy.encode(frame)]
    return encoded + copy.encode(None)


def _continuous(sound: list[Packet], stream: AudioStream, layout: str, rate: int) -> Iterator[AudioFrame]:
    """The decoded sound at a rate, its times counted in samples: those of many containers waver, and no encoder takes
    one that goes back. Gaps stay gaps; what comes twice is heard once."""
    import av
    from av.error import FFmpegError

    at, kind, resampler = None, None, av.AudioResampler("fltp", layout, rate)
    for packet in [*sound, None]:
        try:
            for frame in stream.codec_context.decode(packet):
                if kind != (kind := (frame.format.name, frame.layout.name, frame.sample_rate)):
                    resampler = av.AudioResampler("fltp", layout, rate)
                place = (
                    at if frame.pts is None or frame.time_base is None else round(frame.pts * frame.time_base * rate)
                )
                at = place or 0 if at is None else at
                late = (at if place is None else place) - at
                if not -WAVER * rate < late < HOUR * rate:
                    continue
                at, frame.pts = at + (late if late > WAVER * rate else 0), None
                for piece in resampler.resample(frame):
                    piece.pts, piece.time_base = at, Fraction(1, rate)
                    at += piece.samples
                    yield piece
        except (FFmpegError, ValueError):
            continue


def _label(copy: AudioStream, stream: AudioStream) -> None:
    copy.metadata.update({"language": stream.language} if stream.language else {})
