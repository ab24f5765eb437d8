"""Tables of figures as CSV and as Markdown: means with bootstrap intervals, and paired differences.

Letters: K kinds, N tasks of a kind, R resamples.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from v2edit.bench.methods import REFERENCES
from v2edit.bench.scoring import Row
from v2edit.metrics.columns import COLUMNS, Column, explain_columns, head

RESAMPLES, COVERED = 10_000, 0.95


INTERVALS = (
    "The interval beside a mean holds 95 % of 10,000 bootstrap means, with tasks drawn anew within each kind; kinds of "
    "one task that has the figure are drawn together."
)


@dataclass(frozen=True)
class BootstrapMean:
    """A mean with the interval that holds 95 % of its bootstrap means."""

    mean: float
    low: float
    high: float

    def text(self, decimals: int, sign: str = "") -> str:
        if math.isnan(self.mean):
            return "–"
        mean, low, high = (f"{value:{sign}.{decimals}f}" for value in (self.mean, self.low, self.high))
        return mean if math.isnan(self.low) else f"{mean} ({low} … {high})"


def bootstrap_mean(groups: Sequence[np.ndarray]) -> BootstrapMean:
    """Return the mean over all values, [N] a group, and its percentile bootstrap interval. Values of nan are left out.
    Values are resampled within their group, since the kinds of edits are not drawn at random, and N - 1 of N, which
    makes the variance unbiased for small groups (Rao and Wu 1988). With a group of one value there is no interval."""
    groups = [known for group in groups if len(known := group[~np.isnan(group)])]
    if not groups:
        return BootstrapMean(math.nan, math.nan, math.nan)
    mean = float(np.concatenate(groups).mean())
    if any(len(group) == 1 for group in groups):
        return BootstrapMean(mean, math.nan, math.nan)
    generator, total = np.random.default_rng(0), sum(map(len, groups))
    means = np.zeros(RESAMPLES)
    for group in groups:
        drawn = group[generator.integers(len(group), size=(RESAMPLES, len(group) - 1))]
        means += drawn.mean(axis=1) * (len(group) / total)
    low, high = np.quantile(means, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return BootstrapMean(mean, float(low), float(high))


def pool_singles(groups: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return groups of values with those of a single one put together; a last single one goes to the smallest group."""
    known = [group[~np.isnan(group)] for group in groups]
    known = sorted((group for group in known if len(group)), key=lambda group: len(group))
    single = sum(len(group) == 1 for group in known)
    if single == 1 and len(known) > 1:
        single = 2
    return [np.concatenate(known[:single]), *known[single:]] if single > 1 else known


class Table:
    """Rows by method, kind and task; `columns` are the names of the figures that at least one row has, among `known`,
    which says what they are; `references` are methods that edit nothing. Kinds with a figure of a single task are drawn
    anew together: a quick benchmark has such kinds, and so has anyone's suite, and an interval all the same."""

    def __init__(
        self,
        rows: Sequence[Row],
        known: Mapping[str, Column] = COLUMNS,
        references: Collection[str] = REFERENCES,
    ) -> None:
        self.known, self.references = known, references
        self.methods = list(dict.fromkeys(row.method for row in rows))
        self.kinds = list(dict.fromkeys(row.kind for row in rows))
        self.figures = {(row.method, row.kind, row.task): row.figures for row in rows}
        self.tasks = {kind: sorted({row.task for row in rows if row.kind == kind}) for kind in self.kinds}
        defined = {name for row in rows for name, value in row.figures.items() if not math.isnan(value)}
        self.columns = [name for name in known if name in defined]

    @property
    def count(self) -> int:
        """The number of tasks."""
        return sum(map(len, self.tasks.values()))

    def measured(self, method: str) -> int:
        """Return the number of tasks that a method has figures of."""
        return sum((method, kind, task) in self.figures for kind in self.kinds for task in self.tasks[kind])

    def values(self, method: str, column: str, kind: str) -> np.ndarray:
        """Return a method's figures on the tasks of a kind, float64 [N], in the order of their names; nan where it
        has none."""
        figures = (self.figures.get((method, kind, task), {}) for task in self.tasks[kind])
        return np.array([one.get(column, math.nan) for one in figures])

    def mean(self, method: str, column: str, kinds: Sequence[str] = ()) -> BootstrapMean:
        """Return the mean over all tasks, or over those of some kinds."""
        return bootstrap_mean(pool_singles([self.values(method, column, kind) for kind in kinds or self.kinds]))

    def difference(self, method: str, other: str, column: str) -> BootstrapMean:
        """Return the mean of method - other, paired by task: the variance that tasks have in common cancels."""
        pairs = ((self.values(method, column, kind), self.values(other, column, kind)) for kind in self.kinds)
        return bootstrap_mean(pool_singles([a - b for a, b in pairs]))

    def pairs(self, method: str, other: str, column: str) -> int:
        """Return the number of tasks of which both methods have a figure."""
        pairs = ((self.values(method, column, kind), self.values(other, column, kind)) for kind in self.kinds)
        return sum(int(np.isfinite(a - b).sum()) for a, b in pairs)


def as_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return CSV with a line for each method on each task; a field is empty where a figure is undefined."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["kind", "task", "method", *columns])
    for row in rows:
        values = (row.figures.get(name, math.nan) for name in columns)
        writer.writerow([row.kind, row.task, row.method, *("" if math.isnan(v) else repr(v) for v in values)])
    return out.getvalue()


def as_markdown(table: Table, against: str) -> str:
    """Return the tables: means, the method `against` minus each other method, and the first column by kind."""
    count, kinds = table.count, ", ".join(table.kinds)
    what = f"of these kinds: {kinds}" if len(table.kinds) > 1 else f"of the kind {kinds}"
    parts = [f"Means over {count} tasks {what}." if count > 1 else f"One task {what}.", ""]
    heads = [head(name, table.known) for name in table.columns]
    rows = [
        [method, *(table.mean(method, name).text(table.known[name].decimals) for name in table.columns)]
        for method in table.methods
    ]
    parts += _markdown(["method", *heads], rows)
    others = [method for method in table.methods if method != against and method not in table.references]
    if others:
        compared = [name for name in table.columns if name not in ("seconds", "hue")]
        parts += ["", f"{against} minus the other method on the same task:", ""]
        rows = [
            [
                other,
                *(table.difference(against, other, name).text(table.known[name].decimals, "+") for name in compared),
            ]
            for other in others
        ]
        parts += _markdown(["other method", *(table.known[name].heading for name in compared)], rows)
    if len(table.kinds) > 1:
        first = table.columns[0]
        parts += ["", f"{table.known[first].heading[:1].upper()}{table.known[first].heading[1:]} by kind of edit:", ""]
        rows = [[one, *(table.mean(one, first, [kind]).text(2) for kind in table.kinds)] for one in table.methods]
        parts += _markdown(["method", *table.kinds], rows)
    return "\n".join([*parts, "", textwrap.fill(f"{explain_columns(table.columns, table.known)} {INTERVALS}", 120), ""])


def _markdown(head: list[str], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *body)]
