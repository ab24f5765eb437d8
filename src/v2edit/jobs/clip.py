"""What of a video is edited, at which frame rate, and what the result is written as."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from v2edit.errors import UserError
from v2edit.files import read_json
from v2edit.runs import MANIFEST
from v2edit.runs.layout import COMPARISON_VIDEO, EDITED, FORMAT_SUFFIXES, FormatName

if TYPE_CHECKING:
    from v2edit.video import Video
    from v2edit.video.writing import WriteFrame

Time = Annotated[str | float | None, arg(metavar="TIME", help_behavior_hint="")]
LARGEST_FPS = 1000
CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)")  # 90.5, 1:30.5, 0:01:30.5


@dataclass(frozen=True)
class ClipOptions:
    """Which part of the video is edited, and at which frame rate."""

    start: Time = None
    """Edit from here on: seconds, or minutes:seconds (default: the beginning). What comes before stays as it is."""
    end: Time = None
    """Edit up to here (default: the end). What comes after stays as it is."""
    fps: Annotated[str | float | None, arg(metavar="RATE", help_behavior_hint="")] = None
    """Frames a second at which the video is edited and written, such as 12 or 30000/1001, its length kept (default: its
    own); of images, those they are shown at."""

    def __post_init__(self) -> None:
        start, end = self.start_seconds, self.end_seconds
        if end is not None and end <= (start or 0.0):
            raise UserError(f"--end is {self.end}, expected a time after --start, which is {self.start or 0}")
        if self.fps is not None:
            parse_rate(self.fps)

    @property
    def start_seconds(self) -> float | None:
        """Where the part begins."""
        return parse_time(self.start, "--start")

    @property
    def end_seconds(self) -> float | None:
        """Where it ends."""
        return parse_time(self.end, "--end")

    @property
    def is_part(self) -> bool:
        """Whether a part of the video may stay as it is."""
        return self.start is not None or self.end is not None

    def cut(self, video: Video) -> tuple[Video, slice]:
        """Return the whole video at its rate, and which of its frames are edited. Raises `UserError` where there are
        none."""
        from v2edit.video.cut import find_part, resample

        video = video if self.fps is None else resample(video, parse_rate(self.fps))
        return video, find_part(video, self.start_seconds, self.end_seconds)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> ClipOptions:
        """Return the options that a run was begun with, as its run.json has them; older ones have none."""
        return cls(**record.get("clip", {}))


@dataclass(frozen=True)
class FormatOptions:
    """What the edited video is written as."""

    format: FormatName = "mp4"
    """H.264 in mp4, VP9 and Opus in webm, gif, animated webp, prores or mov (ProRes 422 HQ, for editing programs), or
    png: the frames in the folder edited, and no video."""
    crf: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Quality of mp4 (default: 17) and webm (default: 15): lower is better, and the file larger."""

    def __post_init__(self) -> None:
        if self.crf is not None:
            if self.format == "png":
                raise UserError(f"--crf is {self.crf}, and png files lose nothing: leave it out")
            from v2edit.video.formats import find_format

            find_format(self.path(Path(EDITED)), self.crf)

    def path(self, stem: Path) -> Path:
        """Return the path of a video, by its path without a suffix: a file, or a folder of frames."""
        return stem.with_name(stem.name + FORMAT_SUFFIXES[self.format])

    def check(self, video: Video) -> None:
        """Raise `UserError` where the format cannot show a video's frames at their times."""
        from v2edit import video as videos

        if self.format != "png":
            videos.check_format(video, self.path(Path(EDITED)))

    @contextmanager
    def open(self, video: Video, stem: Path) -> Iterator[WriteFrame]:
        """Yield what writes the next frame of an edit of a video, at a path that is given without its suffix."""
        from v2edit import video as videos

        if self.format == "png":
            writer = videos.open_folder(video, self.path(stem))
        else:
            writer = videos.open_edit(video, self.path(stem), self.crf)
        with writer as write_frame:
            yield write_frame

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> FormatOptions:
        """Return the options that a run was begun with, as its run.json has them; older ones have none."""
        return cls(**record.get("output", {}))


def record_clip(clip: ClipOptions, output: FormatOptions) -> dict[str, Any]:
    """Return what run.json says of both; their `from_record` read it."""
    return {"clip": asdict(clip), "output": asdict(output)}


def read_edited(folder: Path) -> Video:
    """Read the edited video of a run that is done, whatever it was written as. Frames in a folder have the times of the
    comparison beside it."""
    from v2edit import video as videos

    output = FormatOptions.from_record(read_json(folder / MANIFEST))
    edited = videos.read(output.path(folder / EDITED))
    if output.format != "png":
        return edited
    timed = videos.read(folder / COMPARISON_VIDEO)
    return replace(edited, fps=timed.fps, times=timed.times)


def parse_time(value: str | float | None, option: str) -> float | None:
    """Return seconds, of seconds or of text such as 90.5, 1:30.5 and 0:01:30. Raises `UserError` for what is no
    time."""
    if value is None or (not isinstance(value, str) and 0 <= value < math.inf):
        return value
    if found := CLOCK.fullmatch(str(value).strip()):
        hours, minutes, seconds = (float(piece or 0) for piece in found.groups())
        if (seconds < 60 or found[2] is None) and (minutes < 60 or found[1] is None):
            return hours * 3600 + minutes * 60 + seconds
    raise UserError(f"{option} is {value}, expected seconds or minutes:seconds, such as 2.5 or 1:30")


def parse_rate(value: str | float, option: str = "--fps") -> Fraction:
    """Return frames a second, of a number or of text such as 30000/1001. Raises `UserError` for what is no rate."""
    try:
        rate = Fraction(str(value).strip()).limit_denominator(1_000_000)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= LARGEST_FPS:
        raise UserError(
            f"{option} is {value}, expected a number above 0 and up to {LARGEST_FPS}, or such as 30000/1001"
        )
    return rate
