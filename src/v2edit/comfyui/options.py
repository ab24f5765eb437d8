"""What a node's widgets are made of: the options' own help, and more options as lines of text."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields
from functools import cache
from itertools import pairwise
from textwrap import dedent
from typing import Any

from v2edit.errors import UserError
from v2edit.jobs.options import ModelOptions


def read_options(text: str, taken: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return options as keywords of lines such as `alpha = 0.7`; a value is Python's, or else text, and what follows a
    # is none of it. Raises `UserError` for another line, an option that is there twice, and for those that are `taken`
    by widgets or sockets."""
    options: dict[str, Any] = {}
    for line in text.splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if not line:
            continue
        name, equals, value = line.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not name.isidentifier():
            raise UserError(f"options has the line {line!r:.80}, expected a name and a value, such as alpha = 0.7")
        if name in taken:
            raise UserError(f"options has {name!r}, which a widget or an input of this node, or V2Edit Model, sets")
        if name in options:
            raise UserError(f"options has {name!r} twice: leave one out")
        options[name] = _read_value(value.strip())
    return options


def _read_value(text: str) -> Any:
    """Return a value as Python reads it; text where it is none, `true` and `false` as people write them."""
    if text.lower() in ("true", "false", "none"):
        text = text.capitalize()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def name_unknown(error: TypeError) -> UserError:
    """Return the error of an unknown option as one that the user can mend."""
    return UserError(f"options: {error}")


MODEL_OPTIONS = frozenset(one.name for one in fields(ModelOptions))


def name_widgets(text: str) -> str:
    """Return a text with the options in it named as widgets are: --target-prompt is target_prompt."""
    return re.sub(r"(?<![\w-])--([a-z][\w-]*)", lambda found: found[1].replace("-", "_"), text)


def help_of(options: type, name: str) -> str:
    """Return the help text of a field of a group of options, as a tooltip: the text below it in the source, with
    options named as widgets are."""
    owner = next(one for one in options.__mro__ if name in inspect.get_annotations(one))
    return name_widgets(_read_help(owner)[name])


@cache
def _read_help(owner: type) -> dict[str, str]:
    """Return the texts below the fields of a class in its source, by the fields' names."""
    (body,) = ast.parse(dedent(inspect.getsource(owner))).body
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(str(ast.literal_eval(text.value)).split())
        for field, text in pairwise(body.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
    }
