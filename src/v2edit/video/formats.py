"""The kinds of files that video is written as: container, codec, pixel format and sound of each, by the file's suffix.

Whatever an encoder makes of threads, it is given the same number of them everywhere: the same input gives the same
bytes on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from v2edit.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

PALETTE = "dither=sierra2_4a:diff_mode=rectangle"  # of GIF: one palette a clip, so that what stands still does


@dataclass(frozen=True)
class SoundFormat:
    """The sound of a container: codecs that players find in it, and the encoder of any other sound."""

    place: str  # in messages
    copied: frozenset[str]
    encoder: str
    rates: frozenset[int] = frozenset()  # of the encoder; empty for any
    bit_rate: int | None = None

    @property
    def name(self) -> str:
        """The encoder's codec in messages."""
        return {"aac": "AAC", "libopus": "Opus", "pcm_s16le": "PCM"}[self.encoder]


MP4_SOUND = SoundFormat(
    "an MP4 file",
    frozenset({"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"}),
    "aac",
    frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000}),
    192_000,
)
WEBM_SOUND = SoundFormat(
    "a WebM file", frozenset({"opus", "vorbis"}), "libopus", frozenset({8000, 12000, 16000, 24000, 48000}), 192_000
)
MOV_SOUND = SoundFormat(
    "a QuickTime file",
    frozenset({"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_f32le"}),
    "pcm_s16le",
)


@dataclass(frozen=True)
class Format:
    """A kind of file; names are FFmpeg's."""

    container: str
    codec: str
    pixels: str
    settings: Mapping[str, str] = field(default_factory=dict)  # of the encoder
    muxing: Mapping[str, str] = field(default_factory=dict)  # of the container
    crf: int | None = None  # the default quality of an encoder that has such a number, lower being better,
    largest_crf: int = 0  # and the worst
    sound: SoundFormat | None = None
    clock: int | None = None  # ticks a second; None where any rate has a clock of its own
    shortest: int = 1  # ticks that a frame lasts at least
    sides: tuple[int, int] = (1, 1)  # what rows and columns are padded to a multiple of

    @property
    def is_yuv(self) -> bool:
        """Whether pictures are converted to BT.709, and the file says so."""
        return self.pixels.startswith("yuv")


FORMATS: Mapping[str, Format] = {
    # Without B-frames each packet's time is its frame's, to the last one's end, at any frame rate.
    # And without mbtree: where a side is no multiple of 16 it goes by memory that nobody has written, and two
    # encodings of the same frames differ now and then (of 62x80 most, of 190x160 one in 400; without it, none).
    ".mp4": Format(
        "mp4", "libx264", "yuv420p", {"bf": "0", "mbtree": "0"}, {"movflags": "+faststart+use_metadata_tags"},
        crf=17, largest_crf=51, sound=MP4_SOUND, sides=(2, 2),
    ),
    ".webm": Format(
        "webm", "libvpx-vp9", "yuv420p", {"b": "0", "row-mt": "0", "deadline": "good", "cpu-used": "4"},
        crf=15, largest_crf=63, sound=WEBM_SOUND, clock=1000,
    ),
    # Browsers show a frame of less than two ticks for ten.
    ".gif": Format("gif", "gif", "pal8", muxing={"loop": "0"}, clock=100, shortest=2),
    # One whole picture a frame: encoders of animations merge frames that are equal.
    ".webp": Format("webp", "libwebp", "bgra", {"quality": "90"}, {"loop": "0"}, clock=1000),
    # Of an odd number of columns prores_ks spoils the last.
    ".mov": Format(
        "mov", "prores_ks", "yuv422p10le", {"profile": "3", "vendor": "apl0"}, {"movflags": "+use_metadata_tags"},
        sound=MOV_SOUND, sides=(1, 2),
    ),
}  # fmt: skip


QUICK: Mapping[str, str] = {"preset": "veryfast"}  # of x264, for MP4 files beside the result: a third of the time


def find_format(path: Path, crf: int | None = None) -> Format:
    """Return the kind of file that a path's suffix names. Raises `UserError` where there is no such kind, or it cannot
    be written at this `crf`."""
    if (kind := FORMATS.get(path.suffix.lower())) is None:
        *others, last = FORMATS
        raise UserError(f"cannot write {path}: the name must end in {', '.join(others)} or {last}")
    if crf is not None and kind.crf is None:
        names = " and ".join(suffix[1:] for suffix, one in FORMATS.items() if one.crf is not None)
        raise UserError(f"--crf is {crf}, and {path.suffix[1:]} files have no such quality: only {names} have")
    if crf is not None and not 0 <= crf <= kind.largest_crf:
        raise UserError(f"--crf is {crf}, expected 0 to {kind.largest_crf} for {path.suffix[1:]} files")
    return kind
