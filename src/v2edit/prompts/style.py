"""The conversation that leads a language model to a prompt pair (V2Edit Sec. B.4), from a folder that a user may
replace.

A style is a folder with a `style.toml`: the `system` text; `progression`, which is added to it when the prompts
between are asked for, too; `[[describing]]` examples of how the video model likes to be spoken to; and `[[editing]]`
examples of pairs that differ only where the edit does. An example's `images`, files in the folder, stand where the
frames of its video would; `frames` says in words what they show.
"""

import json
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from v2edit.errors import UserError
from v2edit.prompts.chat import Message, Picture
from v2edit.prompts.pair import PromptPair

STYLES = Path(__file__).parent / "styles"
FILE = "style.toml"
LARGEST = 2**20  # bytes of it
QUESTION = "What is this video's prompt?"
# A text in the language of the examples shares this part of its words with them: of 534 published English prompts with
# twelve words and more, the least had 0.15, half had 0.56; translations of one of the examples had 0.00 to 0.13.
SAME_LANGUAGE = 0.15
ENOUGH_WORDS = 12  # to tell

Frames = tuple[str | Picture, ...]


@dataclass(frozen=True)
class Style:
    """What a style's folder holds."""

    name: str
    system: str
    progression: str
    describing: tuple[tuple[Frames, str], ...]  # (frames, prompt)
    editing: tuple[tuple[Frames, str, PromptPair], ...]  # (frames, instruction, prompts)

    def conversation(
        self, pictures: Sequence[Picture], instruction: str, between: bool = False, subtasks: int = 1
    ) -> list[Message]:
        """System text, style examples, editing examples, the query.

        Args:
            pictures: frames of the video.
            instruction: what to change.
            between: ask for the prompts between, too.
            subtasks: how many subtasks those are to make; 1 leaves it to the model.
        """
        messages = [Message("system", (f"{self.system}\n\n{self.progression}" if between else self.system,))]
        for frames, prompt in self.describing:
            messages += [Message("user", (QUESTION, *frames)), Message("assistant", (prompt,))]
        for frames, example, prompts in self.editing:
            answer: dict[str, Any] = {"source": prompts.source, "target": prompts.target}
            if between:
                answer["intermediate"] = prompts.intermediate
            text = json.dumps(answer, ensure_ascii=False)
            messages += [Message("user", (f"Instruction: {example}", *frames)), Message("assistant", (text,))]
        wanted = f"\nWrite exactly {subtasks - 1} intermediate prompts." if between and subtasks > 1 else ""
        return [*messages, Message("user", (f"Instruction: {instruction}{wanted}", *pictures))]

    def speaks_like(self, text: str) -> bool:
        """Whether a text is in the language of the examples, as far as words tell; few words may be in any."""
        said = words(text)
        known = sum(word in self._vocabulary for word in said)
        return len(said) < ENOUGH_WORDS or known >= SAME_LANGUAGE * len(said)

    @cached_property
    def _vocabulary(self) -> frozenset[str]:
        pairs = (text for _, _, prompts in self.editing for text in prompts.chain)
        return frozenset(word for text in (*(prompt for _, prompt in self.describing), *pairs) for word in words(text))


def words(text: str) -> list[str]:
    """The words of a text in lower case; in scripts without spaces, its characters."""
    return re.findall(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]+", text.lower())


def read_style(style: str | Path) -> Style:
    """The style of a folder, or the shipped one of that name.

    Raises:
        UserError: there is no such style, or its file lacks something.
    """
    folder = STYLES / style if (STYLES / style / FILE).is_file() else Path(style)
    path = folder / FILE

    def refuse(what: str) -> NoReturn:
        shipped = ", ".join(sorted(one.name for one in STYLES.iterdir() if (one / FILE).is_file()))
        raise UserError(f"the prompt style {path}: {what}; the shipped ones to copy from are {shipped} in {STYLES}")

    try:
        if path.stat().st_size > LARGEST:
            refuse(f"it has more than {LARGEST:,} bytes")
        facts = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # an editor may put a mark first
    except OSError as error:
        refuse(f"{error.strerror}")
    except RecursionError:
        refuse("it is nested too deeply")
    except ValueError as error:  # no TOML, or no UTF-8
        refuse(f"it is not TOML ({error})")

    def text_of(table: dict[str, Any], key: str, where: str) -> str:
        if not isinstance(value := table.get(key), str) or not value.strip():
            refuse(f"it lacks the text '{key}'{where}")
        return value.strip()

    def frames_of(table: dict[str, Any], where: str) -> Frames:
        parts: list[str | Picture] = [text_of(table, "frames", where)]
        names = table.get("images", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            refuse(f"'images' is no list of file names{where}")
        for name in names:
            # They are sent to whoever runs the language model: nothing from elsewhere on the disk.
            if "\0" in name or not (folder / name).resolve().is_relative_to(folder.resolve()):
                refuse(f"its image {name!r:.80} lies outside the folder")
            parts.append(_picture(folder / name, refuse))
        return tuple(parts)

    def examples(kind: str) -> list[tuple[dict[str, Any], str]]:
        tables = facts.get(kind)
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            refuse(f"it lacks [[{kind}]] examples")
        return [(table, f" in [[{kind}]] example {k}") for k, table in enumerate(tables, start=1)]

    def pair_of(table: dict[str, Any], where: str) -> PromptPair:
        between = table.get("intermediate", [])
        if not isinstance(between, list) or not all(isinstance(text, str) for text in between):
            refuse(f"'intermediate' is no list of texts{where}")
        source, target = text_of(table, "source", where), text_of(table, "target", where)
        return PromptPair(source, target, tuple(text.strip() for text in between))

    return Style(
        folder.name,
        text_of(facts, "system", ""),
        text_of(facts, "progression", ""),
        tuple((frames_of(one, where), text_of(one, "prompt", where)) for one, where in examples("describing")),
        tuple(
            (frames_of(one, where), text_of(one, "instruction", where), pair_of(one, where))
            for one, where in examples("editing")
        ),
    )


def _picture(path: Path, refuse: Callable[[str], NoReturn]) -> Picture:
    import numpy as np

    from v2edit.video.stills import open_image

    try:
        with open_image(path) as image:
            return Picture.from_frame(np.asarray(image.convert("RGB")))
    except UserError as error:
        refuse(f"its image {path.name} cannot be read ({error})")
