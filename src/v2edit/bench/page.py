"""The report as one HTML file that opens from disk, with its figures and videos in it: nothing is fetched."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from v2edit.bench.methods import REFERENCES
from v2edit.bench.report import INTERVALS, Table
from v2edit.bench.scoring import ScoredTask
from v2edit.metrics.columns import COLUMNS, explain_columns
from v2edit.primitives.scene import FPS

TEMPLATE = Path(__file__).with_name("page.html")


def as_html(scored: Sequence[ScoredTask], table: Table, title: str, facts: str) -> str:
    """Return the page: a sortable table of means, and all clips side by side."""
    frames, height, width, _ = scored[0].task.clips.source.frames.shape
    data: dict[str, Any] = {
        "title": title,
        "facts": facts,
        "notes": f"{explain_columns(table.columns)} {INTERVALS}",
        "kinds": table.kinds,
        "columns": scored[0].titles,
        "references": [name for name in scored[0].titles if name in REFERENCES or name not in table.methods],
        "measures": [
            {"name": name, "heading": one.heading, "decimals": one.decimals, "more": one.more}
            for name, one in ((name, COLUMNS[name]) for name in table.columns)
        ],
        "summary": [
            {
                "method": method,
                "reference": method in REFERENCES,
                "means": [
                    [_json_number(value) for value in astuple(table.mean(method, name))] for name in table.columns
                ],
            }
            for method in table.methods
        ],
        "frames": frames,
        "height": height,
        "width": width,
        "fps": FPS,
        "tasks": [
            {
                "kind": one.task.kind,
                "seed": one.task.seed,
                "instruction": one.task.edit.instruction,
                "source_prompt": one.task.prompts.source,
                "target_prompt": one.task.prompts.target,
                "film": base64.b64encode(one.video).decode(),
                "figures": {
                    row.method: {name: _json_number(row.figures.get(name, math.nan)) for name in table.columns}
                    for row in one.rows
                },
            }
            for one in scored
        ],
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # In a script element the text would end at its closing tag.
    return TEMPLATE.read_text(encoding="utf-8").replace("{{data}}", text.replace("</", "<\\/"))


def _json_number(value: float) -> float | None:
    """Return a value in five digits, which are more than the page shows, or None for nan, which JSON has not."""
    return None if math.isnan(value) else float(f"{value:.5g}")
