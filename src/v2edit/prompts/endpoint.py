"""A language model behind an OpenAI-compatible address: a cloud's, or one's own vLLM, Ollama or llama.cpp."""

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
RETRIES = 3  # after a refusal that may pass: 408, 409, 429, 5xx, no connection, no answer in time
REFUSED_FORMAT = (400, 422, 501)  # what servers without structured output say to it
LOGGERS = ("httpx", "httpx2", "openai._base_client")  # which tell addresses, where a program has turned them on


class EndpointChat:
    """Asks a model at an address. The key comes from the environment alone and is shown nowhere.

    V2EDIT_LVLM_KEY is sent to whatever address is given. OPENAI_API_KEY is sent to OpenAI, or to OPENAI_BASE_URL where
    that is set, and to no other: a key for one service is no business of another's. Without a key, servers that
    want none answer all the same.

    Refusals that may pass are tried again up to three times, after the pause that the server asks for (two minutes at
    most) or else after one that grows from half a second.
    """

    def __init__(self, model: str, url: str | None = None, timeout: float = 120.0) -> None:
        usual = os.environ.get(OPENAI_URL) or OPENAI
        url = url or usual
        address = _address(url)
        key = (os.environ.get(KEY) or "").strip()
        if not key and url.rstrip("/") in (usual.rstrip("/"), OPENAI):
            key = (os.environ.get(OPENAI_KEY) or "").strip()
        if not key and address.hostname == urlsplit(OPENAI).hostname:
            raise UserError(f"{redact_url(url)} wants a key: set {OPENAI_KEY}, or give another --lvlm-url")
        if not (key.isascii() and key.isprintable()):
            raise UserError("the key in the environment has characters that no key has; set it again")
        self.model, self.timeout, self.url = model, timeout, redact_url(url)
        self.name = f"{model} at {self.url}"
        query = parse_qsl(address.query, keep_blank_values=True)
        log_in = [part for part in (address.username, address.password) if part]
        self._secrets = [key, *log_in, *map(unquote, log_in), *(value for _, value in query)]
        self._formats = ["json_schema", "json_object", None]  # the first that the server takes is kept

        from openai import OpenAI

        try:
            self._client = OpenAI(
                api_key=key or "none",
                base_url=urlunsplit(address._replace(query="", fragment="")),
                default_query=dict(query),
                timeout=timeout,
                max_retries=RETRIES,
            )
        except (ImportError, ValueError) as error:  # a proxy in the environment that the client cannot use
            reason = to_single_line(self._hidden(str(error)))
            raise UserError(f"cannot set out for {self.url}: {reason}; see the proxies in the environment") from None
        for name in LOGGERS:
            logging.getLogger(name).addFilter(self._hide_in_log)

    def ask(self, messages: Sequence[Message], schema: dict[str, Any]) -> Answer:
        from openai import APIError, APIStatusError

        while True:
            try:
                said: Any = [_as_sent(message) for message in messages]
                asked: Any = {"model": self.model, "messages": said} | self._response_format(schema)
                completion = self._client.chat.completions.create(**asked)
                choice = completion.choices[0]
                text = choice.message.content or getattr(choice.message, "refusal", None) or ""
                return Answer(self._hidden(str(text)), choice.finish_reason == "length")
            except APIStatusError as error:
                if error.status_code in REFUSED_FORMAT and len(self._formats) > 1:
                    self._formats.pop(0)
                    continue
                reason = self._said(error)
            except APIError as error:
                reason = self._unreached(error)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError):
                # A 200 with a body that is no chat completion, or no JSON: a proxy's page, half an answer.
                reason = f"{self.url} does not answer as OpenAI's chat completions do; does the address end in /v1?"
            # Without its cause, which may quote the request.
            raise UserError(to_single_line(self._hidden(reason))) from None

    def close(self) -> None:
        self._client.close()
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(self._hide_in_log)

    def _response_format(self, schema: dict[str, Any]) -> dict[str, Any]:
        kind = self._formats[0]
        if kind == "json_schema":
            shape = {"name": "answer", "schema": schema, "strict": True}
            return {"response_format": {"type": kind, "json_schema": shape}}
        return {"response_format": {"type": kind}} if kind else {}

    def _said(self, error: "APIStatusError") -> str:
        body = error.body
        said = body.get("message") if isinstance(body, dict) else body if isinstance(body, str) else None
        said = "" if said is None or str(said).lstrip().startswith("<") else f": {str(said)[:300]}"
        status = error.status_code
        if status == 401:
            given = "refuses the key" if self._secrets[0] else "wants a key"
            also = f" ({OPENAI_KEY} is for OpenAI alone)" if os.environ.get(OPENAI_KEY) else ""
            return f"{self.url} {given} (status 401){said}; set {KEY} in the environment{also}"
        if status == 404:
            return f"{self.url} has no model {self.model!r} (404){said}; does the address end in /v1?"
        if status == 429 or status >= 500:
            after = "" if status == 501 else f", after {RETRIES} more tries"
            what = "is busy, or its quota is used up" if status == 429 else "has trouble of its own"
            return f"{self.url} {what} (status {status}{after}){said}; try again later"
        return f"{self.url} refuses the request (status {status}){said}"

    def _unreached(self, error: "APIError") -> str:
        from openai import APIConnectionError, APITimeoutError

        if isinstance(error, APITimeoutError):
            return (
                f"{self.name} did not answer within {self.timeout:g} s, {RETRIES + 1} times; "
                "is the model loaded? Give it longer with --lvlm-timeout"
            )
        if isinstance(error, APIConnectionError):
            why = f" ({error.__cause__})" if error.__cause__ else ""
            return f"cannot reach the language model at {self.url}{why}; is it running? Its address is --lvlm-url"
        return f"{self.url} does not answer as OpenAI's chat completions do: {error.message:.300}"

    def _hidden(self, text: str) -> str:
        return hidden(text, self._secrets)

    def _hide_in_log(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._hidden(record.getMessage()), ()
        return True


def _as_sent(message: Message) -> dict[str, Any]:
    if all(isinstance(part, str) for part in message.parts):
        # Some servers take a list of parts from the user alone.
        return {"role": message.role, "content": "\n".join(str(part) for part in message.parts)}
    parts = [
        {"type": "image_url", "image_url": {"url": part.url}}
        if isinstance(part, Picture)
        else {"type": "text", "text": part}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}


def _address(url: str) -> SplitResult:
    try:
        address = urlsplit(url.strip())
        assert address.port != 0
        if address.scheme in ("http", "https") and address.hostname:
            return address
    except (AssertionError, ValueError):
        pass
    raise UserError(
        f"{redact_url(url)!r} is no address of a language model; give one such as http://localhost:11434/v1"
    )


def redact_url(url: str) -> str:
    """An address without what may be secret in it: log-in, query and fragment."""
    bare = re.split(r"[?#]", url.strip(), maxsplit=1)[0]
    return re.sub(r"^([a-z][\w+.-]*://)?[^/]*@", r"\1", bare, flags=re.IGNORECASE).rstrip("/")


def hidden(text: str, secrets: Sequence[str]) -> str:
    """A text with every secret in it blanked, plain or as JSON has it. Words as short as "none" and "EMPTY", which
    servers without keys are given, are no secrets."""
    for secret in secrets:
        if len(secret) > 5:
            text = text.replace(secret, "***").replace(json.dumps(secret)[1:-1], "***")
    return text
