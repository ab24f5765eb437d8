"""A run folder while it is written."""

import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from v2edit.errors import UserError
from v2edit.files import atomic_write, sync
from v2edit.runs.lock import LOCK, locked
from v2edit.runs.naming import REQUEST, STATE, redact, shown, taken, unique_path
from v2edit.runs.snapshots import Snapshots
from v2edit.runs.state import (
    MANIFEST,
    PROGRESS,
    Pace,
    Request,
    State,
    now,
    read_progress,
    read_request,
    versions_here,
)

log = logging.getLogger(__name__)
RESULTS = "results"  # in the state folder


class RunWriter:
    """A run folder in the making, as a context manager.

    The folder appears when the work begins (with `begin`, or the first use of `folder`): what goes wrong before leaves
    nothing. Results are written into `folder`; leaving the context puts them in place. Leaving it with an error
    removes everything, unless there is a request to go on with: then the run is stopped, or failed, and `resume`
    opens it again. One process at a time has a run, and the system takes it away with the process.

    What is at `out` is never touched: should something turn up there before the work begins, the run goes beside it,
    and `out` says where.

    Raises `UserError` when `out` is there already (an empty folder is welcome) or cannot be written; with `resume`
    (by a `command`), when there is no run to go on with, or another process works on it.
    """

    def __init__(self, out: Path, resume: bool = False, command: Sequence[str] | None = None) -> None:
        self.out = Path(os.path.abspath(out))
        self.request: Request | None = None
        self.resumed = resume
        self._again = None if command is None else redact(command)
        self._state = self.out / STATE
        self._lock: IO[str] | None = None
        self._made: list[Path] = []  # innermost first
        self._moved: list[Path] = []
        self._facts: dict[str, Any] | None = None
        self._pace = Pace({})
        self._started = now()
        self._told = 0.0
        self._done = False
        if resume:
            self._reopen()
        elif why := taken(self.out):
            raise UserError(why)

    def __enter__(self) -> Self:
        there = next(path for path in (self.out, *self.out.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"cannot write to {self.out}: {there} is no folder to write into; choose another -o")
        return self

    def begin(self, request: Request | None = None) -> None:
        """Makes the folder; from here on the run can be gone on with, if there is a request."""
        assert self._lock is None
        while self._lock is None:
            self.out = unique_path(self.out)
            self._state = self.out / STATE
            self._made = [path for path in (self._state, *self._state.parents) if not path.exists()]
            try:
                self._state.mkdir(parents=True, exist_ok=True)
                self._lock = locked(self._state)
                if self._lock is None:
                    continue  # Another process was faster.
                for left in self._state.iterdir():  # by one that ended before it began
                    if left.name != LOCK:
                        delete(left)
                (self._state / RESULTS).mkdir()
                self.request = request
                if request is not None:
                    self._pace = Pace(request.plan)
                    self._write_json(self._state / REQUEST, request)
                    self._write_manifest("running")
            except OSError as error:
                self._remove()
                raise UserError(f"cannot write to {self.out}: {error.strerror or error}; choose another -o") from error

    def _reopen(self) -> None:
        try:
            self._lock = locked(self._state) if (self._state / REQUEST).is_file() else None
        except OSError as error:
            raise UserError(f"cannot write to {self.out}: {error.strerror or error}") from error
        if not (self._state / REQUEST).is_file():
            self._release()
            raise UserError(f"there is no run to go on with in {shown(self.out)}; v2edit runs FOLDER lists runs")
        if self._lock is None:
            raise UserError(f"another process is working on {shown(self.out)}; wait for it (v2edit runs shows how far)")
        try:
            self.request = read_request(self._state)
            for path in [*self._state.glob(".*.part"), self.out / f".{MANIFEST}.part", self._state / RESULTS]:
                delete(path)
            (self._state / RESULTS).mkdir()
            self._pace = Pace(self.request.plan, read_progress(self._state))
            here, began = versions_here(), self.request.versions
            if other := [f"{name} {was}" for name, was in began.items() if here.get(name) != was]:
                log.warning("the run began with %s: its result may differ in the last bits now", ", ".join(other))
            self._write_manifest("running")
        except OSError as error:
            self._release()
            raise UserError(f"cannot write to {self.out}: {error.strerror or error}") from error
        except BaseException:
            self._release()
            raise

    @property
    def folder(self) -> Path:
        """Where results are written until all are there."""
        if self._lock is None:
            self.begin()
        return self._state / RESULTS

    @property
    def snapshots(self) -> Snapshots:
        """Where the run's loops keep how far they are."""
        assert self.request is not None and self._lock is not None
        return Snapshots(self._state, self.request.save_every, self._hear)

    def _hear(self, name: str, left: int) -> None:
        self._pace.tell(name, left)
        if time.monotonic() - self._told > 1 or left == 0:
            self._told = time.monotonic()
            self._tell()

    def _tell(self) -> None:
        part = self._state / f".{PROGRESS}.part"
        try:
            part.write_text(json.dumps(self._pace.facts()), encoding="utf-8")
            part.replace(self._state / PROGRESS)
        except OSError:  # It is news only; a full disk is found by what must be kept.
            delete(part)

    def write_manifest(self, facts: Mapping[str, Any] | None = None, argv: Sequence[str] | None = None) -> None:
        """What is to stand in `run.json`, beside the request's facts where there are some, versions and times (UTC).

        Dataclasses among the facts are written with all their fields, paths and other things as text. Secrets in the
        command line are blanked.
        """
        if self.request is None:
            command = None if argv is None else redact(argv)
            facts = {**(facts or {}), "command": command, "versions": versions_here(), "started": self._started}
        self._facts = {**(facts or {})}
        _ = self.folder  # The work has begun.

    def _write_manifest(self, status: State, reason: str | None = None) -> None:
        facts: dict[str, Any] = {"status": status}
        if reason is not None:
            facts["reason"] = reason
        if (request := self.request) is not None:
            about = {"command": request.command, "versions": request.versions, "started": request.started}
            facts |= {"kind": request.kind, **request.facts, **(self._facts or {}), "save_every": request.save_every}
            facts |= {"steps": {"done": self._pace.done, "total": self._pace.total}, **about}
            if self.resumed:
                facts["resumed"] = {"command": self._again, "at": self._started}
        else:
            facts |= self._facts or {}
        if status == "done":
            facts["finished"] = now()
        self._write_json(self.out / MANIFEST, facts)

    def _write_json(self, path: Path, what: Any) -> None:
        text = json.dumps(what, indent=2, ensure_ascii=False, default=_plain)
        # A file's name may be no UTF-8; escaped, it is JSON still, and the same name when read.
        atomic_write(path, (text + "\n").encode(errors="backslashreplace"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is None:
            return
        try:
            if error is None:
                try:
                    self._put_in_place()
                    return
                except BaseException as failed:
                    if self._done:
                        raise
                    error = failed
            # What the user can mend, found before anything was done, leaves nothing.
            useless = isinstance(error, UserError) and not self.resumed and not any(self._state.glob("*.safetensors"))
            if self.request is None or useless:
                self._remove()
                if kind is None and isinstance(error, OSError):
                    raise UserError(f"cannot write to {self.out}: {error.strerror or error}") from error
            else:
                self._leave(error)
        finally:
            self._release()
        if kind is None:
            raise error

    def _put_in_place(self) -> None:
        results = sorted((self._state / RESULTS).iterdir())
        for path in (self._state / RESULTS).rglob("*"):
            sync(path)
        for path in results:
            target = self.out / path.name
            if self.request is not None and target.is_dir():
                delete(target)  # by this very run, which was ended right here
            path.replace(target)
            self._moved.append(target)
        if self._facts is not None:
            self._moved.append(self.out / MANIFEST)
            self._write_manifest("done")
        sync(self.out)
        self._done = True
        (self._state / REQUEST).unlink(missing_ok=True)
        delete(self._state)

    def _leave(self, error: BaseException) -> None:
        """Says in the manifest that the run goes on another time, and to the user, how."""
        stopped = isinstance(error, KeyboardInterrupt)
        reason = " ".join((str(error) or type(error).__name__).split())
        self._tell()
        with suppress(OSError):
            delete(self._state / RESULTS)
            self._write_manifest("stopped" if stopped else "failed", "interrupted" if stopped else reason)
        command = f"v2edit resume {shown(self.out)}"
        if stopped:
            raise KeyboardInterrupt(f"go on with: {command}") from None
        if isinstance(error, (UserError, OSError)):
            raise UserError(f"{reason}; then go on with: {command}") from error
        error.add_note(f"the run can be gone on with: {command}")

    def _remove(self) -> None:
        """Everything that was made, and of the folders above it those that were made for it and are empty again."""
        began = [self._state] if self._lock else []
        if self.request is not None:
            began.append(self.out / MANIFEST)
        for path in (*self._moved, *began):
            delete(path)
        with suppress(OSError):
            for path in self._made:
                if path.exists():
                    path.rmdir()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()


def tidy(folder: Path) -> None:
    """Removes what a run that is done has left of its state: its process was ended at the very last moment."""
    state = folder / STATE
    if state.is_dir() and (lock := locked(state)) is not None:
        with lock:
            delete(state)


def delete(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
