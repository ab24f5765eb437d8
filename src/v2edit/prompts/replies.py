"""Replies of chat-completions servers: the text of an answer in all its shapes, and the reasons of a refusal."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

MAX_PAUSE = 120.0  # seconds that a server may ask to wait before a retry
TEXT_TYPES = ("text", "output_text")  # of a content part; others hold the model's reasoning
# The reasons of servers for refusing pictures, from issues of llama.cpp, vLLM, Ollama, LM Studio, OpenRouter, DeepSeek.
NO_VISION = re.compile(
    r"mmproj|text[- ]only|only (supports? )?text|no endpoints found that support image|missing data required for image"
    r"|at most 0 image|not a (vision|multi-?modal)|(unknown variant|unsupported content)[^.]{0,40}image_url"
    r"|(image|picture|vision|multi-?modal)s?[\W_](input|content|url|model|data)?s?\b[^.]{0,40}?"
    r"(n't|not|never|only|un)\W?(support|enabl|availab|accept|allow)"
    r"|(n't|not|cannot|unable to) (be )?(support|accept|handle|process|take|see|enable|have)\w*[^.]{0,30}"
    r"(image|picture|vision|multi-?modal)",
    re.IGNORECASE,
)
ABOUT_FORMAT = re.compile(
    r"(?<!image )format|json|schema|grammar|structured|guided|constrain|extra (field|input)|unsupported field",
    re.IGNORECASE,
)
ABOUT_MODEL = re.compile(r"model\b.*(not|n't|unknown|no such)|(unknown|no such|invalid) model", re.IGNORECASE)
# Refusals without a reason; the code of the status says as much.
VAGUE = re.compile(
    r"\W*((bad|invalid|malformed)[ _]request([ _]error)?|unprocessable( entity| content)?|not (found|implemented)"
    r"|internal( server)? error|(unknown |server )?error|no|none|failed|invalid)?\W*",
    re.IGNORECASE,
)


class ServerError(Exception):
    """A refusal by a server: the HTTP `status` (200 where the body alone tells), its `words` and the pause it asks for
    before a retry, in seconds."""

    def __init__(self, status: int, words: str, pause: float | None = None) -> None:
        super().__init__(words)
        self.status, self.words, self.pause = status, words, pause

    @property
    def is_temporary(self) -> bool:
        """Whether the same request may succeed later."""
        waits = self.pause is None or self.pause <= MAX_PAUSE
        return waits and (self.status in (408, 409, 429) or (self.status >= 500 and self.status != 501))

    @property
    def is_about_pictures(self) -> bool:
        """Whether the model takes no pictures."""
        return self.status >= 400 and bool(NO_VISION.search(self.words))

    @property
    def is_about_filter(self) -> bool:
        """Whether a content filter stopped the request."""
        return bool(re.search(r"content[ _-]?(filter|policy|management)|responsible.?ai", self.words, re.IGNORECASE))


@dataclass
class Completion:
    """A chat completion, read whole or piece by piece from a stream."""

    content: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: dict[int, str] = field(default_factory=dict)  # arguments of each tool call
    finish: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    is_begun: bool = False

    @property
    def text(self) -> str:
        """The answer: its content and arguments of tool calls, or else a refusal, or the reasoning that holds it."""
        spoken = "\n".join(part for part in (self.content, *self.calls.values()) if part.strip())
        return spoken or self.refusal or self.reasoning

    def add(self, body: Any) -> None:
        """Add a whole completion or the next piece of a stream. Raises `ServerError` for an error in its place, and
        `ValueError` for what is neither."""
        if not isinstance(body, dict):
            raise ValueError(f"no chat completion: {body!r:.80}")
        choices = body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        for place in (choice, body):
            if isinstance(place, dict) and place.get("error"):
                raise _error_in_body(place)
        if choice is None and not {"choices", "usage"} & body.keys() and describe_error(body):
            raise _error_in_body(body)
        self.model = body.get("model") or self.model
        if isinstance(usage := body.get("usage"), dict):
            self.prompt_tokens = _count(usage.get("prompt_tokens"), self.prompt_tokens)
            self.completion_tokens = _count(usage.get("completion_tokens"), self.completion_tokens)
        if isinstance(choice, dict):
            self.is_begun = True
            self.finish = choice.get("finish_reason") or self.finish
            message = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
            self._add_message(message if isinstance(message, dict) else {"content": message})

    def _add_message(self, message: Mapping[str, Any]) -> None:
        for part in _parts(message.get("content")):
            if isinstance(part, str) or part.get("type", "text") in TEXT_TYPES:
                self.content += _text(part)
            else:
                self.reasoning += _text(part)
        self.reasoning += _text(message.get("reasoning_content") or message.get("reasoning") or "")
        self.refusal += _text(message.get("refusal") or "")
        calls = message.get("tool_calls") or []
        for place, call in enumerate(calls if isinstance(calls, list) else [calls]):
            self._add_call(call, place)
        if message.get("function_call"):
            self._add_call({"function": message["function_call"]}, 0)

    def _add_call(self, call: Any, place: int) -> None:
        function = call.get("function", call) if isinstance(call, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if arguments is not None:
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            index = _count(call.get("index"), place)
            assert index is not None
            self.calls[index] = self.calls.get(index, "") + text


def read_lines(lines: Iterator[str]) -> Iterator[Any]:
    """Yield the bodies of a response: of each event of a stream, or of the one document. Raises `ValueError` for what
    is no JSON."""
    rest = []
    for line in lines:
        if line.startswith("data:"):
            if (data := line.removeprefix("data:").strip()) == "[DONE]":
                return
            yield json.loads(data)
        elif not line.startswith((":", "event:", "id:", "retry:")):  # a comment keeps a connection open
            rest.append(line)
    if text := "\n".join(rest).strip():
        yield json.loads(text)


def describe_error(body: Any) -> str:
    """Return a server's own words for an error: `error` of OpenAI's servers, a text or with a message, `detail` of
    FastAPI's, a text or a list. Empty where there are none, or the body is a page."""
    if isinstance(body, list):
        return "; ".join(filter(None, map(describe_error, body)))
    if not isinstance(body, dict):
        text = "" if body is None else str(body).strip()
        return "" if text.startswith("<") else text
    for key in ("error", "detail", "message", "msg", "errors"):
        if words := describe_error(body.get(key)):
            where = body.get("loc") or body.get("param")
            where = ".".join(map(str, where)) if isinstance(where, list) else where
            code = body.get("code")
            known = [str(one) for one in (where, code) if isinstance(one, str) and one not in words]
            return f"{words} ({', '.join(known)})" if known else words
    return ""


def read_pause(headers: Mapping[str, str]) -> float | None:
    """Return the seconds after which a server asks to try again, by its header Retry-After; None without one."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _error_in_body(body: dict[str, Any]) -> ServerError:
    error = body.get("error")
    code = error.get("code") if isinstance(error, dict) else body.get("code") or body.get("status")
    status = code if isinstance(code, int) and 400 <= code < 600 else 200
    return ServerError(status, describe_error(body) or "an error without a reason")


def _parts(content: Any) -> list[Any]:
    parts = content if isinstance(content, list) else [content]
    return [part for part in parts if isinstance(part, str | dict)]


def _text(part: Any) -> str:
    """Return the text of a content part; of a thinking part, all texts in it."""
    if isinstance(part, str):
        return part
    if isinstance(part, list):
        return "".join(map(_text, part))
    if not isinstance(part, dict):
        return ""
    return next((_text(part[key]) for key in ("text", "content", "thinking", "reasoning") if part.get(key)), "")


def _count(value: Any, default: int | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else default
