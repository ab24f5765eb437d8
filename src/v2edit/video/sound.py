"""The sound of one file on its way into another: copied packet by packet where its kind takes it, else encoded."""

from __future__ import annotations

import io
import logging
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, Any

from v2edit.video.decoding import (
    MAX_SOUND_STREAMS,
    DemuxedPackets,
    decode_frames,
    find_sound_streams,
    find_video_stream,
)
from v2edit.video.formats import SoundFormat
from v2edit.video.timing import resolve_times

if TYPE_CHECKING:
    from av import AudioFrame, AudioStream, Packet, VideoStream
    from av.container import InputContainer, OutputContainer

log = logging.getLogger(__name__)

TIMED_FRAMES = 32  # whose timestamps tell which rule theirs follow
MAX_JITTER = Fraction(1, 10)  # seconds by which a container's times may be off
MAX_STEP_BACK = Fraction(1, 200)  # seconds, of times that waver
HOUR = 3600  # seconds; no sound begins or ends so far from its pictures


def transfer_sound(
    source: InputContainer, out: OutputContainer, count: int, fps: Fraction, kind: SoundFormat
) -> deque[Packet]:
    """Return all sound of a file, open for demuxing, as packets of new streams of the file `out`, in order. Time 0 is
    its first frame that can be decoded; `out` has `count` pictures at `fps`, on average. Sound that cannot be
    transferred is left out, which is logged: pictures are never lost for their sound."""
    duration = count / fps
    streams = find_sound_streams(source)
    if len(streams) > MAX_SOUND_STREAMS:
        log.warning("of %d streams of sound the first %d are taken over", len(streams), MAX_SOUND_STREAMS)
        del streams[MAX_SOUND_STREAMS:]
    if not streams:
        return deque()
    pictures = find_video_stream(source)
    sound: dict[int, list[Packet]] = {s.index: [] for s in streams}
    starts, ends = [], []  # of pictures, in seconds

    def sort_packets() -> Iterator[Packet]:
        """Collect the sound, and yield the pictures."""
        for packet in DemuxedPackets(source, with_sound=True):
            time = packet.dts if packet.pts is None else packet.pts
            if packet.stream_index not in sound:
                if time is not None and not packet.is_discard:
                    starts.append(time * packet.time_base)
                    ends.append(starts[-1] + (packet.duration or 0) * packet.time_base)
                yield packet
            elif time is not None:
                packet.pts, packet.dts = time, time if packet.dts is None else packet.dts
                sound[packet.stream_index].append(packet)

    packets = sort_packets()
    first = _find_first_time(packets, pictures) if pictures else None
    deque(packets, maxlen=0)
    first = min(starts, default=Fraction(0)) if first is None else first
    # All sound, to the last packet, where all pictures are written, at their rate or another; else as much as there are
    # pictures for.
    length = max(ends) - max(first, min(starts)) if starts else Fraction(0)
    is_cut = not starts or (duration < length * Fraction(len(starts) - 1, len(starts)) and duration + 1 / fps < length)
    result: list[Packet] = []
    for stream in streams:
        selected = []
        for packet in sound[stream.index]:
            shift = round(first / packet.time_base)
            packet.dts, packet.pts = (packet.dts or 0) - shift, (packet.pts or 0) - shift
            if -HOUR < packet.pts * packet.time_base < (duration if is_cut else duration + HOUR):
                selected.append(packet)
        selected = _drop_repeated(selected)
        if selected:
            result += _copy_packets(selected, stream, out, kind) or _encode(selected, stream, out, kind)
    return deque(sorted(result, key=decode_time))


def _find_first_time(packets: Iterator[Packet], pictures: VideoStream) -> Fraction | None:
    """Return the seconds at which the first frame that can be decoded appears, often not the first packet's. None where
    there is no such frame."""
    frames = list(islice(decode_frames(packets, pictures), TIMED_FRAMES))
    if not frames:
        return None
    return resolve_times([f.presented for f in frames], [f.decoded for f in frames], [f.duration for f in frames])[0]


def _drop_repeated(sound: list[Packet]) -> list[Packet]:
    """Return the packets without those that go back in time, where a recording begins before the one that it was joined
    to has ended; all later sound would wait for them."""
    kept: list[Packet] = []
    last, until = None, Fraction(0)  # the start of the last packet, and the end of what is played already
    for packet in sound:
        start, length = ((ticks or 0) * packet.time_base for ticks in (packet.pts, packet.duration))
        if last is None or start >= last - MAX_STEP_BACK or start + length / 2 >= until:
            last, until = start, start + length
            kept.append(packet)
    return kept


def decode_time(packet: Packet) -> Fraction:
    """Return the time in seconds at which a packet is decoded, which orders the packets of a file."""
    return (packet.dts or 0) * packet.time_base


def _copy_packets(sound: list[Packet], stream: AudioStream, out: OutputContainer, kind: SoundFormat) -> list[Packet]:
    """Return the packets as those of a new stream of `out`; none where such a file does not take them as they are."""
    import av
    from av.error import FFmpegError

    if stream.codec_context.codec.canonical_name not in kind.copied:
        return []
    _restore_sample_times(sound, stream)
    try:
        with av.open(io.BytesIO(), "w", format=out.format.name) as trial:
            copy = trial.add_stream_from_template(stream)
            for packet in sound:
                packet.stream = copy
                trial.mux(packet)
    except (FFmpegError, ValueError):
        return []
    copy = out.add_stream_from_template(stream)
    _copy_language(copy, stream)
    for packet in sound:
        packet.stream = copy
    return sound


def _restore_sample_times(sound: list[Packet], stream: AudioStream) -> None:
    """Restore the exact times, in samples, of packets whose container rounded them to something coarser."""
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


def _encode(sound: list[Packet], stream: AudioStream, out: OutputContainer, kind: SoundFormat) -> list[Packet]:
    """Return the sound encoded, mono or stereo, in a new stream of `out`; none where nothing can be decoded."""
    name, layout = stream.codec_context.codec.canonical_name, "mono" if stream.channels == 1 else "stereo"
    rate = stream.rate if not kind.rates or stream.rate in kind.rates else 48000
    pieces = _resample(sound, stream, layout, rate)
    if (piece := next(pieces, None)) is None:
        log.warning("the %s sound cannot be decoded and is left out", name)
        return []
    log.warning("%s sound cannot live in %s as it is, so it is encoded to %s", name, kind.place, kind.name)
    copy: Any = out.add_stream(kind.encoder, rate=piece.sample_rate)
    _copy_language(copy, stream)
    copy.layout = layout
    if kind.bit_rate:
        copy.bit_rate = kind.bit_rate
    return [packet for frame in [piece, *pieces, None] for packet in copy.encode(frame)]


def _resample(sound: list[Packet], stream: AudioStream, layout: str, rate: int) -> Iterator[AudioFrame]:
    """Yield the decoded sound at a rate, with times counted in samples: those of many containers have jitter, and no
    encoder takes a time that goes back. Gaps stay gaps; sound that overlaps what came before is dropped."""
    import av
    from av.error import FFmpegError

    at, kind, resampler = None, None, av.AudioResampler("fltp", layout, rate)
    for packet in [*sound, None]:
        try:
            for frame in stream.codec_context.decode(packet):
                if kind != (kind := (frame.format.name, frame.layout.name, frame.sample_rate)):
                    resampler = av.AudioResampler("fltp", layout, rate)
                start = at
                if frame.pts is not None and frame.time_base is not None:
                    start = round(frame.pts * frame.time_base * rate)
                at = start or 0 if at is None else at
                late = (at if start is None else start) - at
                if not -MAX_JITTER * rate < late < HOUR * rate:
                    continue
                at, frame.pts = at + (late if late > MAX_JITTER * rate else 0), None
                for piece in resampler.resample(frame):
                    piece.pts, piece.time_base = at, Fraction(1, rate)
                    at += piece.samples
                    yield piece
        except (FFmpegError, ValueError):
            continue


def _copy_language(copy: AudioStream, stream: AudioStream) -> None:
    copy.metadata.update({"language": stream.language} if stream.language else {})
