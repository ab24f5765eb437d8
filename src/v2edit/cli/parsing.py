"""Parsing: a command line to a command and its options, which are made from the signatures of `cli.commands`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import docstring_parser
from tyro import MISSING
from tyro.conf import OmitArgPrefixes, arg
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)
from tyro.extras import SubcommandApp

from v2edit.cli.mistakes import explain_mistake
from v2edit.cli.output import DryRunOptions, OutputOptions
from v2edit.editing.config import ABLATIONS, EditConfig
from v2edit.errors import UserError

Command = Callable[..., None]

LATER = ("lvlm", "model_options", "run_options", "config")  # groups of a job


@dataclass(frozen=True)
class BoundCommand:
    """A command with the options of its command line, ready to run."""

    command: Command
    args: tuple[Any, ...]
    options: dict[str, Any]
    output: OutputOptions


def parse_words(words: Sequence[str], commands: Mapping[str, Command], dry_runs: Sequence[Command]) -> BoundCommand:
    """Parse a command line to one of `commands`, of which `dry_runs` have options for a dry run. Raises `UserError` for
    a mistake, in one line, and `SystemExit` where the parser printed help."""
    app, registry = SubcommandApp(), ConstructorRegistry()
    registry.struct_rule(_ablations_apart)
    registry.struct_rule(_usual_order)
    registry.primitive_rule(_path_not_empty)
    deferred = {
        name: _deferred(command, DryRunOptions if command in dry_runs else OutputOptions)
        for name, command in commands.items()
    }
    for name, command in deferred.items():
        if name in words:  # reading all docstrings takes half a second
            _join_help_lines(command)
        app.command(name=name)(command)
    run = functools.partial(app.cli, prog="v2edit", description="Edit a video with one sentence.", registry=registry)
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            return run(args=words)
    except SystemExit as stop:
        if not stop.code:
            raise
        # A dataclass's own refusal is one line already.
        cause: BaseException | None = stop
        while cause := cause.__context__:
            if isinstance(cause, UserError):
                raise cause from None

    def options_of(command: str) -> set[str]:
        _join_help_lines(deferred[command])
        with redirect_stdout(help_text := io.StringIO()), suppress(SystemExit):
            run(args=[command, "--help"])
        return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_text.getvalue()))

    raise UserError(explain_mistake(printed.getvalue(), words, commands, options_of))


def name_as_typed(message: str, words: Sequence[str], command: Command) -> str:
    """Name each option in a message as the command line does: --alpha, say, as --strength where that was typed."""
    end = words.index("--") if "--" in words else len(words)
    typed = {word.partition("=")[0].replace("_", "-"): word.partition("=")[0] for word in words[:end]}
    for names in _aliases(command):
        if used := next((name for name in names if name in typed), None):
            others = "|".join(re.escape(name) for name in names if name != used)
            message = re.sub(rf"(?<![\w-])(?:{others})(?![\w-])", typed[used], message)
    return message


@functools.cache
def _aliases(owner: Callable[..., Any]) -> list[list[str]]:
    """Return the names of each option that has several, of a command or a dataclass of options."""
    groups: list[list[str]] = []
    for field_name, hint in get_type_hints(owner, include_extras=True).items():
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if is_dataclass(kind):
            groups += _aliases(kind)  # pyright: ignore[reportArgumentType]
        for mark in marks:
            if aliases := getattr(mark, "aliases", None):
                groups.append([f"--{(mark.name or field_name).replace('_', '-')}", *aliases])
    return groups


@functools.cache
def _deferred(command: Command, output_type: type[OutputOptions]) -> Callable[..., BoundCommand]:
    """Return a function for the parser that binds a command's parameters; output options stand for the context."""

    @functools.wraps(command)
    def bind(*args: Any, output: OutputOptions, **options: Any) -> BoundCommand:
        return BoundCommand(command, args, options, output)

    del bind.__wrapped__  # the parser would look there
    hints: dict[str, Any] = get_type_hints(command, include_extras=True) | {"output": OmitArgPrefixes[output_type]}
    signature = inspect.signature(command)
    output = inspect.Parameter("output", inspect.Parameter.KEYWORD_ONLY, default=output_type())
    own = list(signature.parameters.values())[1:]  # without the context
    # Output first in the help where a job is parsed, whose last group is the ablations.
    parameters = [output, *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own)]
    bind.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportFunctionMemberAccess]
    bind.__annotations__ = {name: hint for name, hint in hints.items() if name != "context"}
    return bind


@functools.cache
def _join_help_lines(owner: Callable[..., Any]) -> None:
    """Join the lines of the docstrings of a command's or a dataclass's options, whose breaks the parser would print."""
    for hint in get_type_hints(owner, include_extras=True).values():
        group = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if not is_dataclass(group):
            continue
        texts = {one.arg_name: one.description for one in docstring_parser.parse_from_object(group).params}
        for one in fields(group):
            if text := texts.get(one.name):
                one.metadata = MappingProxyType({"help": " ".join(text.split())})
        _join_help_lines(group)  # pyright: ignore[reportArgumentType]


def _path_not_empty(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """Refuse an empty path, which Python takes for the current folder."""
    if info.type is not Path:
        return None

    def read(words: list[str]) -> Path:
        if not words[0]:
            raise ValueError("it is empty")
        return Path(words[0])

    return PrimitiveConstructorSpec(1, "PATH", read, lambda value: isinstance(value, Path), lambda path: [str(path)])


def _usual_order(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Put what is edited before what edits it in the help of a job: its own groups of options before those of `LATER`,
    so that the mask comes before the model, and the ablations of the `config` are last."""
    if not is_dataclass(info.type) or "config" not in [one.name for one in fields(info.type)]:
        return None
    hints = get_type_hints(info.type, include_extras=True)
    specs = [
        StructFieldSpec(
            one.name,
            hints[one.name],
            MISSING if one.default is dataclasses.MISSING else one.default,
            one.metadata.get("help"),
        )
        for one in sorted(fields(info.type), key=lambda one: LATER.index(one.name) if one.name in LATER else -1)
    ]
    return StructConstructorSpec(info.type, tuple(specs))


def _ablations_apart(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Put the ablations of an `EditConfig` into a group of options of their own, after its other settings."""
    if info.type is not EditConfig:
        return None
    default = info.default if isinstance(info.default, EditConfig) else EditConfig()
    hints = get_type_hints(EditConfig, include_extras=True)
    ablations = [
        (one.name, hints[one.name], field(default=getattr(default, one.name), metadata=one.metadata))
        for one in fields(EditConfig)
        if one.name in ABLATIONS
    ]
    group: Any = make_dataclass("Ablations", ablations, frozen=True)
    group.__doc__ = "Parts of the method, to switch off one by one for research; an edit needs none of these."
    specs = [
        StructFieldSpec(one.name, hints[one.name], getattr(default, one.name), one.metadata.get("help"))
        for one in fields(EditConfig)
        if one.name not in ABLATIONS
    ]
    specs.append(StructFieldSpec("ablation", Annotated[group, arg(prefix_name=False)], group(), group.__doc__))  # pyright: ignore

    def make_config(ablation: Any, **settings: Any) -> EditConfig:
        return EditConfig(**settings, **asdict(ablation))

    return StructConstructorSpec(make_config, tuple(specs))
