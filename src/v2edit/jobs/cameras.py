"""The cameras of a scene that is photographs or a video: found once, kept beside the runs, and stood in for before."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from v2edit.errors import UserError
from v2edit.jobs.inputs import is_unposed
from v2edit.jobs.options import expect_at_least
from v2edit.runs import fingerprint_input

if TYPE_CHECKING:
    from v2edit.jobs.scene_loop import ProgressCallback
    from v2edit.scenes.poses.find import PictureSource
    from v2edit.scenes.poses.writing import PoseReport
    from v2edit.scenes.reading import Scene

log = logging.getLogger(__name__)
FOLDER = "cameras"  # beside the run folders
WAY = 2  # counts changes of how cameras are found, after which they are found anew
MAX_NAME, DIGITS = 40, 10
TIMED_PICTURES = 4  # whose features are extracted and matched to estimate the time of all
MAPPING_SHARE = 0.4  # of the features' time, on captures of 40 to 116 pictures


@dataclass(frozen=True)
class CameraOptions:
    """How cameras are found where SCENE is photographs or a video, which have none."""

    pictures: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Pictures to take at most: frames of a video, the sharpest around each place (default: 100), or photographs of a
    folder, evenly (default: all). More take longer."""

    def __post_init__(self) -> None:
        from v2edit.scenes.config import MIN_PICTURES

        expect_at_least(MIN_PICTURES, pictures=self.pictures)


@dataclass(frozen=True)
class FoundCameras:
    """The cameras of pictures: the dataset's `folder` and how they were found; None before they are."""

    source: PictureSource
    folder: Path
    report: PoseReport | None

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json says of it."""
        facts = {} if self.report is None else asdict(self.report)
        facts |= {"unread": facts.get("unread", {}) | self.source.unread}  # files may be new beside known cameras
        return {"source": os.path.abspath(self.source.path), "dataset": os.path.abspath(self.folder), **facts}

    def remark(self, timed: bool) -> tuple[dict[str, float], str]:
        """Return the seconds that finding the cameras takes, by its part, where it is `timed`, and a line on it."""
        count = len(self.source.pictures)
        text = f"the cameras of {count} pictures are found first; those of this estimate are stand-ins, and no loop"
        return ({"finding cameras": time_finding(self.source)} if timed else {}), text


def read_or_find(
    path: Path,
    options: CameraOptions,
    root: Path | None,
    side: int,
    find: bool,
    on_progress: ProgressCallback | None = None,
    source: PictureSource | None = None,
) -> tuple[Scene, FoundCameras | None]:
    """Read a scene as `scenes.reading.read_scene` does; the cameras of photographs or a video are found first, or read
    where they are known, in the folder `cameras` of `root` (that of the runs). Where they are neither known nor to be
    found, they are stand-ins: half a circle of them. `source` is that of an earlier call, which has read some of
    them. Raises `UserError` where they cannot be found."""
    from v2edit.scenes.reading import read_scene

    if not is_unposed(path):
        return read_scene(path, side), None
    from v2edit.scenes.poses.find import PictureSource
    from v2edit.scenes.poses.writing import REPORT, read_report

    is_first, source = source is None, source or PictureSource(path, options.pictures)
    name = re.sub(r"[^\w-]+", "-", path.absolute().stem).strip("-")[:MAX_NAME] or "pictures"
    folder = (root or Path("runs")) / FOLDER / f"{name}-{fingerprint_pictures(source)[:DIGITS]}"
    report = None
    try:
        report = read_report(folder) if (folder / REPORT).is_file() else None
    except (OSError, ValueError, UserError) as error:
        if is_first:
            log.warning("%s is damaged (%s): the cameras are found anew", folder, error)
    if report is not None:
        log.info("cameras: %s, in %s, found before", report, folder)
    elif find:
        shutil.rmtree(folder, ignore_errors=True)  # what is damaged
        report = _find(source, folder, on_progress)
        log.info("cameras: %s, in %s", report, folder)
    else:
        return stand_in_scene(source, side), FoundCameras(source, folder, None)
    return read_scene(folder, side), FoundCameras(source, folder, report)


def _find(source: PictureSource, folder: Path, on_progress: ProgressCallback | None) -> PoseReport:
    """Find cameras and keep them in a folder, which is there whole or not at all."""
    from v2edit.scenes.poses.find import find_poses
    from v2edit.scenes.poses.writing import REPORT, read_report
    from v2edit.scenes.rer import SceneProgress

    def report(phase: str, done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(SceneProgress(phase, done, total))

    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
        found = find_poses(source, part, report=report)
        try:
            part.rename(folder)
        except OSError:
            if not (folder / REPORT).is_file():  # else another process was faster
                raise
            found = read_report(folder)
        return found
    except OSError as error:
        raise UserError(f"cannot write to {folder.parent}: {error.strerror or error}; choose another -o") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):  # where there are others
            folder.parent.rmdir()


def fingerprint_pictures(source: PictureSource) -> str:
    """Return a checksum (SHA-256) of all that cameras are found from: pictures, masks, options, COLMAP's version."""
    from importlib.metadata import PackageNotFoundError, version

    from v2edit.scenes.poses.pictures import LONG_SIDE

    try:
        colmap = version("pycolmap")
    except PackageNotFoundError:
        colmap = None
    total = hashlib.sha256(repr((WAY, source.most, LONG_SIDE, colmap)).encode())
    for file in [source.path] if source.is_video else source.files:
        for one in (file, source.masks.get(file)) if not source.is_video else (file,):
            if one is not None:
                digest = fingerprint_input(one)["sha256"]
                total.update(f"{digest}  {'' if source.is_video else one.name}\n".encode())
    return total.hexdigest()


def stand_in_scene(source: PictureSource, side: int) -> Scene:
    """Return a scene of pictures whose cameras are not known: they stand on half a circle, for previews and estimates.
    Raises `UserError` for too few pictures, and for what is wrong with one."""
    import numpy as np

    from v2edit.scenes.cameras import Cameras, look_at
    from v2edit.scenes.dataset import HELD_OUT_EVERY, HELD_OUT_FROM, Dataset
    from v2edit.scenes.poses.find import write_pictures
    from v2edit.scenes.poses.mapping import FOCAL_GUESS
    from v2edit.scenes.reading import Scene
    from v2edit.video.stills import read_image

    with tempfile.TemporaryDirectory() as place:
        written = write_pictures(source, Path(place), side)
        images = np.stack([read_image(Path(place) / "images" / one.file)[0] for one in written])
    count, (height, width) = len(images), images.shape[1:3]
    turn = np.linspace(0, np.pi, count)  # whether they will close to a loop is not known
    eyes = np.stack([np.cos(turn), np.sin(turn), np.full(count, 0.3)], axis=1)
    focal = FOCAL_GUESS * max(height, width)
    matrix = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    poses = look_at(eyes, np.zeros(3), np.array([0.0, 0, 1]))
    cameras = Cameras(np.tile(matrix, (count, 1, 1)), poses, height, width)
    held_out = np.arange(count) % HELD_OUT_EVERY == HELD_OUT_FROM
    return Scene(source.path, Dataset(cameras, images, tuple(f"images/{one.file}" for one in written), held_out))


def time_finding(source: PictureSource) -> float:
    """Return the seconds that finding cameras takes, from those of a few pictures. Raises `UserError` where pycolmap
    is missing."""
    from itertools import combinations

    from v2edit.scenes.poses.find import write_pictures
    from v2edit.scenes.poses.mapping import extract_features, import_pycolmap, match_pairs
    from v2edit.scenes.poses.pairs import count_pairs
    from v2edit.scenes.poses.pictures import LONG_SIDE

    import_pycolmap()
    count = len(source.pictures)
    with tempfile.TemporaryDirectory() as name:
        place, start = Path(name), time.perf_counter()
        written = write_pictures(source, place, LONG_SIDE, first=TIMED_PICTURES, turned=True)
        reading = (time.perf_counter() - start) * count / len(written)
        start = time.perf_counter()
        names = list(extract_features(place / "database.db", place, written))
        features = (time.perf_counter() - start) * count / len(written)
        pairs, start = list(combinations(range(len(names)), 2)), time.perf_counter()
        match_pairs(place / "database.db", names, pairs)
        matching = (time.perf_counter() - start) * count_pairs(count, source.is_video) / max(1, len(pairs))
    return reading + features * (1 + MAPPING_SHARE) + matching
