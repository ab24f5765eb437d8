"""Posed images: what scenes are reconstructed from, read from any format.

Letters: C views, P points.
"""

from __future__ import annotations

import logging
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from v2edit.errors import UserError
from v2edit.files import is_existing_file
from v2edit.scenes.cameras import Cameras
from v2edit.scenes.distortion import Distortion, undistort
from v2edit.video.stills import IMAGES

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)
HELD_OUT_EVERY, HELD_OUT_FROM = 8, 4  # of a dataset without a split of its own every eighth view is held out
ENDINGS = dict.fromkeys(["", ".png", ".jpg", ".jpeg", *sorted(IMAGES)])  # of a name without one, the likeliest first
MUCH_SMALLER = 0.25  # of the pixels of an image
ROTATION_TOLERANCE = 1e-2  # of a pose's rotation matrix times its transpose, from the identity: 3 decimals of a file
EXACT = 1e-9  # the same, of a pose that is left as it is
MIN_FOCAL = 0.05  # of the longer side of an image: less is not in pixels


@dataclass(frozen=True)
class Points:
    """P points of a scene: `positions` float64 [P, 3] in the world, `colours` uint8 [P, 3]."""

    positions: np.ndarray
    colours: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """C views of a scene, free of distortion, of one size. images: uint8 [C, H, W, 3]. masks: bool [C, H, W], where an
    image is valid; None: everywhere. is_held_out: bool [C], views that are for measuring and not for training. applied:
    float64 [4, 4], the transform from the reconstruction's coordinates to these (nerfstudio's `applied_transform`).
    distortions: of the photographs that the images were made of, one a view; empty where they had none."""

    cameras: Cameras
    images: np.ndarray
    names: tuple[str, ...]
    is_held_out: np.ndarray
    masks: np.ndarray | None = None
    points: Points | None = None
    applied: np.ndarray | None = None
    distortions: tuple[Distortion, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def select(self, views: np.ndarray) -> Dataset:
        """Return some of the views, by index or by bool [C]."""
        indices = np.arange(len(self))[views]
        return replace(
            self,
            cameras=self.cameras[indices],
            images=self.images[indices],
            names=tuple(self.names[k] for k in indices),
            is_held_out=self.is_held_out[indices],
            masks=None if self.masks is None else self.masks[indices],
            distortions=tuple(self.distortions[k] for k in indices) if self.distortions else (),
        )

    def undistort_mask(self, mask: np.ndarray, view: int) -> np.ndarray:
        """Return a mask painted over a view's photograph, float32 [H, W] of 0 to 1, as the view's image shows it."""
        if not self.distortions or self.distortions[view].is_none:
            return mask
        levels = np.repeat((mask * 255).round().astype(np.uint8)[..., None], 3, 2)
        flat, _ = undistort(levels, self.cameras.intrinsics[view], self.distortions[view])
        return flat[..., 0].astype(np.float32) / 255

    @property
    def training(self) -> Dataset:
        """The views that a scene is reconstructed from."""
        return self.select(~self.is_held_out)

    @property
    def held_out(self) -> Dataset:
        """The views that a reconstruction is measured on."""
        return self.select(self.is_held_out)


@dataclass(frozen=True)
class View:
    """A view as a file describes it, its image not yet read. `size`: the (height, width) of `intrinsics` [3, 3]."""

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
    is_held_out: Sequence[bool] | None = None,
    points: Points | None = None,
    applied: np.ndarray | None = None,
) -> Dataset:
    """Read the images of views and remove their distortion; `side` limits the longer side of an image, in pixels. Views
    whose image is missing are left out, with a warning; so are masks. Raises `UserError` for fewer than two views, an
    invalid pose, an image that cannot be read, images of several sizes, or masks that leave nothing."""
    for view in views:
        _check_camera(view, source)
    present = [k for k, view in enumerate(views) if is_existing_file(view.image)]
    _note_missing("images", [view.image for view in views], source)
    _note_missing("masks", [views[k].mask for k in present], source)
    if repeated := [file.name for file, count in Counter(view.image for view in views).items() if count > 1]:
        log.warning("%s lists images more than once: %s", source, list_names(repeated))
    if len(present) < 2:
        count = f"{len(present)} view{'s' * (len(present) != 1)}"
        missing = next(
            (f" with an image, for there is no {v.image}" for v in views if not is_existing_file(v.image)), ""
        )
        raise UserError(f"{source} has {count}{missing}: a scene takes two at least")
    if is_held_out is None:
        held_out = np.arange(len(present)) % HELD_OUT_EVERY == HELD_OUT_FROM
    else:
        held_out = np.array(is_held_out, bool)[present]
    if held_out.all():
        raise UserError(f"every view of {source} is held out: none is left to train on")
    _check_memory([views[k] for k in present], source, side)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        images, valid, intrinsics = zip(*pool.map(lambda k: _read_view(views[k], side), present), strict=True)
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        listed = list_names([f"{width}x{height}" for height, width in sorted(sizes)])
        raise UserError(f"the images of {source} have {len(sizes)} sizes ({listed}): make them the same")
    height, width = sizes.pop()
    _note_reduction(views[present[0]].image, height, width, source)
    masks, poses = np.stack(valid), np.stack([_nearest_rotation(views[k].camera_to_world) for k in present])
    empty = [views[k].image.name for k, mask in zip(present, masks, strict=True) if not mask.any()]
    if not masks[~held_out].any():
        raise UserError(
            f"the masks of {source} leave no pixel to train on: 0 masks a pixel out, any other value keeps it"
        )
    if empty:
        log.warning("%d of %d views of %s are wholly masked: %s", len(empty), len(present), source, list_names(empty))
    return Dataset(
        Cameras(np.stack(intrinsics), poses, height, width),
        np.stack(images),
        tuple(views[k].name for k in present),
        held_out,
        None if masks.all() else masks,
        points,
        applied,
        tuple(views[k].distortion for k in present) if any(not views[k].distortion.is_none for k in present) else (),
    )


def find_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the files that names in a dataset stand for, as other systems write them: with backslashes, in another
    case or Unicode form, images without their ending. Of several the first in a fixed order is taken, but none that is
    named itself. A name that stands for no file is returned as it is."""

    @cache
    def list_folder(path: Path) -> dict[str, Path]:
        return {_name_key(name): path / name for name in sorted(os.listdir(path))}  # lower case goes before upper case

    def find(path: Path) -> Path:
        found = Path(path.anchor)
        try:
            for k, part in enumerate(path.parts[bool(path.anchor) :], start=1 + bool(path.anchor)):
                if (found / part).exists():
                    found /= part
                    continue
                keys = [_name_key(part + end) for end in (ENDINGS if k == len(path.parts) else [""])]
                found = next(files[key] for key in keys if key in (files := list_folder(found)))
        except (OSError, ValueError, StopIteration):
            return path
        return found

    paths = [folder / name for name in names]
    present = {path for path in paths if is_existing_file(path)}
    found = [
        path if path in present else find(folder / name.replace("\\", "/"))
        for path, name in zip(paths, names, strict=True)
    ]
    return [path if other in present else other for path, other in zip(paths, found, strict=True)]


def _name_key(name: str) -> str:
    """Return what a file's name has in common with how other systems write it."""
    return unicodedata.normalize("NFC", name).casefold()


def views_dataset(dataset: Dataset | None, cameras: Cameras) -> Dataset:
    """Return the views that an edited scene is written as: those of the dataset or, without one, `cameras` with blank
    images. There are no masks: a rendered image is valid everywhere."""
    if dataset is not None:
        return replace(dataset, masks=None, points=None, distortions=())
    count = len(cameras)
    blank = np.zeros((count, cameras.height, cameras.width, 3), np.uint8)
    return Dataset(cameras, blank, tuple(f"images/{k:04d}.png" for k in range(count)), np.zeros(count, bool))


def _check_memory(views: Sequence[View], source: Path, side: int | None) -> None:
    """Refuse more pixels than memory holds: a file may list one image any number of times. Raises `UserError` if the
    images take more than the limit."""
    from v2edit.video.reading import MEMORY_LIMIT
    from v2edit.video.stills import open_image

    total = 0
    for view in views:
        with open_image(view.image) as picture:
            scale = min(1.0, (side or max(picture.size)) / max(picture.size))
            total += 4 * math.ceil(picture.width * scale) * math.ceil(picture.height * scale)
    if total > MEMORY_LIMIT:
        raise UserError(f"the {len(views)} images of {source} take {total / 2**30:.1f} GiB: take fewer or smaller ones")


def _note_reduction(image: Path, height: int, width: int, source: Path) -> None:
    """Warn where images are read at a much smaller size than they have: a scene shows no more than that."""
    from v2edit.video.stills import open_image

    with open_image(image) as picture:
        if height * width < MUCH_SMALLER * picture.height * picture.width:
            message = "the images of %s, %dx%d, are read at %dx%d: expect less detail; --side sets the size"
            log.warning(message, source, *picture.size, width, height)


def _check_camera(view: View, source: Path) -> None:
    """Raise `UserError` where a pose, a size or a lens is invalid."""
    pose = view.camera_to_world
    if pose.shape != (4, 4) or not np.isfinite(pose).all() or not np.allclose(pose[3], [0, 0, 0, 1], atol=1e-6):
        raise UserError(f"{source}: the pose of {view.name} is no 4x4 matrix of finite numbers with 0 0 0 1 below")
    rotation = pose[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        lengths = ", ".join(f"{length:.3g}" for length in np.linalg.norm(rotation, axis=0))
        expected = "expected three perpendicular ones of length 1, right-handed"
        raise UserError(
            f"{source}: the pose of {view.name} is no rotation and translation: axes of lengths {lengths}, {expected}"
        )
    if min(view.size) < 1:
        raise UserError(f"{source}: the camera of {view.name} has a size of {view.size[1]}x{view.size[0]}")
    if not (np.isfinite(view.intrinsics).all() and view.intrinsics[0, 0] > 0 and view.intrinsics[1, 1] > 0):
        raise UserError(f"{source}: the focal length of {view.name} is not above 0")
    if (focal := max(view.intrinsics[0, 0], view.intrinsics[1, 1])) < MIN_FOCAL * max(view.size):
        size = f"{view.size[1]}x{view.size[0]}"
        raise UserError(f"{source}: the focal length of {view.name} is {focal:g}, expected pixels of its {size} image")
    if not np.isfinite(astuple(view.distortion)).all():
        raise UserError(f"{source}: the distortion of {view.name} is no finite number")


def _nearest_rotation(pose: np.ndarray) -> np.ndarray:
    """Return a pose [4, 4] whose rotation has none of the rounding to few decimals of a file."""
    if np.abs(pose[:3, :3] @ pose[:3, :3].T - np.eye(3)).max() < EXACT:
        return pose
    left, _, right = np.linalg.svd(pose[:3, :3])
    exact = pose.copy()
    exact[:3, :3] = left @ right
    return exact


def _read_view(view: View, side: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the undistorted image [H, W, 3], where it is valid, bool [H, W], and the intrinsics of its size."""
    from PIL import Image

    picture = _read_picture(view)
    stated_height, stated_width = view.size
    scale = min(1.0, (side or max(picture.size)) / max(picture.size))
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BOX)  # as a sensor with larger pixels would see it
    pixels = np.asarray(picture)
    width, height = size
    intrinsics = view.intrinsics * [[width / stated_width], [height / stated_height], [1.0]]
    valid = np.ones((height, width), bool)
    if view.mask is not None and is_existing_file(view.mask):
        mask = Image.fromarray(_read_mask(view.mask))
        if not _have_same_aspect(mask.size, size):
            raise UserError(
                f"{view.mask} is {mask.width}x{mask.height} and its image {picture.width}x{picture.height}: "
                "they must have the same aspect"
            )
        valid = np.asarray(mask.resize(size, Image.Resampling.NEAREST))
    if pixels.shape[2] == 4:
        # The background of a cut-out object is unknown.
        valid, pixels = valid & (pixels[..., 3] > 127), pixels[..., :3]
    image, inside = undistort(np.ascontiguousarray(pixels), intrinsics, view.distortion)
    if not inside.any():
        raise UserError(f"{view.image}: its camera's distortion leaves nothing of it")
    if not valid.all():
        mask, _ = undistort(np.repeat(valid[..., None], 3, 2).astype(np.uint8) * 255, intrinsics, view.distortion)
        valid = mask[..., 0] > 250
    return image, valid & inside, intrinsics


def _read_picture(view: View) -> Image:
    """Read the pixels that a view's pose is of: as they are stored, whatever their EXIF orientation says, or upright
    where only so they have their camera's aspect. Raises `UserError` where they have another."""
    from PIL import Image

    from v2edit.video.stills import read_image

    sizes = []
    for upright in (False, True):
        rgb, alpha = read_image(view.image, upright)
        picture = Image.fromarray(rgb if alpha is None else np.dstack([rgb, alpha]))
        if _have_same_aspect(picture.size, (view.size[1], view.size[0])):
            return picture
        sizes.append(f"{picture.width}x{picture.height}")
    camera = f"{view.size[1]}x{view.size[0]}"
    raise UserError(f"{view.image} is {sizes[0]} and its camera {camera}: they must have the same aspect")


def _have_same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether sizes (width, height) have the same aspect, but for the rounding of the smaller."""
    return abs(size[1] / size[0] - other[1] / other[0]) <= 1.5 / min(*size, *other)


def _read_mask(path: Path) -> np.ndarray:
    """Read where a mask keeps its view, bool [H, W]: where it is not 0, as nerfstudio has it, be it of 1 bit, 8 or 16,
    or of a palette, whose indices count. Colours keep where any is not 0, unless they are transparent."""
    from v2edit.video.stills import open_image

    with open_image(path) as picture:
        values = np.asarray(picture) != 0
        if picture.mode in ("LA", "PA", "RGBA"):
            return values[..., :-1].any(-1) & values[..., -1]
        return values if values.ndim == 2 else values.any(-1)


def _note_missing(what: str, files: Sequence[Path | None], source: Path) -> None:
    """Warn of the files that do not exist."""
    named = [file for file in files if file is not None]
    if missing := [file.name for file in named if not is_existing_file(file)]:
        log.warning("%d of %d %s of %s are missing: %s", len(missing), len(named), what, source, list_names(missing))


def list_names(names: Sequence[str]) -> str:
    """Join the first names, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
