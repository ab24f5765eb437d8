"""The fields of a chat request that not every server takes: each is sent until the server refuses it."""

import re
from typing import Any

from v2edit.prompts.chat import MAX_TOKENS
from v2edit.prompts.replies import ABOUT_FORMAT, ABOUT_MODEL, VAGUE, ServerError

FIELD_NAMES = {
    "max_tokens": re.compile(r"max_(completion_)?tokens|requested \d+ output tokens|in the completion\b"),
    "stream_options": re.compile("stream_options"),
    "stream": re.compile(r"\bstream(ing|ed)?\b", re.IGNORECASE),
}
MENDABLE = (400, 404, 422, 500, 501)  # status of a refusal that may be about a field


class OptionalFields:
    """The response format, the limit of an answer's tokens, and the stream. `have_worked` once an answer came with
    them."""

    def __init__(self) -> None:
        self._formats = ["json_schema", "json_object", None]  # the first that the server accepts comes first
        self._others: dict[str, Any] = {
            "max_tokens": MAX_TOKENS, "stream_options": {"include_usage": True}, "stream": True,
        }  # fmt: skip
        self.have_worked = False

    @property
    def max_tokens(self) -> int | None:
        """The limit that is asked for, or None where the server takes none."""
        return self._others.get("max_tokens")

    def build(self, schema: dict[str, Any] | None, max_tokens: int = MAX_TOKENS) -> dict[str, Any]:
        """Return the fields of a request for an answer of a JSON schema, or in words."""
        fields = dict(self._others)
        if "max_tokens" in fields:
            fields["max_tokens"] = max_tokens
        kind = self._formats[0] if schema is not None else None
        if kind == "json_schema":
            shape = {"name": "answer", "schema": schema, "strict": True}
            fields["response_format"] = {"type": kind, "json_schema": shape}
        elif kind:
            fields["response_format"] = {"type": kind}
        return fields

    def drop(self, refusal: ServerError) -> bool:
        """Drop what a refusal is about: the fields it names, or the response format where it names that or gives no
        reason. Returns whether anything was dropped, so that the request is worth another try."""
        status, words = refusal.status, refusal.words
        if status not in MENDABLE or refusal.is_about_filter:
            return False
        named = [name for name in self._others if FIELD_NAMES[name].search(words)]
        for name in named:
            del self._others[name]
        if "stream" in named:
            self._others.pop("stream_options", None)
        if named:
            return True
        if status == 501 or ABOUT_FORMAT.search(words):
            return self._drop_format()
        if self.have_worked:  # with these very fields
            return False
        if status == 404:
            return not ABOUT_MODEL.search(words) and self.drop_all_formats()
        if status != 500 and VAGUE.fullmatch(words):
            return self._drop_format() or self._drop_others()
        return False

    def _drop_format(self) -> bool:
        if len(self._formats) == 1:
            return False
        self._formats.pop(0)
        return True

    def drop_all_formats(self) -> bool:
        """Ask without a response format from now on, unless answers came with it. Returns whether that is new."""
        if self.have_worked or len(self._formats) == 1:
            return False
        self._formats = [None]
        return True

    def _drop_others(self) -> bool:
        is_left, self._others = bool(self._others), {}
        return is_left
