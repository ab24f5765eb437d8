"""Cameras of photographs or of a video: from its files to a dataset that scenes are reconstructed from."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from v2edit.errors import UserError
from v2edit.scenes.dataset import list_names
from v2edit.scenes.poses.failures import check_count, check_features, check_model, check_pairs
from v2edit.scenes.poses.frames import choose_frames, measure_frames, stands_still
from v2edit.scenes.poses.mapping import (
    Report,
    extract_features,
    import_pycolmap,
    map_pictures,
    match_pairs,
    no_report,
    read_descriptors,
    read_pair_statistics,
)
from v2edit.scenes.poses.pairs import choose_pairs
from v2edit.scenes.poses.pictures import (
    LONG_SIDE,
    Picture,
    WrittenPicture,
    choose_canvas,
    describe_photograph,
    file_names_of,
    find_masks,
    list_photographs,
    read_photographs,
    write_picture,
)
from v2edit.scenes.poses.writing import PoseReport, describe_camera, measure_parallax, write_dataset, write_report

if TYPE_CHECKING:
    from v2edit.video import Video

log = logging.getLogger(__name__)
VIDEO_FRAMES = 100  # taken of a video, where the options do not say


@dataclass(frozen=True)
class PictureSource:
    """The pictures that cameras are found of: the photographs of a folder, or the frames of a video, at most `most`
    (None: all photographs, or `VIDEO_FRAMES`)."""

    path: Path
    most: int | None = None

    @cached_property
    def files(self) -> list[Path]:
        """The photographs, in natural order, evenly chosen; [] of a video."""
        files = list_photographs(self.path) if self.path.is_dir() else []
        if self.most is not None and len(files) > self.most:
            files = [files[k] for k in np.linspace(0, len(files) - 1, self.most).round().astype(int)]
        return files

    @property
    def is_video(self) -> bool:
        return not self.path.is_dir()

    @cached_property
    def video(self) -> Video:
        from v2edit import video as videos

        return videos.read(self.path)

    @cached_property
    def masks(self) -> dict[Path, Path]:
        """The masks of the photographs that have one."""
        return find_masks(self.path, self.files)

    @cached_property
    def cuts(self) -> list[int]:
        """The numbers of the frames at which a video is cut."""
        from v2edit.video.shots import find_cuts

        return find_cuts(self.video.frames, self.video.fps) if self.is_video else []

    @cached_property
    def chosen(self) -> list[int]:
        """The numbers of a video's frames that are taken. Raises `UserError` where the camera stands still."""
        frames = self.video.frames
        check_count(self.path, len(frames))
        moved, sharpness = measure_frames(frames)
        if stands_still(moved):
            raise UserError(f"the camera of {self.path} does not move: that tells no depth; walk around what you show")
        return choose_frames(moved, sharpness, self.most or VIDEO_FRAMES, self.cuts)

    @cached_property
    def pictures(self) -> list[Picture]:
        """What is known of the pictures before their pixels are read. Raises `UserError` for too few of them."""
        if self.is_video:
            height, width = self.video.frames.shape[1:3]
            return [Picture(f"frame-{k:06d}", (height, width), ("video",)) for k in self.chosen]
        check_count(self.path, len(self.files))
        return [describe_photograph(file, self.masks.get(file)) for file in self.files]

    def read(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yield the pictures upright: (uint8 [H, W, 3], alpha uint8 [H, W] or None)."""
        if not self.is_video:
            yield from read_photographs(self.files)
            return
        from v2edit.video.stream import pick

        for frame in pick(self.video.frames, np.array(self.chosen)):
            yield frame, None


def write_pictures(
    source: PictureSource, folder: Path, side: int, report: Report = no_report, first: int | None = None
) -> list[WrittenPicture]:
    """Write all pictures of a source, or the `first` of them, into `images` of a folder, at one size, at most `side`
    pixels on its longer side, and what of them counts into `masks`."""
    pictures = source.pictures
    canvas, files = choose_canvas(pictures, side), file_names_of(pictures)
    (folder / "images").mkdir(parents=True)
    written = []
    for k, (rgb, alpha) in enumerate(islice(source.read(), first)):
        written.append(write_picture(folder, files[k], pictures[k], canvas, rgb, alpha))
        report("reading pictures", k + 1, len(pictures))
    return written


def find_poses(source: PictureSource, folder: Path, threads: int = -1, report: Report = no_report) -> PoseReport:
    """Find the cameras of pictures by COLMAP and write them as a dataset (nerfstudio's format) into a new folder, with
    `cameras.json`, how that went. `threads` extract and match features (-1: all cores). Where the pictures fall into
    several parts, the largest is taken, with a warning; the pictures that it leaves out are named. Raises `UserError`,
    in one line, where there are too few pictures, pycolmap is missing, or they tell no cameras, with the reason."""
    import_pycolmap()
    written = write_pictures(source, folder, LONG_SIDE, report)
    with tempfile.TemporaryDirectory() as name:
        database = Path(name) / "database.db"
        ids = extract_features(database, folder, written, threads, report)
        descriptors = read_descriptors(database, ids)
        check_features(source.path, written, [len(one) for one in descriptors])
        pairs, matching = choose_pairs(descriptors, source.is_video)
        match_pairs(database, [one.file for one in written], pairs, threads, report)
        statistics = read_pair_statistics(database)
        check_pairs(source.path, statistics)
        models = map_pictures(database, folder, len(written), report)
        sizes = [model.num_reg_images() for model in models]
        points, parallax = (models[0].num_points3D(), measure_parallax(models[0])) if models else (0, 0.0)
        cuts = [float(k / source.video.fps) for k in source.cuts] if source.is_video else []
        check_model(source.path, written, statistics, sizes, points, parallax, cuts)
        model, place = models[0], {number: k for k, number in enumerate(ids)}
        present = {place[k] for k in model.reg_image_ids()}
        found = PoseReport(
            pictures=len(written),
            registered=len(present),
            left_out=[one.picture.name for k, one in enumerate(written) if k not in present],
            error=round(model.compute_mean_reprojection_error(), 3),
            models=sizes,
            intrinsics=[{"model": camera.model_name} | describe_camera(camera) for camera in _used_cameras(model)],
            points=points,
            parallax=round(parallax, 2),
            matching=matching,
            pairs=len(pairs),
            cuts=cuts,
        )
        has_one_size = len({one.picture.size for one in written}) == 1
        write_dataset(folder, model, written, ids, with_path=not (source.is_video and has_one_size))
    for k, one in enumerate(written):
        if k not in present:  # so that the folder is the dataset and nothing else
            (folder / "images" / one.file).unlink()
            if one.mask:
                (folder / "masks" / one.mask).unlink()
    _warn_of_parts(source.path, found)
    write_report(folder, found)
    return found


def _used_cameras(model) -> list:
    return [model.cameras[k] for k in sorted({model.images[k].camera_id for k in model.reg_image_ids()})]


def _warn_of_parts(path: Path, found: PoseReport) -> None:
    """Warn where pictures are left out, with the reason that is known."""
    if not found.left_out:
        return
    left, names = len(found.left_out), list_names(found.left_out)
    if len(found.models) > 1:
        message = "%s falls into %d parts that do not fit (%s pictures): taking the largest, which leaves out %d: %s"
        log.warning(message, path, len(found.models), ", ".join(map(str, found.models)), left, names)
    else:
        log.warning(
            "%d of %d pictures of %s do not fit the others and are left out: %s", left, found.pictures, path, names
        )
