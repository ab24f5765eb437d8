"""The sound of one file on its way into another: copied packet by packet where MP4 takes it, else encoded to AAC."""

from __future__ import annotations

import io
import logging
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from v2edit.video.reading import demux_packets, find_video_stream

if TYPE_CHECKING:
    from av import AudioFrame, AudioStream, Packet
    from av.container import InputContainer, OutputContainer

log = logging.getLogger(__name__)

# Sound that players find in an MP4 file; anything else (Vorbis, PCM, WMA ...) becomes AAC.
MP4_SOUND = {"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"}
AAC_RATES = {8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000}
MAX_SOUND_STREAMS = 64  # each one that is encoded takes a megabyte
MAX_JITTER = Fraction(1, 10)  # seconds by which a container's times may be off
HOUR = 3600  # seconds; no sound begins or ends so far from its pictures


def transfer_sound(source: InputContainer, out: OutputContainer, duration: Fraction) -> deque[Packet]:
    """Return all sound of a file, open for demuxing, as packets of new streams of the MP4 file `out`, in order; time 0
    is its first picture, and `duration` the seconds that the pictures of `out` last. Sound that cannot be transferred
    is left out, which is logged: pictures are never lost for their sound."""
    streams = [s for s in source.streams.audio if s.codec_context and s.rate and s.channels]
    if len(streams) > MAX_SOUND_STREAMS:
        log.warning("of %d streams of sound the first %d are taken over", len(streams), MAX_SOUND_STREAMS)
        del streams[MAX_SOUND_STREAMS:]
    if not streams:
        return deque()
    pictures = find_video_stream(source)
    sound: dict[int, list[Packet]] = {s.index: [] for s in streams}
    starts, ends = [], []  # of pictures, in seconds
    for packet in demux_packets(source, *streams, *([pictures] if pictures else [])):
        if packet is None or packet.dts is None or packet.pts is None:
            continue
        if packet.stream_index in sound:
            sound[packet.stream_index].append(packet)
        elif not packet.is_discard:
            starts.append(packet.pts * packet.time_base)
            ends.append(starts[-1] + (packet.duration or 0) * packet.time_base)
    first = min(starts, default=Fraction(0))
    # All sound, to the last packet, where all pictures are written; else as much as there are pictures for.
    is_cut = not starts or duration < (max(ends) - first) * Fraction(len(starts) - 1, len(starts))
    result: list[Packet] = []
    for stream in streams:
        selected = []
        for packet in sound[stream.index]:
            shift = round(first / packet.time_base)
            packet.dts, packet.pts = (packet.dts or 0) - shift, (packet.pts or 0) - shift
            if -HOUR < packet.pts * packet.time_base < (duration if is_cut else duration + HOUR):
                selected.append(packet)
        if selected:
            result += _copy_packets(selected, stream, out) or _encode_aac(selected, stream, out)
    return deque(sorted(result, key=decode_time))


def decode_time(packet: Packet) -> Fraction:
    """Return the time in seconds at which a packet is decoded, which orders the packets of a file."""
    return (packet.dts or 0) * packet.time_base


def _copy_packets(sound: list[Packet], stream: AudioStream, out: OutputContainer) -> list[Packet]:
    """Return the packets as those of a new stream of `out`; none where an MP4 file does not take them as they are."""
    import av
    from av.error import FFmpegError

    if stream.codec_context.codec.canonical_name not in MP4_SOUND:
        return []
    _restore_sample_times(sound, stream)
    try:
        with av.open(io.BytesIO(), "w", format="mp4") as trial:
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


def _encode_aac(sound: list[Packet], stream: AudioStream, out: OutputContainer) -> list[Packet]:
    """Return the sound as AAC, mono or stereo, in a new stream of `out`; none where nothing can be decoded."""
    name, layout = stream.codec_context.codec.canonical_name, "mono" if stream.channels == 1 else "stereo"
    pieces = _resample(sound, stream, layout, stream.rate if stream.rate in AAC_RATES else 48000)
    if (piece := next(pieces, None)) is None:
        log.warning("the %s sound cannot be decoded and is left out", name)
        return []
    log.warning("%s sound cannot live in an MP4 file as it is, so it is encoded to AAC", name)
    copy = out.add_stream("aac", rate=piece.sample_rate)
    _copy_language(copy, stream)
    copy.layout, copy.bit_rate = layout, 192_000
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
