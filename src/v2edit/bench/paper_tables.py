"""The tables of the paper (V2Edit Tables 1, B and C) on any suite, as Markdown, CSV and LaTeX.

Table 1 compares tools and baselines with V2Edit, Table C its ablations; of scenes Table B has the edited videos, before
the reconstruction, beside the rendered scenes. Each mean has the 95 % interval of its bootstrap; a dagger marks a
method whose paired difference to V2Edit has an interval without 0.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from v2edit.bench.methods import ABLATIONS, FULL
from v2edit.bench.report import BootstrapMean, Table

PAPER = ("ctids", "cdc", "overall")  # the columns of the paper's tables, those that are measured
DAGGER = "†"
# Pairs of tasks from which on a difference is marked: of five that all have one sign, chance makes 1 in 16.
MIN_PAIRS = 6
UNKNOWN = BootstrapMean(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Cell:
    """A mean with its interval, in how many decimals, whether it is the best of its group's, and whether the paired
    difference to V2Edit is beyond chance."""

    mean: BootstrapMean
    decimals: int
    is_best: bool
    differs: bool


@dataclass(frozen=True)
class PaperTable:
    """A table: its name in the paper, its headings with arrows, and for each group a heading and rows."""

    name: str
    caption: str
    heads: Sequence[str]
    columns: Sequence[str]
    groups: Mapping[str, Mapping[str, Sequence[Cell]]]  # heading -> method -> cells
    counts: Mapping[str, Mapping[str, int]]  # heading -> method -> its number of tasks


@dataclass(frozen=True)
class _Group:
    """Rows of a table: figures of `columns`, and the methods that the rows are of, where the figures have them."""

    figures: Table
    methods: Sequence[str]
    columns: Sequence[str]

    @property
    def measured(self) -> dict[str, int]:
        return {method: self.figures.measured(method) for method in self.methods if method in self.figures.methods}

    def cells(self) -> dict[str, list[Cell]]:
        rows: dict[str, list[Cell]] = {method: [] for method in self.measured}
        for column in self.columns:
            has = column in self.figures.columns
            means = {method: self.figures.mean(method, column) if has else UNKNOWN for method in rows}
            known = [one.mean for one in means.values() if not math.isnan(one.mean)]
            best = (max if self.figures.known[column].more else min)(known) if len(set(known)) > 1 else None
            for method, mean in means.items():
                cell = Cell(
                    mean, self.figures.known[column].decimals, mean.mean == best, has and self._differs(method, column)
                )
                rows[method].append(cell)
        return rows

    def _differs(self, method: str, column: str) -> bool:
        """Return whether a method's paired difference to V2Edit is beyond chance."""
        if method == FULL or FULL not in self.measured or self.figures.pairs(FULL, method, column) < MIN_PAIRS:
            return False
        gap = self.figures.difference(FULL, method, column)
        return gap.low > 0 or gap.high < 0


def paper_tables(clips: Table | None, scenes: Table | None) -> list[PaperTable]:
    """Return the tables that there are methods and figures for, of videos and of scenes (None: there are none), each
    kind in a group of its own."""
    kinds = {"Video Editing": clips, "3D Scene Editing": scenes}
    tables = {heading: table for heading, table in kinds.items() if table is not None}
    methods = list(dict.fromkeys(name for one in tables.values() for name in one.methods if name not in one.references))
    ablations = [name for name in methods if name in ABLATIONS]
    others = [name for name in methods if name not in (FULL, *ablations)]
    ours = [FULL] if FULL in methods else []
    known = list(dict.fromkeys(name for one in tables.values() for name in one.columns))
    columns = [name for name in PAPER if name in known]
    columns = columns or [name for name in known if name not in ("seconds", "hue")][:4]

    def groups(*names: str) -> dict[str, _Group]:
        made = {heading: _Group(table, names, columns) for heading, table in tables.items()}
        return {heading: one for heading, one in made.items() if set(one.measured) - {FULL} or not others}

    found = []
    if others or not ablations:
        found.append(_table("Table 1", "Quantitative evaluation", groups(*others, *ours)))
    if scenes is not None and others:
        before = [f"{name}_video" for name in columns if f"{name}_video" in scenes.columns]
        if before:
            parts = {"Edited Video": before, "Rendered Edited Scenes": columns}
            halves = {heading: _Group(scenes, [*others, *ours], some) for heading, some in parts.items()}
            caption = "Video editing methods in scenes, before and after reconstruction"
            found.append(_table("Table B", caption, halves))
    if ablations:
        found.append(_table("Table C", "Ablation study", groups(*ablations, *ours)))
    return found


def _table(name: str, caption: str, groups: Mapping[str, _Group]) -> PaperTable:
    last = next(reversed(list(groups.values())))
    heads = [
        f"{last.figures.known[one].heading} {'↑' if last.figures.known[one].more else '↓'}" for one in last.columns
    ]
    cells = {heading: one.cells() for heading, one in groups.items()}
    counts = {heading: one.measured for heading, one in groups.items()}
    return PaperTable(name, caption, heads, last.columns, cells, counts)


def as_markdown(tables: Sequence[PaperTable]) -> str:
    """Return the tables as Markdown."""
    parts: list[str] = []
    for one in tables:
        parts += ["", f"## {one.name}: {one.caption}", "", f"| method | {' | '.join(one.heads)} | tasks |"]
        parts.append(f"| --- |{' ---: |' * (len(one.heads) + 1)}")
        for heading, rows in one.groups.items():
            parts.append(f"| *{heading}* |{' |' * (len(one.heads) + 1)}")
            for method, cells in rows.items():
                texts = [f"**{text}**" if cell.is_best else text for cell in cells for text in [_text(cell)]]
                parts.append(f"| {method} | {' | '.join(texts)} | {one.counts[heading][method]} |")
    note = f"{DAGGER}: the paired difference to {FULL}, of {MIN_PAIRS} tasks or more, has a 95 % interval without 0."
    return "\n".join([*parts, "", note, ""]) if tables else ""


def _text(cell: Cell) -> str:
    return cell.mean.text(cell.decimals) + (f" {DAGGER}" if cell.differs else "")


def as_csv(tables: Sequence[PaperTable]) -> str:
    """Return a line for each figure of the tables."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "group", "method", "figure", "mean", "low", "high", "tasks", "differs"])
    for one in tables:
        for heading, rows in one.groups.items():
            for method, cells in rows.items():
                for column, cell in zip(one.columns, cells, strict=True):
                    values = (cell.mean.mean, cell.mean.low, cell.mean.high)
                    numbers = ["" if math.isnan(value) else repr(value) for value in values]
                    count = one.counts[heading][method]
                    writer.writerow([one.name, heading, method, column, *numbers, count, int(cell.differs)])
    return out.getvalue()


def as_latex(tables: Sequence[PaperTable]) -> str:
    """Return the tables for a paper's LaTeX source (packages booktabs and amsmath)."""
    return "\n".join(map(_as_latex, tables))


def _as_latex(one: PaperTable) -> str:
    width = len(one.heads) + 1
    arrows = str.maketrans({"↑": r"$\uparrow$", "↓": r"$\downarrow$"})
    heads = " & ".join(_escape(head).translate(arrows) for head in one.heads)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
        r"\toprule",
        rf"Method & {heads} \\",
    ]
    for heading, rows in one.groups.items():
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{c}}{{\emph{{{_escape(heading)}}}}} \\", r"\midrule"]
        lines += [rf"{_escape(method)} & {' & '.join(map(_latex_cell, cells))} \\" for method, cells in rows.items()]
    counts = sorted({count for counts in one.counts.values() for count in counts.values()})
    tasks = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0] if counts else 0}"
    caption = (
        rf"{one.caption} on {tasks} tasks. Small: 95\,\% bootstrap intervals. "
        rf"$^\dagger$: the paired difference to {_escape(FULL)} has an interval without 0."
    )
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\end{table}", ""])


def _latex_cell(cell: Cell) -> str:
    if math.isnan(cell.mean.mean):
        return "--"
    mean, low, high = (f"{value:.{cell.decimals}f}" for value in (cell.mean.mean, cell.mean.low, cell.mean.high))
    text = rf"\textbf{{{mean}}}" if cell.is_best else mean
    text += r"$^\dagger$" if cell.differs else ""
    return text if math.isnan(cell.mean.low) else rf"{text} {{\scriptsize [{low}, {high}]}}"


SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {mark: rf"\{mark}" for mark in "&%$#_{}"}


def _escape(text: str) -> str:
    return "".join(SPECIAL.get(letter, letter) for letter in text)
