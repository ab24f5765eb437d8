"""Read image files from outside, whatever their names and headers claim: the one image reader of videos and scenes."""

from __future__ import annotations

import itertools
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from v2edit.errors import UserError
from v2edit.files import check_content

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

HEIC = {".heic", ".heif", ".hif"}
IMAGES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jp2", *HEIC}
# An explicit list: other formats that Pillow knows run programs (PostScript) or follow references.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000")
# How image files begin, but for JPEG, of which a video may be made (MJPEG), and GIF: FFmpeg reads both.
SIGNATURES = re.compile(
    rb"\x89PNG\r\n\x1a\n|RIFF.{4}WEBP|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|\0{3}\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", re.DOTALL
)
PAGED = {"WEBP", "TIFF", "AVIF", "GIF", "PNG"}  # whose further pictures are frames or pages, not previews or depth
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
AVIF_BRANDS = {b"avif", b"avis"}
# Raised by Pillow's decoders for a broken file.
DECODER_ERRORS = (
    *(ArithmeticError, EOFError, LookupError, OSError, SyntaxError, TypeError, ValueError, UserWarning),
    *(struct.error, zlib.error),
)
MAX_PIXELS = 2**26  # of one picture: 8192x8192
BITS_PER_SAMPLE = 258  # a TIFF tag
BRIGHTEST = 16  # times white; a decimal image with more counts to 255 or 65535
SUBFILE_TYPE = 254  # a TIFF tag: odd for a preview
PHOTOMETRIC = 262  # a TIFF tag: 0 where 0 is white
PLANAR = 284  # a TIFF tag: 2 for colours in separate planes
SAMPLE_FORMAT = 339  # a TIFF tag: 2 for signed numbers, 3 for decimal ones
DEEP = {"F", "I", "I;16", "I;16L", "I;16B", "I;16N"}  # Pillow's modes of grey with more than 8 bits
WHITE_32 = 2.0**32 - 1


def read_image(path: Path, upright: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an image file to (RGB, alpha): uint8 [H, W, 3], and uint8 [H, W] or None where it has no transparency.

    Alpha is straight: the colours are those stored, and `composite_on_black` lays them over black. Grey, palettes,
    CMYK, 16 bits (the upper 8 are taken) and decimal numbers (0 is black, 1 is white) are converted. With `upright` the
    EXIF orientation is applied; without, the pixels are as stored, which camera poses refer to. HEIC needs the package
    pillow-heif, which applies the orientation itself. Of several pictures in the file the first is taken, which is
    logged. Raises `UserError`, in one line, for what is no image, damaged or larger than 8192x8192."""
    with open_image(path) as image:
        if (count := count_pictures(image)) > 1:
            log.warning("%s holds %d pictures: the first one is taken", path.name, count)
        return _to_rgb(image, upright, _white_level(image, path))


def read_pictures(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray | None, float]]:
    """Yield all pictures of an image file in order, upright: (RGB, alpha, milliseconds), as `read_image` returns them,
    and how long a picture shows, 0 where the file says nothing (TIFF). They end, which is logged, before one that is
    damaged or cut off. Raises `UserError` like `read_image`."""
    with open_image(path) as image:
        white = _white_level(image, path)
        for k in range(count_pictures(image)):
            try:
                image.seek(k)
                _check_picture(image, path)
                picture = _to_rgb(image, True, white)
            except UserError:
                raise
            except DECODER_ERRORS:
                if k == 0:
                    raise
                log.warning("%s is damaged or cut off: the first %d of its pictures are read", path.name, k)
                return
            yield *picture, float(image.info.get("duration") or 0)


def composite_on_black(rgb: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """Composite colours, uint8 [H, W, 3], with straight alpha, uint8 [H, W] or None, on black, to uint8 [H, W, 3]."""
    if alpha is None:
        return rgb
    return ((rgb.astype(np.uint16) * alpha[..., None].astype(np.uint16) + 127) // 255).astype(np.uint8)


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which 2.png comes before 10.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.findall(r"\d+|\D+", name)]


def count_pictures(image: Image) -> int:
    """Return how many frames or pages an open image file has, the first broken one included; previews and depth maps
    are none."""
    if image.format not in PAGED:
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except DECODER_ERRORS:
        return 1 + sum(1 for _ in _seek_pictures(image))


def _seek_pictures(image: Image) -> Iterator[int]:
    """Yield the indices of the pictures of an open image file, each once the file is at it, up to a broken one."""
    with suppress(*DECODER_ERRORS):
        for k in itertools.count():
            image.seek(k)
            yield k


def is_image(head: bytes) -> bool:
    """Return whether a file that begins with these bytes (64 are enough) is an image, or several, that Pillow reads."""
    return bool(SIGNATURES.match(head) or _find_brands(head) & (AVIF_BRANDS | HEIC_BRANDS))


def is_heic(head: bytes) -> bool:
    """Return whether a file that begins with these bytes (64 are enough) is a HEIC photo; AVIF is none."""
    brands = _find_brands(head)
    return bool(brands & HEIC_BRANDS) and not brands & AVIF_BRANDS


def _find_brands(head: bytes) -> set[bytes]:
    """Return the brands of a file of boxes (MP4, HEIC, AVIF) that begins with these bytes."""
    if head[4:8] != b"ftyp":
        return set()
    return {head[k : k + 4] for k in (8, *range(16, min(len(head), int.from_bytes(head[:4], "big")), 4))}


@contextmanager
def open_image(path: Path) -> Iterator[Image]:
    """Open an image file without decoding it. Raises `UserError`, also while it is decoded inside the context, for a
    file that is no image, is damaged or is larger than 8192x8192."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with path.open("rb") as file:
                head = file.read(64)
            check_content(path, head, "image")
            formats = (_heif_format(path),) if is_heic(head) else FORMATS
            with Image.open(path, formats=formats) as image:
                _check_picture(image, path)
                if image.format == "TIFF":  # the index of a page that ends with the file, and with it all later pages
                    if image.tag_v2.get(SUBFILE_TYPE, 0) & 1:  # pyright: ignore[reportAttributeAccessIssue]
                        raise UserError(f"{path} is a camera's raw photo: develop it to JPEG, PNG or TIFF first")
                    warnings.filterwarnings("error", "Corrupt EXIF data|Truncated File Read")
                yield image
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{path} is too large an image") from None
    except DECODER_ERRORS as error:
        reason = getattr(error, "strerror", None) or "damaged, or of an unknown kind"
        if isinstance(error, UnidentifiedImageError) and path.suffix.lower() in (".tif", ".tiff"):
            reason = "damaged, or of samples that few programs read, as decimal colours: convert it to 8 or 16 bits"
        raise UserError(f"{path} is not an image that can be read ({reason})") from None


def _heif_format(path: Path) -> str:
    """Register the HEIC reader with Pillow and return its format. Raises `UserError` where it is not installed."""
    if not has_heif():
        raise UserError(f"{path} is a HEIC photo: `pip install pillow-heif` reads it, or convert it to JPEG or PNG")
    import pillow_heif  # pyright: ignore[reportMissingImports]

    pillow_heif.register_heif_opener(thumbnails=False)
    return "HEIF"


def has_heif() -> bool:
    """Return whether pillow-heif is installed, which reads HEIC photos."""
    from importlib.util import find_spec

    return find_spec("pillow_heif") is not None


def _check_picture(image: Image, path: Path) -> None:
    """Raise `UserError` where the current picture is too large, or a TIFF picture whose samples Pillow takes for
    others: it reads planes of 16 bits as of 8, and swaps bytes that libtiff has swapped."""
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{path} is too large an image: {image.width}x{image.height}")
    if image.format != "TIFF" or not image.tile:
        return
    tags, by_libtiff = image.tag_v2, image.tile[0][0] == "libtiff"  # pyright: ignore[reportAttributeAccessIssue]
    bits, kind = tags.get(BITS_PER_SAMPLE, (1,)), tags.get(SAMPLE_FORMAT, (1,))[0]
    layout = None
    if tags.get(PLANAR, 1) == 2 and (len(bits) == 2 or (bits[0] > 8 and not by_libtiff)):
        layout = "samples in separate planes"
    elif by_libtiff and tags.prefix == b"MM" and kind != 1 and bits[0] > 8:
        layout = "compressed big-endian samples with signs or decimals"
    if layout:
        raise UserError(f"{path} is a TIFF file of a layout that few programs read ({layout}): convert it to PNG")


def _to_rgb(image: Image, upright: bool, white: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode the current picture to (RGB, alpha) as `read_image` does; `white` is the value of white in grey of more
    than 8 bits."""
    from PIL import ImageOps

    tags = getattr(image, "tag_v2", {})
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode in DEEP:  # which convert() would clip
        values, transparent = _read_deep(image, white), image.info.get("transparency")
        alpha = None if transparent is None else np.where(values == transparent, 0, 255).astype(np.uint8)
        grey = np.nan_to_num(values).clip(0, white)
        # Whole numbers lose their lower bits, as libpng does it; decimal ones are rounded.
        grey = np.rint(grey * (255 / white)) if image.mode == "F" else grey // ((white + 1) / 256)
        grey = grey.astype(np.uint8)
        return np.repeat((255 - grey if tags.get(PHOTOMETRIC) == 0 else grey)[..., None], 3, axis=2), alpha
    if image.mode == "L" and tags.get(SAMPLE_FORMAT, (1,))[0] == 2:
        grey = np.rint(np.asarray(image).view(np.int8).clip(0) * (255 / 127)).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2), None
    if image.has_transparency_data:
        rgba = np.array(image.convert("RGBA"))
        return rgba[..., :3], rgba[..., 3]
    return np.array(image.convert("RGB")), None


def _read_deep(image: Image, white: float) -> np.ndarray:
    """Return grey of more than 8 bits as float64 [H, W]; Pillow holds unsigned 32-bit numbers as signed ones."""
    values = np.asarray(image)
    return (values.view(np.uint32) if white == WHITE_32 and values.dtype == np.int32 else values).astype(np.float64)


def _white_level(image: Image, path: Path) -> float:
    """Return the value of white in grey of more than 8 bits. Decimal numbers go to 1, by the field's convention, unless
    a file's go far beyond; 32-bit numbers often hold 16 bits."""
    if image.mode not in ("I", "F"):
        return 2.0 ** getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0] - 1
    is_signed = getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, (1,))[0] == 2
    unsigned = 0.0 if is_signed or image.mode == "F" else WHITE_32
    peak = 0.0
    for _ in _seek_pictures(image):
        with suppress(*DECODER_ERRORS):
            peak = max(peak, float(np.nan_to_num(_read_deep(image, unsigned), posinf=0, neginf=0).max()))
    image.seek(0)
    if image.mode == "I":
        levels = (32767.0, 65535.0, 2.0**31 - 1) if is_signed else (65535.0, WHITE_32)
        return next(w for w in levels if peak <= w)
    white = next((w for w in (255.0, 65535.0) if BRIGHTEST < peak <= w), 1.0)
    if peak > 1:
        log.warning("%s holds decimal numbers up to %.4g: 0 is taken for black, %g for white", path.name, peak, white)
    return white
