"""TASKS.jsonl: one task a line, all of them checked before anything runs."""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model, field_validator
from pydantic_core import PydanticCustomError

from v2edit.batch.state import OWN_NAMES
from v2edit.editing.config import EditConfig
from v2edit.errors import UserError
from v2edit.files import MAX_JSON_BYTES, parse_json
from v2edit.runs import default_name

log = logging.getLogger(__name__)
MOST_TASKS = 20_000
LONGEST_LINE = 64 * 2**10  # bytes
LONGEST_NAME = 120  # bytes; a folder in the making has a longer one, and file systems take 255
MISTAKES_SHOWN = 20
EXAMPLE = '{"video": "a.mp4", "instruction": "make the ball blue"}'


@dataclass(frozen=True)
class Task:
    """One edit of a batch. `name` is its run folder's, `line` where it stands in its file, counted from 1."""

    line: int
    name: str
    kind: Literal["video", "scene"]
    path: Path
    instruction: str | None
    source_prompt: str | None
    target_prompt: str | None
    config: EditConfig

    @property
    def about(self) -> str:
        """What it does, in a few words."""
        return self.instruction or self.target_prompt or ""

    @property
    def written(self) -> bool:
        """Whether its prompts are written by hand; no language model is asked then."""
        return self.source_prompt is not None or self.target_prompt is not None

    @property
    def facts(self) -> dict[str, Any]:
        """What makes its result, as plain data: a result of other facts is another task's."""
        return {
            self.kind: str(self.path),
            "instruction": self.instruction,
            "source_prompt": self.source_prompt,
            "target_prompt": self.target_prompt,
            **asdict(self.config),
        }


class Line(BaseModel):
    """A line as it is written, without the settings of the edit, which `EditConfig` adds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    video: str | None = None
    scene: str | None = None
    instruction: str | None = None
    source_prompt: str | None = None
    target_prompt: str | None = None
    name: str | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        """JSON can hold half a character, which no file and no path can."""
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise PydanticCustomError("half", "text of whole characters")
        return value


# Every setting with its own type and default: what may stand in a line cannot drift from what can be set.
_hints = get_type_hints(EditConfig)
_settings: dict[str, Any] = {one.name: (_hints[one.name], one.default) for one in fields(EditConfig)}
FullLine = create_model("FullLine", __base__=Line, **_settings)


def read_tasks(
    path: Path,
    config: EditConfig = EditConfig(),  # noqa: B008 (frozen)
    check: Callable[[Task], None] = lambda task: None,
) -> list[Task]:
    """The tasks of a file, which paths in it are relative to; a line's settings go over those of `config`.

    check: raises `UserError` for a task that cannot be done; its mistakes are told with the others.

    Raises:
        UserError: the file cannot be read, is too large or is empty, or a line has a mistake: which line, which
            field, what was given and what is expected. Where there are several, each is logged.
    """
    tasks: list[Task] = []
    mistakes: list[str] = []
    names = _Names()
    for number, text in _lines(path):
        try:
            task = _task(number, _parsed(text), path.absolute().parent, config, names)
            check(task)
            tasks.append(task)
        except UserError as error:
            mistakes.append(f"{path}, line {number}: {_in_json_terms(str(error))}")
    if len(mistakes) > 1:
        for mistake in mistakes[:MISTAKES_SHOWN]:
            log.warning("%s", mistake)
        beyond = f", of which {MISTAKES_SHOWN} are told" if len(mistakes) > MISTAKES_SHOWN else ""
        raise UserError(f"{len(mistakes)} lines of {path} have mistakes{beyond}; nothing was run")
    if mistakes:
        raise UserError(mistakes[0])
    if not tasks:
        raise UserError(f"{path} has no tasks; each line is one, such as {EXAMPLE}")
    return [_named(task, names) for task in tasks]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers, of a file that is never in memory whole."""
    if not path.is_file():
        raise UserError(f"{path} is no file of tasks" if path.exists() else f"no such file: {path}")
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise UserError(f"{path}: {size:,} bytes are more than the {MAX_JSON_BYTES:,} that a file of tasks may have")
    count, read = 0, 0
    try:
        with path.open("rb") as file:
            for number in range(1, MAX_JSON_BYTES):
                line = file.readline(LONGEST_LINE + 1)
                read += len(line)
                if not line:
                    return
                if len(line) > LONGEST_LINE:
                    raise UserError(f"{path}, line {number}: it is longer than {LONGEST_LINE:,} bytes")
                if read > MAX_JSON_BYTES:  # it grew, or does not know its size
                    raise UserError(f"{path}: more than the {MAX_JSON_BYTES:,} bytes that a file of tasks may have")
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise UserError(f"{path}, line {number}: it is not UTF-8 (byte {error.start + 1})") from error
                if text:
                    count += 1
                    if count > MOST_TASKS:
                        raise UserError(f"{path} has more than {MOST_TASKS:,} tasks: make several batches of it")
                    yield number, text
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except json.JSONDecodeError as error:
        raise UserError(f"it is no JSON ({error.msg} at character {error.colno})") from error
    except ValueError as error:
        raise UserError(f"it is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"it is {text:.40}, expected an object such as {EXAMPLE}")
    return found


def _task(number: int, given: dict[str, Any], base: Path, config: EditConfig, names: _Names) -> Task:
    try:
        line = FullLine.model_validate(given)
    except ValidationError as error:
        raise UserError("; ".join(map(_mistake, error.errors(include_url=False)))) from error
    if (line.video is None) == (line.scene is None):
        both = "both are given" if line.video is not None else "neither is given"
        raise UserError(f'"video" or "scene" says what to edit, and {both}')
    kind = "video" if line.video is not None else "scene"
    path = base / (line.video if line.video is not None else line.scene or "")
    if not os.path.exists(path):  # which is false, too, for what no path can be
        raise UserError(f'"{kind}" is {str(path)!r}, and there is no such file')
    if line.name is not None:
        names.take(line.name, number)
    settings = {name: getattr(line, name) for name in _settings if name in line.model_fields_set}
    return Task(
        number,
        line.name or "",
        kind,
        path,
        line.instruction,
        line.source_prompt,
        line.target_prompt,
        replace(config, **settings),
    )


def _mistake(error: Any) -> str:
    """One of pydantic's errors, in the words that the rest of the package uses."""
    if not error["loc"]:  # half a character, in the name of a field
        return f"a field is called {error['input']!r:.60}, which is no text"
    field = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(field, FullLine.model_fields, n=1)
        hint = f'did you mean "{close[0]}"?' if close else f"known are {', '.join(FullLine.model_fields)}"
        return f"there is no field {field!r:.60}; {hint}"
    return f'"{field}" is {error["input"]!r:.60}, expected {error["msg"].removeprefix("Input should be ")}'


def _in_json_terms(message: str) -> str:
    """A refusal of the settings speaks of options; in a file they are fields."""

    def field(match: re.Match[str]) -> str:
        name = match[1].replace("-", "_")
        if name in FullLine.model_fields:
            return f'"{name}"'
        negated = name.removeprefix("no_")
        return f'"{negated}": false' if negated in FullLine.model_fields else match[0]

    return re.sub(r"--([a-z][a-z-]*)", field, message)


# --- names ----------------------------------------------------------------------------------------


class _Names:
    """The names that are taken, by the lines that took them: two that some file system takes for one are one."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {_folded(name): 0 for name in OWN_NAMES}

    def take(self, name: str, line: int) -> None:
        """Raises `UserError` for a name that is no folder's, or that another line has."""
        size = len(name.encode(errors="replace"))
        wrong = {
            "be empty": not name,
            f"be longer than {LONGEST_NAME} bytes": size > LONGEST_NAME,
            "have characters that cannot be seen": not name.isprintable(),
            "have / or \\, which lead to other folders": bool(re.search(r"[/\\]", name)),
            "begin with a dot": name.startswith("."),
            "begin or end with a space": name != name.strip(),
        }
        for what, is_so in wrong.items():
            if is_so:
                raise UserError(f'"name" is {name!r:.60}: it is a folder\'s in the output folder and must not {what}')
        if (earlier := self.lines.setdefault(_folded(name), line)) != line:
            whose = f"line {earlier} has that name too" if earlier else "the batch keeps that name for itself"
            raise UserError(f'"name" is {name!r}, and {whose}')

    def free(self, wanted: str, line: int) -> str:
        """The name, shortened if need be, or the first of -2, -3 … after it that is not taken."""
        number, name = 1, _shortened(wanted, "")
        while _folded(name) in self.lines:
            number += 1
            name = _shortened(wanted, f"-{number}")
        self.take(name, line)
        return name


def _named(task: Task, names: _Names) -> Task:
    """A task with the name that it would have as a run of its own, where it was given none."""
    wanted = default_name(task.path, task.about).lstrip(".") or task.kind
    return task if task.name else replace(task, name=names.free(wanted, task.line))


def _shortened(name: str, ending: str) -> str:
    return name.encode()[: LONGEST_NAME - len(ending)].decode(errors="ignore") + ending


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
