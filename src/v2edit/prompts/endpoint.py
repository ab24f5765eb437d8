"""Chat with a model behind an OpenAI-compatible address: a cloud service, or a local vLLM, Ollama or llama.cpp."""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

from v2edit.errors import UserError
from v2edit.prompts.chat import Answer, Message, Picture, to_single_line
from v2edit.prompts.optional_fields import OptionalFields
from v2edit.prompts.replies import Completion, ServerError, describe_error, read_lines, read_pause

if TYPE_CHECKING:
    from openai import APIStatusError

T = TypeVar("T")
log = logging.getLogger(__name__)
OPENAI = "https://api.openai.com/v1"
KEY, OPENAI_KEY, OPENAI_URL = "V2EDIT_LVLM_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"
RETRIES = 3  # after a temporary failure: 408, 409, 429, 5xx, no connection, a lost one
TIMEOUT_RETRIES = 1  # some servers go on computing what nobody waits for any more
FIRST_PAUSE, LAST_PAUSE = 0.5, 8.0  # seconds before a retry, doubled each time
PROGRESS_PERIOD = 15.0  # seconds between two reports of a long answer
LOGGERS = ("httpx", "httpx2", "openai._base_client")  # which log addresses


class EndpointChat:
    """A model at an address. The key comes from the environment alone and is never printed, logged or saved.

    V2EDIT_LVLM_KEY is sent to any address. OPENAI_API_KEY is sent to OpenAI alone, or to OPENAI_BASE_URL where that is
    set, so that no other service sees it. Servers that need no key are asked without one.
    Temporary failures are retried up to three times, after the pause that the server asks for (two minutes at most)
    or else after one that grows from half a second; a time-out is retried once. Answers are streamed, so that proxies
    keep the connection open and `timeout` is the longest silence."""

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
        self._fields, self._has_seen = OptionalFields(), False
        from openai import OpenAI

        try:
            self._client = OpenAI(
                api_key=key or "none",
                base_url=urlunsplit(address._replace(query="", fragment="")),
                default_query=dict(query),
                timeout=timeout,
                max_retries=0,  # it would retry time-outs as often as the rest
            )
        except (ImportError, ValueError) as error:  # a proxy that the client cannot use
            reason = to_single_line(self._redact(str(error)))
            raise UserError(f"cannot connect to {self.url}: {reason}; check the proxies in the environment") from None
        for name in LOGGERS:
            logging.getLogger(name).addFilter(self._redact_log)

    def ask(self, messages: Sequence[Message], schema: dict[str, Any]) -> Answer:
        completion = self._retrying(lambda: self._request(messages, self._fields.build(schema)))
        self._fields.have_worked = True
        if completion.finish == "content_filter":
            raise UserError(f"a content filter of {self.name} stopped its answer; ask another model, or other frames")
        self._check_sight(messages, completion.prompt_tokens)
        text, is_cut, limit = self._redact(completion.text), completion.finish == "length", self._fields.max_tokens
        length = len(text) if completion.completion_tokens is None else completion.completion_tokens
        return Answer(text, is_cut, is_cut and (limit is None or length < limit))

    def identify(self) -> str:
        """Return the address and the model that the server lists for it: the one of this name, or its only one. Where
        no list says so, it is the model that answers a word."""
        reported = self._retrying(self._find_listed) or self._retrying(self._find_answering) or self.model
        return self._redact(f"{self.url} {reported}")

    def list_models(self) -> list[str]:
        """Return the names of the models that the server lists, none where it has no list. Raises `UserError` where it
        does not answer."""
        return [self._redact(str(one["id"])) for one in self._retrying(self._listed) if "id" in one]

    def close(self) -> None:
        self._client.close()
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(self._redact_log)

    def _retrying(self, send: Callable[[], T]) -> T:
        """Send a request until it is answered, without the fields that the server refuses, and again after a temporary
        failure. Raises `UserError`, without the cause, which may quote the request."""
        from httpx2 import TimeoutException, TransportError
        from openai import APIConnectionError, APIResponseValidationError, APIStatusError, APITimeoutError

        retries = timeouts = 0
        while True:
            pause = min(FIRST_PAUSE * 2**retries, LAST_PAUSE)
            try:
                return send()
            except (APIStatusError, ServerError) as error:
                refusal = error if isinstance(error, ServerError) else _read_refusal(error)
                if not refusal.is_about_pictures:
                    if self._fields.drop(refusal):
                        continue
                    if refusal.is_temporary and retries < RETRIES:
                        retries += 1
                        if refusal.status == 500 and retries == 2:  # it is no fault of the moment
                            self._fields.drop_all_formats()
                        time.sleep(pause if refusal.pause is None else refusal.pause)
                        continue
                reason = self._describe_refusal(refusal, retries)
            except (APITimeoutError, TimeoutException):
                timeouts += 1
                if timeouts <= TIMEOUT_RETRIES:
                    log.info("%s did not answer within %g s; asking once more", self.name, self.timeout)
                    continue
                reason = (
                    f"{self.name} did not answer within {self.timeout:g} s, {timeouts} times; is the model loaded? "
                    "Raise --lvlm-timeout"
                )
            except (APIConnectionError, TransportError) as error:
                if retries < RETRIES:
                    retries += 1
                    time.sleep(pause)
                    continue
                why = str(error.__cause__ or error)
                reason = (
                    f"cannot reach the language model at {self.url} ({why}); is it running? Its address is --lvlm-url"
                )
            except (APIResponseValidationError, ValueError):  # a proxy's page, half an answer
                reason = f"{self.url} does not answer as OpenAI's chat completions do; does the address end in /v1?"
            raise UserError(to_single_line(self._redact(reason))) from None

    def _request(self, messages: Sequence[Message], fields: dict[str, Any], with_pictures: bool = True) -> Completion:
        """Send one request and read its reply, streamed or whole."""
        request: Any = {
            "model": self.model,
            "messages": [_to_openai(message, with_pictures) for message in messages],
            **fields,
        }
        completion, report = Completion(), time.monotonic() + PROGRESS_PERIOD
        with self._client.chat.completions.with_streaming_response.create(**request) as response:
            for body in read_lines(response.iter_lines()):
                completion.add(body)
                if time.monotonic() > report:
                    log.info("%s is answering: %d characters so far", self.name, len(completion.text))
                    report += PROGRESS_PERIOD
        if not completion.is_begun:
            raise ValueError("no choices")
        return completion

    def _check_sight(self, messages: Sequence[Message], tokens: int | None) -> None:
        """Raise `UserError` where the server drops pictures without a word: the prompt then has as many tokens with
        them as without. Only a count that the text alone could have is worth that second request."""
        texts = " ".join(part for message in messages for part in message.parts if isinstance(part, str))
        has_pictures = any(isinstance(part, Picture) for message in messages for part in message.parts)
        if self._has_seen or not has_pictures or tokens is None or not len(texts.split()) <= tokens < len(texts) / 2:
            return
        blind = self._retrying(lambda: self._request(messages, self._fields.build(None, 1), with_pictures=False))
        if blind.prompt_tokens == tokens:
            raise UserError(
                f"{self.name} was shown no pictures: its server dropped them (the prompt has {tokens} tokens with and "
                "without); serve a model that sees pictures"
            )
        self._has_seen = True

    def _listed(self) -> list[dict[str, Any]]:
        from openai import APIStatusError

        try:
            listed: Any = self._client.get("/models", cast_to=object)
        except APIStatusError as error:
            if _read_refusal(error).is_temporary or error.status_code == 401:
                raise
            return []
        models = listed.get("data") if isinstance(listed, dict) else None
        return [one for one in models if isinstance(one, dict)] if isinstance(models, list) else []

    def _find_listed(self) -> str | None:
        models = self._listed()
        named = [one for one in models if one.get("id") == self.model] or (models if len(models) == 1 else [])
        known = {key: named[0].get(key) for key in ("id", "root", "meta")} if named else {}
        return json.dumps(known, sort_keys=True) if known else None

    def _find_answering(self) -> str | None:
        return self._request([Message("user", ("Hello",))], self._fields.build(None, 1)).model

    def _describe_refusal(self, error: ServerError, retries: int) -> str:
        status = error.status
        detail = f": {error.words[:300]}" if error.words else ""
        if error.is_about_pictures:
            return (
                f"{self.name} sees no pictures (status {status}){detail}; serve a model that does (llama.cpp's server "
                "needs --mmproj, too)"
            )
        if error.is_about_filter:
            return f"a content filter of {self.name} refuses the request (status {status}){detail}"
        if status == 200:
            return f"{self.url} answers with an error{detail}"
        if status == 401:
            problem = "refuses the key" if self._secrets[0] else "needs a key"
            hint = f" ({OPENAI_KEY} is sent to OpenAI alone)" if os.environ.get(OPENAI_KEY) else ""
            return f"{self.url} {problem} (status 401){detail}; set {KEY} in the environment{hint}"
        if status == 404:
            return f"{self.url} has no model {self.model!r} (status 404){detail}; does the address end in /v1?"
        if status == 429 or status >= 500:
            times = f", after {retries} retries" if retries else ""
            problem = "is busy, or its quota is used up" if status == 429 else "has an internal error"
            return f"{self.url} {problem} (status {status}{times}){detail}; try again later"
        return f"{self.url} refuses the request (status {status}){detail}"

    def _redact(self, text: str) -> str:
        return redact_secrets(text, self._secrets)

    def _redact_log(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._redact(record.getMessage()), ()
        return True


def _read_refusal(error: "APIStatusError") -> ServerError:
    """Return the status, words and pause of a response with an error's status."""
    try:
        body = error.response.json()
    except ValueError:
        body = error.response.text
    return ServerError(error.status_code, describe_error(body), read_pause(error.response.headers))


def _to_openai(message: Message, with_pictures: bool) -> dict[str, Any]:
    if all(isinstance(part, str) for part in message.parts):
        # Some servers accept a list of parts in user turns only.
        return {"role": message.role, "content": "\n".join(str(part) for part in message.parts)}
    parts = [
        {"type": "image_url", "image_url": {"url": part.data_url}}
        if isinstance(part, Picture)
        else {"type": "text", "text": part}
        for part in message.parts
        if with_pictures or isinstance(part, str)
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
