"""The selection of methods: by name, with settings and sweeps as they are given on the command line."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass, replace
from itertools import product
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from v2edit.bench.methods import FULL, MethodConfig, V2Edit
from v2edit.errors import UserError
from v2edit.metrics.registry import import_object

Config = TypeVar("Config")  # a frozen dataclass


def slug(title: str) -> str:
    """Return a method's name on the command line and in file names: "w/o PNC, AMR" is wo-pnc-amr."""
    return "-".join(re.findall(r"[a-z0-9.]+", title.lower().replace("/", "")))


def known_methods(
    full: V2Edit,
    variants: Callable[[Any], Mapping[str, MethodConfig]],
    assignments: Sequence[str] = (),
    own: Sequence[str] = (),
) -> dict[str, MethodConfig]:
    """Return all methods by title: the variants of `full`, and the baselines with as many steps. An assignment
    FIELD=VALUE sets a field of V2Edit's configuration in all its variants, NAME.FIELD=VALUE one of the method of that
    name (`slug`). `own` are methods of the user's, as package.module:Class. Raises `UserError` for an unknown method or
    field, or a wrong value."""
    from v2edit.bench.baselines import FlowEdit, PromptToPrompt, VideoToVideo

    named, steps = [], full.steps
    for name, field, value in map(_parse_assignment, assignments):
        if name is None:
            full = with_field(full, field, value)
        else:
            named.append((name, field, value))
    known: dict[str, MethodConfig] = {
        **variants(full),
        "V2V": VideoToVideo(steps),
        "FlowEdit": FlowEdit(steps),
        "DDIM + P2P": PromptToPrompt(steps),
        **{one.rpartition(":")[2]: own_method(one, steps) for one in own},
    }
    for name, field, value in named:
        title = _find_title(name, known)
        known[title] = with_field(known[title], field, value)
    return known


def own_method(name: str, steps: int) -> MethodConfig:
    """Return the method of a class package.module:Class, a frozen dataclass with `build` as `MethodConfig` has it; it
    takes so many `steps` where it has that field. Raises `UserError` for what is none."""
    kind = import_object(name, "a class")
    if not (isinstance(kind, type) and is_dataclass(kind) and callable(getattr(kind, "build", None))):
        raise UserError(f"{name} is no method: a frozen dataclass whose build(backbone) returns a function of frames")
    try:
        method: Any = kind()
        hash(method)
        return replace(method, steps=steps) if any(one.name == "steps" for one in fields(method)) else method
    except TypeError as error:
        raise UserError(f"{name} is no method: {error} (its fields need defaults, and frozen=True)") from error


def select_methods(known: Mapping[str, MethodConfig], names: Sequence[str]) -> dict[str, MethodConfig]:
    """Return the methods of these names (`slug`), in the order of `known`; all of them where there are no names."""
    titles = {_find_title(slug(name.rpartition(":")[2]) if ":" in name else name, known) for name in names}
    return {title: config for title, config in known.items() if not names or title in titles}


def sweep_methods(known: Mapping[str, MethodConfig], sweeps: Sequence[str]) -> dict[str, MethodConfig]:
    """Return a method for every combination of values, from [NAME.]FIELD=VALUE,VALUE…; without a NAME, of V2Edit. The
    method that is varied comes before its combinations."""
    axes: dict[str, list[list[tuple[str, str]]]] = {}
    for name, field, values in map(_parse_assignment, sweeps):
        title = FULL if name is None else _find_title(name, known)
        axes.setdefault(title, []).append([(field, value) for value in values.split(",")])
    methods: dict[str, MethodConfig] = {}
    for title, values_by_field in axes.items():
        methods[title] = known[title]
        for combination in product(*values_by_field):
            config, words = known[title], [] if title == FULL else [title]
            for field, value in combination:
                config = with_field(config, field, value)
                words.append(f"{field}={value}")
            methods[", ".join(words)] = config
    return methods


def with_field(config: Config, field: str, value: str) -> Config:
    """Return the configuration with one field replaced by a value, read from text as the command line reads it. Raises
    `UserError` for an unknown field or a value that it cannot take."""
    import tyro

    names = [one.name for one in fields(config) if one.name != "seed"]  # pyright: ignore[reportArgumentType]
    if field not in names:
        raise UserError(f"there is no setting {field!r}; there are {', '.join(names)}")
    words = [f"--{field.replace('_', '-')}={value}"]
    try:
        with redirect_stderr(io.StringIO()):
            return tyro.cli(type(config), default=config, args=words, config=(tyro.conf.FlagConversionOff,))
    except SystemExit as stop:
        cause: BaseException | None = stop
        while cause := cause.__context__:
            if isinstance(cause, UserError):
                raise cause from None
        hint = get_type_hints(type(config))[field]
        expected = " or ".join(get_args(hint)) if get_origin(hint) is Literal else getattr(hint, "__name__", hint)
        raise UserError(f"{field}={value}: expected {expected}") from None


def _parse_assignment(text: str) -> tuple[str | None, str, str]:
    """Return the method's name, if there is one, the field and the value of [NAME.]FIELD=VALUE."""
    match = re.fullmatch(r"(?:([\w-]+)\.)?(\w+)=(.+)", text)
    if match is None:
        raise UserError(f"cannot read {text!r}, expected FIELD=VALUE or METHOD.FIELD=VALUE")
    return match[1], match[2], match[3]


def _find_title(name: str, known: Iterable[str]) -> str:
    for title in known:
        if slug(title) == name:
            return title
    raise UserError(f"there is no method {name!r}; known are {', '.join(map(slug, known))}")
