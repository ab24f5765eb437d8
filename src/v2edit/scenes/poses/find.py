"""Cameras of photographs or of a video: from its files to a dataset that scenes are reconstructed from."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from v2edit.errors import UserError
from v2edit.scenes.config import MIN_PICTURES
from v2edit.scenes.dataset import list_names
from v2edit.scenes.poses.failures import check_count, check_features, check_masks, check_model, check_pairs
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
    ANIMATED,
    DAMAGED,
    LONG_SIDE,
    NO_HEIF,
    Picture,
    WrittenPicture,
    choose_canvas,
    describe_photograph,
    file_names_of,
    find_masks,
    join_turned,
    list_photographs,
    stand_up,
    write_picture,
)
from v2edit.scenes.poses.writing import PoseReport, describe_camera, measure_parallax, write_dataset, write_report
from v2edit.video.stills import read_image

if TYPE_CHECKING:
    from v2edit.video import Video

log = logging.getLogger(__name__)
VIDEO_FRAMES = 100  # taken of a video, where the options do not say
LEFT_OUT = {ANIMATED: "GIFs and animations", NO_HEIF: "HEIC photos, which `pip install pillow-heif` reads"}


@dataclass(frozen=True)
class PictureSource:
    """The pictures that cameras are found of: the photographs of a folder, or the frames of a video, at most `most`
    (None: all photographs, or `VIDEO_FRAMES`)."""

    path: Path
    most: int | None = None

    @cached_property
    def unread(self) -> dict[str, list[str]]:
        """The names of files beside the pictures that are left out, by why: complete once the pictures are written."""
        return {}

    @cached_property
    def described(self) -> dict[Path, Picture]:
        """What the photographs' files say of them, in natural order, evenly chosen; {} of a video."""
        if self.is_video:
            return {}
        files, left_out = list_photographs(self.path)
        found: dict[Path, Picture] = {}
        for file in files:
            try:
                if (picture := describe_photograph(file)) is not None:
                    found[file] = picture
                else:
                    left_out.setdefault(ANIMATED, []).append(file.name)
            except UserError as error:
                self._note_damaged(file, error)
        for why, names in left_out.items():
            self.unread[why] = names
            if len(found) >= MIN_PICTURES:  # else an error names them
                listed = list_names(names)
                log.warning("%s: %d files are left out, %s: %s", self.path, len(names), LEFT_OUT[why], listed)
        if self.most is not None and len(found) > self.most:
            files = list(found)
            chosen = np.linspace(0, len(files) - 1, self.most).round().astype(int)
            found = {files[k]: found[files[k]] for k in chosen}
        return found

    @cached_property
    def files(self) -> list[Path]:
        """The photographs, in natural order, evenly chosen; [] of a video."""
        return list(self.described)

    @cached_property
    def _reasons(self) -> list[str]:
        """What is wrong with damaged files, of which has not been told yet."""
        return []

    def _note_damaged(self, file: Path, error: UserError) -> None:
        names = self.unread.setdefault(DAMAGED, [])
        if file.name not in names:
            names.append(file.name)
            self._reasons.append(str(error))

    def tell_damaged(self) -> None:
        """Warn, once and in one line, of photographs that cannot be read, where enough others can."""
        names = self.unread.get(DAMAGED, [])
        if self._reasons and sum(file.name not in names for file in self.described) >= MIN_PICTURES:
            reason = self._reasons[0]
            log.warning("%s: %d files are left out, damaged: %s (%s)", self.path, len(names), list_names(names), reason)
            self._reasons.clear()

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

    @property
    def pictures(self) -> list[Picture]:
        """What is known of the pictures before their pixels are read. Raises `UserError` for too few of them."""
        if self.is_video:
            height, width = self.video.frames.shape[1:3]
            return [Picture(f"frame-{k:06d}", (height, width), ("video",)) for k in self.chosen]
        return [picture for _, picture in self._photographs]

    @property
    def _photographs(self) -> list[tuple[Path, Picture]]:
        """The photographs that are not known to be damaged, and what is known of them."""
        good = [file for file in self.files if file.name not in self.unread.get(DAMAGED, [])]
        if len(good) < MIN_PICTURES:
            self.tell_damaged()
        check_count(self.path, len(good), self.unread)
        pictures = [replace(self.described[file], mask=self.masks.get(file)) for file in good]
        return list(zip(good, join_turned(pictures), strict=True))

    def read(self) -> Iterator[tuple[Picture, np.ndarray, np.ndarray | None]]:
        """Yield the pictures upright: (what is known of it, uint8 [H, W, 3], alpha uint8 [H, W] or None); damaged ones
        are passed over."""
        if not self.is_video:
            for file, picture in self._photographs:
                try:
                    yield picture, *read_image(file)
                except UserError as error:
                    self._note_damaged(file, error)
            return
        from v2edit.video.stream import pick

        for picture, frame in zip(self.pictures, pick(self.video.frames, np.array(self.chosen)), strict=True):
            yield picture, frame, None


def write_pictures(
    source: PictureSource,
    folder: Path,
    side: int,
    report: Report = no_report,
    first: int | None = None,
    turned: bool = False,
) -> list[WrittenPicture]:
    """Write all pictures of a source, or the `first` of them, into `images` of a folder, at one size, at most `side`
    pixels on its longer side, and what of them counts into `masks`; `turned` to how their camera was held, where it was
    turned. Warns of damaged ones. Raises `UserError` where they leave too few."""
    pictures = source.pictures
    canvas, files = choose_canvas(pictures, side), dict(zip(pictures, file_names_of(pictures), strict=True))
    (folder / "images").mkdir(parents=True)
    written = []
    for k, (picture, rgb, alpha) in enumerate(islice(source.read(), first)):
        written.append(write_picture(folder, files[picture], picture, canvas, rgb, alpha, turned))
        report("reading pictures", k + 1, len(pictures))
    if first is None:
        source.tell_damaged()
        check_count(source.path, len(written), source.unread)
    return written


def find_poses(source: PictureSource, folder: Path, threads: int = -1, report: Report = no_report) -> PoseReport:
    """Find the cameras of pictures by COLMAP and write them as a dataset (nerfstudio's format) into a new folder, with
    `cameras.json`, how that went. `threads` extract and match features (-1: all cores). Where the pictures fall into
    several parts, the largest is taken, with a warning; the pictures that it leaves out are named. Raises `UserError`,
    in one line, where there are too few pictures, pycolmap is missing, or they tell no cameras, with the reason."""
    import_pycolmap()
    written = write_pictures(source, folder, LONG_SIDE, report, turned=True)
    check_masks(source.path, written)
    with tempfile.TemporaryDirectory() as name:
        database = Path(name) / "database.db"
        known, every = extract_features(database, folder, written, threads, report), written
        written = [one for one in every if one.file in known]
        ids = [known[one.file] for one in written]
        descriptors = read_descriptors(database, ids)
        check_features(source.path, every, [len(one) for one in descriptors])
        pairs, matching = choose_pairs(descriptors, source.is_video)
        match_pairs(database, [one.file for one in written], pairs, threads, report)
        statistics = read_pair_statistics(database)
        check_pairs(source.path, statistics)
        models = map_pictures(database, folder, len(written), report)
        sizes = [model.num_reg_images() for model in models]
        points, parallax = (models[0].num_points3D(), measure_parallax(models[0])) if models else (0, 0.0)
        cuts = [float(k / source.video.fps) for k in source.cuts] if source.is_video else []
        check_model(source.path, every, statistics, sizes, points, parallax, cuts)
        model, place = models[0], {number: k for k, number in enumerate(ids)}
        present = {written[place[k]].file for k in model.reg_image_ids()}
        found = PoseReport(
            pictures=len(every),
            registered=len(present),
            left_out=[one.picture.name for one in every if one.file not in present],
            error=round(model.compute_mean_reprojection_error(), 3),
            models=sizes,
            intrinsics=[{"model": camera.model_name} | describe_camera(camera) for camera in _used_cameras(model)],
            points=points,
            parallax=round(parallax, 2),
            matching=matching,
            pairs=len(pairs),
            cuts=cuts,
            unread=source.unread,
        )
        written = [stand_up(folder, one) if one.picture.turns else one for one in written]
        has_one_size = len({one.picture.size for one in every}) == 1
        write_dataset(folder, model, written, ids, with_path=not (source.is_video and has_one_size))
    for one in every:
        if one.file not in present:  # so that the folder is the dataset and nothing else
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
        message = (
            "%s falls into %d parts that do not fit together (%s pictures): taking the largest, which leaves out %d: "
            "%s; pictures from places in between would join them"
        )
        log.warning(message, path, len(found.models), ", ".join(map(str, found.models)), left, names)
    else:
        log.warning(
            "%d of %d pictures of %s do not fit the others and are left out: %s", left, found.pictures, path, names
        )
