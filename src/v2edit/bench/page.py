"""The report as one HTML file that opens from disk, with its figures and videos in it, or beside it where clips are
long: nothing is fetched."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any
from urllib.parse import quote

from v2edit.bench.report import INTERVALS, Table
from v2edit.bench.scoring import ScoredTask
from v2edit.bench.tasks import Task
from v2edit.errors import UserError
from v2edit.metrics.columns import explain_columns

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
TEMPLATE = Path(__file__).with_name("page.html")


def as_html(scored: Sequence[ScoredTask], table: Table, title: str, facts: str) -> str:
    """Return the page: a sortable table of means, and all clips side by side."""
    columns = list(dict.fromkeys(title for one in scored for title in one.titles))
    data: dict[str, Any] = {
        "title": title,
        "facts": facts,
        "notes": f"{explain_columns(table.columns, table.known)} {INTERVALS}",
        "kinds": table.kinds,
        "columns": columns,
        "references": [name for name in columns if name in table.references or name not in table.methods],
        "measures": [
            {"name": name, "heading": one.heading, "decimals": one.decimals, "more": one.more}
            for name, one in ((name, table.known[name]) for name in table.columns)
        ],
        "summary": [
            {
                "method": method,
                "reference": method in table.references,
                "means": [
                    [_json_number(value) for value in astuple(table.mean(method, name))] for name in table.columns
                ],
            }
            for method in table.methods
        ],
        "tasks": [
            {
                "kind": one.task.kind,
                "name": one.task.name,
                "instruction": one.task.instruction,
                "prompts": _prompts(one.task),
                "film": f"data:video/mp4;base64,{base64.b64encode(one.video).decode()}"
                if one.path is None
                else quote(f"{one.path.parent.name}/{one.path.name}"),
                "titles": one.titles,
                "width": one.size[0],
                "height": one.size[1],
                "frames": one.frames,
                "fps": float(one.task.fps),
                "fitted": dict(one.fitted),
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


def read_page(path: Path) -> dict[str, Any]:
    """Return the data of a page that `as_html` made. Raises `UserError` where it is none."""
    try:
        found = DATA.search(path.read_text(encoding="utf-8"))
        data = json.loads(found[1]) if found else None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict) or not {"tasks", "references", "columns"} <= data.keys():
        raise UserError(f"{path} is no report of v2edit bench")
    return data


def _prompts(task: Task) -> str:
    try:
        return f"{task.prompts.source}\n→ {task.prompts.target}"
    except UserError:  # an instruction alone
        return ""


def _json_number(value: float) -> float | None:
    """Return a value in five digits, which are more than the page shows, or None for nan, which JSON has not."""
    return None if math.isnan(value) else float(f"{value:.5g}")
