"""Mistakes in a command line, in one line each: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from v2edit.cli.foreign_options import is_argument, place_arguments, suggest_option
from v2edit.jobs.options import FILE_SUFFIXES

NEEDED = r"Missing from (v2edit [\w-]+): ((?:--?\S+ )?[A-Z][\w.]*)(?:, --?[^\s,]+ [^\s,]+)* (.*?) \(required\)"
EDITING = ("edit", "scene", "prompts")  # commands of an input and an instruction
# Values as other programs call them.
OTHER_NAMES = {
    "fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "cpu": "model", "sequential": "group",
    "8bit": "int8", "4bit": "nf4", "sdpa": "torch", "flash": "flash2", "fa3": "flash3",
}  # fmt: skip
KINDS = {"INT": "a whole number", "FLOAT": "a number"}


def explain_mistake(
    printed: str, words: Sequence[str], commands: Collection[str], options_of: Callable[[str], Collection[str]]
) -> str:
    """Return one line for a command line that the parser refused with the box `printed`. `options_of` returns the
    options of a command, of which one near to an unknown one is suggested."""
    text = " ".join(re.sub(r"[│╭╮╰╯─]|(?<!\S)-{3,}(?!\S)", " ", printed).split())
    text = re.sub(r" (For full helptext|Perhaps you meant|Available subcommands)\b.*$", "", text)
    command = next((word for word in words if not word.startswith("-")), "")
    if match := re.match(r"Unrecognized options Unrecognized(?: or misplaced)? options: (\S+)", text):
        if command not in commands:
            return _explain_command(command, words, commands)
        return _explain_unknown(match[1], list(words), command, options_of(command))
    if match := re.search(r"Error parsing ([A-Z]\S*): it is empty", text):
        return f"{match[1]} is empty"
    if match := re.search(r"Error parsing (\S+): .* Argument helptext: .*?--[\w-]+ ([^\s,]+)", text):
        names = match[1].split("/")
        return f"{names[-1]} is {_value_of(names, words)!r}, expected {KINDS.get(match[2], match[2])}"
    if match := re.search(r"invalid choice '(.*)' for argument '(?:.*/)?(\S+)'\. Expected one of \((.*?),?\)", text):
        choices = match[3].replace("'", "").split(", ")
        known = sorted({*choices} - {"None"}) if "None" in choices else choices  # which come from a set
        near = OTHER_NAMES.get(match[1].lower(), "")
        close = [near] if near in known else difflib.get_close_matches(match[1].lower(), known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{match[2]} is {match[1]!r}, expected one of {', '.join(known)}{hint}"
    if match := re.search(r"Missing value for argument '(?:.*/)?(-\S+)'", text):
        return f"{match[1]} is given without a value"
    if dashed := re.search(r"Missing value for argument '\w", text) and next(
        (word for word in words if word.startswith("-") and Path(word).exists()), None
    ):
        return f"{dashed} begins like an option: give it as ./{dashed}"
    lacks = command in commands and re.search(r"Missing value for argument '\w", text)
    if lacks and (unknown := _explain_options(words, command, options_of(command))):
        return unknown
    if match := re.search(NEEDED, text):
        return f"{match[1]} needs {match[2]}: {match[3][0].lower()}{match[3][1:].rstrip('.')}"
    return text


def _explain_command(command: str, words: Sequence[str], commands: Collection[str]) -> str:
    """Explain a command line whose first word is no command."""
    if not command:
        return f"v2edit has no option {words[0]}; v2edit --help lists the commands"
    if Path(command).exists():
        return f"a command goes first: v2edit edit {shlex.quote(command)} …, or another of {', '.join(commands)}"
    close = difflib.get_close_matches(command.lower(), commands, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(commands)} (v2edit --help)"
    return f"there is no command {command!r}; {hint}"


def _explain_unknown(first: str, words: list[str], command: str, options: Collection[str]) -> str:
    """Explain an option that a command does not have, or words that no option takes, beginning with `first`."""
    if unknown := _explain_options(words, command, options):
        return unknown
    places = [k for k, word in enumerate(words) if word.split()[:1] == [first] or f"{word}," == first]
    least = words.index(command) + (3 if command in EDITING else 2)  # what goes before is not too much
    place = next((k for k in places if k >= least), next(iter(places), None))
    if place is None:  # the parser cut it at its equals sign
        return f"{next((word for word in words if word.endswith(f'={first}')), first)}: this option takes no value"
    if words[place - 1].startswith("-"):
        return f"{words[place - 1]} takes no value; {words[place]!r} is too much"
    stop = next((k for k in range(place, len(words)) if words[k].startswith("-")), len(words))
    if command in EDITING:
        return _explain_unquoted(words, command, place, stop)
    return f"v2edit {command} does not take {' '.join(words[place:stop])!r}; v2edit {command} --help says what it takes"


def _explain_options(words: Sequence[str], command: str, options: Collection[str]) -> str | None:
    """Explain the first option that a command does not have; None where it has them all."""
    end = words.index("--") if "--" in words else len(words)
    for word in words[:end]:
        option = word.partition("=")[0]
        if re.match(r"--?[A-Za-z]", option) and option.replace("_", "-") not in options:
            places = is_argument(option) and command in EDITING
            if places and (line := place_arguments(words[words.index(command) + 1 : end], options)):
                return f"the input and the instruction are given without options: v2edit {command} {line}"
            return f"v2edit {command} has no option {option}; {suggest_option(option, command, options)}"
    return None


def _explain_unquoted(words: Sequence[str], command: str, place: int, stop: int) -> str:
    """Explain words `place` to `stop` that are too many for an input and an instruction: either lacks its quotes."""
    start = words.index(command) + 1
    is_whole, extra = Path(words[start]).exists() and " " in words[place - 1], words[place]
    if place == start + 2 and is_whole and (Path(extra).exists() or Path(extra).suffix.lower() in FILE_SUFFIXES):
        return f"v2edit {command} takes one input and one instruction: {extra!r} is too much (v2edit batch edits many)"
    if not any(word.startswith("-") for word in words[start:stop]):
        pieces = [(k, n) for n in range(stop, start, -1) for k in range(start, n)]
        found = next(((k, n) for k, n in sorted(pieces, key=_span) if Path(" ".join(words[k:n])).exists()), None)
        if found and found != (start, start + 1):
            path, rest = " ".join(words[found[0] : found[1]]), [*words[start : found[0]], *words[found[1] : stop]]
            line = f'v2edit {command} {shlex.quote(path)} "{" ".join(rest)}"'
            return f"the input goes first, then the instruction, each in quotes where it has spaces: {line}"
    return f'an instruction is one argument: put quotes round it, "{" ".join(words[place - 1 : stop])}"'


def _span(piece: tuple[int, int]) -> int:
    return piece[0] - piece[1]  # the longest first


def _value_of(names: Sequence[str], words: Sequence[str]) -> str:
    """Return the value that an option of these names has on a command line."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") in names:
            return value if equals else following
    return ""
