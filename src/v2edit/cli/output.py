"""How far long work is, shown: a bar on a terminal, plain lines elsewhere, events for programs, or nothing.

One reporter_for stands for one command. What the command prints is for people: where it is not to be seen (`--json`,
`--quiet`) it goes nowhere. The events are described in docs/running.md.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, arg

from v2edit.errors import UserError

if TYPE_CHECKING:
    from v2edit.editing.editor import Progress
    from v2edit.scenes.rer import Stage


@dataclass(frozen=True)
class OutputOptions:
    """How a command speaks."""

    quiet: Annotated[FlagCreatePairsOff[bool], arg(aliases=["-q"])] = False
    """Nothing but errors."""
    json: FlagCreatePairsOff[bool] = False
    """One JSON event a line on stdout, for programs (docs/running.md)."""

    def __post_init__(self) -> None:
        if self.quiet and self.json:
            raise UserError("--quiet and --json: give one of them")

    @classmethod
    def of(cls, words: Sequence[str]) -> OutputOptions:
        """What a command line asks for, as can be told before it is understood: its mistakes are shown so, too."""
        words = words[: words.index("--")] if "--" in words else words
        return cls(quiet="--quiet" in words or "-q" in words, json="--json" in words)


@dataclass(frozen=True)
class DryRunOptions(OutputOptions):
    """How a command that can tell what it will cost speaks."""

    dry_run: FlagCreatePairsOff[bool] = False
    """Only say what would be done, how long it takes and how much memory."""


@dataclass(frozen=True)
class Update:
    """How far it is: `done` of `total` steps of a `phase`, in words, and in figures of its own for programs."""

    phase: str  # a new one is timed anew
    words: str
    done: int
    total: int
    figures: dict[str, Any]


class Clock:
    """How long a phase will yet take, by its mean step. It is timed from the end of its first step: what comes before
    that is loading."""

    def __init__(self) -> None:
        self.phase, self.begun, self.first, self.last = "", 0.0, 0, 0

    def seconds_left(self, at: Update) -> float | None:
        now = time.monotonic()
        if at.phase != self.phase or at.done < self.last:
            self.phase, self.begun, self.first = at.phase, now, at.done
        self.last = at.done
        past = at.done - self.first
        return (now - self.begun) / past * (at.total - at.done) if past > 0 else None


class Reporter:
    """Shows nothing: what the displays begin from."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While a command runs: what becomes of all else that is printed."""
        yield

    @contextmanager
    def working(self) -> Iterator[None]:
        """While there is long work, which `at` tells of."""
        yield

    def start(self, command: Sequence[str]) -> None:
        """A command begins. Its words may be shown to anybody."""

    def at(self, at: Update) -> None:
        """A step is done."""

    def note(self, text: str) -> None:
        """Something that the user should know, in one line."""

    def result(self, **facts: Any) -> None:
        """What the command made, in figures; in words it was printed."""

    def error(self, message: str, code: int) -> None:
        """Why the command ends, in one line, and its exit code."""

    def interrupted(self, message: str, code: int) -> None:
        self.error(f"interrupted; {message}", code)

    def bug(self, error: BaseException, code: int) -> None:
        """An error of the program itself, whose traceback follows on stderr."""

    # The three kinds of long work report in words of their own; here they become one.

    def edit(self, at: Progress) -> None:
        figures = {"subtask": at.subtask, "subtasks": at.subtasks, "step": at.step, "steps": at.steps}
        words = f"subtask {at.subtask}/{at.subtasks}, step {at.step}/{at.steps}"
        done = (at.subtask - 1) * at.steps + at.step
        self.at(Update("editing", words, done, at.subtasks * at.steps, figures))

    def stage(self, at: Stage) -> None:
        figures = {"stage": at.what, "step": at.step, "steps": at.steps, "psnr": at.psnr}
        found = "" if at.psnr is None else f", PSNR {at.psnr:.1f} dB"
        self.at(Update(at.what, f"{at.what}{found}, step {at.step}/{at.steps}", at.step, at.steps, figures))

    def count(self, done: int, total: int, what: str) -> None:
        self.at(
            Update("counting", f"{done} of {total}: {what}", done, total, {"step": done, "steps": total, "what": what})
        )


class TextReporter(Reporter):
    """For people, on stderr: a bar where it is a terminal, else plain lines for logs, ten at most for a subtask, stage
    or count."""

    LINES = 10

    def __init__(self) -> None:
        self.clock, self.bar, self.task, self.phase = Clock(), None, None, ""

    @contextmanager
    def working(self) -> Iterator[None]:
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_terminal:
            yield
            return
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True) as self.bar:
            self.task = self.bar.add_task("reading and loading", total=None)
            try:
                yield
            finally:
                self.bar = None

    def at(self, at: Update) -> None:
        if self.bar is not None and self.task is not None:
            if at.phase != self.phase and self.phase:
                self.bar.remove_task(self.task)
                self.task = self.bar.add_task(at.words)
            self.phase = at.phase
            self.bar.update(self.task, description=at.words, completed=at.done, total=at.total)
            return
        left = self.clock.seconds_left(at)
        step, steps = at.figures["step"], at.figures["steps"]
        if step * self.LINES // steps > (step - 1) * self.LINES // steps:
            print(f"{at.words}{'' if left is None else f', {left:.0f} s left'}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(f"v2edit: note: {text}", file=sys.stderr)  # which the bar lets through above it

    def error(self, message: str, code: int) -> None:
        print(f"v2edit: error: {message}", file=sys.stderr)

    def interrupted(self, message: str, code: int) -> None:
        print(f"v2edit: interrupted; {message}", file=sys.stderr)


class QuietReporter(TextReporter):
    """Nothing but errors, whatever the libraries have to say."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        with nowhere() as hole, redirect_stdout(hole), redirect_stderr(hole):
            yield

    @contextmanager
    def working(self) -> Iterator[None]:
        yield

    def at(self, at: Update) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class JsonReporter(Reporter):
    """For programs: one JSON object a line on stdout. Who reads them may go: the work goes on."""

    def __init__(self, out: IO[str]) -> None:
        self.out, self.clock = out, Clock()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with nowhere() as hole, redirect_stdout(hole):  # What is printed is for people.
            yield

    def tell(self, event: str, **facts: Any) -> None:
        try:
            print(json.dumps({"event": event, **facts}, default=str), file=self.out, flush=True)
        except BrokenPipeError:
            with suppress(OSError, ValueError):  # or Python would complain once more as it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.out.fileno())

    def start(self, command: Sequence[str]) -> None:
        from v2edit import __version__

        self.tell("started", version=__version__, command=list(command))

    def at(self, at: Update) -> None:
        left = self.clock.seconds_left(at)
        self.tell("progress", **at.figures, seconds_left=None if left is None else round(left, 1))

    def note(self, text: str) -> None:
        self.tell("note", message=text)

    def result(self, **facts: Any) -> None:
        self.tell("result", **facts)

    def error(self, message: str, code: int) -> None:
        self.tell("error", message=message, code=code)

    def bug(self, error: BaseException, code: int) -> None:
        self.error(f"{type(error).__name__}: {error}", code)


def reporter_for(showing: OutputOptions) -> Reporter:
    """The reporter_for that is asked for."""
    return JsonReporter(sys.stdout) if showing.json else QuietReporter() if showing.quiet else TextReporter()


def age() -> float:
    """Seconds since this process began; 0 where the system does not say."""
    try:
        stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(stat[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return 0.0


def nowhere() -> IO[str]:
    return open(os.devnull, "w", encoding="utf-8")
