"""The `v2edit` command: the table of commands, parsing, and what ends a process.

Options come from the signatures of `cli.commands`. Exit codes: 0 done, 1 a bug (with a traceback), 2 a mistake in the
command or its input, in one line, 130 interrupted.
"""

from __future__ import annotations

import functools
import inspect
import io
import itertools
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, fields, is_dataclass
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import docstring_parser
from tyro.conf import OmitArgPrefixes
from tyro.extras import SubcommandApp

from v2edit.cli import commands
from v2edit.cli.output import DryRunOptions, JsonReporter, OutputOptions, Reporter, TextReporter, reporter_for
from v2edit.errors import UserError
from v2edit.host import memory_advice
from v2edit.runs import redact

COMMANDS: dict[str, Callable[..., None]] = {
    "edit": commands.edit,
    "prompts": commands.prompts,
    "eval": commands.evaluate,
    "scene": commands.scene,
    "resume": commands.resume,
    "runs": commands.runs,
    "view": commands.view,
    "sample": commands.sample,
    "batch": commands.batch,
    "batch-status": commands.show_batch_status,
    "bench": commands.bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (the process's own by default) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if words == ["--version"]:
        from v2edit import __version__

        print(f"v2edit {__version__}")
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be no text that a terminal takes
        sys.stdout.reconfigure(errors="backslashreplace")
    reporter: Reporter = TextReporter()
    logger = logging.getLogger("v2edit")
    try:
        reporter = reporter_for(OutputOptions.from_words(words))
        logger.addHandler(notes := _Notes(reporter))
        level = logger.level
        logger.setLevel(logging.INFO)
        try:
            command = parse(output_options_last(words), print_errors=not isinstance(reporter, JsonReporter))
            reporter.start(redact(["v2edit", *words]))
            with reporter.redirected(), sigterm_as_interrupt():
                command(reporter, ["v2edit", *words])
        finally:
            logger.setLevel(level)
            logger.removeHandler(notes)
    except (UserError, OSError) as error:
        return _fail(reporter, str(error))
    except KeyboardInterrupt as stop:
        reporter.interrupted(str(stop) or "nothing was written", 130)
        return 130
    except Exception as error:
        if short := memory_advice(error):
            return _fail(reporter, short)
        reporter.bug(error, 1)
        raise
    return 0


def parse(words: Sequence[str], print_errors: bool = True) -> BoundCommand:
    """Parse a command line to its command with all parameters but the context.

    Raises `UserError` for a value that an option cannot take, or with `print_errors` off for any mistake, and
    `SystemExit` where the parser printed help or, with `print_errors`, what is wrong.
    """
    app = SubcommandApp()
    for name, command in COMMANDS.items():
        app.command(name=name)(_deferred(command))
    run = functools.partial(app.cli, prog="v2edit", description="Edit a video with one sentence.", args=words)
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            return run()
    except SystemExit as stop:
        if not stop.code:
            raise
        # A dataclass's own refusal is one line already: it needs no box around it.
        cause: BaseException | None = stop
        while cause := cause.__context__:
            if isinstance(cause, UserError):
                raise cause from None
    if not print_errors:
        raise UserError(" ".join(re.sub("[│╭╮╰╯─]", " ", printed.getvalue()).split()))
    return run()  # once more, printing


@dataclass(frozen=True)
class BoundCommand:
    """A command with the options of its command line, ready to run."""

    command: Callable[..., None]
    args: tuple[Any, ...]
    options: dict[str, Any]
    output: OutputOptions

    def __call__(self, reporter: Reporter, argv: Sequence[str]) -> None:
        dry_run = isinstance(self.output, DryRunOptions) and self.output.dry_run
        self.command(commands.Context(reporter, argv, dry_run), *self.args, **self.options)


def _deferred(command: Callable[..., None]) -> Callable[..., BoundCommand]:
    """Return a function for the parser that binds a command's parameters; output options stand for the context."""

    @functools.wraps(command)
    def bind(*args: Any, output: OutputOptions, **options: Any) -> BoundCommand:
        return BoundCommand(command, args, options, output)

    del bind.__wrapped__  # the parser would look there
    kind = DryRunOptions if command in (commands.edit, commands.scene) else OutputOptions
    hints: dict[str, Any] = get_type_hints(command, include_extras=True) | {"output": OmitArgPrefixes[kind]}
    signature = inspect.signature(command)
    output = inspect.Parameter("output", inspect.Parameter.KEYWORD_ONLY, default=kind())
    parameters = [*list(signature.parameters.values())[1:], output]  # without the context
    bind.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportFunctionMemberAccess]
    bind.__annotations__ = {name: hint for name, hint in hints.items() if name != "context"}
    for hint in hints.values():
        _join_help_lines(hint)
    return bind


def _join_help_lines(hint: Any) -> None:
    """Join the lines of the options' docstrings, whose breaks the parser would print."""
    group = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if not is_dataclass(group):
        return
    texts = {one.arg_name: one.description for one in docstring_parser.parse_from_object(group).params}
    for field in fields(group):
        if text := texts.get(field.name):
            field.metadata = MappingProxyType({"help": " ".join(text.split())})
    for inner in get_type_hints(group, include_extras=True).values():
        _join_help_lines(inner)


def output_options_last(words: Sequence[str]) -> list[str]:
    """Move output options given before the command behind it, where its parser looks for them."""
    first = list(itertools.takewhile({"--quiet", "-q", "--json"}.__contains__, words))
    rest = list(words[len(first) :])
    end = rest.index("--") if "--" in rest else len(rest)
    return [*rest[:end], *first, *rest[end:]]


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
    """Show what the package logs, one line each: the plan of an edit as it is, and warnings as notes."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self.reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        show = self.reporter.note if record.levelno >= logging.WARNING else self.reporter.plan
        show(record.getMessage())
