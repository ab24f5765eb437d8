"""The files of a run folder: the manifest, and the request and the progress of a run that is not done."""

import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from v2edit.errors import UserError
from v2edit.files import read_json
from v2edit.runs.lock import is_state_locked
from v2edit.runs.naming import REQUEST_FILE, STATE_DIR, redact
from v2edit.runs.pace import Pace
from v2edit.runs.snapshots import SAVE_EVERY

MANIFEST = "run.json"
PROGRESS_FILE = "progress.json"  # in the state folder
FORMAT = 2  # of the state folder
PACKAGES = ("v2edit", "torch", "diffusers", "transformers", "av")

Kind = Literal["edit", "scene", "seeds"]
State = Literal["running", "stopped", "failed", "done"]


@dataclass(frozen=True)
class Request:
    """What a run is to do: all that resuming it needs, and nothing secret. `facts` are the manifest's; `plan` has the
    steps of each of the run's loops, by the loops' names, and `weights` what their steps take, as multiples."""

    kind: Kind
    facts: dict[str, Any]
    plan: dict[str, int]
    save_every: int = SAVE_EVERY
    command: Sequence[str] | None = None
    started: str = field(default_factory=lambda: utc_now())
    versions: dict[str, str] = field(default_factory=lambda: installed_versions())
    format: int = FORMAT
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "command", None if self.command is None else redact(self.command))


@dataclass(frozen=True)
class RunState:
    """State of a run: `done` of `total` steps of all its loops, when it was `started` (UTC, ISO 8601), how many seconds
    are left where that is known, and the reason why it stopped or failed. A run of several has `seeds`."""

    folder: Path
    kind: Kind
    state: State
    done: int
    total: int
    started: str
    seconds_left: float | None = None
    reason: str | None = None
    seeds: tuple[int, ...] = ()


def check_save_every(steps: int) -> None:
    """Raise `UserError` for fewer than one step between snapshots."""
    if steps < 1:
        raise UserError(f"--save-every is {steps}, expected 1 or more denoising steps")


def read_run_state(folder: str | Path) -> RunState:
    """Read the state of a run. A run whose process is gone without having recorded its end is stopped. Raises
    `UserError` where the folder is no run folder, or one that cannot be read."""
    folder = Path(folder)
    state_dir = folder / STATE_DIR
    try:
        manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
        facts: dict[str, Any] = manifest if isinstance(manifest, dict) else {}
        if facts.get("status") == "done":
            steps, seeds = facts.get("steps") or {"done": 0, "total": 0}, tuple(facts.get("seeds", ()))
            kind, started = facts.get("kind", "edit"), facts["started"]
            return RunState(folder, kind, "done", steps["done"], steps["total"], started, seeds=seeds)
        if not (state_dir / REQUEST_FILE).is_file():
            raise UserError(f"{folder} is no run folder: it has no {MANIFEST} of a run")
        request, progress = read_request(state_dir), read_progress(state_dir)
        pace, seeds = Pace(request.plan, progress), tuple(request.facts.get("seeds", ()))
        left = progress.get("seconds_left")
        if is_state_locked(state_dir):
            if left is not None:
                left = max(0.0, left - max(0.0, time.time() - progress["at"]))
            status, reason = "running", None
        else:
            status, reason = facts.get("status"), facts.get("reason")
            if status not in ("stopped", "failed"):
                status, reason = "stopped", "its process ended without a word"
        return RunState(folder, request.kind, status, pace.done, pace.total, request.started, left, reason, seeds)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the run in {folder} cannot be read: {error}") from error


def find_runs(folder: str | Path) -> list[RunState]:
    """Return the states of the runs in and of a folder, oldest first. Raises `UserError` where there is no folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the one that your runs are in")
    states = []
    for path in [folder, *sorted(folder.iterdir())]:
        with suppress(UserError):
            states.append(read_run_state(path))
    return sorted(states, key=lambda state: state.started)


def read_request(state_dir: Path) -> Request:
    """Read the request in a state folder. Raises `UserError` where it is damaged or of another version."""
    facts = read_json(state_dir / REQUEST_FILE)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise UserError(f"the run in {state_dir.parent} was begun by another version of v2edit: start it again")
    try:
        return Request(**facts)
    except TypeError as error:
        raise UserError(f"the request in {state_dir} is damaged: start again, with another -o") from error


def read_progress(state_dir: Path) -> dict[str, Any]:
    """Read what `Pace.to_dict` returned last; empty where nothing was written, or it is damaged."""
    try:
        progress = read_json(state_dir / PROGRESS_FILE)
    except (OSError, ValueError):
        return {}
    return progress if isinstance(progress, dict) else {}


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


def utc_now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
