"""The summary of a batch: one HTML file beside its run folders, which opens from disk and fetches nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from v2edit.batch.layout import ERRORS_DIR, PAGE
from v2edit.batch.state import BatchStatus, ListedTask
from v2edit.files import atomic_write
from v2edit.runs import MANIFEST
from v2edit.runs.layout import COMPARISON_VIDEO, CONTACT_SHEET

TEMPLATE = Path(__file__).with_name("page.html")
RUN_FILES = (CONTACT_SHEET, COMPARISON_VIDEO, MANIFEST)


def write_page(status: BatchStatus) -> Path:
    """Write the page into the batch's folder: all tasks, their results, and their videos by relative links."""
    path = status.folder / PAGE
    atomic_write(path, as_html(status).encode())
    return path


def as_html(status: BatchStatus) -> str:
    """Render the page."""
    data = {"title": status.folder.name, "tasks": [_task_data(status, task) for task in status.tasks]}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # In a script element the text would end at its closing tag, or be lost in a comment that it opens.
    return TEMPLATE.read_text(encoding="utf-8").replace("{{data}}", text.replace("<", "\\u003c"))


def _task_data(status: BatchStatus, task: ListedTask) -> dict[str, Any]:
    is_running = any(running.name == task.name for running in status.running)
    data: dict[str, Any] = {"name": task.name, "about": task.about, "state": "running" if is_running else "waiting"}
    data["source"] = task.facts.get("video") or task.facts.get("scene")
    if (result := status.results.get(task.name)) is not None:
        data |= {"state": result.state, "reason": result.reason, "attempts": result.attempts}
        data |= {"seconds": result.seconds, "notes": result.notes}
        data["files"] = [name for name in RUN_FILES if (status.folder / task.name / name).is_file()]
        if (status.folder / ERRORS_DIR / f"{task.name}.txt").is_file():
            data["trace"] = f"{ERRORS_DIR}/{task.name}.txt"
    return data
