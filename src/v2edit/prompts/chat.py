"""Conversations with a language model that sees pictures, whoever serves it: what is sent, how an answer is read."""

from __future__ import annotations

import json
import unicodedata
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from v2edit.errors import UserError

if TYPE_CHECKING:
    import numpy as np

LONG_SIDE = 512  # pixels of a picture: what most such models look at, or one of their tiles
JPEG_QUALITY = 85
MAX_QUOTE = 600  # characters of an answer in an error
STEERING, JOINERS = ("Cc", "Cf", "Cs"), "\u200c\u200d"
MAX_RETRIES = 2  # how often a model is asked again after an answer that cannot be used
T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """One picture, as the JPEG file that is sent."""

    jpeg: bytes

    @classmethod
    def from_frame(cls, frame: np.ndarray, long_side: int = LONG_SIDE) -> Picture:
        """A frame uint8 [H, W, 3], made smaller where its long side is above `long_side`, its aspect kept."""
        from PIL import Image

        image, file = Image.fromarray(frame), BytesIO()
        image.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
        image.save(file, "JPEG", quality=JPEG_QUALITY)
        return cls(file.getvalue())

    @property
    def url(self) -> str:
        """As a data URL."""
        return f"data:image/jpeg;base64,{b64encode(self.jpeg).decode()}"


@dataclass(frozen=True)
class Message:
    """One turn: texts and pictures in the order they are read."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Picture, ...]


@dataclass(frozen=True)
class Answer:
    """What a model said; `cut` where it ran into a limit of length."""

    text: str
    cut: bool = False


class Chat(Protocol):
    """A language model that sees pictures. `name` is what messages to the user call it."""

    name: str

    def ask(self, messages: Sequence[Message], schema: dict[str, Any]) -> Answer:
        """The model's answer, asked for as JSON of a JSON schema; that it is such is not promised.

        Raises:
            UserError: there is no answer, for a reason that one line says.
        """
        ...

    def close(self) -> None:
        """Gives back memory and connections."""
        ...


class InvalidAnswer(Exception):
    """An answer cannot be used; the arguments are the reasons, told to the model and, in the end, to the user."""


def sample_frames(frames: np.ndarray, count: int) -> np.ndarray:
    """`count` frames (all, where there are fewer) of [T, H, W, 3], evenly from the first to the last."""
    import numpy as np

    return frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)]


def ask(
    chat: Chat,
    messages: Sequence[Message],
    schema: dict[str, Any],
    read: Callable[[dict[str, Any]], T],
    otherwise: str,
) -> T:
    """Asks until `read` makes something of the answer's JSON object; an `InvalidAnswer` is sent back
    with the reasons, at most twice.

    Args:
        otherwise: what the user can do when none is usable.

    Raises:
        UserError: no answer could be used, or there was none.
    """
    messages, left = list(messages), MAX_RETRIES
    while True:
        answer = chat.ask(messages, schema)
        try:
            return read(_object_in(answer, tuple(schema["properties"])))
        except InvalidAnswer as error:
            reasons = "; ".join(error.args)
        if not left:
            break
        left -= 1
        messages += [
            Message("assistant", (answer.text or "(no answer)",)),
            Message("user", (f"That answer cannot be used: {reasons}. Answer again, with the JSON object alone.",)),
        ]
    shown = to_single_line(answer.text) or "nothing"
    shown = shown if len(shown) <= MAX_QUOTE else f"{shown[: MAX_QUOTE - 1]}…"
    raise UserError(
        f"none of {MAX_RETRIES + 1} answers of {chat.name} could be used ({reasons}); {otherwise}; "
        f"its last answer: {shown}"
    )


def _object_in(answer: Answer, keys: Sequence[str]) -> dict[str, Any]:
    """The last JSON object in a text that has one of these keys: models add fences, remarks and thoughts around it."""
    decoder, found = json.JSONDecoder(strict=False), None  # not strict: they also break lines inside strings
    at = answer.text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(answer.text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            found = value if any(key in value for key in keys) else found
        at = answer.text.find("{", end)
    if found is None:
        raise InvalidAnswer("it was cut off: be shorter" if answer.cut else "it holds no such JSON object")
    return found


def to_single_line(text: str) -> str:
    """A model's text made safe to show: single spaces, and nothing that steers a terminal or turns the order of words.
    The joiners that scripts and emoji are spelt with stay."""
    visible = "".join(c if unicodedata.category(c) not in STEERING or c in JOINERS else " " for c in text)
    return " ".join(visible.split())
