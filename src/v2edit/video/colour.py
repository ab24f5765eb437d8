"""Colours and geometry of decoded frames, as a player shows them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from v2edit.video.stills import composite_on_black
from v2edit.video.tonemap import WHITE, ToneMap

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.reformatter import VideoReformatter

BT709, BT601, SMPTE240M, BT2020, FCC = 1, 5, 7, 9, 4  # matrices, by FFmpeg's numbers
MATRIX_OF_TAG = {1: BT709, 4: FCC, 5: BT601, 6: BT601, 7: SMPTE240M, 9: BT2020, 10: BT2020}
LIMITED, FULL = 1, 2
FULL_FROM_LIMITED = ((np.arange(256) - 16) * 255 / 219).round().clip(0, 255).astype(np.uint8)


def square_pixel_size(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Return (width, height) for square pixels: the side that is squeezed in storage is stretched."""
    aspect = aspect or Fraction(1)
    if aspect > 1:
        width = int(width * aspect + Fraction(1, 2))
    elif 0 < aspect < 1:
        height = int(height / aspect + Fraction(1, 2))
    return width, height


def frame_to_rgb(
    frame: VideoFrame,
    size: tuple[int, int],
    reformatter: VideoReformatter,
    tone_map: ToneMap | None = None,
    flatten: Callable[[np.ndarray, np.ndarray | None], np.ndarray] = composite_on_black,
) -> np.ndarray:
    """Convert a decoded frame to RGB, uint8 [H, W, 3], by its own matrix and range, and where it is HDR by the tone
    map, which goes with the whole video; `flatten` lays transparency over black."""
    kind, colours = frame.format, _source_colours(frame)
    transparent = kind.name == "pal8" or any(c.is_alpha for c in kind.components)
    if tone_map is not None and frame.color_trc == tone_map.transfer:
        pixels = _reformat(frame, size, reformatter, "rgba64le" if transparent else "rgb48le", colours)
        rgb = tone_map(pixels[..., :3], frame.color_primaries != BT709)
        return flatten(rgb, (pixels[..., 3] >> 8).astype(np.uint8)) if transparent else rgb
    rgb = _reformat(frame, size, reformatter, "rgba" if transparent else "rgb24", colours)
    if len(kind.components) == 1 and frame.color_range == LIMITED:  # swscale takes grey for full range
        rgb = FULL_FROM_LIMITED[rgb.astype(np.uint8)]
    return flatten(rgb[..., :3], rgb[..., 3]) if transparent else rgb


def _source_colours(frame: VideoFrame) -> dict[str, int]:
    """Return what swscale is to take for a frame's matrix and range."""
    kind = frame.format
    if kind.is_rgb or len(kind.components) <= 2:
        return {}
    guess = BT709 if frame.width >= 1280 or frame.height > 576 else BT601
    full = frame.color_range == FULL or kind.name.startswith("yuvj")
    return {
        "src_colorspace": MATRIX_OF_TAG.get(frame.colorspace, guess),
        "src_color_range": FULL if full else LIMITED,
        "dst_color_range": FULL,
    }


def _reformat(
    frame: VideoFrame, size: tuple[int, int], reformatter: VideoReformatter, kind: str, colours: dict[str, int]
) -> np.ndarray:
    from av.video.reformatter import Interpolation

    smooth = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    return reformatter.reformat(frame, *size, kind, interpolation=smooth, threads=1, **colours).to_ndarray()


def find_brightest(frame: VideoFrame, reformatter: VideoReformatter, tone_map: ToneMap) -> float:
    """Return the luminance in cd/m2 of the brightest part of an HDR frame, seen at a quarter of its size: no speck."""
    size = max(1, frame.width // 4), max(1, frame.height // 4)
    return WHITE * float(tone_map.light(_reformat(frame, size, reformatter, "rgb48le", _source_colours(frame))).max())


def find_display_matrix(frame: VideoFrame) -> list[int] | None:
    """Return (a, b, c, d) of a frame's display matrix: a stored pixel at (x, y) is shown at (a x + c y, b x + d y), up
    to scale and shift. None where it has none."""
    # Of a tiny copy: side data and its frame hold each other until garbage is collected. Interlaced, one has two lines.
    data = frame.reformat(2, 2, "gray16le", interpolation="POINT").side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32)[[0, 1, 3, 4]].tolist()


def apply_display_matrix(image: np.ndarray, matrix: list[int] | None) -> np.ndarray:
    """Turn and mirror an image [H, W, 3] by a display matrix, to the nearest quarter turn."""
    if matrix is None:
        return image
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
