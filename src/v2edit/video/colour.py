"""Colours and geometry of decoded frames, as a player shows them."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from v2edit.video.stills import composite_on_black

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.reformatter import VideoReformatter

BT709, BT601, SMPTE240M, BT2020, FCC = 1, 5, 7, 9, 4  # matrices, by FFmpeg's numbers
MATRIX_OF_TAG = {1: BT709, 4: FCC, 5: BT601, 6: BT601, 7: SMPTE240M, 9: BT2020, 10: BT2020}
LIMITED, FULL = 1, 2
FULL_FROM_LIMITED = ((np.arange(256) - 16) * 255 / 219).round().clip(0, 255).astype(np.uint8)
HDR_CURVES = {16, 18}  # PQ and HLG


def square_pixel_size(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Return (width, height) for square pixels: the side that is squeezed in storage is stretched."""
    aspect = aspect or Fraction(1)
    if aspect > 1:
        width = int(width * aspect + Fraction(1, 2))
    elif 0 < aspect < 1:
        height = int(height / aspect + Fraction(1, 2))
    return width, height


def frame_to_rgb(frame: VideoFrame, size: tuple[int, int], reformatter: VideoReformatter) -> np.ndarray:
    """Convert a decoded frame to RGB, uint8 [H, W, 3], by its own matrix, range and transfer curve."""
    from av.video.reformatter import ColorPrimaries, ColorTrc, Interpolation

    kind, colours = frame.format, {}
    transparent = kind.name == "pal8" or any(c.is_alpha for c in kind.components)
    if not kind.is_rgb and len(kind.components) > 2:
        guess = BT709 if frame.width >= 1280 or frame.height > 576 else BT601
        full = frame.color_range == FULL or kind.name.startswith("yuvj")
        colours = {
            "src_colorspace": MATRIX_OF_TAG.get(frame.colorspace, guess),
            "src_color_range": FULL if full else LIMITED,
            "dst_color_range": FULL,
        }
    if frame.color_trc in HDR_CURVES:
        colours |= {"dst_color_trc": ColorTrc.BT709, "dst_color_primaries": ColorPrimaries.BT709}
    smooth = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    rgb = reformatter.reformat(
        frame, *size, "rgba" if transparent else "rgb24", interpolation=smooth, threads=1, **colours
    ).to_ndarray()
    if len(kind.components) == 1 and frame.color_range == LIMITED:  # swscale takes grey for full range
        rgb = FULL_FROM_LIMITED[rgb.astype(np.uint8)]
    return composite_on_black(rgb[..., :3], rgb[..., 3]) if transparent else rgb


def apply_display_matrix(image: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Turn and mirror a frame's image [H, W, 3] by its display matrix, to the nearest quarter turn: a stored pixel at
    (x, y) is shown at (a x + c y, b x + d y), up to scale and shift."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
