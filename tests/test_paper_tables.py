"""The paper's tables: which methods and groups are in which, what is marked, and that LaTeX takes them."""

import csv
import math
import re

import numpy as np

from v2edit.bench.paper_tables import as_csv, as_latex, as_markdown, paper_tables
from v2edit.bench.report import Table
from v2edit.bench.scoring import Row

OFFSETS = {"unedited": 0.0, "V2V": -0.2, "Tool_1 & co": 0.001, "w/o PNC": -0.1, "V2Edit": 0.1}


def table_of(columns: tuple[str, ...] = ("ctids", "cdc"), count: int = 12) -> Table:
    """Twelve tasks: V2V and the ablation are behind V2Edit on each, the tool now ahead and now behind."""
    noise = np.random.default_rng(0).normal(0, 0.05, count)
    rows = []
    for method, offset in OFFSETS.items():
        for k in range(count):
            value = 0.3 + noise[k] + offset + (0.1 if method.startswith("Tool") and k % 2 else 0)
            rows.append(Row("a", f"{k:02}", method, {name: value for name in columns} | {"seconds": 1.0}))
    return Table(rows)


def test_table_1_has_the_others_and_table_c_the_ablations() -> None:
    first, last = paper_tables(table_of(), None)
    assert (first.name, last.name) == ("Table 1", "Table C")
    assert list(first.groups) == ["Video Editing"] and list(first.groups["Video Editing"]) == [
        "V2V",
        "Tool_1 & co",
        "V2Edit",
    ]
    assert list(last.groups["Video Editing"]) == ["w/o PNC", "V2Edit"]
    assert first.heads == ["CTIDS ↑", "CDC ↑"] and set(first.counts["Video Editing"].values()) == {12}


def test_best_and_certain_differences_are_marked() -> None:
    first, _ = paper_tables(table_of(), None)
    rows = first.groups["Video Editing"]
    assert [cells[0].is_best for cells in rows.values()] == [False, False, True]
    assert rows["V2V"][0].differs and not rows["V2Edit"][0].differs
    few = paper_tables(table_of(count=5), None)[0].groups["Video Editing"]
    assert not few["V2V"][0].differs  # five of one sign are not beyond chance
    text = as_markdown([first])
    assert re.search(r"\| V2V \| [\d.]+ \([\d.]+ … [\d.]+\) † \|", text) and "| **0.4" in text and "| 12 |" in text
    lines = list(csv.DictReader(as_csv([first]).splitlines()))
    assert len(lines) == 6 and float(lines[0]["low"]) < float(lines[0]["mean"]) < float(lines[0]["high"])


def test_table_b_has_videos_before_and_scenes_after() -> None:
    tables = paper_tables(None, table_of(("ctids", "cdc", "ctids_video", "cdc_video")))
    assert [one.name for one in tables] == ["Table 1", "Table B", "Table C"]
    assert list(tables[1].groups) == ["Edited Video", "Rendered Edited Scenes"]


def test_videos_and_scenes_stand_apart() -> None:
    videos, scenes = table_of(count=12), table_of(("ctids", "cdc", "ctids_video", "cdc_video"), count=7)
    alone = paper_tables(None, scenes)
    for one, of_videos, of_scenes in zip(
        paper_tables(videos, scenes), [paper_tables(videos, None)[0], None, paper_tables(videos, None)[1]], alone,
        strict=True,
    ):  # fmt: skip
        before = {} if of_videos is None else of_videos.groups
        assert one.groups == {**before, **of_scenes.groups} and one.columns == of_scenes.columns
        counted = {heading: set(counts.values()) for heading, counts in one.counts.items()}
        assert counted == {heading: {12 if heading == "Video Editing" else 7} for heading in one.groups}
    assert [list(one.groups) for one in alone[:2]] == [["3D Scene Editing"], ["Edited Video", "Rendered Edited Scenes"]]
    # What is measured of scenes alone is no column of videos, and a tool that has edited none has no row.
    only = Table([Row("a", "1", "V2Edit", {"psnr_source": 30.0}), Row("a", "1", "Tool", {"psnr_source": 20.0})])
    (first, *_) = paper_tables(only, table_of(("ctids",)))
    assert first.heads == ["CTIDS ↑"] and "Tool" not in first.groups["3D Scene Editing"]
    assert all(math.isnan(cells[0].mean.mean) for cells in first.groups["Video Editing"].values())


def test_without_clip_the_first_figures_are_shown_and_a_missing_one_is_a_dash() -> None:
    rows = [Row("a", "1", "V2Edit", {"psnr_source": 30.0}), Row("a", "1", "Tool", {"psnr_source": math.nan})]
    (one,) = paper_tables(Table(rows), None)
    assert one.heads == ["PSNR source ↑"] and "| Tool | – | 1 |" in as_markdown([one])
    assert "Tool & -- " in as_latex([one])


def test_latex_is_whole_and_escaped() -> None:
    text = as_latex(paper_tables(table_of(), None))
    assert r"Tool\_1 \& co" in text and "↑" not in text and "†" not in text and "…" not in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    for line in text.splitlines():
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert len(re.findall(r"(?<!\\)&", line)) == 2, line
    braces = re.sub(r"\\[{}]", "", text)
    assert braces.count("{") == braces.count("}")
