"""Films of a scene: a flight along its camera path or a turntable, as a video, an animation or a still."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from v2edit.errors import UserError
from v2edit.jobs.options import expect_new_file
from v2edit.runs.layout import (
    AFTER_VIDEO,
    BEFORE_VIDEO,
    CAMERA_PATH,
    EDITED_SPLAT,
    SOURCE_SPLAT,
    SPLAT_SUFFIXES,
    TRAINED,
)

if TYPE_CHECKING:
    from v2edit.scenes.camera_paths import CameraPath
    from v2edit.scenes.gaussians import Gaussians

Show = Literal["after", "before", "side", "wipe"]
COLOURS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0)}
STILL = ".png"
SIDE = 1024  # pixels, of a turntable's cameras before their pictures get their size
TURN_CAMERAS = 48  # through which a turntable's circle goes
MAX_SIDE, MAX_FRAMES = 8190, 36_000  # two of them side by side are what WebP holds
GIF_MEMORY = 2 << 30  # bytes: its palette is made of all frames at once, 4 bytes a pixel


@dataclass(frozen=True)
class Fly:
    """Fly through a scene: write a film of it along its camera path, or of a turn around it."""

    source: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder of v2edit scene, or a splat."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="FILE")]
    """The file to write: .mp4, .webm, .gif, .webp or .mov; .png is a thumbnail."""
    show: Show = "after"
    """Of a run: the scene after or before the edit, both side by side, or a wipe between them."""
    path: Annotated[str | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """turntable (default for a splat; a run's goes as far around as its path does, and back), run (the run's own camera
    path, its default), or nerfstudio's .json."""
    seconds: float = 6.0
    """How long the film lasts."""
    fps: float = 30.0
    """Frames a second."""
    at: Annotated[float | None, arg(metavar="SECONDS", help_behavior_hint="")] = None
    """The moment of the film that a .png shows (default: its middle; of a wipe, its line half way; of a splat's
    turntable, its beginning)."""
    size: Annotated[str | None, arg(metavar="WIDTHxHEIGHT", help_behavior_hint="")] = None
    """The size of a scene's picture (default: 720 lines in the shape of the path's pictures; 1280x720 of a splat)."""
    background: Annotated[str, arg(metavar="COLOUR")] = "black"
    """Behind the scene: black, white or #rrggbb."""
    up: Annotated[str, arg(metavar="AXIS")] = "auto"
    """Upwards, for a turntable: x, -x, y, -y, z or -z."""

    def run(self, on_progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> Path:
        """Render and write the film; return its file. Raises `UserError` for options that do not fit, and where there
        is no scene or no such path."""
        from v2edit import video as videos
        from v2edit.scenes.flights import fly_along, framed, render_film
        from v2edit.video.writing import open_writer

        count = self._check()
        scenes = self._read_scenes()
        path, whole = self._choose_path(scenes[-1])
        width, height = self._choose_size(path, whole, count)
        cameras = framed(fly_along(path, count), height, width, whole)
        layout = self.show if self.show in ("side", "wipe") else "one"
        background = _parse_colour(self.background)
        if self.out.suffix.lower() == STILL:
            default = 0 if whole else count // (4 if layout == "wipe" else 2)  # at a quarter its line is half way
            at = default if self.at is None else min(count - 1, round(self.at * self.fps))
            return videos.write_still(next(render_film(scenes, cameras, layout, background, at)), self.out)
        shape = count, height, width * (2 if layout == "side" else 1)
        with open_writer(self.out, shape, self._rate) as write_frame:
            for done, frame in enumerate(render_film(scenes, cameras, layout, background), start=1):
                write_frame(frame)
                on_progress(done, count, self.out.name)
        return self.out

    @property
    def _rate(self) -> Fraction:
        return Fraction(self.fps).limit_denominator(1001)

    def _check(self) -> int:
        """Return the number of frames. Raises `UserError`."""
        from v2edit.video.formats import FORMATS

        if not self.source.exists():
            raise UserError(f"no such run or splat: {self.source}")
        expect_new_file(self.out, "-o")
        if self.out.suffix.lower() not in (*FORMATS, STILL):
            raise UserError(f"cannot write {self.out}: expected a name in {', '.join(FORMATS)}, or {STILL} for a still")
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", self.size or "1280x720")
        if match is None or not all(16 <= int(side) <= MAX_SIDE for side in match.groups()):
            raise UserError(f"--size is {self.size!r:.40}, expected WIDTHxHEIGHT of 16 to {MAX_SIDE}, as 1280x720")
        if not 1 <= self.fps <= 240:
            raise UserError(f"--fps is {self.fps:g}, expected 1 to 240")
        if not 0 < self.seconds * self.fps <= MAX_FRAMES:
            raise UserError(f"--seconds is {self.seconds:g}, expected more than 0 and at most {MAX_FRAMES} frames")
        _parse_colour(self.background)
        if self.at is not None and not 0 <= self.at <= self.seconds:
            raise UserError(f"--at is {self.at:g}, expected 0 to {self.seconds:g} seconds")
        if self.at is not None and self.out.suffix.lower() != STILL:
            raise UserError(f"--at is of a still: name a {STILL} file")
        return max(1, round(self.seconds * self.fps))

    def _choose_size(self, path: CameraPath, whole: bool, count: int) -> tuple[int, int]:
        """Return width and height. Raises `UserError` for a GIF that would take too much memory."""
        if self.size is not None:
            width, height = map(int, self.size.split("x"))
        elif whole:
            width, height = 1280, 720
        else:
            width, height = min(MAX_SIDE, max(16, 2 * round(360 * path.cameras.width / path.cameras.height))), 720
        needed = 4 * width * height * count * (2 if self.show == "side" else 1)
        if self.out.suffix.lower() == ".gif" and needed > GIF_MEMORY:
            raise UserError(
                f"a GIF of {count} frames of {width}x{height} takes {needed / 2**30:.1f} GiB to write: give a smaller "
                "--size, --fps or --seconds, or another kind of file"
            )
        return width, height

    def _read_scenes(self) -> list[Gaussians]:
        """Return the scene, or both where both are shown."""
        from v2edit.scenes.formats.splats import is_splat, read_splat_file

        if self.source.is_file() or is_splat(self.source):
            if self.show != "after":
                raise UserError(f"--show {self.show} is for a run folder of v2edit scene: a splat is one scene")
            return [read_splat_file(self.source).gaussians]
        names = {"after": [EDITED_SPLAT], "before": [SOURCE_SPLAT]}.get(self.show, [SOURCE_SPLAT, EDITED_SPLAT])
        files = [self.source / name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing and (self.source / TRAINED).is_dir():
            raise UserError(
                f"the scene of {self.source} is another program's model, without a splat: its films are "
                f"{BEFORE_VIDEO} and {AFTER_VIDEO}"
            )
        if missing:
            expected = f"a run folder of v2edit scene, or a splat ({', '.join(SPLAT_SUFFIXES)})"
            raise UserError(f"there is no {missing[0]} in {self.source}: give {expected}")
        return [read_splat_file(file).gaussians for file in files]

    def _choose_path(self, scene: Gaussians) -> tuple[CameraPath, bool]:
        """Return the path, and whether all that its cameras see is to stay in the picture. Raises `UserError`."""
        import numpy as np

        from v2edit.scenes.camera_paths import CameraPath, orbit, orbit_around, read_path
        from v2edit.scenes.orientation import parse_up
        from v2edit.scenes.reading import visible_positions

        own, up = self.source / CAMERA_PATH, parse_up(self.up)
        option = self.path or ("run" if own.is_file() else "turntable")
        if option == "turntable":
            if own.is_file():
                # What the path did not see is not worth showing: an arc is gone along and back.
                around = orbit(read_path(own, None).cameras, TURN_CAMERAS, up)
                there_and_back = np.r_[: len(around.cameras), len(around.cameras) - 2 : 0 : -1]
                return around if around.closed else CameraPath(around.cameras[there_and_back], True), False
            return orbit_around(visible_positions(scene), TURN_CAMERAS, SIDE, up), True
        if up is not None:
            raise UserError("--up is for --path turntable: other paths have their own")
        if option == "run" and not own.is_file():
            raise UserError(f"--path run: {self.source} has no {CAMERA_PATH}; give turntable or a camera-path .json")
        file = own if option == "run" else Path(option)
        if not file.is_file():
            raise UserError(f"--path is {option!r}, expected run, turntable, or a camera-path .json that exists")
        return read_path(file, None), False


def _parse_colour(text: str) -> tuple[float, float, float]:
    """Return a colour, 0 to 1. Raises `UserError`."""
    if text in COLOURS:
        return COLOURS[text]
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text) is None:
        raise UserError(f"--background is {text!r:.40}, expected black, white or #rrggbb")
    red, green, blue = (int(text[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return red, green, blue
