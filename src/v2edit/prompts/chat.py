"""Chat with a vision-language model: messages, the protocol that every server implements, answers as JSON."""

from __future__ import annotations

import json
import logging
import math
import time
import unicodedata
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from v2edit.errors import UserError
from v2edit.video.stream import Frames

log = logging.getLogger(__name__)
LONG_SIDE = 512  # pixels of a picture: the input size of most vision-language models, or one of their tiles
JPEG_QUALITY = 85
MAX_QUOTE = 600  # characters of an answer quoted in an error
CONTROL_CATEGORIES, JOINERS = ("Cc", "Cf", "Cs"), "\u200c\u200d"
MAX_RETRIES = 2  # after an answer that cannot be used
MAX_TOKENS = 4096  # of an answer: six long prompts, and the reasoning before them
MAX_DEPTH = 4  # of objects, lists and texts around the one that was asked for
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
    """A model's answer; `truncated` where it reached the limit of length that was asked for, `truncated_by_server`
    where it reached another."""

    text: str
    truncated: bool = False
    truncated_by_server: bool = False


class Chat(Protocol):
    """A vision-language model. `name` stands for it in messages to the user."""

    name: str

    def ask(self, messages: Sequence[Message], schema: dict[str, Any]) -> Answer:
        """Return the model's answer, requested as JSON of a JSON schema (which not every server enforces). Raises
        `UserError`, of one line, where there is none."""
        ...

    def identify(self) -> str:
        """Return where the model runs and which one it really is, whatever name it was asked for by. Raises `UserError`
        where nothing answers there."""
        ...

    def close(self) -> None:
        """Release memory and connections."""


class PacedChat:
    """A chat that is asked so many times a minute at most, evenly: for servers that count requests."""

    def __init__(self, chat: Chat, a_minute: float) -> None:
        self.name, self._chat, self._seconds, self._due = chat.name, chat, 60 / a_minute, -math.inf

    def ask(self, messages: Sequence[Message], schema: dict[str, Any]) -> Answer:
        now = time.monotonic()
        self._due = max(now, self._due)
        time.sleep(self._due - now)
        self._due += self._seconds
        return self._chat.ask(messages, schema)

    def identify(self) -> str:
        return self._chat.identify()

    def close(self) -> None:
        self._chat.close()


class InvalidAnswer(Exception):
    """An answer cannot be used; the arguments are the reasons, for the model and finally for the user."""


def sample_frames(frames: Frames, count: int) -> np.ndarray:
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
            return parse(_find_answer(answer, schema))
        except InvalidAnswer as error:
            reasons = "; ".join(error.args)
        log.info("an answer of %s cannot be used (%s)", chat.name, reasons)
        again = f"Answer again, with this JSON object alone: {describe_schema(schema)}"
        messages += [
            Message("assistant", (answer.text or "(no answer)",)),
            Message("user", (f"That answer cannot be used: {reasons}. {again}",)),
        ]
    quote = to_single_line(answer.text) or "nothing"
    quote = quote if len(quote) <= MAX_QUOTE else f"{quote[: MAX_QUOTE - 1]}…"
    raise UserError(
        f"none of {MAX_RETRIES + 1} answers of {chat.name} could be used ({reasons}); {advice}; "
        f"its last answer: {quote}"
    )


def describe_schema(schema: dict[str, Any]) -> str:
    """Describe the JSON of a schema by its keys: {"source": "…", "target": "…"}."""
    if schema["type"] == "object":
        members = (f"{json.dumps(key)}: {describe_schema(value)}" for key, value in schema["properties"].items())
        return f"{{{', '.join(members)}}}"
    if schema["type"] == "array":
        return f"[{describe_schema(schema['items'])}, …]"
    return '"…"' if schema["type"] == "string" else f"<{schema['type']}>"


def _find_answer(answer: Answer, schema: dict[str, Any]) -> dict[str, Any]:
    found = _find_in_text(answer.text, schema)
    if found is not None:
        return found
    if answer.truncated_by_server:
        raise InvalidAnswer(
            "it was cut off by the server, not by the limit asked for: raise the server's own limit of tokens"
        )
    raise InvalidAnswer("it was cut off: be shorter" if answer.truncated else "it holds no such JSON object")


def _find_in_text(text: str, schema: dict[str, Any], depth: int = 0) -> dict[str, Any] | None:
    """Return the last JSON object in a text that has keys of a schema: models put fences, remarks and reasoning around
    it, or write the object as a JSON string."""
    result = None
    for mark in '{"':
        for value in _decode_json(text, mark):
            found = _find_in_value(value, schema, depth)
            result = result if found is None else found
        if result is not None:
            break
    return result


def _decode_json(text: str, mark: str) -> Iterator[Any]:
    """Yield the JSON values in a text that begin with a mark."""
    decoder = json.JSONDecoder(strict=False)  # not strict: models break lines inside strings
    start = text.find(mark)
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
            yield value
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find(mark, end)


def _find_in_value(value: Any, schema: dict[str, Any], depth: int) -> dict[str, Any] | None:
    """Return the object with keys of a schema that a JSON value is, or that it holds in objects, lists and strings."""
    if depth > MAX_DEPTH:
        return None
    if isinstance(value, str):
        return _find_in_text(value, schema, depth + 1) if "{" in value else None
    if isinstance(value, dict):
        renamed = _match_keys(value, schema)
        if schema["properties"].keys() & renamed.keys():
            return renamed
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [one for part in inner if (one := _find_in_value(part, schema, depth + 1)) is not None]
    return found[-1] if found else None


def _match_keys(value: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return an object with its keys in the capitals of the schema; a key in the right ones goes first."""
    properties = schema["properties"]
    names = {name.casefold(): name for name in properties}
    result: dict[str, Any] = {}
    for key, item in sorted(value.items(), key=lambda entry: entry[0] in properties):
        name = names.get(key.strip().casefold(), key)
        nested = properties.get(name, {}).get("type") == "object" and isinstance(item, dict)
        result[name] = _match_keys(item, properties[name]) if nested else item
    return result


def to_single_line(text: str) -> str:
    """Make a model's text safe to print: one line with single spaces, without characters that control a terminal or
    the direction of writing. The joiners that scripts and emoji need stay."""
    visible = "".join(c if unicodedata.category(c) not in CONTROL_CATEGORIES or c in JOINERS else " " for c in text)
    return " ".join(visible.split())
