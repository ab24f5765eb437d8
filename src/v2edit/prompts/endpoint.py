"""Chat with a model behind an OpenAI-compatible address: a cloud service, or a local vLLM, Ollama or llama.cpp."""

import json
import logging
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

from v2edit.errors import UserError
from v2edit.prompts.chat import Answer, Message, Picture, to_single_line

if TYPE_CHECKING:
    from openai import APIError, APIStatusError

OPENAI = "https://api.openai.com/v1"
KEY, OPENAI_KEY, OPENAI_URL = "V2EDIT_LVLM_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"
RETRIES = 3  # after a temporary failure: 408, 409, 429, 5xx, no connection, no answer in time
FORMAT_REFUSED = (400, 422, 501)  # status of servers without structured output
LOGGERS = ("httpx", "httpx2", "openai._base_client")  # which log addresses


class EndpointChat:
    """A model at an address. The key comes from the environment alone and is never printed, logged or saved.

    V2EDIT_LVLM_KEY is sent to any address. OPENAI_API_KEY is sent to OpenAI alone, or to OPENAI_BASE_URL where that is
    set, so that no other service sees it. Servers that need no key are asked without one.
    Temporary failures are retried up to three times, after the pause that the server asks for (two minutes at most)
    or else after one that grows from half a second."""

    def __init__(self, model: str, url: str | None = None, timeout: float = 120.0) -> None:
        default_url = os.environ.get(OPENAI_URL) or OPENAI
        url = url or default_url
        address = _parse_url(url)
        key = (os.environ.get(KEY) or "").strip()
        if not key and url.rstrip("/") in (default_url.rstrip("/"), OPENAI):
            key = (os.environ.get(OPENAI_KEY) or "").strip()
        if not key and address.hostname == urlsplit(OPENAI).hostname:
            raise UserError(f"{redact_url(url)} needs a key: set {OPENAI_KEY}, or give another --lvlm-url")
        if not (key.isascii() and key.isprintable()):
            raise UserError("the key in the environment has characters that no key can have; set it again")
        self.model, self.timeout, self.url = model, timeout, redact_url(url)
        self.name = f"{model} at {self.url}"
        query = parse_qsl(address.query, keep_blank_values=True)
        login = [part for part in (address.username, address.password) if part]
        self._secrets = [key, *login, *map(unquote, login), *(value for _, value in query)]
        self._formats = ["json_schema", "json_object", None]  # the first that the server accepts comes first
        from openai import OpenAI

        try:
            self._client = OpenAI(
                api_key=key or "none",
                base_url=urlunsplit(address._replace(query="", fragment="")),
                default_query=dict(query),
                timeout=timeout,
                max_retries=RETRIES,
            )
        except (ImportError, ValueError) as error:  # a proxy that the client cannot use
            reason = to_single_line(self._redact(str(error)))
            raise UserError(f"cannot connect to {self.url}: {reason}; check the proxies in the environment") from None
        for name in LOGGERS:
            logging.getLogger(name).addFilter(self._redact_log)

    def ask(self, messages: Sequence[Message], schema: dict[str, Any]) -> Answer:
        from openai import APIError, APIStatusError

        while True:
            try:
                request: Any = {"model": self.model, "messages": [_to_openai(message) for message in messages]}
                completion = self._client.chat.completions.create(**request, **self._response_format(schema))
                choice = completion.choices[0]
                text = choice.message.content or getattr(choice.message, "refusal", None) or ""
                return Answer(self._redact(str(text)), choice.finish_reason == "length")
            except APIStatusError as error:
                if error.status_code in FORMAT_REFUSED and len(self._formats) > 1:
                    self._formats.pop(0)
                    continue
                reason = self._describe_status(error)
            except APIError as error:
                reason = self._describe_failure(error)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError):
                # A 200 with a body that is no chat completion, or no JSON: a proxy's page, half an answer.
                reason = f"{self.url} does not answer as OpenAI's chat completions do; does the address end in /v1?"
            # Without the cause: it may quote the request.
            raise UserError(to_single_line(self._redact(reason))) from None

    def close(self) -> None:
        self._client.close()
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(self._redact_log)

    def _response_format(self, schema: dict[str, Any]) -> dict[str, Any]:
        kind = self._formats[0]
        if kind == "json_schema":
            shape = {"name": "answer", "schema": schema, "strict": True}
            return {"response_format": {"type": kind, "json_schema": shape}}
        return {"response_format": {"type": kind}} if kind else {}

    def _describe_status(self, error: "APIStatusError") -> str:
        body, status = error.body, error.status_code
        text = body.get("message") if isinstance(body, dict) else body if isinstance(body, str) else None
        detail = "" if text is None or str(text).lstrip().startswith("<") else f": {str(text)[:300]}"
        if status == 401:
            problem = "refuses the key" if self._secrets[0] else "needs a key"
            hint = f" ({OPENAI_KEY} is sent to OpenAI alone)" if os.environ.get(OPENAI_KEY) else ""
            return f"{self.url} {problem} (status 401){detail}; set {KEY} in the environment{hint}"
        if status == 404:
            return f"{self.url} has no model {self.model!r} (status 404){detail}; does the address end in /v1?"
        if status == 429 or status >= 500:
            retries = "" if status == 501 else f", after {RETRIES} retries"
            problem = "is busy, or its quota is used up" if status == 429 else "has an internal error"
            return f"{self.url} {problem} (status {status}{retries}){detail}; try again later"
        return f"{self.url} refuses the request (status {status}){detail}"

    def _describe_failure(self, error: "APIError") -> str:
        from openai import APIConnectionError, APITimeoutError

        if isinstance(error, APITimeoutError):
            return (
                f"{self.name} did not answer within {self.timeout:g} s, {RETRIES + 1} times; "
                "is the model loaded? Raise --lvlm-timeout"
            )
        if isinstance(error, APIConnectionError):
            why = f" ({error.__cause__})" if error.__cause__ else ""
            return f"cannot reach the language model at {self.url}{why}; is it running? Its address is --lvlm-url"
        return f"{self.url} does not answer as OpenAI's chat completions do: {error.message:.300}"

    def _redact(self, text: str) -> str:
        return redact_secrets(text, self._secrets)

    def _redact_log(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._redact(record.getMessage()), ()
        return True


def _to_openai(message: Message) -> dict[str, Any]:
    if all(isinstance(part, str) for part in message.parts):
        # Some servers accept a list of parts in user turns only.
        return {"role": message.role, "content": "\n".join(str(part) for part in message.parts)}
    parts = [
        {"type": "image_url", "image_url": {"url": part.data_url}}
        if isinstance(part, Picture)
        else {"type": "text", "text": part}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}


def _parse_url(url: str) -> SplitResult:
    try:
        address = urlsplit(url.strip())
        assert address.port != 0
        if address.scheme in ("http", "https") and address.hostname:
            return address
    except (AssertionError, ValueError):
        pass
    raise UserError(
        f"{redact_url(url)!r} is no address of a language model; expected one such as http://localhost:11434/v1"
    )


def redact_url(url: str) -> str:
    """Return an address without its login, query and fragment, which may be secret."""
    bare = re.split(r"[?#]", url.strip(), maxsplit=1)[0]
    return re.sub(r"^([a-z][\w+.-]*://)?[^/]*@", r"\1", bare, flags=re.IGNORECASE).rstrip("/")


def redact_secrets(text: str, secrets: Sequence[str]) -> str:
    """Replace every secret in a text, plain or JSON-escaped, by `***`. Words as short as "none" and "EMPTY", the usual
    placeholders for keys, are no secrets."""
    for secret in secrets:
        if len(secret) > 5:
            text = text.replace(secret, "***").replace(json.dumps(secret)[1:-1], "***")
    return text
