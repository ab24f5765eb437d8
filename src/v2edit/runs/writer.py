"""The writer of a run folder: from the first step to the results, or to a state that can be resumed."""

import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from v2edit.errors import UserError
from v2edit.files import atomic_path, atomic_write, fsync_path
from v2edit.runs.lock import LOCK, lock_state
from v2edit.runs.manifest import (
    MANIFEST,
    PROGRESS_FILE,
    Request,
    State,
    installed_versions,
    read_progress,
    read_request,
    utc_now,
)
from v2edit.runs.naming import REQUEST_FILE, STATE_DIR, display_path, redact, unique_path, why_not_writable
from v2edit.runs.pace import Pace
from v2edit.runs.snapshots import Snapshots

log = logging.getLogger(__name__)
RESULTS_DIR = "results"  # in the state folder
PROGRESS_EVERY = 1.0  # seconds


class RunWriter:
    """A run folder in the making, as a context manager.

    The folder appears when the work begins (with `begin`, or the first use of `folder`): an error before leaves
    nothing. Results are written into `folder`; leaving the context moves them into place. Leaving it with an error
    removes everything, unless there is a request: then the run is stopped, or failed, and `resume` opens it again. One
    process at a time works on a run; the system releases its lock with the process.

    What is at `out` is never touched: should something turn up there before the work begins, the run is written beside
    it, and `out` is that path. An empty folder is filled. `resume` opens a run that is stopped or failed; `command` is
    the command line that does so, for the manifest. Raises `UserError` where something is at `out` already, or it
    cannot be written; with `resume`, where there is no run to resume, or another process works on it."""

    def __init__(self, out: Path, resume: bool = False, command: Sequence[str] | None = None) -> None:
        self.out = Path(os.path.abspath(out))
        self.request: Request | None = None
        self.resumed = resume
        self._resume_command = None if command is None else redact(command)
        self._state = self.out / STATE_DIR
        self._lock: IO[str] | None = None
        self._created_folders: list[Path] = []  # innermost first
        self._published: list[Path] = []
        self._facts: dict[str, Any] | None = None
        self._pace = Pace()
        self._started = utc_now()
        self._progress_written = 0.0
        self._is_complete = False
        if resume:
            self._reopen()
        elif reason := why_not_writable(self.out):
            raise UserError(reason)

    def __enter__(self) -> Self:
        parent = next(path for path in (self.out, *self.out.parents) if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise UserError(f"cannot write to {self.out}: {parent} is no folder to write into; choose another -o")
        return self

    def begin(self, request: Request | None = None, save: Callable[[Path], None] = lambda state: None) -> None:
        """Create the folder; with a request, the run can be resumed from here on. `save` is called before with the
        state folder, to save what else it takes to resume."""
        assert self._lock is None
        while self._lock is None:
            self.out = unique_path(self.out)
            self._state = self.out / STATE_DIR
            self._created_folders = [path for path in (self._state, *self._state.parents) if not path.exists()]
            try:
                self._state.mkdir(parents=True, exist_ok=True)
                self._lock = lock_state(self._state)
                if self._lock is None:
                    continue  # Another process was faster.
                for leftover in self._state.iterdir():  # of a process that ended before its run began
                    if leftover.name != LOCK:
                        _delete(leftover)
                (self._state / RESULTS_DIR).mkdir()
                self.request = request
                if request is not None:
                    self._pace = Pace(request.plan, weights=request.weights)
                    save(self._state)
                    _write_json(self._state / REQUEST_FILE, request)
                    self._write_manifest("running")
            except OSError as error:
                self._discard()
                raise UserError(f"cannot write to {self.out}: {error.strerror or error}; choose another -o") from error

    def _reopen(self) -> None:
        try:
            self._lock = lock_state(self._state) if (self._state / REQUEST_FILE).is_file() else None
        except OSError as error:
            raise UserError(f"cannot write to {self.out}: {error.strerror or error}") from error
        folder = display_path(self.out)
        if not (self._state / REQUEST_FILE).is_file():
            self._release()
            raise UserError(f"there is no run to go on with in {folder}; v2edit runs FOLDER lists runs")
        if self._lock is None:
            raise UserError(f"another process is working on {folder}; wait for it (v2edit runs shows how far)")
        try:
            self.request = read_request(self._state)
            parts = [*self._state.rglob(".*.part"), *self.out.glob(f".{MANIFEST}.*part")]
            for path in (*parts, self._state / RESULTS_DIR):
                _delete(path)
            (self._state / RESULTS_DIR).mkdir()
            self._pace = Pace(self.request.plan, read_progress(self._state), self.request.weights)
            installed, before = installed_versions(), self.request.versions
            if changed := [f"{name} {old}" for name, old in before.items() if installed.get(name) != old]:
                log.warning("the run began with %s: its result may differ in the last bits now", ", ".join(changed))
            self._write_manifest("running")
        except OSError as error:
            self._release()
            raise UserError(f"cannot write to {self.out}: {error.strerror or error}") from error
        except BaseException:
            self._release()
            raise

    @property
    def folder(self) -> Path:
        """The folder that results are written into until all of them are there."""
        if self._lock is None:
            self.begin()
        return self._state / RESULTS_DIR

    @property
    def snapshots(self) -> Snapshots:
        """The snapshots of the run's loops."""
        assert self.request is not None and self._lock is not None
        return Snapshots(self._state, self.request.save_every, self._on_step)

    def _on_step(self, name: str, left: int) -> None:
        steps = self._pace.plan.get(name, left)
        self._pace.update(name, steps - left, steps)
        if time.monotonic() - self._progress_written > PROGRESS_EVERY or left == 0:
            self._progress_written = time.monotonic()
            self._write_progress()

    def _write_progress(self) -> None:
        with suppress(OSError), atomic_path(self._state / PROGRESS_FILE) as part:  # A full disk shows with a snapshot.
            part.write_text(json.dumps(self._pace.to_dict()), encoding="utf-8")

    def write_manifest(self, facts: Mapping[str, Any] | None = None, argv: Sequence[str] | None = None) -> None:
        """Set what `run.json` is to hold, beside the request's facts where there are some, versions and times (UTC).
        Dataclasses are written with all their fields, paths and other objects as text, commands without secrets."""
        if self.request is None:
            command = None if argv is None else redact(argv)
            facts = {**(facts or {}), "command": command, "versions": installed_versions(), "started": self._started}
        self._facts = {**(facts or {})}
        _ = self.folder  # The work has begun.

    def _write_manifest(self, status: State, reason: str | None = None) -> None:
        manifest: dict[str, Any] = {"status": status}
        if reason is not None:
            manifest["reason"] = reason
        if (request := self.request) is not None:
            origin = {"command": request.command, "versions": request.versions, "started": request.started}
            manifest |= {"kind": request.kind, **request.facts, **(self._facts or {}), "save_every": request.save_every}
            manifest |= {"steps": {"done": self._pace.done, "total": self._pace.total}, **origin}
            if self.resumed:
                manifest["resumed"] = {"command": self._resume_command, "at": self._started}
        else:
            manifest |= self._facts or {}
        if status == "done":
            manifest["finished"] = utc_now()
        _write_json(self.out / MANIFEST, manifest)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is None:
            return
        try:
            if error is None:
                try:
                    self._publish()
                    return
                except BaseException as failure:
                    if self._is_complete:
                        raise
                    error = failure
            # A mistake of the user's that is found before the first snapshot leaves nothing worth resuming.
            resumable = not isinstance(error, UserError) or self.resumed or any(self._state.rglob("*.safetensors"))
            resumable = resumable or any(self.out.glob(f"*/{MANIFEST}"))  # nor before the first of several seeds
            if self.request is None or not resumable:
                self._discard()
                if kind is None and isinstance(error, OSError):
                    raise UserError(f"cannot write to {self.out}: {error.strerror or error}") from error
            else:
                self._suspend(error)
        finally:
            self._release()
        if kind is None:
            raise error

    def _publish(self) -> None:
        """Move the results into place, write the manifest and remove the state."""
        results = sorted((self._state / RESULTS_DIR).iterdir())
        for path in (self._state / RESULTS_DIR).rglob("*"):
            fsync_path(path)
        for path in results:
            target = self.out / path.name
            if self.request is not None and target.is_dir():
                _delete(target)  # by this very run, which was ended right here
            path.replace(target)
            self._published.append(target)
        if self._facts is not None:
            self._published.append(self.out / MANIFEST)
            self._write_manifest("done")
        fsync_path(self.out)
        self._is_complete = True
        (self._state / REQUEST_FILE).unlink(missing_ok=True)
        _delete(self._state)

    def _suspend(self, error: BaseException) -> None:
        """Record in the manifest why the run is not done, and raise an error that names the command to resume it."""
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = " ".join((str(error) or type(error).__name__).split())
        self._write_progress()
        with suppress(OSError):
            _delete(self._state / RESULTS_DIR)
            self._write_manifest("stopped" if interrupted else "failed", "interrupted" if interrupted else reason)
        command = f"v2edit resume {display_path(self.out)}"
        if interrupted:
            raise KeyboardInterrupt(f"go on with: {command}") from None
        if isinstance(error, (UserError, OSError)):
            raise UserError(f"{reason}; then go on with: {command}") from error
        error.add_note(f"the run can be gone on with: {command}")

    def _discard(self) -> None:
        """Remove all that was written, and the folders above it that were created for it and are empty again."""
        written = [self._state] if self._lock else []
        if self.request is not None:
            written.append(self.out / MANIFEST)
        for path in (*self._published, *written):
            _delete(path)
        with suppress(OSError):
            for path in self._created_folders:
                if path.exists():
                    path.rmdir()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()


def remove_leftover_state(folder: Path) -> None:
    """Remove the state of a run that is done, whose process was ended at the very last moment."""
    state = folder / STATE_DIR
    if state.is_dir() and (lock := lock_state(state)) is not None:
        with lock:
            _delete(state)


def _delete(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, default=_to_json)
    # A file's name may be no UTF-8; escaped, it is JSON still, and the same name when read.
    atomic_write(path, (text + "\n").encode(errors="backslashreplace"))


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
