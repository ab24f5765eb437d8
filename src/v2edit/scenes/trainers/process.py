"""Run another program to its end: in its own environment and process group, with its output in a log file.

The group ends with the run: when that is interrupted, and when its process is killed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from v2edit.errors import UserError
from v2edit.runs.snapshots import defer_interrupt

# Of this program's Python and its libraries: another Python breaks by them.
OWN_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH",
                 "LD_PRELOAD", "DYLD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES")  # fmt: skip
# Output as it comes and in one line each, and checkpoints that its own earlier process wrote: torch 2.6 and newer load
# nerfstudio's no more without the last.
SET_VARIABLES = {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "200", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
POLL = 0.1  # seconds
GRACE = 5.0  # seconds that a program has to end itself when it is told to
TAIL = 1 << 16  # bytes of a log that are read for what it says last
MOST_QUOTED = 200  # characters
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
ERROR_LINE = re.compile(r"^(\w+\.)*\w*(Error|Exception|Interrupt|Exit)\b|\b(error|fatal)\b[^\w]", re.I)
# The program's parent, which ends its group when this process is gone, and the pipe to it closes.
LEASH = """
import os, resource, signal, subprocess, sys, threading
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the program may end itself
def watch():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
code = child.wait()
os.write(int(sys.argv[1]), str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss).encode())
sys.exit(code if code >= 0 else 128 - code)
"""


@dataclass(frozen=True)
class Usage:
    """What a program took: `seconds`, and `memory`, the bytes of main memory that its largest process held at its
    peak."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class Surroundings:
    """Where other programs run: the `folder` of a virtual or conda environment, whose programs are found first, and
    the seconds of `silence` after which one counts as hanging (0: never)."""

    folder: Path | None = None
    silence: float = 0.0

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables: those of this process without what is its own, and the environment's."""
        kept = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
        if self.folder is not None:
            name = "CONDA_PREFIX" if (self.folder / "conda-meta").is_dir() else "VIRTUAL_ENV"
            kept[name] = str(self.folder)
            kept["PATH"] = os.pathsep.join([str(self.folder / "bin"), kept.get("PATH", os.defpath)])
        return kept | SET_VARIABLES

    def find(self, program: str) -> str:
        """Return the path of a program. Raises `UserError` where there is none."""
        found = shutil.which(program, path=self.variables["PATH"])
        if found is None:
            where = "on the PATH; --trainer-env names its environment" if self.folder is None else f"in {self.folder}"
            raise UserError(f"--trainer: there is no {program} {where}")
        return os.path.abspath(found)

    def run(self, command: Sequence[str], cwd: Path, log: Path, on_output: Callable[[str], None]) -> Usage:
        """Run a command to its end, its output in the file `log`; call `on_output` with what of it is new. Raises
        `UserError`, in one line with what it said last, where it fails or is silent for too long."""
        words = [self.find(command[0]), *command[1:]]
        began = time.monotonic()
        # What the leash itself held counts from before it was started: as much as this process.
        told, tells = os.pipe()
        with log.open("wb") as output, os.fdopen(told, "rb") as peak:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-ISc", LEASH, str(tells), *words],
                    cwd=cwd, env=self.variables, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
                    start_new_session=True, pass_fds=(tells,),
                )  # fmt: skip
            finally:
                os.close(tells)
            try:
                self._wait(process, command[0], log, on_output)
            finally:
                _end(process)
            memory = int(peak.read() or 0) * (1 if sys.platform == "darwin" else 1024)
        if process.returncode != 0:
            how = _describe_end(process.returncode)
            raise UserError(f"{Path(command[0]).name} {how}{_quote(log)} (all it said: {log})")
        return Usage(time.monotonic() - began, memory)

    def _wait(self, process: subprocess.Popen[bytes], name: str, log: Path, on_output: Callable[[str], None]) -> None:
        """Wait for a process's end. Raises `UserError` where it is silent for too long."""
        with log.open("rb") as output:
            heard = time.monotonic()
            while True:
                ended = process.poll() is not None
                if text := output.read().decode(errors="replace"):
                    heard = time.monotonic()
                    on_output(ESCAPES.sub("", text))
                if ended:
                    return
                if self.silence and time.monotonic() - heard > self.silence:
                    raise UserError(
                        f"{Path(name).name} said nothing for {self.silence:g} s and was ended (--trainer-timeout sets "
                        f"how long it may){_quote(log)} (all it said: {log})"
                    )
                time.sleep(POLL)


def check_system() -> None:
    """Raise `UserError` where other programs cannot be run and ended as a group."""
    if os.name != "posix":
        raise UserError("--trainer runs other programs in groups of processes, which takes Linux or macOS")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program with all its processes: told at first, then killed."""
    with defer_interrupt():
        if process.returncode is None:
            _signal_group(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + GRACE
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(POLL / 2)
        _signal_group(process.pid, signal.SIGKILL)  # what it left behind, too
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _describe_end(code: int) -> str:
    """Describe how a program ended: failed with code 1; was ended by SIGKILL, as the system does without memory."""
    number = -code if code < 0 else code - 128
    known: Mapping[int, str] = {one.value: one.name for one in signal.Signals}
    if number in known:
        return f"was ended by {known[number]}{', as systems do without memory' * (number == signal.SIGKILL)}"
    return f"failed with code {code}"


def _quote(log: Path) -> str:
    """Return ": " and what a log says last that tells most: the last line of an error, else the last line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        text = ESCAPES.sub("", file.read().decode(errors="replace"))
    # Boxes that are drawn around messages tell nothing.
    lines = [line.strip(" \t│┃╭╮╰╯─━|") for line in re.split(r"[\r\n]+", text)]
    lines = [line for line in lines if re.search(r"\w", line)]
    if not lines:
        return ", and said nothing"
    telling = next((line for line in reversed(lines) if ERROR_LINE.search(line)), lines[-1])
    return f": {telling[:MOST_QUOTED]}"
