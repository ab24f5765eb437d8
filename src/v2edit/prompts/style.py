"""Prompt styles: the few-shot chat that leads a language model to a prompt pair (V2Edit Sec. B.4), from a folder that a
user may replace.

A style is a folder with a `style.toml`: the `system` text, with `rules` and `length` in the places that it names;
`progression`, which is appended to it when intermediate prompts are asked for, too; `[[describing]]` examples of
prompts that the video model is used to; and `[[editing]]` examples of pairs that differ only where the edit does. An
example's `images`, files in the folder, stand for the frames of its video; `frames` describes them in words. What a
style does not hold is that of its `base`, a shipped style.
"""

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from v2edit.errors import UserError
from v2edit.prompts.chat import Message, Picture
from v2edit.prompts.pair import PromptPair

STYLES = Path(__file__).parent / "styles"
STYLE_FILE = "style.toml"
PLACEHOLDERS = ("rules", "length")  # texts of a style that its system text may name in braces
MAX_BYTES = 2**20
QUESTION = "What is this video's prompt?"
# The least share of a text's words that the examples of its language contain: of 534 published English prompts with
# twelve words and more, the lowest had 0.15, half had 0.56; translations of one of the examples had 0.00 to 0.13.
SAME_LANGUAGE = 0.15
MIN_WORDS = 12  # of a text whose language is checked

Frames = tuple[str | Picture, ...]


@dataclass(frozen=True)
class PromptStyle:
    """The contents of a style's folder."""

    name: str
    system: str
    progression: str
    describing: tuple[tuple[Frames, str], ...]  # (frames, prompt)
    editing: tuple[tuple[Frames, str, PromptPair], ...]  # (frames, instruction, prompts)

    def build_messages(
        self,
        pictures: Sequence[Picture],
        instruction: str,
        intermediate: bool = False,
        subtasks: int = 1,
        source: str | None = None,
    ) -> list[Message]:
        """Build the chat: system text, describing examples, editing examples, the query with frames of the video. With
        `intermediate` it asks for intermediate prompts, too, of `subtasks` subtasks (1: the model decides); a known
        `source` prompt is to be copied."""
        messages = [Message("system", (f"{self.system}\n\n{self.progression}" if intermediate else self.system,))]
        for frames, prompt in self.describing:
            messages += [Message("user", (QUESTION, *frames)), Message("assistant", (prompt,))]
        for frames, example, prompts in self.editing:
            answer: dict[str, Any] = {"source": prompts.source, "target": prompts.target}
            if intermediate:
                answer["intermediate"] = prompts.intermediate
            text = json.dumps(answer, ensure_ascii=False)
            messages += [Message("user", (f"Instruction: {example}", *frames)), Message("assistant", (text,))]
        number = f"\nWrite exactly {subtasks - 1} intermediate prompts." if intermediate and subtasks > 1 else ""
        known = "" if source is None else f"\nThe source prompt is known, copy it word for word: {source}"
        return [*messages, Message("user", (f"Instruction: {instruction}{number}{known}", *pictures))]

    def is_same_language(self, text: str) -> bool:
        """Return whether a text is in the language of the examples, judged by its words; short texts pass."""
        words = split_words(text)
        known = sum(word in self._vocabulary for word in words)
        return len(words) < MIN_WORDS or known >= SAME_LANGUAGE * len(words)

    @cached_property
    def _vocabulary(self) -> frozenset[str]:
        texts = [prompt for _, prompt in self.describing]
        texts += [text for _, _, prompts in self.editing for text in prompts.chain]
        return frozenset(word for text in texts for word in split_words(text))


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case; in scripts without spaces, its characters."""
    return re.findall(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]+", text.lower())


def shipped_styles() -> list[str]:
    """Return the names of the styles that come with V2Edit."""
    return sorted(path.parent.name for path in STYLES.glob(f"*/{STYLE_FILE}"))


def read_style(style: str | Path) -> PromptStyle:
    """Read the style in a folder, or the shipped one of that name. Raises `UserError` where there is no such style, or
    its file lacks something."""
    return _StyleReader(STYLES / style if (STYLES / style / STYLE_FILE).is_file() else Path(style)).read()


class _StyleReader:
    """Reads and checks a style's file; every fault is a `UserError` that names the file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / STYLE_FILE

    def read(self) -> PromptStyle:
        toml = self.read_tables()
        system, progression = self._text(toml, "system"), self._text(toml, "progression")
        for key in PLACEHOLDERS:
            if (name := f"{{{key}}}") in system:
                system = system.replace(name, self._text(toml, key))
        examples = self._examples(toml, "describing")
        describing = tuple(
            (self._frames(table, where), self._text(table, "prompt", where)) for table, where in examples
        )
        editing = tuple(
            (self._frames(table, where), self._text(table, "instruction", where), self._prompts(table, where))
            for table, where in self._examples(toml, "editing")
        )
        return PromptStyle(self.folder.name, system, progression, describing, editing)

    def read_tables(self) -> dict[str, Any]:
        """Return the file's contents over those of its base."""
        own = self._parse()
        if "base" not in own:
            return own
        if own["base"] not in shipped_styles():
            self._refuse(f"its base {own['base']!r:.80} is no shipped style")
        base = _StyleReader(STYLES / own["base"]).read_tables()
        if unknown := own.keys() - base.keys() - {"base"}:  # a misspelt key would leave the base's in its place
            self._refuse(f"it has {', '.join(map(repr, sorted(unknown)))}, which its base {own['base']} has not")
        return base | own

    def _refuse(self, fault: str) -> NoReturn:
        shipped = ", ".join(shipped_styles())
        raise UserError(f"the prompt style {self.path}: {fault}; styles to copy from are {shipped} in {STYLES}")

    def _parse(self) -> dict[str, Any]:
        try:
            if self.path.stat().st_size > MAX_BYTES:
                self._refuse(f"it has more than {MAX_BYTES:,} bytes")
            return tomllib.loads(self.path.read_text(encoding="utf-8-sig"))  # an editor may write a byte order mark
        except OSError as error:
            self._refuse(f"{error.strerror}")
        except RecursionError:
            self._refuse("it is nested too deeply")
        except ValueError as error:  # no TOML, or no UTF-8
            self._refuse(f"it is not TOML ({error})")

    def _text(self, table: dict[str, Any], key: str, where: str = "") -> str:
        if not isinstance(value := table.get(key), str) or not value.strip():
            self._refuse(f"it lacks the text '{key}'{where}")
        return value.strip()

    def _examples(self, toml: dict[str, Any], kind: str) -> list[tuple[dict[str, Any], str]]:
        tables = toml.get(kind)
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self._refuse(f"it lacks [[{kind}]] examples")
        return [(table, f" in [[{kind}]] example {k}") for k, table in enumerate(tables, start=1)]

    def _frames(self, table: dict[str, Any], where: str) -> Frames:
        names = table.get("images", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self._refuse(f"'images' is no list of file names{where}")
        return (self._text(table, "frames", where), *(self._picture(name) for name in names))

    def _picture(self, name: str) -> Picture:
        from v2edit.video.stills import composite_on_black, read_image

        # Pictures are sent to whoever runs the language model: none from elsewhere on the disk.
        if "\0" in name or not (self.folder / name).resolve().is_relative_to(self.folder.resolve()):
            self._refuse(f"its image {name!r:.80} lies outside the folder")
        try:
            return Picture.from_frame(composite_on_black(*read_image(self.folder / name)))
        except UserError as error:
            self._refuse(f"its image {Path(name).name} cannot be read ({error})")

    def _prompts(self, table: dict[str, Any], where: str) -> PromptPair:
        intermediate = table.get("intermediate", [])
        if not isinstance(intermediate, list) or not all(isinstance(text, str) for text in intermediate):
            self._refuse(f"'intermediate' is no list of texts{where}")
        source, target = self._text(table, "source", where), self._text(table, "target", where)
        return PromptPair(source, target, tuple(text.strip() for text in intermediate))
