"""Keys and passwords of a language model's server: each is sent to its own service alone, and none is printed."""

import base64
import logging

import pytest
from support.lvlm import GOOD, KEY, SOURCE, refused, write
from support.servers import Reply, Request, completion, http_error, serve

from v2edit.errors import UserError
from v2edit.prompts import PromptPair
from v2edit.prompts.endpoint import redact_url


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_LOG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("V2EDIT_LVLM_KEY", KEY)


def echoes(request: Request) -> Reply:
    return http_error(
        401, f"bad key {request.headers.get('Authorization')} in {dict(request.headers)} for {request.path}"
    )


def test_a_key_that_the_server_sends_back_is_redacted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serve(echoes) as server:
        assert "***" in refused(server.url)
    with serve(completion({"source": SOURCE, "target": f"{SOURCE} {KEY}"})) as server:
        assert write(server.url) == PromptPair(SOURCE, f"{SOURCE} ***")
    with serve(completion(f"I will not. {KEY}"), endless=True) as server:
        assert "***" in refused(server.url)
    assert len(caplog.records) > 3 and KEY not in caplog.text  # the client did log


SECRETS = ["hunter2secret", "query-secret-1"]


@pytest.mark.parametrize(
    "reply",
    [completion(GOOD), http_error(400, "no"), echoes, Reply(hangs=True)],
    ids=["answer", "refusal", "echo", "silence"],
)
def test_a_secret_in_the_address_is_sent_and_not_printed(reply, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    password, query = SECRETS
    with serve(reply, endless=True) as server:
        url = server.url.replace("://", f"://someone:{password}@") + f"?api-key={query}&api-version=2"
        try:
            write(url, timeout=0.2)
            message = ""
        except UserError as error:
            message = str(error)
        request = server.requests[0]
    assert request.path == f"/v1/chat/completions?api-key={query}&api-version=2"
    assert base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")).decode() == f"someone:{password}"
    for secret in (*SECRETS, KEY):
        assert secret not in message + caplog.text
    assert redact_url(url) == server.url


@pytest.mark.parametrize(
    ("keys", "url", "sent"),
    [
        ({"V2EDIT_LVLM_KEY": "mine-1234"}, True, "mine-1234"),
        ({"V2EDIT_LVLM_KEY": " mine-1234\n", "OPENAI_API_KEY": "theirs-1234"}, True, "mine-1234"),
        ({"OPENAI_API_KEY": "theirs-1234"}, True, "none"),  # is sent to OpenAI or OPENAI_BASE_URL alone
        ({"OPENAI_API_KEY": "theirs-1234", "OPENAI_BASE_URL": "HERE"}, False, "theirs-1234"),
        ({"OPENAI_API_KEY": "theirs-1234", "OPENAI_BASE_URL": "HERE"}, True, "theirs-1234"),
        ({}, True, "none"),  # local servers need none
    ],
)
def test_each_key_is_sent_to_its_own_service(keys, url, sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("V2EDIT_LVLM_KEY")
    with serve(completion(GOOD)) as server:
        for name, value in keys.items():
            monkeypatch.setenv(name, value.replace("HERE", server.url))
        write(server.url if url else None)
    assert server.requests[0].headers["Authorization"] == f"Bearer {sent}"


def test_a_key_that_is_invalid_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("V2EDIT_LVLM_KEY", "schlüssel-0123456789")
    assert "schl" not in refused("http://127.0.0.1:9/v1")
    monkeypatch.delenv("V2EDIT_LVLM_KEY")
    assert "OPENAI_API_KEY" in refused("https://api.openai.com/v1")  # before anything is sent


def test_a_proxy_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", f"socks9://me:{KEY}@127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", f"socks9://me:{KEY}@127.0.0.1:9")
    error = refused("http://127.0.0.1:9/v1")
    assert "proxies" in error


@pytest.mark.parametrize("url", ["localhost:11434/v1", "ftp://host/v1", "http://", "http://u:hunter2secret@host:x/v1"])
def test_invalid_addresses(url: str) -> None:
    error = refused(url)
    assert "http://localhost:11434/v1" in error and "hunter2" not in error
