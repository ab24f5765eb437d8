"""Rows of figures as CSV and as Markdown: means with bootstrap intervals, and paired differences.

Letters: K kinds, N tasks of a kind, R resamples.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from v2edit.bench.methods import REFERENCES
from v2edit.bench.scoring import Row

RESAMPLES, COVERED = 10_000, 0.95


@dataclass(frozen=True)
class Measure:
    """A column: its heading, decimals shown, whether more of it is better, and what it is, for the notes."""

    heading: str
    decimals: int
    more: bool = True
    note: str = ""


# The first of them that a table has is what its kinds are compared by.
MEASURES = {
    "score": Measure("score", 3, note="harmonic mean of success and SSIM outside"),
    "psnr_held_out": Measure(
        "PSNR", 2, note="of the edited scene against the true edited scene, in views that were held out, in dB"
    ),
    "held_out_inside": Measure("inside", 2, note="the same where the true edit changes something"),
    "held_out_outside": Measure("outside", 2, note="the same where it changes nothing"),
    "success": Measure(
        "success", 3, note="share of the attributes that the edit changes which are read as in the target"
    ),
    "kept": Measure("kept", 3, note="share of the others which are read as in the source"),
    "nearer": Measure("nearer", 3, note="share of frames that CLIP finds more like the target prompt than the source"),
    "ssim_outside": Measure("SSIM outside", 3, note="against the source where the true edit changes nothing"),
    "psnr_outside": Measure("PSNR outside", 2, note="the same, in dB"),
    "ssim_inside": Measure("SSIM inside", 3, note="against the true result where the true edit changes something"),
    "psnr_inside": Measure("PSNR inside", 2, note="the same, in dB"),
    "flicker": Measure(
        "flicker", 2, more=False,
        note="mean absolute second difference over time of the error outside, in levels of 255",
    ),
    "hue": Measure("hue", 2, note="share of recoloured objects of the right hue"),
    "ctids": Measure("CTIDS", 3, note="CLIP text-image directional similarity"),
    "cdc": Measure("CDC", 3, note="CLIP direction consistency"),
    "taken": Measure("taken", 2, note="share of the edited video's change that the scene took on"),
    "seconds": Measure("seconds", 1, more=False, note="of one thread, on a CPU its own"),
}  # fmt: skip
INTERVALS = "The interval beside a mean holds 95 % of 10,000 bootstrap means, with tasks drawn anew within each kind."


def notes(measures: Sequence[str]) -> str:
    """What a table's columns mean."""
    known = (MEASURES[name] for name in measures)
    return "; ".join(f"{one.heading}: {one.note}" for one in known if one.note) + f". {INTERVALS}"


@dataclass(frozen=True)
class Estimate:
    """A mean with the interval that holds 95 % of its bootstrap means."""

    mean: float
    low: float
    high: float

    def text(self, decimals: int, sign: str = "") -> str:
        if math.isnan(self.mean):
            return "–"
        mean, low, high = (f"{value:{sign}.{decimals}f}" for value in (self.mean, self.low, self.high))
        return mean if math.isnan(self.low) else f"{mean} ({low} … {high})"


def estimate(groups: Sequence[np.ndarray]) -> Estimate:
    """The mean over all values, [N] a group, and its percentile bootstrap interval. Values of nan are left out.

    Values are drawn anew within their group, since which kinds there are is no matter of chance, N - 1 of N: so the
    variance is unbiased for few of them, too (Rao and Wu 1988). A group of one value says nothing of its variance, and
    there is no interval.
    """
    groups = [kept for group in groups if len(kept := group[~np.isnan(group)])]
    if not groups:
        return Estimate(math.nan, math.nan, math.nan)
    mean = float(np.concatenate(groups).mean())
    if any(len(group) == 1 for group in groups):
        return Estimate(mean, math.nan, math.nan)
    generator, total = np.random.default_rng(0), sum(map(len, groups))
    means = np.zeros(RESAMPLES)
    for group in groups:
        drawn = group[generator.integers(len(group), size=(RESAMPLES, len(group) - 1))]
        means += drawn.mean(axis=1) * (len(group) / total)
    low, high = np.quantile(means, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return Estimate(mean, float(low), float(high))


class Table:
    """Rows by method, kind and seed."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.methods = list(dict.fromkeys(row.method for row in rows))
        self.kinds = list(dict.fromkeys(row.kind for row in rows))
        self.figures = {(row.method, row.kind, row.seed): row.figures for row in rows}
        self.seeds = {kind: sorted({row.seed for row in rows if row.kind == kind}) for kind in self.kinds}
        self.measures = [
            name for name in MEASURES if any(not math.isnan(row.figures.get(name, math.nan)) for row in rows)
        ]

    def values(self, method: str, measure: str, kind: str) -> np.ndarray:
        """float64 [N], in the order of seeds."""
        return np.array([self.figures[method, kind, seed].get(measure, math.nan) for seed in self.seeds[kind]])

    def mean(self, method: str, measure: str, kinds: Sequence[str] = ()) -> Estimate:
        """Over all tasks, or those of some kinds."""
        return estimate([self.values(method, measure, kind) for kind in kinds or self.kinds])

    def difference(self, method: str, other: str, measure: str) -> Estimate:
        """The mean of method - other, each task's against the same task's: what their tasks have in common cancels."""
        return estimate([self.values(method, measure, kind) - self.values(other, measure, kind) for kind in self.kinds])


def as_csv(rows: Sequence[Row], measures: Sequence[str]) -> str:
    """One line for each method on each task; an empty field where a measure says nothing."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["kind", "seed", "method", *measures])
    for row in rows:
        values = (row.figures.get(name, math.nan) for name in measures)
        writer.writerow([row.kind, row.seed, row.method, *("" if math.isnan(v) else repr(v) for v in values)])
    return out.getvalue()


def as_markdown(table: Table, against: str) -> str:
    """The tables: means, what the method `against` is ahead by, and the score kind by kind."""
    parts = [f"Means over {sum(map(len, table.seeds.values()))} tasks of these kinds: {', '.join(table.kinds)}.", ""]
    heads = [f"{MEASURES[name].heading} {'↑' if MEASURES[name].more else '↓'}" for name in table.measures]
    parts += _markdown(
        ["method", *heads],
        [
            [method, *(table.mean(method, name).text(MEASURES[name].decimals) for name in table.measures)]
            for method in table.methods
        ],
    )
    others = [method for method in table.methods if method != against and method not in REFERENCES]
    if others:
        compared = [name for name in table.measures if name not in ("seconds", "hue")]
        parts += ["", f"{against} minus the other method on the same task:", ""]
        parts += _markdown(
            ["other method", *(MEASURES[name].heading for name in compared)],
            [
                [
                    other,
                    *(table.difference(against, other, name).text(MEASURES[name].decimals, "+") for name in compared),
                ]
                for other in others
            ],
        )
    if len(table.kinds) > 1:
        first = table.measures[0]
        parts += ["", f"{MEASURES[first].heading[:1].upper()}{MEASURES[first].heading[1:]} by kind of edit:", ""]
        parts += _markdown(
            ["method", *table.kinds],
            [
                [method, *(table.mean(method, first, [kind]).text(2) for kind in table.kinds)]
                for method in table.methods
            ],
        )
    return "\n".join([*parts, "", textwrap.fill(notes(table.measures), 120), ""])


def _markdown(head: list[str], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *body)]
