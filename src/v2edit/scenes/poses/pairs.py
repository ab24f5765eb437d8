"""Choice of the pairs of pictures that are matched: all of a few, neighbours in a video, and those that look alike.

Letters: N pictures, K words.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

ALL_UP_TO, ALL_VIDEO = 60, 30  # photographs, and frames of a video, of which all pairs are matched
OVERLAP = 10  # frames after each in a video, then those 16, 32, 64 … after it
ALIKE_IN_VIDEO, ALIKE = 5, 30  # pictures that look most like each
WORDS, SAMPLES, ROUNDS = 64, 20_000, 8  # of a vocabulary, made from the pictures' own features


def count_pairs(count: int, is_video: bool) -> int:
    """Return about how many pairs `choose_pairs` would choose of so many pictures, which are not yet read."""
    every = count * (count - 1) // 2
    if count <= (ALL_VIDEO if is_video else ALL_UP_TO):
        return every
    each = OVERLAP + count.bit_length() - 4 + ALIKE_IN_VIDEO if is_video else ALIKE * 2 // 3
    return min(every, count * each)


def choose_pairs(descriptors: Sequence[np.ndarray], is_video: bool) -> tuple[list[tuple[int, int]], str]:
    """Return the pairs (i < j) of N pictures to match, by their features' `descriptors` (uint8 [F, 128] each), and the
    name of the way: exhaustive, sequential, or by likeness."""
    count = len(descriptors)
    if count <= (ALL_VIDEO if is_video else ALL_UP_TO):
        return list(combinations(range(count), 2)), "exhaustive"
    pairs = set()
    if is_video:
        steps = [*range(1, OVERLAP + 1), *(2**k for k in range(4, count.bit_length()))]
        pairs = {(i, i + step) for step in steps for i in range(count - step)}
    nearest = ALIKE_IN_VIDEO if is_video else ALIKE
    likeness = _likeness(descriptors)
    if is_video:  # neighbours are alike, and matched already: loops are further apart
        band = np.abs(np.subtract.outer(np.arange(count), np.arange(count))) <= OVERLAP
        likeness[band] = -np.inf
    for i, row in enumerate(likeness):
        best = [int(j) for j in np.argsort(-row, kind="stable")[:nearest] if np.isfinite(row[j])]
        pairs |= {(min(i, j), max(i, j)) for j in best}
    return sorted(pairs), "sequential" if is_video else "by likeness"


def _likeness(descriptors: Sequence[np.ndarray]) -> np.ndarray:
    """Return how alike pictures are, float32 [N, N], -inf of each to itself: the cosine of their VLAD vectors (Jégou
    et al. 2010)."""
    rng = np.random.default_rng(0)
    every = np.concatenate([one.astype(np.float32) for one in descriptors if len(one)])
    sample = every[rng.permutation(len(every))[:SAMPLES]]
    words = sample[: min(WORDS, len(sample))].copy()
    for _ in range(ROUNDS):
        nearest = _nearest(sample, words)
        for k in range(len(words)):
            if (nearest == k).any():
                words[k] = sample[nearest == k].mean(0)
    vectors = np.zeros((len(descriptors), words.size), np.float32)
    for i, one in enumerate(descriptors):
        if len(one):
            features = one.astype(np.float32)
            nearest, total = _nearest(features, words), np.zeros_like(words)
            np.add.at(total, nearest, features - words[nearest])
            vector = (np.sign(total) * np.sqrt(np.abs(total))).ravel()
            vectors[i] = vector / max(float(np.linalg.norm(vector)), 1e-9)
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -np.inf)
    return likeness


def _nearest(features: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return the nearest word of each feature, int [F]."""
    return ((words**2).sum(1) - 2 * features @ words.T).argmin(1)
