"""The rasteriser for CPUs: numba kernels over bands of tiles, one band a thread, with a backward pass written by hand.

A band takes the Gaussians nearest first and draws each over the tiles of its own rows that it reaches, so no two
threads share a pixel; the backward pass walks the same list from its end and needs no lists of its own.
`parallel=True` would be numba's way, but its pool and torch's spin against each other: plain threads and `nogil` do
not.

A tile is a square of 16 pixels, and all its fields lie side by side in one row of an array: so the compiler sees that
the innermost loops, which have no branches, can be vector instructions. It is several times as fast as a loop that
skips; and of a square a small Gaussian fills more than of a row of 16.

Letters: M Gaussians seen, B bands, Y x X tiles, F fields of a pixel.
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
from v2edit.scenes.rasterise.cpu_projection import pack_camera, project, project_back
from v2edit.scenes.rasterise.projection import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN

ALPHA_LOW, ALPHA_TOP, TRANSMITTANCE_LOW = (np.float32(x) for x in (ALPHA_MIN, ALPHA_MAX, TRANSMITTANCE_MIN))
HALF, ONE, TWO, ZERO, EIGHTH = (np.float32(x) for x in (0.5, 1.0, 2.0, 0.0, 0.125))
TILE = 4  # pixels, the side of a square
PIXELS = TILE * TILE
ROUNDING = 0.05  # pixels by which an ellipse is taken to be larger
# exp(-s) is the 8th power of this polynomial of s / 8, 0 to 1: the Chebyshev interpolant, exact to float32's rounding.
_SERIES = np.polynomial.Chebyshev.interpolate(lambda u: np.exp(-u), 7, domain=[0, 1])
E0, E1, E2, E3, E4, E5, E6, E7 = (np.float32(one) for one in _SERIES.convert(kind=np.polynomial.Polynomial).coef)


def rasterise_camera(
    gaussians: Gaussians, world_to_camera: np.ndarray, intrinsics: np.ndarray, height: int, width: int, behind: Tensor
) -> tuple[Tensor, Tensor]:
    """Return colours [H, W, 3] and alphas [H, W], float32, of one camera as the reference does; differentiable in the
    Gaussians' parameters."""
    camera = pack_camera(world_to_camera, intrinsics, height, width, gaussians.antialiased)
    parameters = [one.float() for one in gaussians.tensors().values()]
    return _Rasterise.apply(*parameters, camera, behind, height, width)  # pyright: ignore[reportReturnType]


class _Rasterise(torch.autograd.Function):
    """Rasterise Gaussians of five parameters, as `gaussians.Gaussians` names them."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *tensors, camera, background, height, width = inputs
        parameters = [one.detach().contiguous().numpy() for one in tensors]
        view = project(parameters, camera)
        order = view.order()
        rows, spans = np.empty((len(order), 9), np.float32), np.empty((len(order), 2), np.int32)
        _gather(view.rows, view.radii, order, height, rows, spans)
        bands = _bands(spans, view.radii, order, -(-height // TILE))
        behind = background.float().numpy()
        pixels = np.zeros((-(-height // TILE), -(-width // TILE), 5 * PIXELS), np.float32)
        pixels[:, :, :PIXELS], pixels[:, :, 4 * PIXELS :] = 1, len(rows)
        _on_threads(lambda low, high: _forward(rows, spans, pixels, low, high, width), bands)
        through, image, ends = np.split(_from_tiles(pixels, height, width), [1, 4], axis=2)
        ctx.saved = parameters, camera, order, rows, spans, behind, through, ends, bands
        return torch.from_numpy(image + through * behind), torch.from_numpy(1 - through[..., 0])

    @staticmethod
    def backward(ctx: Any, d_image: Tensor, d_alpha: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        parameters, camera, order, rows, spans, behind, through, ends, bands = ctx.saved
        images, alphas = d_image.float().numpy(), d_alpha.float().numpy()[..., None]
        rear = ((images * behind).sum(2, keepdims=True) - alphas) * through
        pixels = _to_tiles(np.concatenate([through, rear, images, ends], axis=2))

        def band(low: int, high: int) -> np.ndarray:
            part = np.zeros((len(rows), 9), np.float32)
            _backward(rows, spans, pixels, part, low, high, through.shape[1])
            return part

        by_row = np.asarray(sum(_on_threads(band, bands)), np.float32)
        return *(torch.from_numpy(one) for one in project_back(parameters, camera, order, by_row)), *(None,) * 4


def _to_tiles(fields: np.ndarray) -> np.ndarray:
    """Convert fields [H, W, F] to tiles [Y, X, F · PIXELS]; zeros fill the last."""
    height, width, count = fields.shape
    down, across = -(-height // TILE), -(-width // TILE)
    padded = np.zeros((down * TILE, across * TILE, count), np.float32)
    padded[:height, :width] = fields
    tiles = padded.reshape(down, TILE, across, TILE, count).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(tiles).reshape(down, across, count * PIXELS)


def _from_tiles(tiles: np.ndarray, height: int, width: int) -> np.ndarray:
    """Convert tiles [Y, X, F · PIXELS] to fields [H, W, F]."""
    down, across, size = tiles.shape
    count = size // PIXELS
    fields = tiles.reshape(down, across, count, TILE, TILE).transpose(0, 3, 1, 4, 2)
    return fields.reshape(down * TILE, across * TILE, count)[:height, :width]


def _bands(spans: np.ndarray, radii: np.ndarray, order: np.ndarray, height: int) -> list[tuple[int, int]]:
    """Divide the rows of tiles into one band a thread, with about as many pixels to draw in each."""
    if _threads() == 1:
        return [(0, height)]
    wide = radii[order, 0]
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


@njit(nogil=True, cache=True, error_model="numpy")
def _gather(all_rows, radii, order, height, rows, spans):
    """Copy the rows of the visible Gaussians in their order, and write the rows of tiles [first, last) of each."""
    most = np.float32(height)
    for k in range(len(order)):
        row, tall = all_rows[order[k]], radii[order[k], 1]
        for j in range(9):
            rows[k, j] = row[j]
        spans[k, 0] = int(min(max(math.floor(row[1] - tall), ZERO), most)) // TILE
        spans[k, 1] = (int(min(max(math.ceil(row[1] + tall), ZERO), most)) + TILE - 1) // TILE


@njit(inline="always", fastmath=True)
def _bell(sigma):
    """Return exp(-sigma) up to 8, where every alpha is below the least that is drawn."""
    u = min(max(sigma, ZERO) * EIGHTH, ONE)
    power = E0 + u * (E1 + u * (E2 + u * (E3 + u * (E4 + u * (E5 + u * (E6 + u * E7))))))
    power *= power
    power *= power
    return power * power


@njit(inline="always", fastmath=True)
def _reach(row):
    """Return of a Gaussian (x, y, the conic's a, b, c, opacity, …): the determinant of the conic, twice the exponent at
    which its alpha falls below the least, and the largest dx and its dy on the ellipse where it does. In float64, as
    the determinant of a needle is a small difference."""
    a, b, c = np.float64(row[2]), np.float64(row[3]), np.float64(row[4])
    level, determinant = 2 * math.log(np.float64(row[5]) / ALPHA_LOW), max(a * c - b * b, 1e-30)
    right = math.sqrt(level * c / determinant)
    return determinant, level, right, -b * right / c


@njit(inline="always", fastmath=True)
def _tiles(row, reach, top, width):
    """Return the tiles [first, last) of a row of tiles that the ellipse of a Gaussian, of `_reach`, enters; the row's
    first pixels lie `top` above its middle."""
    a, b = np.float64(row[2]), np.float64(row[3])
    determinant, level, right, at_right = reach
    low, high = np.float64(top) - (TILE - 1), np.float64(top)
    # dx = x - (column + 1/2), and dy likewise: the least and the greatest dx between low and high.
    low_root = math.sqrt(max(a * level - determinant * low * low, 0.0))
    high_root = math.sqrt(max(a * level - determinant * high * high, 0.0))
    least = min(-b * low - low_root, -b * high - high_root) / a
    most = max(-b * low + low_root, -b * high + high_root) / a
    least = -right if low <= -at_right <= high else least
    most = right if low <= at_right <= high else most
    first, last = row[0] - 0.5 - most - ROUNDING, row[0] - 0.5 - least + ROUNDING
    first, last = math.ceil(max(first, 0.0)), math.floor(min(max(last, -1.0), width - 1.0)) + 1
    return int(first) // TILE, (int(last) + TILE - 1) // TILE


@njit(nogil=True, fastmath=True, cache=True, error_model="numpy")
def _forward(rows, spans, pixels, low, high, width):
    """Draw rows low..high of tiles. `pixels` [Y, X, 5 · PIXELS]: the transmittance to the background; the colour; the
    index in the list before which the pixel became opaque, the list's length where it did not."""
    for k in range(len(rows)):
        row, index = rows[k], np.float32(k)
        x, y, opacity, red, green, blue = row[0], row[1], row[5], row[6], row[7], row[8]
        a, b, c = HALF * row[2], row[3], HALF * row[4]
        reach = _reach(row)
        for tile_y in range(max(spans[k, 0], low), min(spans[k, 1], high)):
            top = y - (np.float32(tile_y * TILE) + HALF)
            first, last = _tiles(row, reach, top, width)
            for tile_x in range(first, last):
                tile, left = pixels[tile_y, tile_x], x - (np.float32(tile_x * TILE) + HALF)
                for i in range(PIXELS):
                    dx, dy = left - np.float32(np.int32(i % TILE)), top - np.float32(np.int32(i // TILE))
                    sigma = dx * (a * dx + b * dy) + c * dy * dy
                    alpha = min(ALPHA_TOP, opacity * _bell(sigma))
                    # Every field is read before a choice: a load within one would have to be a branch.
                    before, r, g, b_, end = (
                        tile[i],
                        tile[PIXELS + i],
                        tile[2 * PIXELS + i],
                        tile[3 * PIXELS + i],
                        tile[4 * PIXELS + i],
                    )
                    alpha = alpha if alpha >= ALPHA_LOW else ZERO
                    alpha = alpha if sigma >= ZERO else ZERO
                    alpha = alpha if end > index else ZERO
                    weight = alpha * before
                    after = before - weight
                    is_last = after <= TRANSMITTANCE_LOW
                    weight = ZERO if is_last else weight
                    tile[i] = before if is_last else after
                    tile[PIXELS + i], tile[2 * PIXELS + i], tile[3 * PIXELS + i] = (
                        r + weight * red,
                        g + weight * green,
                        b_ + weight * blue,
                    )
                    tile[4 * PIXELS + i] = min(end, index) if is_last else end


@njit(nogil=True, fastmath=True, cache=True, error_model="numpy")
def _backward(rows, spans, pixels, gradient, low, high, width):
    """Add to `gradient` [M, 9], in the order of `rows`, the contributions of rows low..high of tiles. `pixels` [Y, X,
    6 · PIXELS]: what comes through up to and including the Gaussian at hand; d_image · (all that is drawn behind it);
    d_image; the index of `_forward`."""
    sums = np.zeros(9 * PIXELS, np.float32)
    for k in range(len(rows) - 1, -1, -1):
        row, index = rows[k], np.float32(k)
        x, y, opacity, red, green, blue = row[0], row[1], row[5], row[6], row[7], row[8]
        a, b, c = HALF * row[2], row[3], HALF * row[4]
        reach = _reach(row)
        sums[:] = ZERO
        for tile_y in range(max(spans[k, 0], low), min(spans[k, 1], high)):
            top = y - (np.float32(tile_y * TILE) + HALF)
            first, last = _tiles(row, reach, top, width)
            for tile_x in range(first, last):
                tile, left = pixels[tile_y, tile_x], x - (np.float32(tile_x * TILE) + HALF)
                for i in range(PIXELS):
                    dx, dy = left - np.float32(np.int32(i % TILE)), top - np.float32(np.int32(i // TILE))
                    sigma = dx * (a * dx + b * dy) + c * dy * dy
                    whole = opacity * _bell(sigma)
                    alpha = min(ALPHA_TOP, whole)
                    alpha = alpha if alpha >= ALPHA_LOW else ZERO
                    alpha = alpha if sigma >= ZERO else ZERO
                    alpha = alpha if tile[5 * PIXELS + i] > index else ZERO
                    inverse = ONE / (ONE - alpha)
                    before = tile[i] * inverse
                    weight = alpha * before
                    d0, d1, d2 = tile[2 * PIXELS + i], tile[3 * PIXELS + i], tile[4 * PIXELS + i]
                    shown = red * d0 + green * d1 + blue * d2
                    g = (shown * before - tile[PIXELS + i] * inverse) * alpha  # d_alpha · alpha = -d_sigma
                    g = g if whole <= ALPHA_TOP else ZERO
                    tile[PIXELS + i] += weight * shown
                    tile[i] = before
                    sums[i] += g
                    sums[PIXELS + i] += g * dx
                    sums[2 * PIXELS + i] += g * dy
                    sums[3 * PIXELS + i] += g * dx * dx
                    sums[4 * PIXELS + i] += g * dx * dy
                    sums[5 * PIXELS + i] += g * dy * dy
                    sums[6 * PIXELS + i] += weight * d0
                    sums[7 * PIXELS + i] += weight * d1
                    sums[8 * PIXELS + i] += weight * d2
        g = gradient[k]
        s, s_x, s_y = _total(sums, 0), _total(sums, 1), _total(sums, 2)
        g[0] -= row[2] * s_x + b * s_y
        g[1] -= b * s_x + row[4] * s_y
        g[2] -= HALF * _total(sums, 3)
        g[3] -= _total(sums, 4)
        g[4] -= HALF * _total(sums, 5)
        g[5] += s / opacity
        for j in range(6, 9):
            g[j] += _total(sums, j)


@njit(inline="always", fastmath=True)
def _total(sums, j):
    total = ZERO
    for i in range(PIXELS):
        total += sums[j * PIXELS + i]
    return total
