"""The file of tasks: one a line, all of them checked before anything runs."""

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

from v2edit.batch.layout import RESERVED_NAMES
from v2edit.editing.config import EditConfig
from v2edit.errors import UserError
from v2edit.files import MAX_JSON_BYTES, parse_json
from v2edit.jobs.clip import ClipOptions, FormatOptions
from v2edit.jobs.inputs import choose_input
from v2edit.jobs.masks import AUTO, MaskOptions
from v2edit.jobs.regions import RegionOptions
from v2edit.jobs.shots import ShotOptions
from v2edit.runs import default_name

log = logging.getLogger(__name__)
MAX_TASKS = 20_000
MAX_LINE_BYTES = 64 * 2**10
MAX_NAME_BYTES = 120  # a temporary file has a longer name, and file systems take 255
MAX_LOGGED_MISTAKES = 20
EXAMPLE = '{"video": "a.mp4", "instruction": "make the ball blue"}'


@dataclass(frozen=True)
class BatchTask:
    """One edit of a batch. `name` is its run folder's, `line` its line in the file, counted from 1."""

    line: int
    name: str
    kind: Literal["video", "scene"]
    path: Path
    instruction: str | None
    source_prompt: str | None
    target_prompt: str | None
    config: EditConfig
    clip: ClipOptions = ClipOptions()  # of a video
    output: FormatOptions = FormatOptions()
    masks: MaskOptions = MaskOptions()
    shots: ShotOptions = ShotOptions()
    region: RegionOptions = RegionOptions()  # of a scene

    @property
    def about(self) -> str:
        """The edit in a few words."""
        return self.instruction or self.target_prompt or ""

    @property
    def facts(self) -> dict[str, Any]:
        """All that decides its result, as plain data: a result of other facts is another task's."""
        of_video = asdict(self.clip) | asdict(self.output) | self.masks.facts | self.shots.facts
        return {
            self.kind: str(self.path),
            "instruction": self.instruction,
            "source_prompt": self.source_prompt,
            "target_prompt": self.target_prompt,
            **asdict(self.config),
            **(of_video if self.kind == "video" else self.region.facts),
        }


class _BaseLine(BaseModel):
    """The fields of a line, but for the settings of the edit."""

    model_config = ConfigDict(extra="forbid", strict=True)

    video: str | None = None
    scene: str | None = None
    instruction: str | None = None
    source_prompt: str | None = None
    target_prompt: str | None = None
    name: str | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_surrogates(cls, value: Any) -> Any:
        """Refuse half a character, which JSON can hold and no file and no path can."""
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise PydanticCustomError("half", "text of whole characters")
        return value


# Every setting with its own type and default: a line takes all that these groups have.
_GROUPS = (EditConfig, ClipOptions, FormatOptions, MaskOptions, ShotOptions, RegionOptions)
_settings: dict[str, Any] = {
    one.name: (get_type_hints(group)[one.name], one.default) for group in _GROUPS for one in fields(group)
}
TaskLine = create_model("TaskLine", __base__=_BaseLine, **_settings)


@dataclass(frozen=True)
class TaskDefaults:
    """The settings of tasks whose lines have none."""

    config: EditConfig = EditConfig()
    clip: ClipOptions = ClipOptions()
    output: FormatOptions = FormatOptions()
    masks: MaskOptions = MaskOptions()
    shots: ShotOptions = ShotOptions()


def read_tasks(
    path: Path, defaults: TaskDefaults = TaskDefaults(), check: Callable[[BatchTask], object] = lambda task: None
) -> list[BatchTask]:
    """Read the tasks of a file, which paths in it are relative to; a line's settings override the defaults. Raises
    `UserError` where the file cannot be read, is too large or is empty, or a line has a mistake, also one that `check`
    raises: which line, which field, its value and what is expected. Several mistakes are logged one by one."""
    tasks: list[BatchTask] = []
    mistakes: list[str] = []
    names = _TaskNames()
    for number, text in _read_lines(path):
        try:
            task = _parse_task(number, _parse_object(text), path.absolute().parent, defaults, names)
            check(task)
            tasks.append(task)
        except UserError as error:
            mistakes.append(f"{path}, line {number}: {_name_fields(str(error))}")
    if len(mistakes) > 1:
        for mistake in mistakes[:MAX_LOGGED_MISTAKES]:
            log.warning("%s", mistake)
        part = f", of which {MAX_LOGGED_MISTAKES} are shown" if len(mistakes) > MAX_LOGGED_MISTAKES else ""
        raise UserError(f"{len(mistakes)} lines of {path} have mistakes{part}; nothing was run")
    if mistakes:
        raise UserError(mistakes[0])
    if not tasks:
        raise UserError(f"{path} has no tasks; each line is one, such as {EXAMPLE}")
    return [task if task.name else replace(task, name=names.make(task)) for task in tasks]


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty, with their numbers, without having the whole file in memory."""
    if not path.is_file():
        raise UserError(f"{path} is no file of tasks" if path.exists() else f"no such file: {path}")
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise UserError(f"{path}: {size:,} bytes are more than the {MAX_JSON_BYTES:,} that a file of tasks may have")
    count, total_bytes = 0, 0
    try:
        with path.open("rb") as file:
            for number in range(1, MAX_JSON_BYTES):
                line = file.readline(MAX_LINE_BYTES + 1)
                total_bytes += len(line)
                if not line:
                    return
                if len(line) > MAX_LINE_BYTES:
                    raise UserError(f"{path}, line {number}: it is longer than {MAX_LINE_BYTES:,} bytes")
                if total_bytes > MAX_JSON_BYTES:  # it grew, or does not know its size
                    raise UserError(f"{path}: more than the {MAX_JSON_BYTES:,} bytes that a file of tasks may have")
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise UserError(f"{path}, line {number}: it is not UTF-8 (byte {error.start + 1})") from error
                if text:
                    count += 1
                    if count > MAX_TASKS:
                        raise UserError(f"{path} has more than {MAX_TASKS:,} tasks: make several batches of it")
                    yield number, text
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _parse_object(text: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except json.JSONDecodeError as error:
        raise UserError(f"it is no JSON ({error.msg} at character {error.colno})") from error
    except ValueError as error:
        raise UserError(f"it is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"it is {text:.40}, expected an object such as {EXAMPLE}")
    return content


def _parse_task(
    number: int, content: dict[str, Any], base: Path, defaults: TaskDefaults, names: _TaskNames
) -> BatchTask:
    try:
        line = TaskLine.model_validate(content)
    except ValidationError as error:
        raise UserError("; ".join(map(_describe_mistake, error.errors(include_url=False)))) from error
    kind, given = choose_input(line.video, line.scene)
    path = base / given
    if not os.path.exists(path):  # which is false, too, for what no path can be
        raise UserError(f'"{kind}" is {str(path)!r}, and there is no such file')
    if line.name is not None:
        names.reserve(line.name, number)
    prompts = line.instruction, line.source_prompt, line.target_prompt
    for name in {"mask", "keep"} & line.model_fields_set:  # relative to the file, as what they mask
        if (given := getattr(line, name)) not in (None, AUTO):
            setattr(line, name, str(base / given))
    if kind == "scene":
        region = _override(RegionOptions(), line)
        known = {*_names(EditConfig), *_names(RegionOptions)}
        if given := (line.model_fields_set & _settings.keys()) - known:
            raise UserError(f'"{min(given)}" is for videos, and "scene" is {str(path)!r}')
        return BatchTask(number, line.name or "", kind, path, *prompts, _override(defaults.config, line), region=region)
    if line.model_fields_set & {"box3d"}:
        raise UserError(f'"box3d" is for scenes, and "video" is {str(path)!r}')
    given = (defaults.config, defaults.clip, defaults.output, defaults.masks, defaults.shots)
    groups = (_override(one, line) for one in given)
    return BatchTask(number, line.name or "", kind, path, *prompts, *groups)


def _names(group: type) -> set[str]:
    return {one.name for one in fields(group)}


def _override(options: Any, line: BaseModel) -> Any:
    """Return a group of options with those that a line has."""
    names = line.model_fields_set & _names(type(options))
    changes = {name: getattr(line, name) for name in names}
    if not isinstance(strength := changes.get("strength", ""), str):  # a number: it goes over an alpha from elsewhere
        changes["alpha"] = changes.get("alpha", strength)
    return replace(options, **changes)


def _describe_mistake(error: Any) -> str:
    """Describe one of pydantic's errors as the rest of the package would."""
    if not error["loc"]:  # half a character, in the name of a field
        return f"a field is called {error['input']!r:.60}, which is no text"
    field = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(field, TaskLine.model_fields, n=1)
        hint = f'did you mean "{close[0]}"?' if close else f"known are {', '.join(TaskLine.model_fields)}"
        return f"there is no field {field!r:.60}; {hint}"
    return f'"{field}" is {error["input"]!r:.60}, expected {error["msg"].removeprefix("Input should be ")}'


def _name_fields(message: str) -> str:
    """Replace the options in a message of `EditConfig` by the fields of a line."""

    def field(match: re.Match[str]) -> str:
        name = match[1].replace("-", "_")
        if name in TaskLine.model_fields:
            return f'"{name}"'
        negated = name.removeprefix("no_")
        return f'"{negated}": false' if negated in TaskLine.model_fields else match[0]

    return re.sub(r"--([a-z][a-z-]*)", field, message)


class _TaskNames:
    """The names in use, by the lines of their tasks: two names that some file system takes for one are equal."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {_fold(name): 0 for name in RESERVED_NAMES}

    def reserve(self, name: str, line: int) -> None:
        """Raise `UserError` for a name that cannot be a folder's, or that another line has."""
        size = len(name.encode(errors="replace"))
        wrong = {
            "be empty": not name,
            f"be longer than {MAX_NAME_BYTES} bytes": size > MAX_NAME_BYTES,
            "have characters that cannot be seen": not name.isprintable(),
            "have / or \\, which lead to other folders": bool(re.search(r"[/\\]", name)),
            "begin with a dot": name.startswith("."),
            "begin or end with a space": name != name.strip(),
        }
        for fault, is_so in wrong.items():
            if is_so:
                raise UserError(f'"name" is {name!r:.60}: it is a folder\'s in the output folder and must not {fault}')
        if (earlier := self.lines.setdefault(_fold(name), line)) != line:
            owner = f"line {earlier} has that name too" if earlier else "the batch keeps that name for itself"
            raise UserError(f'"name" is {name!r}, and {owner}')

    def make(self, task: BatchTask) -> str:
        """Reserve the name that the task would have as a run of its own, with the first of -2, -3 … that is free."""
        stem = default_name(task.path, task.about).lstrip(".") or task.kind
        number, name = 1, _shorten(stem, "")
        while _fold(name) in self.lines:
            number += 1
            name = _shorten(stem, f"-{number}")
        self.reserve(name, task.line)
        return name


def _shorten(name: str, ending: str) -> str:
    return name.encode()[: MAX_NAME_BYTES - len(ending)].decode(errors="ignore") + ending


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
