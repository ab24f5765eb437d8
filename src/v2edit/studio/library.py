"""The library: an index of the runs in a folder, kept up to date by a thread that looks which of them have changed."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from v2edit.batch.layout import RESULTS, TASK_LIST
from v2edit.errors import UserError
from v2edit.files import read_json
from v2edit.runs import MANIFEST, read_run_state
from v2edit.runs.naming import STATE_DIR
from v2edit.studio.messages import for_browser
from v2edit.studio.notes import Notes

log = logging.getLogger(__name__)
SCAN_EVERY = 1.0  # seconds, or more where a look takes long
SHARE = 0.05  # of the time that looking may take
CHILD = "~"  # between the name of a run of several, or a batch, and that of a run in it
GROUPS = {"seeds", "batch"}
BATCH_FILES, BENCH_FILES = (TASK_LIST, RESULTS), (".bench", "results")
Stamp = tuple[Any, ...]
API = "/api/v1"


@dataclass
class Run:
    """A run in the index: where it is, its manifest, and its summary as clients get it."""

    name: str
    folder: Path
    stamp: Stamp
    kind: str
    facts: dict[str, Any] = field(repr=False)
    summary: dict[str, Any] = field(repr=False)
    parent: str | None = None

    @property
    def state(self) -> str:
        return self.summary["state"]


class Library:
    """The runs of a folder by their names. Names of clients are looked up here and never made a part of a path.

    `on_change` is called with a run's name and its summary, or None where it has gone."""

    def __init__(self, folder: Path, notes: Notes, on_change: Callable[[str, dict[str, Any] | None], None]) -> None:
        self.folder, self.notes = folder, notes
        self._on_change = on_change
        self._runs: dict[str, Run] = {}
        self._media: dict[str, tuple[Stamp, dict[str, Any]]] = {}
        self._lock, self._looking = threading.RLock(), threading.Lock()
        self._wake, self._ends = threading.Event(), False
        self._listing: tuple[int, list[Run]] = (-1, [])
        self.version = 0
        self._thread = threading.Thread(target=self._watch, name="v2edit-studio-library", daemon=True)

    def start(self) -> None:
        """Read the library once, then go on looking."""
        self.scan()
        self._thread.start()

    def close(self) -> None:
        self._ends = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def nudge(self) -> None:
        """Look again at once."""
        self._wake.set()

    def get(self, name: str) -> Run | None:
        return self._runs.get(name)

    def names(self) -> set[str]:
        return {run.name for run in list(self._runs.values()) if run.parent is None}

    def all(self) -> list[Run]:
        """Return all runs, latest first."""
        with self._lock:
            version, runs = self._listing
            if version != self.version:
                runs = sorted(self._runs.values(), key=lambda run: (run.summary["started"] or "", run.name))[::-1]
                self._listing = self.version, runs
            return runs

    def set_media(self, name: str, stamp: Stamp, facts: dict[str, Any]) -> bool:
        """Add what was read of a run's video, if the run is what it was then; return whether it is, or is gone."""
        with self._lock:
            run = self._runs.get(name)
            if run is not None and run.stamp == stamp:
                self._media[name] = stamp, facts
                self._put(run.name, run.folder, run.stamp, run.kind, run.facts, run.parent)
            return run is None or run.stamp == stamp

    def refresh(self, name: str) -> None:
        """Make the summary of a run again, as its note has changed."""
        with self._lock:
            if (run := self._runs.get(name)) is not None:
                self._put(run.name, run.folder, run.stamp, run.kind, run.facts, run.parent)

    def scan(self) -> None:
        """Look which runs have come, changed and gone."""
        with self._looking:
            self._scan()

    def _scan(self) -> None:
        seen: set[str] = set()
        for entry in _folders(self.folder):
            name, path = entry.name, Path(entry.path)
            if (kind := self._look(name, path, None)) is None:
                continue
            seen.add(name)
            if kind in GROUPS:
                for inner in _folders(path):
                    child = f"{name}{CHILD}{inner.name}"
                    if self._look(child, Path(inner.path), name) is not None:
                        seen.add(child)
        with self._lock:
            for name in self._runs.keys() - seen:
                del self._runs[name]
                self._media.pop(name, None)
                self.version += 1
                self._on_change(name, None)

    def _look(self, name: str, path: Path, parent: str | None) -> str | None:
        """Look at a folder and return the kind of run that it is, None for none."""
        known, stamp = self._runs.get(name), _stamp(path)
        if stamp is None:
            return None
        if known is not None and known.stamp == stamp and known.folder == path and not known.stamp[1]:
            return known.kind
        try:
            kind, facts = _read(path)
        except (OSError, ValueError, UserError):
            return None
        with self._lock:
            self._put(name, path, stamp, kind, facts, parent)
        return kind

    def _put(self, name: str, path: Path, stamp: Stamp, kind: str, facts: dict[str, Any], parent: str | None) -> None:
        media_stamp, media = self._media.get(name, (None, {}))
        summary = summarise(name, kind, facts, media if media_stamp == stamp else {}, parent)
        note = self.notes.get(name)
        summary |= {"title": note.title or summary["title"], "note": note.note, "starred": note.starred}
        known = self._runs.get(name)
        self._runs[name] = Run(name, path, stamp, kind, facts, summary, parent)
        if known is None or known.summary != summary:
            self.version += 1
            self._on_change(name, summary)

    def _watch(self) -> None:
        took = 0.0
        while not self._ends:
            self._wake.wait(max(SCAN_EVERY, took / SHARE))
            self._wake.clear()
            if self._ends:
                return
            begin = time.monotonic()
            try:
                self.scan()
            except OSError as error:
                log.warning("cannot look into %s: %s", self.folder, error.strerror)
            took = time.monotonic() - begin


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [one for one in entries if not one.name.startswith(".") and one.is_dir(follow_symlinks=False)]


def _stamp(path: Path) -> Stamp | None:
    """Return what changes when a run does: of its manifest, and whether it has a state; None for what is no run."""
    stamp: list[Any] = []
    with suppress(OSError):
        found = (path / MANIFEST).stat()
        stamp = [(found.st_mtime_ns, found.st_size)]
    active = (path / STATE_DIR / "request.json").exists()
    if not stamp and not active:
        for names in (BATCH_FILES, BENCH_FILES):
            with suppress(OSError):
                found = (path / names[0]).stat()
                stamp = [(found.st_mtime_ns, found.st_size)]
                with suppress(OSError):
                    stamp[0] += ((path / names[1]).stat().st_mtime_ns,)
        if not stamp:
            return None
    return (stamp[0] if stamp else None, active)


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """Read what a folder is and what its manifest says. Raises `UserError`, `OSError` or `ValueError`."""
    if not (path / MANIFEST).exists() and not (path / STATE_DIR).exists():
        is_batch = (path / BATCH_FILES[0]).exists()
        times = [(path / name).stat().st_mtime for name in (*BATCH_FILES, *BENCH_FILES) if (path / name).exists()]
        when = datetime.fromtimestamp(max(times)).astimezone().isoformat(timespec="seconds")
        return "batch" if is_batch else "bench", {"started": when}
    state = read_run_state(path)
    facts: dict[str, Any] = {}
    if (path / MANIFEST).is_file():
        facts = read_json(path / MANIFEST)
    facts |= {"status": state.state, "started": state.started, "reason": state.reason}
    if state.state != "done":
        facts["progress"] = {"done": state.done, "total": state.total, "seconds_left": state.seconds_left}
    return state.kind, facts


def summarise(name: str, kind: str, facts: dict[str, Any], media: dict[str, Any], parent: str | None) -> dict[str, Any]:
    """Return the summary of a run, by its manifest and what was read of its video."""
    prompts = facts.get("prompts") if isinstance(facts.get("prompts"), dict) else None
    model = facts.get("model") if isinstance(facts.get("model"), dict) else {}
    instruction = facts.get("instruction")
    seconds = None
    with suppress(KeyError, ValueError, TypeError):
        seconds = (datetime.fromisoformat(facts["finished"]) - datetime.fromisoformat(facts["started"])).total_seconds()
    state = facts.get("status", "done")
    seeds = facts.get("seeds") if kind == "seeds" else None
    return {
        "name": name,
        "title": instruction or (prompts or {}).get("target") or name,
        "kind": kind,
        "state": state,
        "reason": for_browser(reason) if isinstance(reason := facts.get("reason"), str) else None,
        "started": facts.get("started"),
        "finished": facts.get("finished"),
        "instruction": instruction,
        "prompts": prompts,
        "model": (model or {}).get("name"),
        "seconds": seconds,
        **{key: media.get(key) for key in ("frames", "fps", "width", "height", "sound")},
        "thumb": f"{API}/runs/{quote(name)}/thumb.jpg" if state == "done" or kind in GROUPS else None,
        "progress": facts.get("progress"),
        "parent": parent,
        "seeds": [f"{name}{CHILD}seed-{seed}" for seed in seeds] if seeds else None,
    }


def quote(name: str) -> str:
    """Return a name as a part of an address."""
    from urllib.parse import quote

    return quote(name.encode(errors="surrogateescape"), safe="")


def to_json(value: Any) -> bytes:
    """Return compact JSON, of names that are no text, too."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str).encode(errors="replace")
