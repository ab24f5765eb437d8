"""Chat with a vision-language model: messages, the protocol that every server implements, answers as JSON."""

from __future__ import annotations

import json
import unicodedata
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from v2edit.errors import UserError

LONG_SIDE = 512  # pixels of a picture: the input size of most vision-language models, or one of their tiles
JPEG_QUALITY = 85
MAX_QUOTE = 600  # characters of an answer quoted in an error
CONTROL_CATEGORIES, JOINERS = ("Cc", "Cf", "Cs"), "\u200c\u200d"
MAX_RETRIES = 2  # after an answer that cannot be used
T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """A picture as a JPEG file."""

    jpeg: bytes

    @classmethod
    def from_frame(cls, frame: np.ndarray, long_side: int = LONG_SIDE) -> Picture:
        """Encode a frame uint8 [H, W, 3], scaled down to `long_side` where its long side is above that."""
        from PIL import Image

        image, file = Image.fromarray(frame), BytesIO()
        image.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
        image.save(file, "JPEG", quality=JPEG_QUALITY)
        return cls(file.getvalue())

    @property
    def data_url(self) -> str:
        """Return the picture as a data URL."""
        return f"data:image/jpeg;base64,{b64encode(self.jpeg).decode()}"


@dataclass(frozen=True)
class Message:
    """One turn of a chat: texts and pictures in reading order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Picture, ...]


@dataclass(frozen=True)
class Answer:
    """A model's answer; `truncated` where it reached the limit of length."""

    text: str
    truncated: bool = False


class Chat(Protocol):
    """A vision-language model. `name` stands for it in messages to the user."""

    name: str

    def ask(self, messages: Sequence[Message], schema: dict[str, Any]) -> Answer:
        """Return the model's answer, requested as JSON of a JSON schema (which not every server enforces). Raises
        `UserError`, of one line, where there is none."""
        ...

    def close(self) -> None:
        """Release memory and connections."""


class InvalidAnswer(Exception):
    """An answer cannot be used; the arguments are the reasons, for the model and finally for the user."""


def sample_frames(frames: np.ndarray, count: int) -> np.ndarray:
    """Return `count` evenly spaced frames of [T, H, W, 3], first and last included (all where there are fewer)."""
    return frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)]


def ask_for_json(
    chat: Chat, messages: Sequence[Message], schema: dict[str, Any], parse: Callable[[dict[str, Any]], T], advice: str
) -> T:
    """Ask a model for a JSON object until `parse` accepts it: an answer for which it raises `InvalidAnswer` is sent
    back with the reasons, at most twice. Raises `UserError`, with `advice` for the user, where no answer can be used or
    there is none."""
    messages, reasons, answer = list(messages), "", Answer("")
    for _ in range(MAX_RETRIES + 1):
        answer = chat.ask(messages, schema)
        try:
            return parse(_find_json_object(answer, tuple(schema["properties"])))
        except InvalidAnswer as error:
            reasons = "; ".join(error.args)
        messages += [
            Message("assistant", (answer.text or "(no answer)",)),
            Message("user", (f"That answer cannot be used: {reasons}. Answer again, with the JSON object alone.",)),
        ]
    quote = to_single_line(answer.text) or "nothing"
    quote = quote if len(quote) <= MAX_QUOTE else f"{quote[: MAX_QUOTE - 1]}…"
    raise UserError(
        f"none of {MAX_RETRIES + 1} answers of {chat.name} could be used ({reasons}); {advice}; "
        f"its last answer: {quote}"
    )


def _find_json_object(answer: Answer, keys: Sequence[str]) -> dict[str, Any]:
    """Return the last JSON object in a text that has one of these keys: models put fences, remarks and reasoning
    around it."""
    decoder, result = json.JSONDecoder(strict=False), None  # not strict: models break lines inside strings
    start = answer.text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(answer.text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            result = value if any(key in value for key in keys) else result
        start = answer.text.find("{", end)
    if result is None:
        raise InvalidAnswer("it was cut off: be shorter" if answer.truncated else "it holds no such JSON object")
    return result


def to_single_line(text: str) -> str:
    """Make a model's text safe to print: one line with single spaces, without characters that control a terminal or
    the direction of writing. The joiners that scripts and emoji need stay."""
    visible = "".join(c if unicodedata.category(c) not in CONTROL_CATEGORIES or c in JOINERS else " " for c in text)
    return " ".join(visible.split())
