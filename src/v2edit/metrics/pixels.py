"""Measures of pixels: PSNR, SSIM and flicker; `ssim_map` is the metric's and the reconstruction loss's alike.

Letters: T frames, C channels. Frames are uint8 [T, H, W, C], masks bool [T, H, W].
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.video.stream import Frames

Array = Tensor | np.ndarray
RADIUS, SIGMA = 5, 1.5  # of SSIM's Gaussian window, in pixels


def psnr(a: Array, b: Array, mask: Array | None = None, data_range: float = 255.0, highest: float = math.inf) -> float:
    """Return the peak signal-to-noise ratio of two arrays of pixels in dB, `highest` at most. Integers are compared in
    float64, floats in their own precision. Where `mask`, bool over the leading dimensions, selects nothing: nan."""
    a, b = (one if one.is_floating_point() else one.double() for one in map(_tensor, (a, b)))
    error = (a - b) ** 2
    if mask is not None:
        error = error[_tensor(mask)]
    if not error.numel():
        return math.nan
    return mse_to_psnr(float(error.mean()), data_range, highest)


def clip_psnr(a: Frames, b: Frames, mask: Frames, highest: float = math.inf) -> float:
    """Return the `psnr` of two clips over a mask, frame by frame: clips may be streams."""
    total, count = 0.0, 0
    for first, second, inside in zip(a, b, mask, strict=True):
        errors = np.square(first.astype(np.float64) - second)[inside]
        total, count = total + float(errors.sum()), count + errors.size
    return mse_to_psnr(total / count, highest=highest) if count else math.nan


def mse_to_psnr(mse: float, data_range: float = 255.0, highest: float = math.inf) -> float:
    """Convert a mean squared error to a peak signal-to-noise ratio in dB, `highest` at most."""
    return highest if mse == 0 else min(highest, 10 * math.log10(data_range**2 / mse))


def _tensor(values: Array) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(np.require(values, requirements=["C", "W"]))


def ssim(frames: Frames, reference: Frames, mask: Frames) -> float:
    """Return the structural similarity over a mask: the mean of `ssim_map`, which is symmetric at the frame's edge.
    Outside the mask the frames are replaced by the reference first: windows reach 5 pixels over the mask's border, and
    what lies beyond it belongs to the other region's measure. So the true edit scores 1 on both sides. The result is
    nan where the mask is empty."""
    total, count = 0.0, 0
    for frame, ideal, inside in zip(frames, reference, mask, strict=True):
        if inside.any():
            pair = (torch.from_numpy(one).double() for one in (np.where(inside[..., None], frame, ideal), ideal))
            likeness = ssim_map(*pair, data_range=255.0, padding="symmetric").permute(1, 2, 0)[torch.from_numpy(inside)]
            total, count = total + float(likeness.sum()), count + likeness.numel()
    return total / count if count else math.nan


def ssim_map(a: Tensor, b: Tensor, data_range: float = 1.0, padding: Literal["zeros", "symmetric"] = "zeros") -> Tensor:
    """Return the structural similarity (Wang et al. 2004, Eq. 13) at each pixel of images [H, W, C] as [C, H, W],
    differentiable: 11 x 11 Gaussian windows, sigma 1.5. Beyond the edge are zeros, or the image mirrored with its last
    row and column (`symmetric`), as in scikit-image."""
    window = torch.exp(-((torch.arange(2 * RADIUS + 1, dtype=a.dtype, device=a.device) - RADIUS) ** 2) / (2 * SIGMA**2))
    window = window / window.sum()
    height, width, channels = a.shape
    images = torch.stack([a, b, a * a, b * b, a * b]).permute(0, 3, 1, 2).reshape(-1, 1, height, width)
    pad = RADIUS if padding == "zeros" else 0
    if padding == "symmetric":
        images = images[..., _mirrored(height), :][..., _mirrored(width)]
    smooth = F.conv2d(images, window.view(1, 1, -1, 1), padding=(pad, 0))
    smooth = F.conv2d(smooth, window.view(1, 1, 1, -1), padding=(0, pad))
    mean_a, mean_b, aa, bb, ab = smooth.view(5, channels, height, width)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * (ab - mean_a * mean_b) + c2)
    return likeness / ((mean_a**2 + mean_b**2 + c1) * (aa - mean_a**2 + bb - mean_b**2 + c2))


def _mirrored(size: int) -> Tensor:
    """Return the indices -RADIUS ... size + RADIUS - 1 folded into 0 ... size - 1, the edge repeated."""
    period = torch.arange(-RADIUS, size + RADIUS) % (2 * size)
    return torch.minimum(period, 2 * size - 1 - period)


def flicker(frames: Frames, reference: Frames, mask: Frames) -> float:
    """Return the mean absolute second difference over time of (frames - reference), in levels of 255, over the pixels
    that lie in the mask in all three frames; nan where there is none. Second differences pass over constant errors and
    steady drifts, which the other measures see; the reference is subtracted so that real motion does not count. (The
    ratio to the reference's own second difference would not do: that is zero where camera and objects are still.)"""
    total, count = 0.0, 0
    last: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=3)
    for frame, ideal, inside in zip(frames, reference, mask, strict=True):
        last.append((frame.astype(np.float64) - ideal, inside))
        if len(last) == 3:
            (first, a), (second, b), (third, c) = last
            changes = np.abs(first - 2 * second + third)[a & b & c]
            total, count = total + float(changes.sum()), count + changes.size
    return total / count if count else math.nan


def harmonic_mean(a: float, b: float) -> float:
    """Return 2ab / (a + b), and 0 where both are 0."""
    return 2 * a * b / (a + b) if a + b != 0 else 0.0
