"""The rasteriser for CPUs: numba kernels over bands of rows, one band a thread, with a backward pass written by hand.

A band takes the Gaussians nearest first and draws each over the pixels of its own rows, so no two threads share a
pixel; the backward pass walks the same list from its end and needs no lists of its own. `parallel=True` would be
numba's way, but its pool and torch's spin against each other: plain threads and `nogil` do not.

A row's pixels lie in blocks of 16, and all fields of a block side by side in one array: so the compiler sees that the
innermost loops, which have no branches, can be vector instructions. It is several times as fast as a loop that skips.

Letters: M Gaussians seen, B bands, K blocks of a row.
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

from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.rasterise.cpu_projection import Project, pack_camera
from v2edit.scenes.rasterise.projection import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN, view_colours, visible_order

ALPHA_LOW, ALPHA_TOP, TRANSMITTANCE_LOW = (np.float32(x) for x in (ALPHA_MIN, ALPHA_MAX, TRANSMITTANCE_MIN))
HALF, ONE, ZERO, EIGHTH = np.float32(0.5), np.float32(1.0), np.float32(0.0), np.float32(0.125)
BLOCK = 16  # pixels
# exp(-s) is the 8th power of this polynomial of s / 8, 0 to 1: the Chebyshev interpolant, exact to float32's rounding.
_SERIES = np.polynomial.Chebyshev.interpolate(lambda u: np.exp(-u), 7, domain=[0, 1])
E0, E1, E2, E3, E4, E5, E6, E7 = (np.float32(one) for one in _SERIES.convert(kind=np.polynomial.Polynomial).coef)


def rasterise_camera(
    gaussians: Gaussians, world_to_camera: np.ndarray, intrinsics: np.ndarray, height: int, width: int, behind: Tensor
) -> tuple[Tensor, Tensor]:
    """Return colours [H, W, 3] and alphas [H, W], float32, of one camera as the reference does; differentiable in the
    Gaussians' parameters."""
    means, quats, log_scales = (one.float() for one in (gaussians.means, gaussians.quats, gaussians.log_scales))
    opacities, camera = (
        gaussians.logit_opacities.float().sigmoid(),
        pack_camera(world_to_camera, intrinsics, height, width),
    )
    flat, depths, radii = Project.apply(means, quats, log_scales, opacities, camera)  # pyright: ignore
    seen = visible_order(depths, radii)
    colours = view_colours(means.index_select(0, seen), gaussians.sh.float().index_select(0, seen), world_to_camera)
    rows = torch.cat([flat, opacities[:, None]], dim=1).index_select(0, seen)
    return _Rasterise.apply(torch.cat([rows, colours], dim=1), radii[seen], behind, height, width)  # pyright: ignore[reportReturnType]


class _Rasterise(torch.autograd.Function):
    """Rasterise rows [M, 9], nearest first: x, y, the conic's xx, xy, yy, opacity, and colour."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, all_rows: Tensor, radii: Tensor, background: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        rows, boxes = all_rows.detach().contiguous().numpy(), radii.numpy()
        spans = np.stack([np.floor(rows[:, 1] - boxes[:, 1]), np.ceil(rows[:, 1] + boxes[:, 1])], axis=1)
        spans = spans.clip(0, height).astype(np.int32)
        bands = _bands(spans, boxes[:, 0], height)
        behind = background.float().numpy()
        pixels = np.zeros((height, -(-width // BLOCK), 5, BLOCK), np.float32)
        pixels[:, :, 0], pixels[:, :, 4] = 1, len(rows)
        _on_threads(lambda low, high: _forward(rows, spans, pixels, low, high, width), bands)
        through, image, ends = np.split(_from_blocks(pixels, width), [1, 4], axis=2)
        ctx.saved = rows, spans, behind, through, ends, bands
        return torch.from_numpy(image + through * behind), torch.from_numpy(1 - through[..., 0])

    @staticmethod
    def backward(ctx: Any, d_image: Tensor, d_alpha: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        rows, spans, behind, through, ends, bands = ctx.saved
        images, alphas = d_image.float().numpy(), d_alpha.float().numpy()[..., None]
        rear = ((images * behind).sum(2, keepdims=True) - alphas) * through
        pixels = _to_blocks(np.concatenate([through, rear, images, ends], axis=2))

        def band(low: int, high: int) -> np.ndarray:
            part = np.zeros((len(rows), 9), np.float32)
            _backward(rows, spans, pixels, part, low, high, through.shape[1])
            return part

        return torch.from_numpy(np.asarray(sum(_on_threads(band, bands)), np.float32)), *(None,) * 4


def _to_blocks(fields: np.ndarray) -> np.ndarray:
    """Convert fields [H, W, F] to blocks of pixels [H, K, F, BLOCK]; zeros fill the last."""
    height, width, count = fields.shape
    padded = np.zeros((height, -(-width // BLOCK), BLOCK, count), np.float32)
    padded.reshape(height, -1, count)[:, :width] = fields
    return np.ascontiguousarray(padded.transpose(0, 1, 3, 2))


def _from_blocks(blocks: np.ndarray, width: int) -> np.ndarray:
    """Convert blocks of pixels [H, K, F, BLOCK] to fields [H, W, F]."""
    return blocks.transpose(0, 1, 3, 2).reshape(len(blocks), -1, blocks.shape[2])[:, :width]


def _bands(spans: np.ndarray, wide: np.ndarray, height: int) -> list[tuple[int, int]]:
    """Divide the rows into one band a thread, with about as many pixels to draw in each."""
    work = np.bincount(spans[:, 0], wide, height + 1) - np.bincount(spans[:, 1], wide, height + 1)
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
def _bell(sigma):
    """Return exp(-sigma) up to 8, where every alpha is below the least that is drawn."""
    u = min(max(sigma, ZERO) * EIGHTH, ONE)
    power = E0 + u * (E1 + u * (E2 + u * (E3 + u * (E4 + u * (E5 + u * (E6 + u * E7))))))
    power *= power
    power *= power
    return power * power


@njit(inline="always", fastmath=True)
def _blocks(row, reach, dy, width):
    """Return the blocks [first, last) that a Gaussian (x, y, a, b, c, …) may cover in a row at dy from it: where
    b·dx·dy + (a·dx² + c·dy²)/2 stays below its reach, the exponent at which alpha falls below the least, and a pixel
    more."""
    a, b, c = row[2], row[3], row[4]
    inner = (b * dy) * (b * dy) - a * (c * dy * dy - (reach + reach))
    if inner < ZERO:
        return 0, 0
    root = math.sqrt(inner)
    middle = row[0] - HALF + b * dy / a  # dx = x - (column + 1/2)
    low, high = middle - root / a - ONE, middle + root / a + ONE
    first, last = int(max(low, ZERO)), int(min(max(high + ONE, ZERO), np.float32(width)))
    return first // BLOCK, (last + BLOCK - 1) // BLOCK


@njit(nogil=True, fastmath=True, cache=True, error_model="numpy")
def _forward(rows, spans, pixels, low, high, width):
    """Draw rows low..high of the image. `pixels` [H, K, 5, BLOCK]: the transmittance to the background; the colour; the
    index in the list before which the pixel became opaque, the list's length where it did not."""
    for k in range(len(rows)):
        row, index = rows[k], np.float32(k)
        x, a, opacity, red, green, blue = row[0], HALF * row[2], row[5], row[6], row[7], row[8]
        reach = math.log(opacity / ALPHA_LOW)
        for y in range(max(spans[k, 0], low), min(spans[k, 1], high)):
            dy = row[1] - (np.float32(y) + HALF)
            b, c = row[3] * dy, HALF * row[4] * dy * dy
            first, last = _blocks(row, reach, dy, width)
            for block in range(first, last):
                fields, left = pixels[y, block], x - (np.float32(block * BLOCK) + HALF)
                for i in range(BLOCK):
                    dx = left - np.float32(np.int32(i))
                    sigma = c + dx * (b + a * dx)
                    alpha = min(ALPHA_TOP, opacity * _bell(sigma))
                    # Every field is read before a choice: a load within one would have to be a branch.
                    before, r, g, b_, end = fields[0, i], fields[1, i], fields[2, i], fields[3, i], fields[4, i]
                    alpha = alpha if alpha >= ALPHA_LOW else ZERO
                    alpha = alpha if sigma >= ZERO else ZERO
                    alpha = alpha if end > index else ZERO
                    weight = alpha * before
                    after = before - weight
                    is_last = after <= TRANSMITTANCE_LOW
                    weight = ZERO if is_last else weight
                    fields[0, i] = before if is_last else after
                    fields[1, i], fields[2, i], fields[3, i] = r + weight * red, g + weight * green, b_ + weight * blue
                    fields[4, i] = min(end, index) if is_last else end


@njit(nogil=True, fastmath=True, cache=True, error_model="numpy")
def _backward(rows, spans, pixels, gradient, low, high, width):
    """Add to `gradient` [M, 9], in the order of `rows`, the contributions of rows low..high of the image. `pixels` [H,
    K, 6, BLOCK]: what comes through up to and including the Gaussian at hand; d_image · (all that is drawn behind it);
    d_image; the index of `_forward`."""
    for k in range(len(rows) - 1, -1, -1):
        row, index = rows[k], np.float32(k)
        x, a, opacity, red, green, blue = row[0], HALF * row[2], row[5], row[6], row[7], row[8]
        reach = math.log(opacity / ALPHA_LOW)
        g_x = g_y = g_a = g_b = g_c = g_o = g_0 = g_1 = g_2 = ZERO
        for y in range(max(spans[k, 0], low), min(spans[k, 1], high)):
            dy = row[1] - (np.float32(y) + HALF)
            b, c = row[3] * dy, HALF * row[4] * dy * dy
            first, last = _blocks(row, reach, dy, width)
            s_0 = s_1 = s_2 = ZERO  # of d_sigma, times dx, times its square
            for block in range(first, last):
                fields, left = pixels[y, block], x - (np.float32(block * BLOCK) + HALF)
                for i in range(BLOCK):
                    dx = left - np.float32(np.int32(i))
                    sigma = c + dx * (b + a * dx)
                    whole = opacity * _bell(sigma)
                    alpha = min(ALPHA_TOP, whole)
                    alpha = alpha if alpha >= ALPHA_LOW else ZERO
                    alpha = alpha if sigma >= ZERO else ZERO
                    alpha = alpha if fields[5, i] > index else ZERO
                    inverse = ONE / (ONE - alpha)
                    before = fields[0, i] * inverse
                    weight = alpha * before
                    d0, d1, d2 = fields[2, i], fields[3, i], fields[4, i]
                    g_0 += weight * d0
                    g_1 += weight * d1
                    g_2 += weight * d2
                    shown = red * d0 + green * d1 + blue * d2
                    g = (shown * before - fields[1, i] * inverse) * alpha  # d_alpha · alpha = -d_sigma
                    g = g if whole <= ALPHA_TOP else ZERO
                    s_0 += g
                    s_1 += g * dx
                    s_2 += g * dx * dx
                    fields[1, i] += weight * shown
                    fields[0, i] = before
            g_o += s_0
            g_a -= HALF * s_2
            g_b -= s_1 * dy
            g_c -= HALF * s_0 * dy * dy
            g_x -= row[2] * s_1 + b * s_0
            g_y -= row[3] * s_1 + row[4] * dy * s_0
        g = gradient[k]
        g[0] += g_x
        g[1] += g_y
        g[2] += g_a
        g[3] += g_b
        g[4] += g_c
        g[5] += g_o / opacity
        g[6] += g_0
        g[7] += g_1
        g[8] += g_2
