"""The `v2edit` command: the table of commands, and what ends a process.

Exit codes: 0 done, 1 a bug (with a traceback), 2 a mistake in the
command or its input, in one line, 130 interrupted, 141 nobody reads what it
prints any more.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from v2edit.cli import commands
from v2edit.cli.output import OutputOptions, Reporter, TextReporter, dry_run_of, reporter_for
from v2edit.cli.parsing import BoundCommand, name_as_typed, parse_words
from v2edit.errors import UserError
from v2edit.host import launched_processes, memory_advice, use_expandable_segments
from v2edit.runs import redact

COMMANDS: dict[str, Callable[..., None]] = {
    "edit": commands.edit,
    "prompts": commands.prompts,
    "eval": commands.evaluate,
    "scene": commands.scene,
    "resume": commands.resume,
    "runs": commands.runs,
    "keep": commands.keep,
    "view": commands.view,
    "studio": commands.studio,
    "convert": commands.convert,
    "fly": commands.fly,
    "sample": commands.sample,
    "batch": commands.batch,
    "batch-status": commands.show_batch_status,
    "bench": commands.bench,
    "suggest": commands.suggest,
    "calibrate": commands.calibrate,
    "doctor": commands.doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (the process's own by default) and return its exit code."""
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not (streams := _streams_without_reader()):
            raise
        with open(os.devnull, "w") as nowhere:  # for what is printed as the process ends
            for stream in streams:
                os.dup2(nowhere.fileno(), stream.fileno())
        return 141  # as of a process that SIGPIPE ends


def _run(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if words == ["--version"]:
        from v2edit import __version__

        print(f"v2edit {__version__}")
        return 0
    use_expandable_segments()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be no text that a terminal takes
        sys.stdout.reconfigure(errors="backslashreplace")
    rank, processes = launched_processes()
    if rank > 0:  # the first of several processes reports for all
        words = [*(word for word in words if word not in ("--json", "--quiet", "-q")), "--quiet"]
    reporter: Reporter = TextReporter()
    logger = logging.getLogger("v2edit")
    try:
        reporter = reporter_for(OutputOptions.from_words(words))
        logger.addHandler(notes := _Notes(reporter))
        level = logger.level
        logger.setLevel(logging.INFO)
        try:
            if processes > 1 and not {"edit", "scene", "resume"} & set(words):
                raise UserError("torchrun shares one edit among its processes: v2edit edit, scene or resume")
            bound = parse(output_options_last(words))
            reporter.start(redact(["v2edit", *words]))
            with reporter.redirected(), sigterm_as_interrupt():
                context = commands.Context(reporter, ["v2edit", *words], dry_run_of(bound.output))
                bound.command(context, *bound.args, **bound.options)
        finally:
            logger.setLevel(level)
            logger.removeHandler(notes)
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _streams_without_reader():
            raise
        command = next((COMMANDS[word] for word in words if word in COMMANDS), None)
        return _fail(reporter, name_as_typed(str(error), words, command) if command else str(error))
    except KeyboardInterrupt as stop:
        reporter.interrupted(str(stop) or "nothing was written", 130)
        return 130
    except Exception as error:
        if short := memory_advice(error):
            return _fail(reporter, short)
        reporter.bug(error, 1)
        raise
    return 0


def parse(words: Sequence[str]) -> BoundCommand:
    """Parse a command line. Raises `UserError` for a mistake, in one line, and `SystemExit` where help was printed."""
    return parse_words(words, COMMANDS, (commands.edit, commands.scene, commands.batch))


def output_options_last(words: Sequence[str]) -> list[str]:
    """Move output options given before the command behind it, where its parser looks for them."""
    first = list(itertools.takewhile({"--quiet", "-q", "--json"}.__contains__, words))
    rest = list(words[len(first) :])
    end = rest.index("--") if "--" in rest else len(rest)
    return [*rest[:end], *first, *rest[end:]]


def _streams_without_reader() -> list[TextIO]:
    """Return which of stdout and stderr are pipes that nobody reads any more (`| head`)."""
    if not hasattr(select, "poll"):  # Windows
        return []
    gone = []
    for stream in filter(None, (sys.__stdout__, sys.__stderr__)):
        (poll := select.poll()).register(stream, select.POLLOUT)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            gone.append(stream)
    return gone


def _fail(reporter: Reporter, message: str) -> int:
    reporter.error(" ".join(message.split()), 2)
    return 2


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that it cleans up."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    replaced = in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if replaced:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if replaced:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Notes(logging.Handler):
    """Show what the package logs, one line each: the plan of an edit as it is, and warnings as notes, each once."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self.reporter, self.noted = reporter, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno < logging.WARNING:
            self.reporter.plan(message)
        elif message not in self.noted:
            self.noted.add(message)
            self.reporter.note(message)
