"""Any program as a trainer: commands with placeholders, in a TOML file."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from v2edit.errors import UserError
from v2edit.scenes.trainers.base import DATASET, MODEL, FitRequest

NAMES: Mapping[str, frozenset[str]] = {
    "fit": frozenset({"dataset", "output", "steps", "seed", "subtask"}),
    "refit": frozenset({"dataset", "output", "steps", "seed", "subtask", "previous"}),
    "render": frozenset({"model", "cameras", "output"}),
    "export": frozenset({"model", "output"}),
}
NEEDED: Mapping[str, frozenset[str]] = {
    "fit": frozenset({"dataset", "output"}),
    "refit": frozenset({"dataset", "output"}),
    "render": frozenset({"model", "cameras", "output"}),
    "export": frozenset({"model", "output"}),
}
REQUIRED = ("fit", "render")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
PERCENT, OF = re.compile(r"\b(\d{1,3}(?:\.\d{1,9})?) ?%"), re.compile(r"\b(\d{1,12}) ?/ ?(\d{1,12})\b")


@dataclass(frozen=True)
class Commands:
    """Commands of the user's for a trainer, each split into words as a shell does, with placeholders: `fit`, `refit`
    of what was fitted before, `render`, and `export` to a splat."""

    path: Path
    commands: Mapping[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Commands:
        """Read a TOML file. Raises `UserError`, in one line, for what is wrong with it."""
        try:
            facts = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise UserError(f"--trainer: cannot read {path}: {error}") from error
        if strange := sorted(facts.keys() - NAMES.keys()):
            raise UserError(f"--trainer: {path} has {strange[0]!r}, expected {', '.join(NAMES)}")
        if missing := [name for name in REQUIRED if name not in facts]:
            raise UserError(f"--trainer: {path} has no {missing[0]} command")
        return cls(path, {name: _find_files(path, _read_command(path, name, value)) for name, value in facts.items()})

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def programs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(words[0] for words in self.commands.values()))

    @property
    def starts_warm(self) -> bool:
        return "refit" in self.commands

    @property
    def continues(self) -> bool:
        return False

    def describe(self) -> str:
        """Describe the commands in a line, with their placeholders."""
        return "; ".join(dict.fromkeys(shlex.join(words) for words in self.commands.values()))

    @property
    def facts(self) -> dict[str, Any]:
        return {"name": str(self.path.absolute()), "commands": dict(self.commands)}

    def fit_command(self, request: FitRequest) -> list[str]:
        values = {"dataset": request.folder / DATASET, "output": request.folder / MODEL}
        numbers = {"steps": request.steps, "seed": request.seed, "subtask": request.subtask}
        if request.previous is None:
            return self._fill("fit", values | numbers)
        return self._fill("refit", values | numbers | {"previous": request.previous / MODEL})

    def find_fault(self, request: FitRequest) -> str | None:
        output = request.folder / MODEL
        return None if output.is_dir() and any(output.iterdir()) else "wrote nothing into its {output}"

    def read_share(self, request: FitRequest, text: str) -> float | None:
        if found := PERCENT.findall(text):
            return float(found[-1]) / 100
        if found := OF.findall(text):
            done, total = map(int, found[-1])
            return done / total if total else None
        return None

    def render_command(self, folder: Path, cameras: Path, output: Path) -> list[str]:
        return self._fill("render", {"model": folder / MODEL, "cameras": cameras, "output": output})

    def export_command(self, folder: Path, output: Path) -> list[str] | None:
        if "export" not in self.commands:
            return None
        return self._fill("export", {"model": folder / MODEL, "output": output})

    def _fill(self, name: str, values: Mapping[str, Any]) -> list[str]:
        """Return a command with its placeholders filled; what is filled in is never split, whatever it contains."""
        return [PLACEHOLDER.sub(lambda match: str(values[match.group(1)]), word) for word in self.commands[name]]


def _read_command(path: Path, name: str, value: Any) -> list[str]:
    """Read a command: one string, or a list of its words."""
    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UserError(f"--trainer: the {name} command of {path} cannot be split into words: {error}") from error
    if (
        not isinstance(words, list)
        or not words
        or not all(isinstance(word, str) and "\0" not in word for word in words)
    ):
        raise UserError(f"--trainer: the {name} command of {path} is no command: expected text, or a list of words")
    used = {one for word in words for one in PLACEHOLDER.findall(word)}
    if strange := sorted(used - NAMES[name]):
        known = ", ".join(f"{{{one}}}" for one in sorted(NAMES[name]))
        raise UserError(f"--trainer: the {name} command of {path} has {{{strange[0]}}}, expected {known}")
    if missing := sorted(NEEDED[name] - used):
        raise UserError(f"--trainer: the {name} command of {path} has no {{{missing[0]}}}")
    return words


def _find_files(path: Path, words: list[str]) -> list[str]:
    """Return a command's words with those that name a file beside the .toml, `./fit.sh` or `train.py`, in full: the
    commands run elsewhere."""
    beside = path.absolute().parent
    names = [word for word in words if ("/" in word or Path(word).suffix) and "{" not in word]
    found = {word: str(beside / word) for word in names if (beside / word).is_file()}
    return [found.get(word, word) for word in words]
