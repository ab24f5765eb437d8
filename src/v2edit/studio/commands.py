"""What makes the same as a job outside the studio: the command line, and a line of Python."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from v2edit.prompts.lvlm import LVLMConfig
from v2edit.runs import redact

COMMANDS = {"edit": "edit", "scene": "scene"}
FUNCTIONS = {"edit": "edit_video", "scene": "edit_scene"}
LISTS = ("box", "time", "box3d")  # whose values may begin with a dash


def command_words(kind: str, path: Path, instruction: str | None, keywords: Mapping[str, Any]) -> list[str]:
    """Return the words of the command line that makes what a job with these keywords makes."""
    words = ["v2edit", COMMANDS[kind], str(path)]
    if instruction is not None:
        words.append(instruction)
    for name, value in _flat(keywords).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else f"--no-{name.replace('_', '-')}")
        elif isinstance(value, (tuple, list)):
            for one in value:
                words += [option, str(one)]
        elif str(value).startswith("-"):
            words.append(f"{option}={value}")
        else:
            words += [option, str(value)]
    if any(word.startswith("-") for word in words[2:4]):  # a file or an instruction that looks like an option
        positional = [path, *([] if instruction is None else [instruction])]
        words = [*words[:2], *words[2 + len(positional) :], "--", *map(str, positional)]
    return words


def command_line(kind: str, path: Path, instruction: str | None, keywords: Mapping[str, Any]) -> str:
    """Return the command line for a shell, without secrets."""
    return shlex.join(redact(command_words(kind, path, instruction, keywords)))


def python_code(kind: str, path: Path, instruction: str | None, keywords: Mapping[str, Any]) -> str:
    """Return the Python that makes what a job with these keywords makes, without secrets."""
    arguments = [repr(str(path)), *([] if instruction is None else [repr(instruction)])]
    for name, value in _flat(keywords).items():
        (value,) = redact([value]) if isinstance(value, str) else (value,)
        arguments.append(f"{name}={str(value)!r}" if isinstance(value, Path) else f"{name}={value!r}")
    return f"import v2edit\nv2edit.{FUNCTIONS[kind]}({', '.join(arguments)})"


def _flat(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return keywords with the language model by its single options."""
    flat: dict[str, Any] = {}
    for name, value in keywords.items():
        if isinstance(value, LVLMConfig):
            own: dict[str, Any] = {"lvlm": value.model, "lvlm_url": value.url, "prompt_style": value.style}
            own |= {"lvlm_progression": value.progression or None}
            own |= {"lvlm_frames": value.frames if value.frames != LVLMConfig().frames else None}
            flat |= {key: one for key, one in own.items() if one is not None}
        elif value is not None:
            flat[name] = value
    return flat


def run_command(facts: Mapping[str, Any]) -> str | None:
    """Return the command line that a run was begun by, as its run.json has it."""
    command = facts.get("command")
    if isinstance(command, Sequence) and not isinstance(command, str) and all(isinstance(x, str) for x in command):
        return shlex.join(command)
    return None
