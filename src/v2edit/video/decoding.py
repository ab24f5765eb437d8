"""Open video files, and demux and decode their streams: FFmpeg's packets and frames with their times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from v2edit.errors import UserError
from v2edit.video.lengths import count_png_frames, has_hole, is_cut_off, lacks_index
from v2edit.video.stills import IMAGES, MAX_PIXELS
from v2edit.video.timing import MAX_FPS, continue_clock

if TYPE_CHECKING:
    from av import AudioStream, Packet, VideoFrame, VideoStream
    from av.container import InputContainer

# FFmpeg's names of the formats of video and sound files, without playlists, which could lead to any file on the disk.
FORMATS = (
    "mov,matroska,avi,gif,apng,ogg,mpegts,mpeg,mpegvideo,flv,asf,mxf,ivf,nut,rm,dv,wtv,yuv4mpegpipe,mjpeg,"
    "h261,h263,h264,hevc,m4v,obu,av1,vc1,dirac,aac,ac3,aiff,amr,caf,flac,mp3,w64,wav,png_pipe,jpeg_pipe,webp_pipe"
)
MAX_SOUND_STREAMS = 64  # each one that is encoded takes a megabyte
TS_DISCONT = 0x200  # FFmpeg's flag of formats whose clock may jump
ENDS_BY_CLOCK = {"matroska,webm", "flv", "nut"}  # formats whose duration is a time on the clock, wherever that starts
MAX_SHORTFALL = Fraction(1, 2)  # seconds; headers round, and streams do not end together


class DamageError(Exception):
    """What a strict decoder raises where a stream is damaged."""


class TimedFrame(NamedTuple):
    """A decoded frame and, in seconds, what `timing.resolve_times` takes: when it appears, when its packet was to be
    decoded where the container says that alone, and how long it lasts."""

    frame: VideoFrame
    presented: Fraction | None
    decoded: Fraction | None
    duration: Fraction


@contextmanager
def open_container(path: Path) -> Iterator[InputContainer]:
    """Open a file for demuxing. Raises `UserError` where FFmpeg cannot read it."""
    import av
    from av.error import FFmpegError

    try:
        # An absolute path is never taken for a protocol, and a playlist inside the file reaches no network.
        container = av.open(
            str(path.absolute()),
            container_options={"protocol_whitelist": "file", "format_whitelist": FORMATS},
            options={"max_pixels": str(MAX_PIXELS)},
            metadata_errors="ignore",
        )
    except (FFmpegError, OSError):
        if lacks_index(path):
            raise UserError(
                f"{path} is cut off: its index (moov) is missing or unfinished; get or export the file again"
            ) from None
        kind = "an image" if path.suffix.lower() in IMAGES else "a video"
        raise UserError(f"{path} is not {kind} that can be read (of an unknown kind, or damaged)") from None
    with container:
        yield container


def find_video_stream(container: InputContainer) -> VideoStream | None:
    """Return the first video stream that is not a cover picture and has a decoder, or None."""
    from av.stream import Disposition

    still = Disposition.attached_pic | Disposition.timed_thumbnails
    return next((s for s in container.streams.video if not s.disposition & still and s.codec_context), None)


def find_sound_streams(container: InputContainer) -> list[AudioStream]:
    """Return the streams of sound that can be decoded or copied."""
    return [s for s in container.streams.audio if s.codec_context and s.rate and s.channels]


class DemuxedPackets:
    """The packets of pictures and sound, on one clock, to the end of the file or to where it is cut off.

    Sound comes along even where pictures alone are wanted: they share the clock, its jumps and the file's length. Not
    so in MP4 files, where it is left out unless `with_sound`, so that lost sound stops no pictures."""

    def __init__(self, container: InputContainer, with_sound: bool = False) -> None:
        self.container = container
        pictures = find_video_stream(container)
        self.streams: list = [pictures] if pictures else []
        if with_sound or "mp4" not in container.format.name:
            self.streams += find_sound_streams(container)[:MAX_SOUND_STREAMS]
        self.end: Fraction | None = None  # of the last packet, in seconds
        self.decode_times: list[int] = []  # of the pictures, in ticks
        self.errors = ErrorCount()

    def __iter__(self) -> Iterator[Packet]:
        packets = self._read()
        for packet in continue_clock(packets) if has_jumps(self.container) else packets:
            start = packet.dts if packet.pts is None else packet.pts
            if start is not None:
                end = (start + (packet.duration or 0)) * packet.time_base
                self.end = end if self.end is None else max(self.end, end)
            if packet.stream is self.streams[0] and packet.dts is not None:
                self.decode_times.append(packet.dts)
            yield packet

    def _read(self) -> Iterator[Packet]:
        from av.error import FFmpegError

        packets = self.container.demux(*self.streams) if self.streams else iter(())
        while True:
            try:
                with self.errors:
                    packet = next(packets, None)
            except FFmpegError:
                return  # cut off here: what came before is what a player shows
            if packet is None:
                return
            if packet.size:
                yield packet

    def is_cut_off(self, stream: VideoStream) -> bool:
        """Return whether the file, or its packets once all are read, end before its header says that it does."""
        if is_cut_off(Path(self.container.name)):
            return True
        claimed = None if has_jumps(self.container) else claimed_end(self.container, stream)
        return claimed is not None and self.end is not None and claimed - self.end > MAX_SHORTFALL

    def lacks_pictures(self, stream: VideoStream) -> bool:
        """Return whether the file, once all packets are read, has fewer pictures than it counts (AVI, animated PNG), or
        a hole that its clock does not tell (MPEG-TS, WMV)."""
        path, times = Path(self.container.name), self.decode_times
        if self.container.format.name == "apng":
            return len(times) < count_png_frames(path)
        if self.container.format.name == "avi" and times:  # whose ticks are frames; a picture may last for several
            longest = max((b - a for a, b in pairwise(times)), default=stream.frames)
            return stream.frames - 1 - times[-1] >= longest
        return has_hole(path)


def has_jumps(container: InputContainer) -> bool:
    """Return whether a file is of a kind whose clock may jump, and whose header does not say how long it is."""
    return bool(container.format.flags & TS_DISCONT)


def claimed_end(container: InputContainer, stream: VideoStream, of_stream: bool = True) -> Fraction | None:
    """Return the seconds at which a file's header says that a stream (else, the whole file) ends, None if unsaid."""
    if of_stream and stream.duration and stream.time_base:
        return ((stream.start_time or 0) + stream.duration) * stream.time_base
    if container.duration:
        start = 0 if container.format.name in ENDS_BY_CLOCK else container.start_time or 0
        return Fraction(start + container.duration, 1_000_000)
    return None


def count_claimed_frames(container: InputContainer, stream: VideoStream) -> int:
    """Return how many frames a file's header says that a stream has, 0 if unsaid."""
    if stream.frames or has_jumps(container):
        return stream.frames
    start = (stream.start_time or 0) * (stream.time_base or 0)
    seconds = (claimed_end(container, stream) or start) - start
    return max(0, int(seconds * min(named_rates(stream), default=0)))


def named_rates(stream: VideoStream) -> list[Fraction]:
    """Return the frame rates that a file names for a stream, the likeliest first."""
    return [r for r in (stream.guessed_rate, stream.average_rate, stream.base_rate) if r and r <= MAX_FPS]


def decode_frames(packets: Iterable[Packet], stream: VideoStream, strict: bool = False) -> Iterator[TimedFrame]:
    """Yield the frames of a stream in display order. Packets that cannot be decoded are skipped, and damaged pictures
    concealed as FFmpeg does it, if no frame is held while the next one is asked for.

    With `strict` damage raises `DamageError`, and encryption `UserError`."""
    from av.error import FFmpegError

    decoder, errors = _open_decoder(stream, strict), ErrorCount()
    rates = named_rates(stream)
    usual = 1 / rates[0] if rates else Fraction(1, 25)  # seconds of a frame without a duration
    has_decode_times_alone = stream.container.format.name == "avi"
    # FFmpeg's demuxer takes the times of ASF for decode times; what it guesses from those of H.264 is off by a frame.
    has_no_presentation_times = stream.container.format.name == "asf" and decoder.name in ("h264", "hevc")
    decode_times: dict[int, Fraction] = {}  # of the packets, by what FFmpeg takes for their presentation times

    def add_times(frame: VideoFrame) -> TimedFrame:
        tick = frame.time_base or stream.time_base or Fraction(1, 1000)
        pts = frame.dts if has_no_presentation_times else frame.pts  # PyAV's dts: of the packet at which it comes out
        presented = None if pts is None else pts * tick
        decoded = None if frame.pts is None else decode_times.pop(frame.pts, None)
        return TimedFrame(frame, presented, decoded, (frame.duration or 0) * tick or usual)

    missing = 0  # packets without a frame yet
    for packet in _then_flush(p for p in packets if p.stream_index == stream.index):
        if packet is not None:
            missing += not packet.is_discard
            if strict and packet.has_sidedata("encryption_info"):
                raise UserError(f"{stream.container.name} is encrypted, so its pictures cannot be read")
            if has_decode_times_alone and packet.pts is not None and packet.dts is not None:
                decode_times[packet.pts] = packet.dts * packet.time_base
        try:
            with errors:
                frames = decoder.decode(packet)
        except FFmpegError as error:
            if strict:
                raise DamageError from error
            continue
        if strict and (errors.count or any(frame.is_corrupt for frame in frames)):
            raise DamageError
        # What damage leaves undecoded is what the frame's memory held before, so that none may be held on to here.
        frames.reverse()
        missing -= len(frames)
        while frames:
            yield add_times(frames.pop())
    if strict and missing > 0 and decoder.name == "hevc":  # which drops pictures that lack their references silently
        raise DamageError


class ErrorCount:
    """A count of the errors that FFmpeg logs, without printing them, inside `with` blocks of this object."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        from av import logging

        self._level, (self._before, _) = logging.get_level(), logging.get_last_error()
        if self._level is None:  # which counts nothing
            logging.set_level(logging.PANIC)

    def __exit__(self, *exception: object) -> None:
        from av import logging

        logging.set_level(self._level)
        self.count += logging.get_last_error()[0] - self._before


def _then_flush(packets: Iterable[Packet]) -> Iterator[Packet | None]:
    """Yield packets, then None, at which a decoder gives the frames that it holds back."""
    yield from packets
    yield None


def _open_decoder(stream: VideoStream, strict: bool):
    import av

    decoder = stream.codec_context
    if stream.metadata.get("alpha_mode") == "1" and decoder.name in ("vp8", "vp9"):
        # FFmpeg's own decoders ignore the second layer that holds the alpha; libvpx reads both.
        decoder = av.CodecContext.create("libvpx-vp9" if decoder.name == "vp9" else "libvpx", "r")
    if not decoder.is_open:
        decoder.thread_count = 1  # several conceal damage differently at each reading, and lose errors
        if strict:
            decoder.options = {"err_detect": "explode+crccheck"}  # else little tells of what is concealed
    return decoder
