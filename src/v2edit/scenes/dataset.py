"""Posed images: what a scene is made from, whatever format it came in.

Letters: C views, P points.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np

from v2edit.errors import UserError
from v2edit.files import is_existing_file
from v2edit.scenes.cameras import Cameras
from v2edit.scenes.distortion import Distortion, undistorted

log = logging.getLogger(__name__)
HELD_OUT_EVERY, HELD_OUT_FROM = 8, 4  # without a split of its own, a dataset keeps every eighth view out
RIGID = 1e-3  # how far a pose's rotation may be from one


@dataclass(frozen=True)
class Points:
    """P points of the scene: `places` float64 [P, 3] in the world, `colours` uint8 [P, 3]."""

    places: np.ndarray
    colours: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """C views of a scene, free of distortion, of one size.

    images: uint8 [C, H, W, 3]. masks: bool [C, H, W], where an image can be believed; None: everywhere.
    held_out: bool [C], views that are kept for measuring and never learnt from. applied: float64 [4, 4], what had been
    applied to the reconstruction's coordinates to give these (nerfstudio's `applied_transform`).
    """

    cameras: Cameras
    images: np.ndarray
    names: tuple[str, ...]
    held_out: np.ndarray
    masks: np.ndarray | None = None
    points: Points | None = None
    applied: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def chosen(self, which: np.ndarray) -> Dataset:
        """Some of the views, by index or by bool [C]."""
        indices = np.arange(len(self))[which]
        return replace(
            self,
            cameras=self.cameras[indices],
            images=self.images[indices],
            names=tuple(self.names[k] for k in indices),
            held_out=self.held_out[indices],
            masks=None if self.masks is None else self.masks[indices],
        )

    @property
    def training(self) -> Dataset:
        return self.chosen(~self.held_out)

    @property
    def kept_out(self) -> Dataset:
        return self.chosen(self.held_out)


@dataclass(frozen=True)
class View:
    """One view as a file names it, its image not yet read. `size`: (height, width) that `intrinsics` [3, 3] mean."""

    name: str
    image: Path
    mask: Path | None
    intrinsics: np.ndarray
    size: tuple[int, int]
    distortion: Distortion
    camera_to_world: np.ndarray


def assemble(
    views: Sequence[View],
    source: Path,
    side: int | None = None,
    held_out: Sequence[bool] | None = None,
    points: Points | None = None,
    applied: np.ndarray | None = None,
) -> Dataset:
    """Reads the images (their longer side made `side` pixels where it is more) and takes the distortion out of them.

    Views whose image is missing are left out, with a note.

    Raises:
        UserError: fewer than two views, a pose that is none, an image that cannot be read, images of several sizes.
    """
    for view in views:
        _check_camera(view, source)
    there = [k for k, view in enumerate(views) if is_existing_file(view.image)]
    if missing := [view.image.name for view in views if not is_existing_file(view.image)]:
        log.warning("%d of %d images of %s are missing: %s", len(missing), len(views), source, _few(missing))
    if len(there) < 2:
        raise UserError(f"{source} has {len(there)} view{'s' * (len(there) != 1)}: a scene takes two at least")
    if held_out is None:
        kept = np.arange(len(there)) % HELD_OUT_EVERY == HELD_OUT_FROM
    else:
        kept = np.array(held_out, bool)[there]
    if kept.all():
        raise UserError(f"every view of {source} is held out: none is left to learn from")
    _check_memory([views[k] for k in there], source, side)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        read = list(pool.map(lambda k: _read(views[k], side), there))
    sizes = {image.shape[:2] for image, _, _ in read}
    if len(sizes) > 1:
        shown = _few([f"{width}x{height}" for height, width in sorted(sizes)])
        raise UserError(f"the images of {source} have {len(sizes)} sizes ({shown}): make them the same")
    height, width = sizes.pop()
    masks = np.stack([mask for _, mask, _ in read])
    return Dataset(
        Cameras(
            np.stack([intrinsics for _, _, intrinsics in read]),
            np.stack([views[k].camera_to_world for k in there]),
            height,
            width,
        ),
        np.stack([image for image, _, _ in read]),
        tuple(views[k].name for k in there),
        kept,
        None if masks.all() else masks,
        points,
        applied,
    )


def views_dataset(dataset: Dataset | None, cameras: Cameras) -> Dataset:
    """Return the views that an edited scene is written as: those of the dataset or, without one, `cameras` with blank
    images. There are no masks: a rendered image is valid everywhere."""
    if dataset is not None:
        return replace(dataset, masks=None, points=None)
    count = len(cameras)
    blank = np.zeros((count, cameras.height, cameras.width, 3), np.uint8)
    return Dataset(cameras, blank, tuple(f"images/{k:04d}.png" for k in range(count)), np.zeros(count, bool))


def _check_memory(views: Sequence[View], source: Path, side: int | None) -> None:
    """A file may list one image as often as it likes."""
    from v2edit.video.reading import MEMORY_LIMIT
    from v2edit.video.stills import open_image

    total = 0
    for view in views:
        with open_image(view.image) as picture:
            scale = min(1.0, (side or max(picture.size)) / max(picture.size))
            total += 4 * math.ceil(picture.width * scale) * math.ceil(picture.height * scale)
    if total > MEMORY_LIMIT:
        raise UserError(f"the {len(views)} images of {source} take {total / 2**30:.1f} GiB: take fewer or smaller ones")


def _check_camera(view: View, source: Path) -> None:
    pose = view.camera_to_world
    if pose.shape != (4, 4) or not np.isfinite(pose).all() or not np.allclose(pose[3], [0, 0, 0, 1], atol=1e-6):
        raise UserError(f"{source}: the pose of {view.name} is no 4x4 matrix of finite numbers with 0 0 0 1 below")
    turn = pose[:3, :3]
    if np.abs(turn @ turn.T - np.eye(3)).max() > RIGID or np.linalg.det(turn) < 0:
        raise UserError(f"{source}: the pose of {view.name} is no rotation and translation")
    if min(view.size) < 1:
        raise UserError(f"{source}: the camera of {view.name} has a size of {view.size[1]}x{view.size[0]}")
    if not (np.isfinite(view.intrinsics).all() and view.intrinsics[0, 0] > 0 and view.intrinsics[1, 1] > 0):
        raise UserError(f"{source}: the focal length of {view.name} is not above 0")
    if not np.isfinite(astuple(view.distortion)).all():
        raise UserError(f"{source}: the distortion of {view.name} is no finite number")


def _read(view: View, side: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The image without distortion, where it can be believed, and the intrinsics that belong to its size."""
    from PIL import Image

    from v2edit.video.stills import open_image

    def opened(path: Path, mode: str) -> Image.Image:
        with open_image(path) as picture:
            return picture.convert(mode)  # As it is stored: poses are of that, whichever way up it was shot.

    picture = opened(view.image, "RGBA" if view.image.suffix.lower() == ".png" else "RGB")
    stated_height, stated_width = view.size
    if abs(picture.height / picture.width - stated_height / stated_width) > 1.5 / min(picture.size):
        raise UserError(
            f"{view.image} is {picture.width}x{picture.height} and its camera {stated_width}x{stated_height}: "
            "they must have the same aspect"
        )
    scale = min(1.0, (side or max(picture.size)) / max(picture.size))
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BOX)  # as a sensor with larger pixels would see it
    pixels = np.asarray(picture)
    width, height = size
    intrinsics = view.intrinsics * [[width / stated_width], [height / stated_height], [1.0]]
    valid = np.ones((height, width), bool)
    if view.mask is not None and is_existing_file(view.mask):
        valid = np.asarray(opened(view.mask, "L").resize(size, Image.Resampling.NEAREST)) > 127
    if pixels.shape[2] == 4:
        # What a cut-out object stands before is not known.
        valid, pixels = valid & (pixels[..., 3] > 127), pixels[..., :3]
    image, inside = undistorted(np.ascontiguousarray(pixels), intrinsics, view.distortion)
    if not inside.any():
        raise UserError(f"{view.image}: its camera's distortion leaves nothing of it")
    if not valid.all():
        kept, _ = undistorted(np.repeat(valid[..., None], 3, 2).astype(np.uint8) * 255, intrinsics, view.distortion)
        valid = kept[..., 0] > 250
    return image, valid & inside, intrinsics


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
