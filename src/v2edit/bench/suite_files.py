"""Suites of anyone's clips: a file of tasks, one a line, or a folder in the layout of a published benchmark.

A line has `video` or `scene`, an `instruction`, `source_prompt` and `target_prompt`, and may have a `mask` of what may
change, a `kind` of edit, `words` for the questions of a judge, a `target` (the true edited video) and a `name`.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from v2edit.bench import layouts
from v2edit.bench.task_lines import EXAMPLE, read_lines
from v2edit.errors import UserError
from v2edit.jobs.inputs import check_posed, choose_input, is_scene
from v2edit.prompts import PromptPair

log = logging.getLogger(__name__)
MAX_TASKS = 20_000
NAME = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Questions:
    """What a judge is asked of the edited video: whether it shows what the source did (`source`, where that is to be
    gone) and what the edit is to show (`target`), and which of two it is (`choice`, whose right answer is b)."""

    source: str | None
    target: str
    choice: str

    @classmethod
    def from_words(cls, source: str, target: str) -> Questions:
        """Return the questions about two things, as FiVE-Bench asks them."""
        asked = [f"Is there {words} in the video?" for words in (source, target)]
        return cls(asked[0], asked[1], f"What is in the video? a) {source} b) {target}")


@dataclass(frozen=True)
class SuiteLine:
    """A task of a suite: the files and texts of one edit. `aliases` are names by which results of other tools are
    found, beside the task's own."""

    name: str
    kind: str
    path: Path
    is_scene: bool
    instruction: str
    pair: PromptPair | None
    mask: Path | None = None
    target: Path | None = None
    questions: Questions | None = None
    seed: int = 0
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class SuiteFile:
    """A suite as it was read: its good lines, and what is wrong with each of the others."""

    name: str
    lines: list[SuiteLine]
    mistakes: list[str]


class _Line(BaseModel):
    """The fields of a line; those of published layouts are translated into them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    video: str | None = None
    scene: str | None = None
    name: str | None = None
    kind: str = "edit"
    difficulty: str | None = None  # as a suggestion has it; for readers
    instruction: str | None = None
    source_prompt: str | None = None
    target_prompt: str | None = None
    mask: str | None = None
    target: str | None = None
    words: list[str] | None = None
    seed: int = 0
    questions: dict[str, str | None] | None = None
    aliases: list[str] = []


def read_suite(path: Path) -> SuiteFile:
    """Read a suite from a file or a folder, which paths in it are relative to. What is wrong with a line is logged, and
    the line is left out. Raises `UserError` where nothing is left, or the path is no suite."""
    source, lines = _find_lines(path)
    good: list[SuiteLine] = []
    mistakes: list[str] = []
    names: dict[str, str] = {}
    for place, content in lines:
        if len(good) + len(mistakes) >= MAX_TASKS:
            raise UserError(f"{source} has more than {MAX_TASKS:,} tasks")
        try:
            if isinstance(content, UserError):
                raise content
            good.append(_with_name(_parse(content, source.parent), names, place))
        except UserError as error:
            mistakes.append(f"{source}, {place}: {error}")
    for mistake in mistakes:
        log.warning("%s", mistake)
    if not good:
        raise UserError(
            f"no line of {source} can be used: {mistakes[0].removeprefix(f'{source}, ')}"
            if mistakes
            else f"{source} has no tasks; each line is one, such as {EXAMPLE}"
        )
    return SuiteFile((path if path.is_dir() else path.with_suffix("")).absolute().name, good, mistakes)


def _find_lines(path: Path) -> tuple[Path, Iterable[tuple[str, Any]]]:
    """Return the file of a suite and its lines: (place, object or the mistake in its place)."""
    if not os.path.exists(path):
        raise UserError(f"there is no suite {str(path)!r}: primitives, scenes, a file of tasks or a benchmark's folder")
    if (published := layouts.find(path)) is not None:
        return published
    if path.is_dir():
        raise UserError(f"{path} is no suite: no tasks.jsonl, tasks.json or tasks.csv, and no layout that is known")
    if path.suffix.lower() not in (".jsonl", ".json", ".csv"):
        raise UserError(f"{path} is no file of tasks: a suite is a .jsonl, .json or .csv")
    return path, read_lines(path)


def _parse(content: Any, base: Path) -> SuiteLine:
    """Return the task of a line, its name perhaps empty. Raises `UserError` for what is wrong with it."""
    if not isinstance(content, dict):
        raise UserError(f"it is {content!r:.40}, expected an object such as {EXAMPLE}")
    try:
        line = _Line.model_validate(content)
    except ValidationError as error:
        raise UserError("; ".join(map(_describe, error.errors(include_url=False)))) from error
    kind, given = choose_input(line.video, line.scene)
    path = _existing(base, kind, given)
    mask, target = (_existing(base, name, value) if (value := getattr(line, name)) is not None else None
                    for name in ("mask", "target"))  # fmt: skip
    if kind == "video":
        _check_video(path)
    elif not is_scene(path):
        check_posed(path)
        raise UserError(f'"scene" is {str(path)!r:.160}, which is no scene: a dataset with cameras, or a splat')
    elif mask or target:
        raise UserError('"mask" and "target" are for videos')
    pair, instruction = _prompts(line), (line.instruction or "").strip()
    if not line.kind.strip():
        raise UserError('"kind" is empty')
    if line.seed < 0:
        raise UserError(f'"seed" is {line.seed}, expected 0 or more')
    if line.name is not None and not NAME.sub("-", line.name).strip("-."):
        raise UserError(f'"name" is {line.name!r:.60}, expected letters or digits')
    return SuiteLine(
        line.name or "", line.kind.strip(), path, kind == "scene", instruction or (pair.target if pair else ""), pair,
        mask, target, _questions(line), line.seed, tuple(line.aliases),
    )  # fmt: skip


def _existing(base: Path, field: str, given: str) -> Path:
    if not given or "\0" in given or not os.path.exists(base / given):
        raise UserError(f'"{field}" is {str(base / given)!r:.160}, and there is no such file')
    return base / given


def _check_video(path: Path) -> None:
    """Raise `UserError` for what cannot be read as a video, by its first frame."""
    from v2edit import video

    video.read(path, max_frames=1)


def _prompts(line: _Line) -> PromptPair | None:
    if line.source_prompt is None and line.target_prompt is None:
        if not (line.instruction or "").strip():
            raise UserError('"source_prompt" and "target_prompt", or an "instruction", say what to do; none is given')
        return None
    for name in ("source_prompt", "target_prompt"):
        if not (getattr(line, name) or "").strip():
            raise UserError(f'"{name}" is empty, and the other prompt is given')
    pair = PromptPair(line.source_prompt or "", line.target_prompt or "")
    if pair.source.strip() == pair.target.strip():
        raise UserError('"source_prompt" and "target_prompt" are the same: nothing would change')
    return pair


def _questions(line: _Line) -> Questions | None:
    if line.questions is not None:
        return Questions(**line.questions)  # pyright: ignore[reportArgumentType]
    if line.words is None:
        return None
    if len(line.words) != 2 or not all(one.strip() for one in line.words):
        raise UserError(f'"words" is {line.words!r:.60}, expected two: what the source shows and what the edit is to')
    return Questions.from_words(*(one.strip() for one in line.words))


def _describe(error: Any) -> str:
    """Describe one of pydantic's errors in a few words."""
    field = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(field, _Line.model_fields, n=1)
        public = [name for name in _Line.model_fields if name not in ("questions", "aliases")]
        hint = f'did you mean "{close[0]}"?' if close else f"known are {', '.join(public)}"
        return f"there is no field {field!r:.60}; {hint}"
    return f'"{field}" is {error["input"]!r:.60}, expected {error["msg"].removeprefix("Input should be ")}'


def _with_name(line: SuiteLine, names: dict[str, str], place: str) -> SuiteLine:
    """Return the line with a name that no other has, which its results and films are stored by. A name that was given
    to two lines is a mistake; else the file's name and the kind make one."""
    if line.name:
        name = NAME.sub("-", line.name).strip("-.")[:100]
        if (earlier := names.setdefault(name.casefold(), place)) != place:
            raise UserError(f'"name" is {line.name!r:.60}, and {earlier} has that name too')
        return replace(line, name=name)
    stem = NAME.sub("-", f"{line.path.stem if line.path.is_file() else line.path.name}-{line.kind}")[:100].strip("-.")
    name, number = stem or "task", 1
    while names.setdefault(name.casefold(), place) != place:
        number += 1
        name = f"{stem}-{number}"
    return replace(line, name=name)
