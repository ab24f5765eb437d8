"""Vector quantisation: code books of numbers and palettes of vectors that stand for many, with little error.

Letters: N vectors of D numbers, P entries.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

BOOK = 256
BINS = 1 << 14  # of the histogram that a code book is fitted to
ROUNDS = 24  # of Lloyd's algorithm
BLOCK = 1 << 20  # numbers that are looked at at a time


def fit_codebook(values: Tensor | np.ndarray) -> np.ndarray:
    """Return 256 numbers in ascending order, float32, that stand for many with about the least squared error, by
    Lloyd's algorithm (k-means in one dimension) on their histogram. Up to 256 different ones stand for themselves."""
    flat = (values.detach().cpu().float().numpy() if isinstance(values, Tensor) else values).reshape(-1)
    few = np.unique(flat[:BLOCK])
    if len(few) <= BOOK and (len(flat) <= BLOCK or len(few := np.unique(flat)) <= BOOK):
        return np.concatenate([few, np.full(BOOK - len(few), few[-1])]).astype(np.float32)
    low, high = float(flat.min()), float(flat.max())
    counts, edges = np.zeros(BINS), np.linspace(low, high, BINS + 1)
    for start in range(0, len(flat), BLOCK):
        counts += np.histogram(flat[start : start + BLOCK], edges)[0]
    middles = (edges[:-1] + edges[1:]) / 2
    # Half of the first numbers lie evenly, so that rare ones far out have some, and half where there are many.
    shares = np.cumsum(counts) / counts.sum()
    many = np.interp(np.linspace(0, 1, BOOK // 2 + 2)[1:-1], shares, middles)
    book = np.sort(np.concatenate([np.linspace(low, high, BOOK - BOOK // 2), many]))
    for _ in range(ROUNDS):
        owners = np.searchsorted((book[:-1] + book[1:]) / 2, middles)
        weights = np.bincount(owners, counts, BOOK)
        sums = np.bincount(owners, counts * middles, BOOK)
        book = np.sort(np.where(weights > 0, sums / np.maximum(weights, 1e-9), book))
    return book.astype(np.float32)


def nearest(book: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the places, uint8, of the numbers in an ascending code book that are nearest to values of any shape."""
    wide = book.astype(np.float64)
    return np.searchsorted((wide[:-1] + wide[1:]) / 2, values.astype(np.float64)).astype(np.uint8)


def fit_palette(vectors: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a palette of vectors, float32 [P, D], P at most `size` (a power of 2), and the places [N] in it of the
    given ones, float32 [N, D]. Up to `size` vectors stand for themselves. More are halved again and again at the mean
    of the number that varies most among them (a k-d tree), whose cost does not grow with the size of the palette."""
    if len(vectors) <= size:
        return vectors, np.arange(len(vectors))
    labels = np.zeros(len(vectors), np.int64)
    parts = 1
    while parts < size:
        counts = np.maximum(np.bincount(labels, minlength=parts), 1)
        widest, axes, means = np.full(parts, -1.0), np.zeros(parts, np.int64), np.zeros(parts)
        for axis in range(vectors.shape[1]):
            column = vectors[:, axis].astype(np.float64)
            mean = np.bincount(labels, column, parts) / counts
            spread = np.bincount(labels, (column - mean[labels]) ** 2, parts)
            wider = spread > widest
            axes[wider], means[wider], widest[wider] = axis, mean[wider], spread[wider]
        for start in range(0, len(vectors), BLOCK):
            own = labels[start : start + BLOCK]
            chosen = np.take_along_axis(vectors[start : start + BLOCK], axes[own][:, None], 1)[:, 0]
            labels[start : start + BLOCK] = 2 * own + (chosen > means[own])
        parts *= 2
    counts = np.bincount(labels, minlength=parts)
    used = np.flatnonzero(counts)
    sums = [np.bincount(labels, vectors[:, axis], parts)[used] for axis in range(vectors.shape[1])]
    places = np.zeros(parts, np.int64)
    places[used] = np.arange(len(used))
    return np.stack([one / counts[used] for one in sums], axis=1).astype(np.float32), places[labels]
