"""Vector quantisation: code books of numbers and palettes of vectors that stand for many, with little error.

Letters: N vectors of D numbers, P entries.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

BOOK = 256
BINS = 1 << 14  # of the histogram that a code book is fitted to
ROUNDS = 24  # of Lloyd's algorithm
BLOCK, ROWS = 1 << 20, 1 << 16  # numbers, and vectors, that are looked at at a time


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
    labels, parts = np.zeros(len(vectors), np.int64), 1
    while parts < size:
        counts, sums, squares = _moments(vectors, labels, parts)
        means = sums / np.maximum(counts, 1)[:, None]
        axes = (squares - sums * means).argmax(axis=1)
        middles = np.take_along_axis(means, axes[:, None], 1)[:, 0]
        for start in range(0, len(vectors), ROWS):
            own = labels[start : start + ROWS]
            chosen = np.take_along_axis(vectors[start : start + ROWS], axes[own][:, None], 1)[:, 0]
            labels[start : start + ROWS] = 2 * own + (chosen > middles[own])
        parts *= 2
    counts, sums, _ = _moments(vectors, labels, parts)
    used = np.flatnonzero(counts)
    places = np.zeros(parts, np.int64)
    places[used] = np.arange(len(used))
    return (sums[used] / counts[used, None]).astype(np.float32), places[labels]


def _moments(vectors: np.ndarray, labels: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each part how many vectors are in it, [P], their sum and that of their squares, float64 [P, D]."""
    sums = np.zeros((parts, vectors.shape[1]))
    squares = sums.copy()
    for start in range(0, len(vectors), ROWS):
        own = labels[start : start + ROWS]
        order = np.argsort(own, kind="stable")
        block, own = vectors[start : start + ROWS][order].astype(np.float64), own[order]
        starts = np.flatnonzero(np.concatenate([[True], own[1:] != own[:-1]]))
        sums[own[starts]] += np.add.reduceat(block, starts, axis=0)
        squares[own[starts]] += np.add.reduceat(block * block, starts, axis=0)
    return np.bincount(labels, minlength=parts), sums, squares
