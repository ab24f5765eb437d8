"""Hold an edited video to its source's colours: estimate how far they drifted where nothing was edited, and undo that.

Video models and their autoencoders shift colours by some levels, over the whole frame, and in the first frame by other
ones (a flash). The drift is told from an edit by four things: it is small, smooth over the frame, a smooth function of
the level, and common to most of what did not change. Where too little did not change to tell, nothing is corrected.

Letters: T frames of N cells (means over squares of a few pixels, which an autoencoder's blur leaves as they are), K
knots of a tone curve, M terms of a field over the frame. Levels are those of 8 bits, 0 to 255."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

import numpy as np

from v2edit.video.extent import measure_extent
from v2edit.video.stream import Frames, FrameStream, map_frames

SIDE = 16  # cells along the frame's shorter side, of 4 pixels at least
KNOTS = np.array([0.0, 20.0, 64.0, 112.0, 160.0, 208.0, 240.0, 255.0])
STEEPNESS = 0.01  # the price of a tone curve that changes, against the cells' mean squared error, a level per level
BENDING = 0.03  # of a field over the frame
INERTIA = 0.01  # of a frame that drifts otherwise than the clip
LIKELY = 12.0  # levels: a drift's usual size
SCALES = (16.0, 12.0, 9.0, 7.0, 5.0, 4.0, 3.0)  # levels: by how much cells without an edit differ, ever narrower
NEAR, FAR, EXACT = 3.0, 30.0, 2.0  # levels: cells differ by no more, by as much as an edit changes, by blur alone
DOUBT, CERTAIN = 0.1, 0.3  # share of the unchanged cells that a correction must bring to nothing
LEAST = 0.2  # share of the cells that must not have changed
FULL, NONE = 10.0, 20.0  # levels: a drift up to the one is undone, from the other on it is an edit's own look
MEMORY, JUMP = 2.0, 0.7  # frames and levels: neighbours in time that are alike in drift are averaged
STRETCH, OVERLAP = 300, 30  # frames: streams are fitted in stretches, which share some
VISIBLE = 0.5  # levels: less is lost in rounding


@dataclass(frozen=True, eq=False)
class ColourDrift:
    """An edited video's drift of colours, in levels: `curves` [T, 3, K], its values at the KNOTS of the edit's level,
    plus `fields` [T, 3, M], by the place in the frame. Over what did not change it has the `mean` [T, 3] and the root
    mean square `size` [T]. `differences` [T, h, w, 3]: edited minus source in each cell; `unchanged` [T, h, w]: how far
    it counts as one without an edit, 0 to 1."""

    mean: np.ndarray
    size: np.ndarray
    curves: np.ndarray
    fields: np.ndarray
    steps: np.ndarray

    def in_frame(self, k: int, frame: np.ndarray) -> np.ndarray:
        """Return the drift in each pixel of frame k [H, W, 3], in levels, float32."""
        levels = np.arange(256)
        curves = np.stack([np.interp(levels, KNOTS, curve) for curve in self.curves[k]], -1).astype(np.float32)
        drift = np.stack([curves[:, channel][frame[..., channel]] for channel in range(3)], -1)
        for row, terms in zip(drift, _field_terms(*frame.shape[:2]), strict=True):
            row += terms @ self.fields[k].astype(np.float32).T
        return drift


@overload
def hold_colours(edited: np.ndarray, drift: ColourDrift | None) -> np.ndarray: ...
@overload
def hold_colours(edited: Frames, drift: ColourDrift | None) -> Frames: ...
def hold_colours(edited: Frames, drift: ColourDrift | None) -> Frames:
    """Return an edited video without its drift of colours, uint8 [T, H, W, 3]; the same array where there is none to
    see, or none is known."""
    if drift is None or (part := _part_to_undo(drift)) == 0:
        return edited

    def hold(number: int, frame: np.ndarray) -> np.ndarray:
        held = drift.in_frame(number, frame)
        np.rint(np.subtract(frame, part * held, out=held), out=held)
        return held.clip(0, 255, out=held).astype(np.uint8)

    return map_frames(hold, [edited])


def _part_to_undo(drift: ColourDrift) -> float:
    """Return how much of a drift is undone: all of a small one, nothing of one as large as an edit's own look."""
    if drift.size.max() < VISIBLE:
        return 0.0
    return float(np.clip((NONE - np.median(drift.size)) / (NONE - FULL), 0, 1))


def estimate_drift(source: Frames, edited: Frames, share: Frames | None = None) -> ColourDrift | None:
    """Estimate an edited video's drift of colours against its source, both uint8 [T, H, W, 3]; None where too little is
    unchanged to tell. `share`: how much of the edit each pixel takes, float32 [T, H, W]; where it is 0 colours are
    compared, unless that is next to nowhere. A stream is fitted in stretches; the drift of one goes over to the
    next's."""
    if share is not None and measure_extent(share).part.mean() - 1e-9 > 1 - LEAST / 4:
        share = None
    clips = [source, edited, *([] if share is None else [share])]
    is_long = any(isinstance(clip, FrameStream) for clip in clips)
    stretches = _plan_stretches(len(source)) if is_long else [slice(0, len(source))]
    cells, found = _Cells(*source.shape[1:3]), []
    held: list[tuple[np.ndarray, ...]] = []  # means and weights of frames that are still to be fitted
    for k, (before, after, *shares) in enumerate(zip(*clips, strict=True), start=1):
        known = shares[0] <= 0 if shares else None
        held.append((*cells.means(before, known), cells.means(after, known)[0]))
        if k == stretches[len(found)].stop:
            found.append(_fit_drift(*map(np.stack, zip(*held, strict=True)), is_known=share is not None))
            del held[: -OVERLAP if len(found) < len(stretches) else None]
    return found[0] if len(found) == 1 else _join(found, stretches)


def _plan_stretches(count: int) -> list[slice]:
    """Return the stretches of a long video, each of which begins with the last frames of the one before."""
    stretches = [slice(0, min(STRETCH, count))]
    while stretches[-1].stop < count:
        stop = stretches[-1].stop + STRETCH - OVERLAP
        stretches.append(slice(stretches[-1].stop - OVERLAP, stop if stop + OVERLAP < count else count))
    return stretches


def _fit_drift(before: np.ndarray, weights: np.ndarray, after: np.ndarray, is_known: bool) -> ColourDrift | None:
    """Fit the drift of a stretch by its means over cells, [T, h, w, 3], and their weights [T, h, w]; `is_known`:
    whether weights tell where nothing was edited."""
    count, height, width = weights.shape
    differences, levels = ((one.reshape(count, -1, 3)) for one in (after - before, after))
    weights = weights.reshape(count, -1)
    field = _field_terms(height, width).reshape(1, 1, height * width, -1)
    hats = _hats(levels)
    terms = np.concatenate([hats, np.broadcast_to(field, (*hats.shape[:-1], field.shape[-1]))], axis=-1)
    start = _likely_drift(differences, weights)
    expected = np.broadcast_to(start, differences.shape)
    chosen, theta = weights, np.zeros(0)
    for scale in SCALES:
        square = np.square(differences - expected).sum(2)
        chosen = weights / (1 + square / scale**2) ** 2
        theta = _fit(terms, differences, chosen)
        expected = np.einsum("tcnf,tcf->tnc", terms, theta)
    left = np.square(differences - expected).sum(2)
    alike, unlike = ((weights * one).sum() for one in (left < NEAR**2, (left > (2 * NEAR) ** 2) & (left < FAR**2)))
    if alike <= LEAST * weights.sum() or (not is_known and alike < unlike):
        return None
    parts = (chosen + 1e-9) / (chosen + 1e-9).sum(1, keepdims=True)
    mean = np.einsum("tn,tnc->tc", parts, expected)
    sure = _evidence(np.square(differences).sum(2), left, weights)
    theta = _smooth_in_time(theta * sure[:, None, None], mean, chosen.sum(1))
    expected = np.einsum("tcnf,tcf->tnc", terms, theta)
    mean, square = (np.einsum("tn,tnc->tc", parts, one) for one in (expected, expected**2))
    curves, fields = np.split(theta, [len(KNOTS)], axis=-1)
    unchanged = chosen.reshape(count, height, width)
    return ColourDrift(mean, np.sqrt(square.mean(1)), curves, fields, _steps(after - before, unchanged))


def _steps(differences: np.ndarray, unchanged: np.ndarray) -> np.ndarray:
    """Return the steps [T - 1] of differences [T, h, w, 3], over cells as far as these are `unchanged` [T, h, w]."""
    both = np.minimum(unchanged[1:], unchanged[:-1])
    squares = np.square(np.diff(differences, axis=0)).mean(-1)
    return np.sqrt((both * squares).sum((1, 2)) / np.maximum(both.sum((1, 2)), 1e-9))


def _join(found: Sequence[ColourDrift | None], stretches: Sequence[slice]) -> ColourDrift | None:
    """Return the drift of a long video by that of its stretches, which overlap: there it goes from one to the next. A
    stretch of which nothing can be told has none."""
    known = next((drift for drift in found if drift is not None), None)
    if known is None:
        return None
    count = stretches[-1].stop

    def join(name: str) -> np.ndarray:
        short = int(name == "steps")  # there is none from the last frame
        total, mass = np.zeros((count - short, *getattr(known, name).shape[1:])), np.zeros(count - short)
        for drift, stretch in zip(found, stretches, strict=True):
            frames = np.arange(stretch.start, stretch.stop - short)
            rise = frames - stretch.start + 1 if stretch.start else OVERLAP
            fall = stretch.stop - frames if stretch.stop < count else OVERLAP
            weight = np.minimum(np.minimum(rise, fall), OVERLAP) * np.ones(len(frames))
            mass[frames] += weight
            if drift is not None:
                total[frames] += np.einsum("t,t...->t...", weight, getattr(drift, name))
        return np.einsum("t,t...->t...", 1 / mass, total)

    return ColourDrift(*(join(name) for name in ("mean", "size", "curves", "fields", "steps")))


def cell_means(frames: Frames, known: Frames | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the means over square cells of frames [T, H, W, 3], float32 [T, h, w, 3], and each cell's weight [T, h,
    w]. With `known`, bool [T, H, W], only its pixels count, and cells that have more others weigh nothing."""
    cells = _Cells(*frames.shape[1:3])
    which = [None] * len(frames) if known is None else known
    means, weights = zip(*(cells.means(*one) for one in zip(frames, which, strict=True)), strict=True)
    return np.stack(means), np.stack(weights)


class _Cells:
    """The square cells of a frame."""

    def __init__(self, height: int, width: int) -> None:
        side = max(4, -(-min(height, width) // SIDE))
        self.rows, self.columns = (np.arange(0, max(1, size - side // 2), side) for size in (height, width))
        self.spans = list(zip(self.rows.tolist(), [*self.rows[1:].tolist(), height], strict=True))
        self.kind = np.uint16 if 2 * side * 255 < 2**16 else np.uint32  # of a sum over a cell's rows
        self.pixels = self.sums(np.ones((height, width), np.uint8))

    def sums(self, image: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        """Return the sums over cells of an image [H, W, ...], of the `known` pixels where these are given."""
        rows = []
        for first, end in self.spans:
            rows.append(np.add.reduce(image[first:end], 0, dtype=self.kind))
            places = [] if known is None else np.flatnonzero(~known[first:end].all(0))
            if known is not None and len(places):  # what is left out is often little
                some = slice(places[0], places[-1] + 1)
                left_out = image[first:end, some] * ~known[first:end, some, None]
                rows[-1][some] -= np.add.reduce(left_out, 0, dtype=self.kind)
        return np.add.reduceat(np.stack(rows), self.columns, 1, dtype=np.uint32)

    def means(self, frame: np.ndarray, known: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the means and weights of a frame's cells, as `cell_means` does."""
        if known is None:
            means = self.sums(frame) / self.pixels[..., None]
            return means.astype(np.float32), np.ones(self.pixels.shape, np.float32)
        taken = self.sums(known)
        means = self.sums(frame, known) / np.maximum(taken, 1)[..., None]
        weights = np.where(2 * taken > self.pixels, taken / self.pixels, 0)
        return means.astype(np.float32), weights.astype(np.float32)


def _hats(levels: np.ndarray) -> np.ndarray:
    """Return the weights of the knots in a piecewise linear curve at levels [T, N, 3], float32 [T, 3, N, K]."""
    after = np.searchsorted(KNOTS, levels, side="right").clip(1, len(KNOTS) - 1)
    part = ((levels - KNOTS[after - 1]) / (KNOTS[after] - KNOTS[after - 1])).astype(np.float32)
    out = np.zeros((*levels.shape, len(KNOTS)), np.float32)
    np.put_along_axis(out, after[..., None], part[..., None], -1)
    np.put_along_axis(out, after[..., None] - 1, 1 - part[..., None], -1)
    return out.transpose(0, 2, 1, 3)


@lru_cache(maxsize=2)  # of a frame and of its cells
def _field_terms(height: int, width: int) -> np.ndarray:
    """Return the terms of a quadratic field over a frame but the constant one, float32 [H, W, 5]."""
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height * 2 - 1)[:, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5) / width * 2 - 1)[None]
    one = np.ones((height, width), np.float32)
    return np.stack([x * one, y * one, x**2 * one - 1 / 3, y**2 * one - 1 / 3, x * y], -1)


def _likely_drift(differences: np.ndarray, weights: np.ndarray, most: int = 1000) -> np.ndarray:
    """Return the drift, [3], about which most cells [T, N, 3] gather, small ones preferred: a mode, since the cells
    that an edit changes may be many, and may gather elsewhere."""
    flat, weight = differences.reshape(-1, 3), weights.ravel()
    flat = flat[weight > 0] if (weight > 0).any() else flat[:1]
    some = flat[:: -(-len(flat) // most)]
    near = np.exp(-np.square(some[:, None] - some[None]).sum(2) / (2 * 6.0**2)).sum(1)
    return some[np.argmax(near * np.exp(-np.square(some).sum(1) / (2 * 3 * LIKELY**2)))]


def _fit(terms: np.ndarray, differences: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fit the drift of each frame by weighted least squares, [T, 3, K + M], held to that of the whole clip, and that to
    a flat curve and field."""
    frames, cells = weights.shape
    gram = np.einsum("tcnf,tn,tcng->tcfg", terms, weights, terms, optimize=True).astype(np.float64)
    right = np.einsum("tcnf,tn,tnc->tcf", terms, weights, differences, optimize=True).astype(np.float64)
    size, knots = terms.shape[-1], len(KNOTS)
    price = np.zeros((size, size))
    slopes = np.diff(np.eye(knots), axis=0) / np.sqrt(np.diff(KNOTS) / 255)[:, None]
    price[:knots, :knots] = STEEPNESS * slopes.T @ slopes
    price[range(knots, size), range(knots, size)] = BENDING
    price += 1e-6 * np.eye(size)
    whole = np.linalg.solve(gram.sum(0) + frames * cells * price, right.sum(0)[..., None])
    held = INERTIA * cells * (price + np.diag([1 / knots] * knots + [1.0] * (size - knots)))
    return np.linalg.solve(gram + held, right[..., None] + held @ whole)[..., 0]


def _evidence(before: np.ndarray, after: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return how surely each frame drifted, [T] of 0 to 1, by the square differences of its cells without and with a
    correction [T, N]: a real drift brings many to nothing, while a curve bent to an edit moves few."""
    lost, kept = ((weights * one / (one + EXACT**2)).sum(1) for one in (before, after))
    better = (lost - kept) / np.maximum(weights.sum(1) - kept, 1e-9)
    return np.clip((better - DOUBT) / (CERTAIN - DOUBT), 0, 1)


def _smooth_in_time(theta: np.ndarray, mean: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Average the drift [T, 3, K + M] of neighbouring frames of like `mean` [T, 3]: a flash or a jump stays one."""
    reach, out = int(3 * MEMORY), np.empty_like(theta)
    for k in range(len(theta)):
        near = slice(max(0, k - reach), k + reach + 1)
        apart = np.arange(len(theta))[near] - k
        unlike = np.square(mean[near] - mean[k]).mean(1)
        weight = np.exp(-np.square(apart / MEMORY) / 2 - unlike / (2 * JUMP**2)) * (mass[near] + 1e-6)
        out[k] = np.einsum("t,tcf->cf", weight / weight.sum(), theta[near])
    return out
