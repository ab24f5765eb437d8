"""Reporters: what a command prints. Text for people, JSON events for programs, or nothing but errors.

One reporter serves one command. The events are described in docs/running.md.
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
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, arg

from v2edit.errors import UserError
from v2edit.jobs.progress import Update, describe_count, describe_edit_step, describe_scene_step
from v2edit.runs import Pace

if TYPE_CHECKING:
    from v2edit.editing.editor import Progress
    from v2edit.scenes.rer import SceneProgress


DryRun = Literal["counted", "timed"]


@dataclass(frozen=True)
class OutputOptions:
    """How the command reports."""

    quiet: Annotated[FlagCreatePairsOff[bool], arg(aliases=["-q"])] = False
    """Print nothing but errors."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON event a line on stdout, for programs (docs/running.md)."""

    def __post_init__(self) -> None:
        if self.quiet and self.json:
            raise UserError("--quiet and --json: give one of them")

    @classmethod
    def from_words(cls, words: Sequence[str]) -> OutputOptions:
        """Read the options off a command line that is not parsed yet, whose mistakes are reported the same way."""
        words = words[: words.index("--")] if "--" in words else words
        return cls(quiet="--quiet" in words or "-q" in words, json="--json" in words)


@dataclass(frozen=True)
class DryRunOptions(OutputOptions):
    """How the command reports, or a dry run."""

    dry_run: FlagCreatePairsOff[bool] = False
    """Only count what the edit would do: its size, steps, operations and memory."""
    timed: FlagCreatePairsOff[bool] = False
    """With --dry-run: time a piece of each part as well, which takes longer and depends on what else runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.timed and not self.dry_run:
            raise UserError("--timed is for a dry run: add --dry-run")


class Reporter:
    """Prints nothing: the base of the reporters."""

    def __init__(self) -> None:
        self.pace = Pace()

    def time_left(self, update: Update) -> tuple[float | None, tuple[str, ...]]:
        """Return the seconds left, None while no step is timed, and the stages to come that are not in them."""
        return update.time_left(self.pace)

    @contextmanager
    def redirected(self) -> Iterator[None]:
        """While a command runs: redirect what is printed for people to where it belongs."""
        yield

    @contextmanager
    def working(self) -> Iterator[None]:
        """While there is long work, whose steps `update` reports."""
        yield

    def start(self, command: Sequence[str]) -> None:
        """Report the start of a command; its words have no secrets."""

    def update(self, update: Update) -> None:
        """Report a step."""

    def plan(self, text: str) -> None:
        """Report what an edit is about to do, in one line."""

    def note(self, text: str) -> None:
        """Report something that the user should know, in one line."""

    def result(self, **facts: Any) -> None:
        """Report what the command made, for programs; for people it was printed."""

    def error(self, message: str, code: int) -> None:
        """Report why the command ends, in one line, and its exit code."""

    def interrupted(self, message: str, code: int) -> None:
        self.error(f"interrupted; {message}", code)

    def bug(self, error: BaseException, code: int) -> None:
        """Report an error of the program itself, whose traceback follows on stderr."""

    # The callbacks of the three kinds of long work.

    def on_edit(self, progress: Progress) -> None:
        self.update(describe_edit_step(progress))

    def on_scene(self, progress: SceneProgress) -> None:
        self.update(describe_scene_step(progress))

    def on_count(self, done: int, total: int, what: str) -> None:
        self.update(describe_count(done, total, what))


class TextReporter(Reporter):
    """Text on stderr: a bar where it is a terminal, else plain lines for logs, at most ten a subtask or stage, of a
    stage that shots have each by itself three."""

    LINES, SHOT_LINES = 10, 2

    def __init__(self) -> None:
        super().__init__()
        self.bar, self.task, self.phase = None, None, ""

    @contextmanager
    def working(self) -> Iterator[None]:
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_terminal:
            yield
            return
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}")
        with Progress(*columns, console=console, transient=True) as self.bar:
            self.task = self.bar.add_task("reading and loading", total=None, left="")
            try:
                yield
            finally:
                self.bar = None

    def update(self, update: Update) -> None:
        left = describe_left(*self.time_left(update))
        if self.bar is not None and self.task is not None:
            if update.phase != self.phase and self.phase:
                self.bar.remove_task(self.task)
                self.task = self.bar.add_task(update.text, left="")
            self.phase = update.phase
            self.bar.update(self.task, description=update.text, completed=update.done, total=update.total, left=left)
            return
        step, steps = update.figures["step"], update.figures["steps"]
        lines = self.SHOT_LINES if update.figures.get("stage") in ("encoding", "decoding", "carrying") else self.LINES
        if step * lines // steps > (step - 1) * lines // steps:
            print(f"{update.text}{left and ', '}{left}", file=sys.stderr, flush=True)

    def plan(self, text: str) -> None:
        print(text, file=sys.stderr)  # a bar lets it through above itself

    def note(self, text: str) -> None:
        print(f"v2edit: note: {text}", file=sys.stderr)

    def error(self, message: str, code: int) -> None:
        print(f"v2edit: error: {message}", file=sys.stderr)

    def interrupted(self, message: str, code: int) -> None:
        print(f"v2edit: interrupted; {message}", file=sys.stderr)


class QuietReporter(TextReporter):
    """Errors alone, whatever the libraries print."""

    @contextmanager
    def redirected(self) -> Iterator[None]:
        with open_devnull() as devnull, redirect_stdout(devnull), redirect_stderr(devnull):
            yield

    working, update, plan, note = Reporter.working, Reporter.update, Reporter.plan, Reporter.note


class JsonReporter(Reporter):
    """One JSON object a line on stdout. When its reader goes away, the work goes on."""

    def __init__(self, out: IO[str]) -> None:
        super().__init__()
        self.out = out

    @contextmanager
    def redirected(self) -> Iterator[None]:
        with open_devnull() as devnull, redirect_stdout(devnull):  # printed text is for people
            yield

    def write(self, event: str, **facts: Any) -> None:
        try:
            print(json.dumps({"event": event, **facts}, default=str), file=self.out, flush=True)
        except BrokenPipeError:
            with suppress(OSError, ValueError):  # Python would report the closed pipe once more as it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.out.fileno())

    def start(self, command: Sequence[str]) -> None:
        from v2edit import __version__

        self.write("started", version=__version__, command=list(command))

    def update(self, update: Update) -> None:
        self.write("progress", **update.facts(*self.time_left(update)))

    def plan(self, text: str) -> None:
        self.write("plan", message=text)

    def note(self, text: str) -> None:
        self.write("note", message=text)

    def result(self, **facts: Any) -> None:
        self.write("result", **facts)

    def error(self, message: str, code: int) -> None:
        self.write("error", message=message, code=code)

    def bug(self, error: BaseException, code: int) -> None:
        self.error(f"{type(error).__name__}: {error}", code)


def dry_run_of(options: OutputOptions) -> DryRun | None:
    """Return the kind of dry run that the options ask for; None for a run."""
    if not isinstance(options, DryRunOptions) or not options.dry_run:
        return None
    return "timed" if options.timed else "counted"


def reporter_for(options: OutputOptions) -> Reporter:
    """Return the reporter that the options choose."""
    return JsonReporter(sys.stdout) if options.json else QuietReporter() if options.quiet else TextReporter()


def process_age() -> float:
    """Return the seconds since this process began; 0 where the system does not tell."""
    try:
        stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(stat[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return 0.0


def describe_left(seconds: float | None, then: Sequence[str]) -> str:
    """Describe the time left, for people: 12 s left beside decoding and writing. Nothing where nothing is to come."""
    known = f"{seconds:.0f} s left" if seconds and seconds >= 0.5 else "less than 1 s left" if seconds else ""
    if not then:
        return known
    stages = f"{', '.join(then[:-1])} and {then[-1]}" if len(then) > 1 else then[0]
    return f"{known} beside {stages}" if known else f"{stages} to come"


def open_devnull() -> IO[str]:
    return open(os.devnull, "w", encoding="utf-8")
