"""Pictures without poses: photographs of a folder or frames of a video, written upright and at one size.

Letters: H and W the sides of a picture.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from v2edit.errors import UserError
from v2edit.scenes.dataset import list_names
from v2edit.scenes.formats.nerfstudio import file_names
from v2edit.video.stills import HEIC, IMAGES, has_heif, natural_key, open_image, read_image

log = logging.getLogger(__name__)
IMAGE_FOLDERS = (".", "images", "input")  # of a project, as COLMAP, nerfstudio and 3D Gaussian Splatting name them
MASK_FOLDER = "masks"
LONG_SIDE = 1600  # pixels of what cameras are found in and scenes are made of: COLMAP's own medium quality
QUALITY = 95  # of JPEG
BLUR_SIDE = 512  # pixels at which blur is measured
EXIF, ORIENTATION, MAKE, MODEL = 0x8769, 0x0112, 0x010F, 0x0110
FOCAL, FOCAL_35, LENS = 0x920A, 0xA405, 0xA434
FILM_DIAGONAL = math.hypot(36, 24)  # mm


@dataclass(frozen=True)
class Picture:
    """A picture as it was taken. `size`: (H, W), upright. `camera`: equal for pictures that share their intrinsics.
    `focal`: in pixels, None where the file does not say. `mask`: the file of what of it counts."""

    name: str
    size: tuple[int, int]
    camera: tuple[object, ...]
    focal: float | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class WrittenPicture:
    """A picture as it was written: `file` and `mask` are names in `images` and `masks`. The picture is scaled by
    `scale` into the middle of its file. `blur`: 0 (sharp) to 1."""

    picture: Picture
    file: str
    mask: str | None
    scale: float
    blur: float


def list_photographs(folder: Path) -> list[Path]:
    """Return the image files of a folder without poses, in natural order: its own, or those of its `images` or
    `input`. [] where there are none."""
    known = IMAGES if has_heif() else IMAGES - HEIC
    for name in IMAGE_FOLDERS:
        place = folder / name
        if not place.is_dir():
            continue
        files = [
            f for f in place.iterdir() if f.suffix.lower() in IMAGES and not f.name.startswith(".") and f.is_file()
        ]
        if missing := [file.name for file in files if file.suffix.lower() not in known]:
            log.warning("%d photos are left out (`pip install pillow-heif` reads HEIC): %s", len(missing),
                        list_names(missing))  # fmt: skip
        if files := [file for file in files if file.suffix.lower() in known]:
            return sorted(files, key=lambda file: (natural_key(file.name), file.name))
    return []


def find_masks(folder: Path, files: Sequence[Path]) -> dict[Path, Path]:
    """Return the masks of a project's photographs, in `masks` there or beside them, named as nerfstudio (`a.png`) or
    COLMAP (`a.jpg.png`) has them."""
    places = [folder / MASK_FOLDER, *(file.parent / MASK_FOLDER for file in files[:1])]
    place = next((place for place in places if place.is_dir()), None)
    if place is None:
        return {}
    present = {mask.stem: mask for mask in sorted(place.iterdir()) if mask.suffix.lower() in IMAGES}
    found = {file: mask for file in files if (mask := present.get(file.name) or present.get(file.stem))}
    if not found:
        log.warning("no mask in %s is named as a picture, such as %s.png", place, files[0].stem)
    return found


def describe_photograph(file: Path, mask: Path | None) -> Picture:
    """Return what a photograph's file says of it; its pixels are not read."""
    with open_image(file) as image:
        exif, (width, height) = image.getexif(), image.size
    details = exif.get_ifd(EXIF)
    if exif.get(ORIENTATION, 1) in (5, 6, 7, 8):
        width, height = height, width
    film = _number(details.get(FOCAL_35))
    focal = film / FILM_DIAGONAL * math.hypot(width, height) if film else None
    camera = (height, width, exif.get(MAKE), exif.get(MODEL), details.get(LENS), film, _number(details.get(FOCAL)))
    return Picture(file.name, (height, width), camera, focal, mask)


def _number(value: object) -> float:
    """Return a number of EXIF data; 0 where it is none."""
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0


def read_photographs(files: Sequence[Path]) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield photographs upright: (uint8 [H, W, 3], alpha uint8 [H, W] or None)."""
    for file in files:
        yield read_image(file)


def choose_canvas(pictures: Sequence[Picture], side: int) -> tuple[int, int]:
    """Return the size (H, W) that all pictures are written at: the commonest, its longer side at most `side`."""
    (height, width), _ = Counter(picture.size for picture in pictures).most_common(1)[0]
    scale = min(1.0, side / max(height, width))
    return max(1, round(scale * height)), max(1, round(scale * width))


def write_picture(
    folder: Path, file: str, picture: Picture, canvas: tuple[int, int], rgb: np.ndarray, alpha: np.ndarray | None
) -> WrittenPicture:
    """Write a picture, uint8 [H, W, 3], into `images` of a folder, in the middle of a canvas of (H, W), reduced or
    enlarged to fit; and into `masks` where not all of the file counts. Raises `UserError` for a mask of another
    aspect."""
    from PIL import Image

    height, width = canvas
    scale = min(height / rgb.shape[0], width / rgb.shape[1])
    if abs(scale * rgb.shape[0] - height) <= 1 and abs(scale * rgb.shape[1] - width) <= 1:
        size, offset = canvas, (0, 0)
    else:
        size = max(1, round(scale * rgb.shape[0])), max(1, round(scale * rgb.shape[1]))
        offset = (height - size[0]) // 2, (width - size[1]) // 2
    place = slice(offset[0], offset[0] + size[0]), slice(offset[1], offset[1] + size[1])
    pixels, valid = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool)
    pixels[place], valid[place] = _resized(rgb, size), True
    if alpha is not None:
        valid[place] &= _resized(alpha, size) > 127
    if picture.mask is not None:
        valid[place] &= _read_keep(picture, size)
    Image.fromarray(pixels).save(folder / "images" / file, quality=QUALITY, subsampling=0)
    mask = None
    if not valid.all():
        mask = f"{file}.png"  # as COLMAP looks for it
        (folder / MASK_FOLDER).mkdir(exist_ok=True)
        Image.fromarray(valid.astype(np.uint8) * 255).save(folder / MASK_FOLDER / mask)
    return WrittenPicture(picture, file, mask, scale, measure_blur(pixels[place]))


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
