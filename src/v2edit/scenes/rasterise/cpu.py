"""The rasteriser for CPUs: numba kernels over bands of rows, one band a thread, with a backward pass written by hand.

A band takes the Gaussians nearest first and draws each over the pixels of its own rows, so no two threads share a
pixel; the backward pass walks the same list from its end and needs no lists of its own. `parallel=True` would be
numba's way, but its pool and torch's spin against each other: plain threads and `nogil` do not.

Letters: M Gaussians seen, B bands.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import config, njit
from torch import Tensor

from v2edit.scenes.rasterise.projection import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN, Flat

ALPHA_LOW, ALPHA_TOP, TRANSMITTANCE_LOW = (np.float32(x) for x in (ALPHA_MIN, ALPHA_MAX, TRANSMITTANCE_MIN))
HALF, ONE, ZERO = np.float32(0.5), np.float32(1.0), np.float32(0.0)


def rasterise(flat: Flat, height: int, width: int, background: Tensor) -> tuple[Tensor, Tensor]:
    """Return colours [H, W, 3] and alphas [H, W], float32, as the reference does; differentiable in means, conics,
    colours and opacities."""
    order = flat.order()
    return _Rasterise.apply(  # pyright: ignore[reportReturnType]
        flat.means, flat.conics, flat.colours, flat.opacities, order, flat.radii, background, height, width
    )


class _Rasterise(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        means: Tensor,
        conics: Tensor,
        colours: Tensor,
        opacities: Tensor,
        order: Tensor,
        radii: Tensor,
        background: Tensor,
        height: int,
        width: int,
    ) -> tuple[Tensor, Tensor]:
        reach = torch.log(opacities / ALPHA_MIN)  # the exponent at which alpha falls below ALPHA_MIN
        columns = torch.cat([means, conics, opacities[:, None], colours, reach[:, None]], dim=1)
        rows = columns[order].float().contiguous().numpy()
        tall = radii[order, 1].numpy()
        spans = np.stack([np.floor(rows[:, 1] - tall), np.ceil(rows[:, 1] + tall)], axis=1)
        spans = spans.clip(0, height).astype(np.int32)
        bands = _bands(spans, radii[order, 0].numpy(), height)
        image = np.empty((height, width, 3), np.float32)
        through = np.empty((height, width), np.float32)
        ends = np.empty((height, width), np.int32)
        behind = background.float().numpy()
        _on_threads(lambda low, high: _forward(rows, spans, behind, image, through, ends, low, high), bands)
        ctx.saved = rows, spans, behind, through, ends, bands, order, len(means)
        return torch.from_numpy(image), torch.from_numpy(1 - through)

    @staticmethod
    def backward(ctx: Any, d_image: Tensor, d_alpha: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        rows, spans, behind, through, ends, bands, order, count = ctx.saved
        images, alphas = d_image.float().contiguous().numpy(), d_alpha.float().contiguous().numpy()

        def band(low: int, high: int) -> np.ndarray:
            part = np.zeros((len(rows), 9), np.float32)
            _backward(rows, spans, behind, through, ends, images, alphas, part, low, high)
            return part

        total = sum(_on_threads(band, bands))
        gradient = torch.zeros(count, 9)
        gradient[order] = torch.from_numpy(np.asarray(total, np.float32))
        return gradient[:, :2], gradient[:, 2:5], gradient[:, 6:9], gradient[:, 5], *(None,) * 5


def _bands(spans: np.ndarray, wide: np.ndarray, height: int) -> list[tuple[int, int]]:
    """Divide the rows into one band a thread, with about as many pixels to draw in each."""
    work = np.zeros(height + 1)
    np.add.at(work, spans[:, 0], wide)
    np.add.at(work, spans[:, 1], -wide)
    total = np.cumsum(np.cumsum(work)[:height] + 1)
    parts = min(_threads(), height)
    cuts = np.searchsorted(total, total[-1] * np.arange(1, parts) / parts) + 1
    edges = [0, *cuts.clip(0, height).tolist(), height]
    return [(low, high) for low, high in pairwise(edges) if low < high]


def _threads() -> int:
    return min(config.NUMBA_NUM_THREADS, 16)  # the environment's, or the cores that this process may use


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_threads(), thread_name_prefix="rasterise")


def _on_threads(work: Any, bands: list[tuple[int, int]]) -> list[Any]:
    """Run `work(low, high)` of all bands at once, the first in this thread and the others in the pool."""
    others = [_pool().submit(work, low, high) for low, high in bands[1:]]
    return [work(*bands[0]), *(other.result() for other in others)]


@njit(inline="always", fastmath=True)
def _columns(row, dy, width):
    """Return the columns [first, last) that a Gaussian (x, y, a, b, c, …, reach) may cover in a row at dy from it:
    where b·dx·dy + (a·dx² + c·dy²)/2 stays below its reach, and a pixel more."""
    a, b, c = row[2], row[3], row[4]
    inner = (b * dy) * (b * dy) - a * (c * dy * dy - (row[9] + row[9]))
    if inner < ZERO:
        return 0, 0
    root = math.sqrt(inner)
    middle = row[0] - HALF + b * dy / a  # dx = x - (column + 1/2)
    low, high = middle - root / a - ONE, middle + root / a + ONE
    return int(max(low, ZERO)), int(min(max(high + ONE, ZERO), np.float32(width)))


@njit(nogil=True, fastmath=True, cache=True)
def _forward(rows, spans, behind, image, through, ends, low, high):
    """Draw rows low..high of the image. `through`: the transmittance to the background; `ends`: the index in the list
    before which a pixel became opaque (the list's length where it did not)."""
    width, count = image.shape[1], len(rows)
    for y in range(low, high):
        for x in range(width):
            image[y, x, 0] = image[y, x, 1] = image[y, x, 2] = ZERO
            through[y, x] = ONE
            ends[y, x] = count
    for k in range(count):
        row = rows[k]
        for y in range(max(spans[k, 0], low), min(spans[k, 1], high)):
            dy = row[1] - (np.float32(y) + HALF)
            first, last = _columns(row, dy, width)
            for x in range(first, last):
                if ends[y, x] != count:
                    continue
                dx = row[0] - (np.float32(x) + HALF)
                sigma = HALF * (row[2] * dx * dx + row[4] * dy * dy) + row[3] * dx * dy
                alpha = min(ALPHA_TOP, row[5] * math.exp(-sigma))
                if sigma < ZERO or alpha < ALPHA_LOW:
                    continue
                left = through[y, x] * (ONE - alpha)
                if left <= TRANSMITTANCE_LOW:
                    ends[y, x] = k
                    continue
                weight = alpha * through[y, x]
                for i in range(3):
                    image[y, x, i] += weight * row[6 + i]
                through[y, x] = left
    for y in range(low, high):
        for x in range(width):
            for i in range(3):
                image[y, x, i] += through[y, x] * behind[i]


@njit(nogil=True, fastmath=True, cache=True)
def _backward(rows, spans, behind, through, ends, d_image, d_alpha, gradient, low, high):
    """Add to `gradient` [M, 9], in the order of `rows`, the contributions of rows low..high of the image."""
    width = through.shape[1]
    left = through[low:high].copy()  # what comes through up to and including the Gaussian at hand
    rear = np.empty((high - low, width), np.float32)  # d_image · (all that is drawn behind it)
    for y in range(low, high):
        for x in range(width):
            back = ZERO
            for i in range(3):
                back += behind[i] * d_image[y, x, i]
            rear[y - low, x] = (back - d_alpha[y, x]) * through[y, x]
    for k in range(len(rows) - 1, -1, -1):
        row = rows[k]
        g_x = g_y = g_a = g_b = g_c = g_o = g_0 = g_1 = g_2 = ZERO
        for y in range(max(spans[k, 0], low), min(spans[k, 1], high)):
            dy = row[1] - (np.float32(y) + HALF)
            first, last = _columns(row, dy, width)
            for x in range(first, last):
                if ends[y, x] <= k:
                    continue
                dx = row[0] - (np.float32(x) + HALF)
                sigma = HALF * (row[2] * dx * dx + row[4] * dy * dy) + row[3] * dx * dy
                bell = math.exp(-sigma)
                alpha = min(ALPHA_TOP, row[5] * bell)
                if sigma < ZERO or alpha < ALPHA_LOW:
                    continue
                d0, d1, d2 = d_image[y, x, 0], d_image[y, x, 1], d_image[y, x, 2]
                before = left[y - low, x] / (ONE - alpha)
                weight = alpha * before
                g_0 += weight * d0
                g_1 += weight * d1
                g_2 += weight * d2
                shown = row[6] * d0 + row[7] * d1 + row[8] * d2
                g_alpha = shown * before - rear[y - low, x] / (ONE - alpha)
                if row[5] * bell <= ALPHA_TOP:
                    g_o += bell * g_alpha
                    g_sigma = -row[5] * bell * g_alpha
                    g_a += HALF * g_sigma * dx * dx
                    g_b += g_sigma * dx * dy
                    g_c += HALF * g_sigma * dy * dy
                    g_x += g_sigma * (row[2] * dx + row[3] * dy)
                    g_y += g_sigma * (row[3] * dx + row[4] * dy)
                rear[y - low, x] += weight * shown
                left[y - low, x] = before
        g = gradient[k]
        g[0] += g_x
        g[1] += g_y
        g[2] += g_a
        g[3] += g_b
        g[4] += g_c
        g[5] += g_o
        g[6] += g_0
        g[7] += g_1
        g[8] += g_2
