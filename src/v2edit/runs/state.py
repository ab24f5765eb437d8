"""What stands in a run that is not done: the request, how far it is; and how a run is doing, told from outside."""

import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from v2edit.errors import UserError
from v2edit.files import read_json
from v2edit.runs.lock import is_free
from v2edit.runs.naming import REQUEST, STATE, redact
from v2edit.runs.snapshots import SAVE_EVERY

MANIFEST = "run.json"
PROGRESS = "progress.json"  # in the state folder
FORMAT = 1  # of that folder
PACKAGES = ("v2edit", "torch", "diffusers", "transformers", "av")

Kind = Literal["edit", "scene"]
State = Literal["running", "stopped", "failed", "done"]


@dataclass(frozen=True)
class Request:
    """What a run is to do: all that going on with it needs, and nothing secret.

    `facts` are the manifest's; `plan` has the steps of each of the run's loops, by the names of their loops.
    """

    kind: Kind
    facts: dict[str, Any]
    plan: dict[str, int]
    save_every: int = SAVE_EVERY
    command: Sequence[str] | None = None
    started: str = field(default_factory=lambda: now())
    versions: dict[str, str] = field(default_factory=lambda: versions_here())
    format: int = FORMAT

    def __post_init__(self) -> None:
        object.__setattr__(self, "command", None if self.command is None else redact(self.command))


def check_save_every(steps: int) -> None:
    """Raises `UserError` for a number of steps that cannot be meant."""
    if steps < 1:
        raise UserError(f"--save-every is {steps}, expected 1 or more denoising steps")


@dataclass(frozen=True)
class RunState:
    """How a run is doing: `done` of `total` steps of all its loops, when it was `started` (UTC, ISO 8601), how many
    seconds are left where that can be told, and why it is stopped or failed."""

    folder: Path
    kind: Kind
    state: State
    done: int
    total: int
    started: str
    seconds_left: float | None = None
    reason: str | None = None


class Pace:
    """How far a run's loops are, and how long their steps take: those of one kind, by the first word of the snapshot's
    name, about as long as each other."""

    def __init__(self, plan: Mapping[str, int], before: Mapping[str, Any] | None = None) -> None:
        before = before or {}
        self._left = {**plan, **before.get("left", {})}
        self.total = sum(plan.values())
        self._took: dict[str, tuple[float, int]] = {k: (seconds, 1) for k, seconds in before.get("pace", {}).items()}
        self._last: tuple[str, int, float] | None = None

    @property
    def done(self) -> int:
        return self.total - sum(self._left.values())

    def tell(self, name: str, left: int) -> None:
        kind, now = name.partition("-")[0], time.monotonic()
        if self._last is not None and self._last[0] == name and left < self._last[1]:
            seconds, count = self._took.get(kind, (0.0, 0))
            self._took[kind] = seconds + now - self._last[2], count + self._last[1] - left
        self._left[name], self._last = left, (name, left, now)

    def facts(self) -> dict[str, Any]:
        pace = {kind: seconds / count for kind, (seconds, count) in self._took.items()}
        left = [(pace.get(name.partition("-")[0]), count) for name, count in self._left.items() if count]
        known = None if any(each is None for each, _ in left) else sum((each or 0) * count for each, count in left)
        return {"left": self._left, "pace": pace, "seconds_left": known, "at": time.time()}


def state_of(folder: str | Path) -> RunState:
    """How a run is doing. A run whose process is gone without a word is stopped.

    Raises:
        UserError: it is no run folder, or one that cannot be read.
    """
    folder = Path(folder)
    try:
        facts = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
        begun = (folder / STATE / REQUEST).is_file()
        if isinstance(facts, dict) and facts.get("status") == "done":
            steps = facts.get("steps") or {"done": 0, "total": 0}
            kind = facts.get("kind", "edit")
            return RunState(folder, kind, "done", steps["done"], steps["total"], facts["started"])
        if not begun:
            raise UserError(f"{folder} is no run folder: it has no {MANIFEST} of a run")
        request = read_request(folder / STATE)
        pace = Pace(request.plan, (progress := read_progress(folder / STATE)))
        done, left = pace.done, progress.get("seconds_left")
        if not is_free(folder / STATE):
            aged = None if left is None else max(0.0, left - max(0.0, time.time() - progress["at"]))
            return RunState(folder, request.kind, "running", done, pace.total, request.started, aged)
        status, reason = (facts.get("status"), facts.get("reason")) if isinstance(facts, dict) else (None, None)
        if status not in ("stopped", "failed"):
            status, reason = "stopped", "its process ended without a word"
        return RunState(folder, request.kind, status, done, pace.total, request.started, left, reason)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the run in {folder} cannot be read: {error}") from error


def runs_in(folder: str | Path) -> list[RunState]:
    """The runs in a folder, oldest first; the one that the folder is, if it is one.

    Raises:
        UserError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the one that your runs are in")
    found = []
    for path in [folder, *sorted(folder.iterdir())]:
        with suppress(UserError):
            found.append(state_of(path))
    return sorted(found, key=lambda one: one.started)


def read_request(state: Path) -> Request:
    facts = read_json(state / REQUEST)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise UserError(f"the run in {state.parent} was begun by another version of v2edit: start it again")
    try:
        return Request(**facts)
    except TypeError as error:
        raise UserError(f"the request in {state} is damaged: start again, with another -o") from error


def read_progress(state: Path) -> dict[str, Any]:
    try:
        facts = read_json(state / PROGRESS)
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def versions_here() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
