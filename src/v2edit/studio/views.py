"""Jobs and runs as clients get them."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2edit.errors import UserError
from v2edit.runs.naming import STATE_DIR
from v2edit.studio.commands import command_line, python_code, run_command
from v2edit.studio.library import API, Run, quote
from v2edit.studio.media import list_files, media_of, settings_of
from v2edit.studio.messages import for_browser
from v2edit.studio.options import to_keywords
from v2edit.studio.records import ACTIVE, JobRecord

if TYPE_CHECKING:
    from v2edit.studio.core import Studio

PREVIEWS = {"preview.mp4": "video/mp4", "preview.webp": "image/webp", "preview.png": "image/png"}


def job_view(studio: Studio, record: JobRecord) -> dict[str, Any]:
    """Return a job: its record, its place in the queue, how far it is, and what makes the same elsewhere."""
    command, python = job_commands(studio, record)
    state = "stopping" if record.stopping and record.state in ACTIVE else record.state
    return {
        "id": record.id, "kind": record.kind, "title": record.title, "state": record.state,
        "stopping": state == "stopping", "created": record.created,
        "reason": None if record.reason is None else for_browser(record.reason),
        "started": record.started, "finished": record.finished,
        "position": studio.queue.position(record.id) if record.state == "queued" else None,
        "order": record.order, "run": record.run,
        "progress": studio.queue.progress.get(record.id) if record.state in ACTIVE else None,
        **preview_of(studio, record), "source": source_of(studio, record), "input": record.input,
        "instruction": record.instruction, "options": record.options, "mask": record.mask, "trim": record.trim,
        "notes": [*map(for_browser, record.notes)],
        "plan": [*map(for_browser, studio.queue.plan(record.id))],
        "command": command,
        "python": python,
    }  # fmt: skip


def job_commands(studio: Studio, record: JobRecord) -> tuple[str, str]:
    """Return the command line and the Python that make what a job makes; they are made once."""
    known = studio.commands.get(record.id)
    if known is not None and known[0] == record.run:
        return known[1]
    if record.resumes:
        folder = str(studio.settings.folder / record.input["run"])
        return shlex.join(["v2edit", "resume", folder]), f"import v2edit\nv2edit.resume_run({folder!r})"
    path, keywords = Path("INPUT"), {}
    with suppress(UserError, KeyError):
        path, _ = studio.find_input(record.input, record.kind)
    with suppress(UserError, KeyError):
        mask = studio.find_mask(record.mask)
        out = None if record.run is None else studio.settings.folder / record.run
        keywords = to_keywords(record.kind, record.options, studio.settings, mask, record.trim, out)
    facts = record.kind, path, record.instruction, keywords
    made = command_line(*facts), python_code(*facts)
    studio.commands[record.id] = record.run, made
    return made


def source_of(studio: Studio, record: JobRecord) -> dict[str, Any]:
    """Return the size and a picture of what a job edits, each None where it is not known."""
    found: dict[str, Any] = {}
    with suppress(KeyError):
        if (upload := record.input.get("upload")) is not None:
            found = studio.uploads.get(upload).view
        elif (run := studio.library.get(str(record.input.get("run")))) is not None:
            found = run.summary
    return {name: found.get(name) for name in ("width", "height", "thumb")}


def preview_of(studio: Studio, record: JobRecord) -> dict[str, str | None]:
    """Return the address of the newest preview of a job that runs, and its type."""
    if record.run is not None and record.state in ACTIVE:
        found = find_preview(studio.settings.folder / record.run)
        with suppress(OSError):  # It may be gone by now.
            if found is not None:
                address = f"{API}/runs/{quote(record.run)}/preview?v={found.stat().st_mtime_ns}"
                return {"preview": address, "preview_type": PREVIEWS[found.name]}
    return {"preview": None, "preview_type": None}


def find_preview(folder: Path) -> Path | None:
    """Return the newest preview of a run that is being made."""
    with suppress(OSError):
        there = [path for name in PREVIEWS if (path := folder / STATE_DIR / name).is_file()]
        return max(there, key=lambda path: path.stat().st_mtime_ns, default=None)
    return None


def run_view(run: Run) -> dict[str, Any]:
    """Return a run with all that a page shows of it."""
    files = list_files(run.folder)
    return run.summary | {
        "files": files,
        "media": media_of(run.name, files),
        "settings": settings_of(run.facts),
        "command": run_command(run.facts),
        "python": None,
    }
