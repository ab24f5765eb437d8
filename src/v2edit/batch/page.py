"""A batch's summary as one HTML file beside its run folders: it opens from disk, and nothing else is fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from v2edit.batch.state import ERRORS, PAGE, Status
from v2edit.files import atomic_write

TEMPLATE = Path(__file__).with_name("page.html")


def write_page(status: Status) -> Path:
    """Writes the page into the batch's folder: all tasks, what became of them, and their films by relative links."""
    path = status.folder / PAGE
    atomic_write(path, as_html(status).encode())
    return path


def as_html(status: Status) -> str:
    running = {one.name: one for one in status.running}
    tasks: list[dict[str, Any]] = []
    for task in status.tasks:
        shown: dict[str, Any] = {"name": task.name, "about": task.about, "state": "waiting"}
        shown["source"] = task.facts.get("video") or task.facts.get("scene")
        if (result := status.results.get(task.name)) is not None:
            shown |= {"state": result.state, "reason": result.reason, "attempts": result.attempts}
            shown |= {"seconds": result.seconds, "notes": result.notes}
            folder = status.folder / task.name
            shown["files"] = [name for name in ("contact.png", "compare.mp4", "run.json") if (folder / name).is_file()]
            if (status.folder / ERRORS / f"{task.name}.txt").is_file():
                shown["trace"] = f"{ERRORS}/{task.name}.txt"
        elif task.name in running:
            shown["state"] = "running"
        tasks.append(shown)
    data = {"title": status.folder.name, "tasks": tasks}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # In a script element the text would end at its closing tag, or be lost in a comment that it opens.
    return TEMPLATE.read_text(encoding="utf-8").replace("{{data}}", text.replace("<", "\\u003c"))
