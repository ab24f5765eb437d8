"""The loss of images for CPUs: L1 and the mean of `metrics.pixels.ssim_map`, and its gradient, in numba kernels.

The blur with a symmetric window over a zero border is its own transpose, so the backward pass blurs three images more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from v2edit.metrics.pixels import RADIUS, SIGMA

_WINDOW = np.exp(-((np.arange(2 * RADIUS + 1) - RADIUS) ** 2) / (2 * SIGMA**2))
WINDOW = (_WINDOW / _WINDOW.sum()).astype(np.float32)
ONE, TWO = np.float32(1), np.float32(2)
C1, C2 = np.float32(0.01**2), np.float32(0.03**2)


class ImageLoss(torch.autograd.Function):
    """Return (1 - w) L1 + w (1 - SSIM), 0-dimensional, of images float32 [H, W, 3] of 0..1 and a weight w,
    differentiable in the first."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, truth: Tensor, weight: float) -> Tensor:  # pyright: ignore
        a, b = (one.detach().float().contiguous().flatten(1).numpy() for one in (image, truth))
        by_mean, by_square, by_product = (np.empty_like(a) for _ in range(3))
        total = _compare(_blur(a), _blur(b), _blur(a * a), _blur(b * b), _blur(a * b), by_mean, by_square, by_product)
        gradient = np.empty_like(a)
        blurred = _blur(by_mean), _blur(by_square), _blur(by_product)
        far = _combine(a, b, *blurred, np.float32(weight), gradient)
        ctx.gradient = torch.from_numpy(gradient).view(image.shape)
        return image.new_tensor(((1 - weight) * far + weight * (a.size - total)) / a.size)

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        return d_loss * ctx.gradient, None, None


@njit(nogil=True, fastmath=True, cache=True)
def _combine(image, truth, by_mean, by_square, by_product, weight, gradient):
    """Return the sum of the differences of two images; write the gradient of the loss by the first, of SSIM's by the
    three things that are blurred."""
    total, scale = 0.0, np.float32(1.0 / image.size)
    for y in range(image.shape[0]):
        row = np.float32(0)
        for x in range(image.shape[1]):
            a, b = image[y, x], truth[y, x]
            row += abs(a - b)
            sign = np.float32(a > b) - np.float32(a < b)
            likeness = by_mean[y, x] + TWO * a * by_square[y, x] + b * by_product[y, x]
            gradient[y, x] = scale * ((ONE - weight) * sign - weight * likeness)
        total += row
    return total


@njit(nogil=True, fastmath=True, cache=True)
def _blur(image):
    """Blur an image [H, 3 W] of interleaved colours with SSIM's window."""
    height, width = image.shape
    down, out = np.zeros((height, width + 6 * RADIUS), np.float32), np.zeros((height, width), np.float32)
    for y in range(height):
        for k in range(max(0, RADIUS - y), min(2 * RADIUS + 1, height + RADIUS - y)):
            weight, row = WINDOW[k], image[y + k - RADIUS]
            for x in range(width):
                down[y, x + 3 * RADIUS] += weight * row[x]
    for y in range(height):
        for k in range(2 * RADIUS + 1):
            weight = WINDOW[k]
            for x in range(width):
                out[y, x] += weight * down[y, x + 3 * k]
    return out


@njit(nogil=True, fastmath=True, cache=True, error_model="numpy")
def _compare(mean_a, mean_b, aa, bb, ab, by_mean, by_square, by_product):
    """Return the sum of the SSIM; write its gradients by the blurred image, its square and its product with the
    other."""
    total = 0.0
    for y in range(mean_a.shape[0]):
        row = np.float32(0)
        for x in range(mean_a.shape[1]):
            a, b = mean_a[y, x], mean_b[y, x]
            a1, a2 = 2 * a * b + C1, 2 * (ab[y, x] - a * b) + C2
            b1, b2 = a * a + b * b + C1, aa[y, x] - a * a + bb[y, x] - b * b + C2
            inverse = np.float32(1) / (b1 * b2)
            likeness = a1 * a2 * inverse
            row += likeness
            by_mean[y, x] = 2 * (b * (a2 - a1) * inverse + a * likeness * (b1 - b2) * inverse)
            by_square[y, x] = -likeness * b1 * inverse
            by_product[y, x] = 2 * a1 * inverse
        total += row
    return total
