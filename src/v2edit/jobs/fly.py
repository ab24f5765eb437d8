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
from v2edit.jobs.options import expect_at_least, expect_new_file
from v2edit.runs.layout import CAMERA_PATH, EDITED_SPLAT, SOURCE_SPLAT, SPLAT_SUFFIXES

if TYPE_CHECKING:
    from v2edit.scenes.camera_paths import CameraPath
    from v2edit.scenes.gaussians import Gaussians

Show = Literal["after", "before", "side", "wipe"]
COLOURS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0)}
STILL = ".png"
TURN_CAMERAS = 48  # through which a turntable's circle goes
MAX_SIDE, MAX_FRAMES = 8192, 36_000


@dataclass(frozen=True)
class Fly:
    """Fly through a scene: write a film of it along its camera path, or of a turn around it."""

    source: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder of v2edit scene, or a splat."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="FILE")]
    """The file to write: .mp4, .webm, .gif, .webp or .mov; .png is a thumbnail."""
    show: Annotated[Show, arg(help_behavior_hint="")] = "after"
    """Of a run: the scene after or before the edit, both side by side, or a wipe between them."""
    path: Annotated[str | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """turntable (default for a splat), run (the run's own camera path, its default), or nerfstudio's .json."""
    seconds: float = 6.0
    """How long the film lasts."""
    fps: float = 30.0
    """Frames a second."""
    size: Annotated[str, arg(metavar="WIDTHxHEIGHT")] = "1280x720"
    """The size of a scene's picture."""
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

        width, height, count = self._check()
        scenes = self._read_scenes()
        path, whole = self._choose_path(scenes[-1], height)
        cameras = framed(fly_along(path, count), height, width, whole)
        layout = self.show if self.show in ("side", "wipe") else "one"
        background = _parse_colour(self.background)
        if self.out.suffix.lower() == STILL:
            at = cameras[[0 if path.closed and whole else count // 2]]  # a turntable begins in front
            return videos.write_still(next(render_film(scenes, at, layout, background)), self.out)
        shape = count, height, width * (2 if layout == "side" else 1)
        with open_writer(self.out, shape, self._rate) as write_frame:
            for done, frame in enumerate(render_film(scenes, cameras, layout, background), start=1):
                write_frame(frame)
                on_progress(done, count, self.out.name)
        return self.out

    @property
    def _rate(self) -> Fraction:
        return Fraction(self.fps).limit_denominator(1001)

    def _check(self) -> tuple[int, int, int]:
        """Return width, height and the number of frames. Raises `UserError`."""
        from v2edit.video.formats import find_format

        if not self.source.exists():
            raise UserError(f"no such run or splat: {self.source}")
        expect_new_file(self.out, "-o")
        if self.out.suffix.lower() != STILL:
            find_format(self.out)
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", self.size)
        if match is None or not all(16 <= int(side) <= MAX_SIDE for side in match.groups()):
            raise UserError(f"--size is {self.size!r:.40}, expected WIDTHxHEIGHT of 16 to {MAX_SIDE}, as 1280x720")
        if not 1 <= self.fps <= 240:
            raise UserError(f"--fps is {self.fps:g}, expected 1 to 240")
        if not 0 < self.seconds * self.fps <= MAX_FRAMES:
            raise UserError(f"--seconds is {self.seconds:g}, expected more than 0 and at most {MAX_FRAMES} frames")
        _parse_colour(self.background)
        count = max(1, round(self.seconds * self.fps))
        expect_at_least(1, frames=count)
        return int(match[1]), int(match[2]), count

    def _read_scenes(self) -> list[Gaussians]:
        """Return the scene, or both where both are shown."""
        from v2edit.scenes.formats.splats import is_splat, read_splat_file

        if self.source.is_file() or is_splat(self.source):
            if self.show != "after":
                raise UserError(f"--show {self.show} is for a run folder of v2edit scene: a splat is one scene")
            return [read_splat_file(self.source).gaussians]
        names = {"after": [EDITED_SPLAT], "before": [SOURCE_SPLAT]}.get(self.show, [SOURCE_SPLAT, EDITED_SPLAT])
        files = [self.source / name for name in names]
        if missing := [file.name for file in files if not file.is_file()]:
            expected = f"a run folder of v2edit scene, or a splat ({', '.join(SPLAT_SUFFIXES)})"
            raise UserError(f"there is no {missing[0]} in {self.source}: give {expected}")
        return [read_splat_file(file).gaussians for file in files]

    def _choose_path(self, scene: Gaussians, side: int) -> tuple[CameraPath, bool]:
        """Return the path, and whether all that its cameras see is to stay in the picture. Raises `UserError`."""
        from v2edit.scenes.camera_paths import orbit, orbit_around, read_path
        from v2edit.scenes.orientation import parse_up
        from v2edit.scenes.reading import visible_positions

        own, up = self.source / CAMERA_PATH, parse_up(self.up)
        option = self.path or ("run" if own.is_file() else "turntable")
        if option == "turntable":
            if own.is_file():
                return orbit(read_path(own, None).cameras, TURN_CAMERAS, up, full=True), False
            return orbit_around(visible_positions(scene), TURN_CAMERAS, side, up), True
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
