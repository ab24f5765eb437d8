"""Pictures without poses: photographs of a folder or frames of a video, written upright and at one size.

Letters: H and W the sides of a picture.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from v2edit.errors import UserError
from v2edit.scenes.formats.nerfstudio import file_names
from v2edit.video.stills import HEIC, IMAGES, count_pictures, has_heif, natural_key, open_image, read_image

log = logging.getLogger(__name__)
DAMAGED, ANIMATED, NO_HEIF = "damaged", "animated", "HEIC"  # why files among photographs are left out
MOVING_KINDS = {"GIF", "WEBP", "PNG", "AVIF"}  # of which several pictures in a file are an animation
IMAGE_FOLDERS = (".", "images", "input")  # of a project, as COLMAP, nerfstudio and 3D Gaussian Splatting name them
MASK_FOLDER = "masks"
LONG_SIDE = 1600  # pixels of what cameras are found in and scenes are made of: COLMAP's own medium quality
QUALITY = 95  # of JPEG
BLUR_SIDE = 512  # pixels at which blur is measured
EXIF, ORIENTATION, MAKE, MODEL = 0x8769, 0x0112, 0x010F, 0x0110
FOCAL, FOCAL_35, LENS = 0x920A, 0xA405, 0xA434
FILM_DIAGONAL = math.hypot(36, 24)  # mm
TURNS = {3: 2, 4: 2, 5: 1, 6: 1, 7: 3, 8: 3}  # from upright to how it is stored, by EXIF's orientation


@dataclass(frozen=True)
class Picture:
    """A picture as it was taken. `size`: (H, W), upright. `camera`: equal for pictures that share their intrinsics.
    `focal`: in pixels, None where the file does not say. `mask`: the file of what of it counts. `stored`: the quarter
    turns, counted as `np.rot90` does, from upright to how the camera's sensor saw it; `turns`: those to how most
    pictures of its camera are upright, 0 for those."""

    name: str
    size: tuple[int, int]
    camera: tuple[object, ...]
    focal: float | None = None
    mask: Path | None = None
    stored: int = 0
    turns: int = 0


@dataclass(frozen=True)
class WrittenPicture:
    """A picture as it was written: `file` and `mask` are names in `images` and `masks`. The picture is scaled by
    `scale` into the middle of its file. `blur`: 0 (sharp) to 1. `kept`: the share of the picture that counts."""

    picture: Picture
    file: str
    mask: str | None
    scale: float
    blur: float
    kept: float = 1.0


def list_photographs(folder: Path) -> tuple[list[Path], dict[str, list[str]]]:
    """Return the image files of a folder without poses, in natural order: its own, or those of its `images` or
    `input`; [] where there are none. And the names of files beside them that are none, by why."""
    left_out: dict[str, list[str]] = {}
    for name in IMAGE_FOLDERS:
        place = folder / name
        if not place.is_dir():
            continue
        kinds = IMAGES | {".gif"}
        files = [f for f in place.iterdir() if f.suffix.lower() in kinds and not f.name.startswith(".") and f.is_file()]
        files.sort(key=lambda file: (natural_key(file.name), file.name))
        for why, suffixes in ((ANIMATED, {".gif"}), (NO_HEIF, set() if has_heif() else HEIC)):
            if names := [file.name for file in files if file.suffix.lower() in suffixes]:
                left_out[why] = left_out.get(why, []) + names
                files = [file for file in files if file.suffix.lower() not in suffixes]
        if files:
            return files, left_out
    return [], left_out


def find_masks(folder: Path, files: Sequence[Path]) -> dict[Path, Path]:
    """Return the masks of a project's photographs, in `masks` there or beside them, named as nerfstudio (`a.png`) or
    COLMAP (`a.jpg.png`) has them. Raises `UserError` for one that is no file."""
    places = [folder / MASK_FOLDER, *(file.parent / MASK_FOLDER for file in files[:1])]
    place = next((place for place in places if place.is_dir()), None)
    if place is None:
        return {}
    present = {mask.stem: mask for mask in sorted(place.iterdir()) if mask.suffix.lower() in IMAGES}
    found = {file: mask for file in files if (mask := present.get(file.name) or present.get(file.stem))}
    for file, mask in found.items():
        if not mask.is_file():
            raise UserError(f"{mask} is {'a folder' if mask.is_dir() else 'no file'}, expected the mask of {file.name}")
    if not found and files:
        log.warning("no mask in %s is named as a picture, such as %s.png", place, files[0].stem)
    return found


def describe_photograph(file: Path) -> Picture | None:
    """Return what a photograph's file says of it, None of an animation; its pixels are not read. Raises `UserError` for
    what is no image."""
    with open_image(file) as image:
        if image.format in MOVING_KINDS and count_pictures(image) > 1:
            return None
        exif, (width, height) = image.getexif(), image.size
    details, orientation = exif.get_ifd(EXIF), exif.get(ORIENTATION, 1)
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    film = _number(details.get(FOCAL_35))
    focal = film / FILM_DIAGONAL * math.hypot(width, height) if film else None
    camera = (height, width, exif.get(MAKE), exif.get(MODEL), details.get(LENS), film, _number(details.get(FOCAL)))
    return Picture(file.name, (height, width), camera, focal, stored=TURNS.get(orientation, 0))


def join_turned(pictures: Sequence[Picture]) -> list[Picture]:
    """Return pictures, those which their camera was turned for by a quarter with the camera of the others, turned: they
    share its intrinsics, which one picture alone tells little of."""
    size = commonest_size(pictures)
    main = [picture for picture in pictures if picture.size == size]
    stored = {camera: Counter(p.stored for p in main if p.camera == camera) for camera in {p.camera for p in main}}
    joined = []
    for picture in pictures:
        camera = (*size, *picture.camera[2:])
        if size[0] != size[1] and picture.size == size[::-1] and camera in stored:
            turns = (picture.stored - stored[camera].most_common(1)[0][0]) % 4
            picture = replace(picture, camera=camera, turns=turns if turns % 2 else 1)  # 1 where no file says it
        joined.append(picture)
    return joined


def _number(value: object) -> float:
    """Return a number of EXIF data; 0 where it is none."""
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0


def commonest_size(pictures: Sequence[Picture]) -> tuple[int, int]:
    """Return the size (H, W) that most pictures have."""
    return Counter(picture.size for picture in pictures).most_common(1)[0][0]


def choose_canvas(pictures: Sequence[Picture], side: int) -> tuple[int, int]:
    """Return the size (H, W) that all pictures are written at: the commonest, its longer side at most `side`."""
    height, width = commonest_size(pictures)
    scale = min(1.0, side / max(height, width))
    return max(1, round(scale * height)), max(1, round(scale * width))


def write_picture(
    folder: Path,
    file: str,
    picture: Picture,
    canvas: tuple[int, int],
    rgb: np.ndarray,
    alpha: np.ndarray | None,
    turned: bool = False,
) -> WrittenPicture:
    """Write a picture, uint8 [H, W, 3], into `images` of a folder, in the middle of a canvas of (H, W), reduced or
    enlarged to fit, and into `masks` where not all of the file counts: upright, or `turned` to how its camera was held.
    Raises `UserError` for a mask of another aspect."""
    valid = np.ones(rgb.shape[:2], bool) if alpha is None else alpha > 127
    if picture.mask is not None:
        valid = valid & _read_keep(picture, rgb.shape[:2])
    turns = picture.turns if turned else 0
    return _write_fitted(folder, file, picture, canvas, np.rot90(rgb, turns), np.rot90(valid, turns))


def stand_up(folder: Path, one: WrittenPicture) -> WrittenPicture:
    """Write a picture that was written turned upright in its stead."""
    from PIL import Image

    with Image.open(folder / "images" / one.file) as image:
        rgb = np.asarray(image)
    valid = np.ones(rgb.shape[:2], bool)
    if one.mask is not None:
        with Image.open(folder / MASK_FOLDER / one.mask) as image:
            valid = np.asarray(image) > 127
    turned = [np.rot90(pixels, -one.picture.turns) for pixels in (rgb, valid)]
    return _write_fitted(folder, one.file, one.picture, rgb.shape[:2], *turned)


def fit_size(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size (H, W) at which a picture of a `size` fits a canvas, and its offset (y, x) in the middle."""
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    if all(abs(scale * own - whole) <= 1 for own, whole in zip(size, canvas, strict=True)):
        return canvas, (0, 0)
    height, width = (max(1, round(scale * own)) for own in size)
    return (height, width), ((canvas[0] - height) // 2, (canvas[1] - width) // 2)


def _write_fitted(
    folder: Path, file: str, picture: Picture, canvas: tuple[int, int], rgb: np.ndarray, keep: np.ndarray
) -> WrittenPicture:
    """Write a picture, uint8 [H, W, 3], that counts where `keep`, bool [H, W], as `write_picture` does."""
    from PIL import Image

    size, offset = fit_size(rgb.shape[:2], canvas)
    place = slice(offset[0], offset[0] + size[0]), slice(offset[1], offset[1] + size[1])
    pixels, valid = np.zeros((*canvas, 3), np.uint8), np.zeros(canvas, bool)
    pixels[place], valid[place] = _resized(np.ascontiguousarray(rgb), size), True
    if not keep.all():
        valid[place] = _resized(keep.astype(np.uint8) * 255, size) > 127
    Image.fromarray(pixels).save(folder / "images" / file, quality=QUALITY, subsampling=0)
    mask = None
    if not valid.all():
        mask = f"{file}.png"  # as COLMAP looks for it
        (folder / MASK_FOLDER).mkdir(exist_ok=True)
        Image.fromarray(valid.astype(np.uint8) * 255).save(folder / MASK_FOLDER / mask)
    scale = min(canvas[0] / rgb.shape[0], canvas[1] / rgb.shape[1])
    return WrittenPicture(picture, file, mask, scale, measure_blur(pixels[place]), float(valid[place].mean()))


def file_names_of(pictures: Sequence[Picture]) -> list[str]:
    """Return plain, distinct names of JPEG files for pictures, which natural sorting leaves in their order."""
    return [f"{name}.jpg" for name in file_names([picture.name for picture in pictures])]


def _read_keep(picture: Picture, size: tuple[int, int]) -> np.ndarray:
    """Return what of a picture its mask keeps (what is not 0), bool [H, W], at a size (H, W)."""
    assert picture.mask is not None
    rgb, alpha = read_image(picture.mask)
    (height, width), (own_height, own_width) = rgb.shape[:2], picture.size
    if abs(height / width - own_height / own_width) > 1.5 / min(height, width, own_height, own_width):
        raise UserError(
            f"{picture.mask} is {width}x{height} and {picture.name} is {own_width}x{own_height}: a mask has the aspect "
            "of its picture, upright"
        )
    keep = np.asarray(rgb.any(2) if alpha is None else rgb.any(2) & (alpha > 0))
    return _resized(np.where(keep, 255, 0).astype(np.uint8), size) > 127


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return uint8 [H, W] or [H, W, 3] at a size (H, W)."""
    import cv2

    if values.shape[:2] == size:
        return values
    smaller = size[0] < values.shape[0]
    return cv2.resize(values, (size[1], size[0]), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def measure_blur(rgb: np.ndarray) -> float:
    """Return how blurred a picture, uint8 [H, W, 3], is: 0 (sharp) to 1, as what blurring it once more leaves of the
    differences between its neighbouring pixels (Crété-Roffet et al. 2007)."""
    import cv2

    scale = min(1.0, BLUR_SIDE / max(rgb.shape[:2]))
    size = max(1, round(scale * rgb.shape[0])), max(1, round(scale * rgb.shape[1]))
    grey = cv2.cvtColor(_resized(rgb, size), cv2.COLOR_RGB2GRAY).astype(np.float32)
    blur = 0.0
    for axis, kernel in ((0, (1, 9)), (1, (9, 1))):
        own = np.abs(np.diff(grey, axis=axis))
        again = np.abs(np.diff(cv2.blur(grey, kernel), axis=axis))
        total = float(own.sum())
        blur = max(blur, 1 - float(np.maximum(0, own - again).sum()) / total if total > 0 else 1.0)
    return blur
