"""Language-model servers as they are: shapes of answers, refusals of fields, blindness, time-outs and streams, over
real HTTP on loopback."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from support.lvlm import FRAMES, GOOD, INSTRUCTION, PAIR, SOURCE, STYLE, TOKENIZER, refused, write
from support.servers import RETRY_SOON, Reply, Request, completion, http_error, message, serve, stream

from v2edit.prompts import PromptPair
from v2edit.prompts.endpoint import RETRIES
from v2edit.prompts.lvlm import LVLMConfig, generate_prompts, open_chat

JSON = json.dumps(GOOD)
PRETTY = json.dumps(GOOD, indent=2)
CUT = len(JSON) // 2


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


THINKING = {"type": "thinking", "thinking": [text_part('Is it {"source": "x", "target": "y"}?')]}
CALL = {"type": "function", "function": {"name": "answer", "arguments": JSON}}
MESSAGES: dict[str, Mapping[str, Any]] = {
    "reasoning alone": {"content": "", "reasoning_content": f"The boat is red. {JSON}"},
    "reasoning beside": {"content": JSON, "reasoning_content": 'Or {"source": "x", "target": "y"}?'},
    "reasoning by another name": {"content": None, "reasoning": JSON},
    "a part": {"content": [text_part(PRETTY)]},
    "parts of one text": {"content": [text_part(line) for line in PRETTY.splitlines(keepends=True)]},
    "parts that are texts": {"content": [JSON[:CUT], JSON[CUT:]]},
    "a thinking part": {"content": [THINKING, text_part(JSON)]},
    "a tool call": {"content": None, "tool_calls": [CALL]},
    "a tool call beside words": {"content": "I call the tool.", "tool_calls": [CALL]},
    "a tool call with an object": {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": GOOD}}]},
    "a function call": {"content": None, "function_call": CALL["function"]},
    "an object in an object": {"content": json.dumps({"answer": GOOD})},
    "a call in words": {"content": json.dumps({"name": "answer", "arguments": GOOD})},
    "a call whose arguments are a text": {"content": json.dumps({"name": "answer", "arguments": JSON})},
    "a list": {"content": json.dumps([GOOD])},
    "a JSON string": {"content": json.dumps(JSON)},
    "a JSON string in a fence": {"content": f"```json\n{json.dumps(PRETTY)}\n```"},
    "a JSON string in a JSON string": {"content": json.dumps(json.dumps(JSON))},
    "other capitals": {"content": json.dumps({"Source": GOOD["source"], "TARGET": GOOD["target"]})},
    "other capitals in an object": {"content": json.dumps({"Answer": {"SOURCE ": SOURCE, " Target": GOOD["target"]}})},
    "quotes around": {"content": f'Here is the "source" and 5" more: {JSON}'},
}


@pytest.mark.parametrize("given", MESSAGES.values(), ids=MESSAGES)
def test_an_answer_in_any_shape(given: Mapping[str, Any]) -> None:
    with serve(message({"role": "assistant", **given})) as server:
        assert write(server.url) == PAIR


PIECES = [JSON[k : k + 7] for k in range(0, len(JSON), 7)]
DELTAS: dict[str, list[dict[str, Any]]] = {
    "content": [{"role": "assistant", "content": ""}, *({"content": piece} for piece in PIECES)],
    "parts": [{"content": [THINKING]}, *({"content": [text_part(piece)]} for piece in PIECES)],
    "reasoning": [{"content": None, "reasoning_content": piece} for piece in PIECES],
    "a tool call": [
        {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "answer", "arguments": ""}}]},
        *({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in PIECES),
    ],
}


@pytest.mark.parametrize("deltas", DELTAS.values(), ids=DELTAS)
def test_an_answer_in_pieces(deltas: list[dict[str, Any]]) -> None:
    with serve(stream(*deltas)) as server:
        assert write(server.url) == PAIR
    assert server.requests[0].body["stream"] is True


def test_half_a_stream_is_asked_for_again() -> None:
    whole = stream(*DELTAS["content"])
    with serve(replace(whole, body=whole.body[: len(whole.body) // 2], cuts=True), whole) as server:
        assert write(server.url) == PAIR
    assert len(server.requests) == 2


def test_the_second_ask_repeats_the_keys() -> None:
    """Where a server ignores the schema, the model may answer with a bare prompt."""
    with serve(completion(SOURCE), completion(GOOD)) as server:
        assert write(server.url) == PAIR
    assert '{"source": "…", "target": "…"}' in server.requests[1].last_text
    chain = {**GOOD, "intermediate": [SOURCE.replace("red", "white")]}
    with serve(completion(SOURCE), completion(chain)) as server:
        write(server.url, progression=True)
    assert '"intermediate": ["…", …]}' in server.requests[1].last_text


# --- errors ---------------------------------------------------------------------------------------

BEGUN, BROKEN = ({"choices": [{"delta": {"content": "{"}}]}, {"error": {"message": "CUDA broke"}})
ERRORS: dict[str, tuple[Reply, str]] = {
    "200 with an error": (Reply(body='{"error": {"message": "out of credits", "code": 402}}'), "out of credits"),
    "200 with a text": (Reply(body='{"error": "no model is loaded"}'), "no model is loaded"),
    "200 with an error in the choice": (
        Reply(body='{"choices": [{"error": {"message": "upstream is down", "code": 400}, "message": {}}]}'),
        "upstream is down",
    ),
    "an error in a stream": (
        Reply(body=f"data: {json.dumps(BEGUN)}\n\ndata: {json.dumps(BROKEN)}\n\n"),
        "CUDA broke",
    ),
    "a detail": (Reply(403, '{"detail": "not on this network"}'), "not on this network"),
    "a list of details": (
        Reply(422, '{"detail": [{"type": "x", "loc": ["body", "seed"], "msg": "Field required", "input": {}}]}'),
        "Field required (body.seed)",
    ),
    "two details": (Reply(403, '{"detail": [{"msg": "no cats"}, {"msg": "no dogs"}]}'), "no cats; no dogs"),
    "a page": (Reply(403, "<html><body>secret page</body></html>"), "status 403"),
    "too many pictures": (http_error(400, "at most 4 images"), "at most 4 images"),
    "a long prompt": (http_error(400, "the prompt has 9000 tokens, the context 4096"), "9000 tokens"),
    "a filter": (http_error(400, "The response was filtered by our content management policy."), "content filter"),
    "a filtered answer": (completion("", "content_filter"), "content filter"),
}  # fmt: skip


@pytest.mark.parametrize(("reply", "words"), ERRORS.values(), ids=ERRORS)
def test_the_servers_words_are_shown_and_it_is_asked_once(reply: Reply, words: str) -> None:
    with serve(reply, endless=True) as server:
        error = refused(server.url)
    assert words in error and "page" not in error and len(server.requests) == 1


def test_a_busy_server_may_say_so_in_a_body() -> None:
    busy = Reply(body='{"error": {"message": "rate limited", "code": 429}}')
    with serve(busy, completion(GOOD)) as server:
        assert write(server.url) == PAIR


def refuses(field: str, reply: Reply) -> Callable[[Request], Reply]:
    """Return a server that answers, unless a request has a field."""
    return lambda request: reply if field in request.body else completion(GOOD)


FIELDS: dict[str, tuple[str, Reply]] = {
    "500": ("response_format", http_error(500, "Internal Server Error", **RETRY_SOON)),
    "500 with a reason": ("response_format", http_error(500, "failed to parse grammar")),
    "404": ("response_format", Reply(404, '{"detail": "Not Found"}')),
    "404 of a router": ("response_format", http_error(404, "No endpoints found that handle the requested parameters.")),
    "400 without a reason": ("response_format", Reply(400, "")),
    "422 of FastAPI": (
        "response_format",
        Reply(422, '{"detail": [{"loc": ["body", "response_format"], "msg": "Extra inputs are not permitted"}]}'),
    ),
    "a limit by another name": (
        "max_tokens",
        http_error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
    ),
    "a limit above the context": (
        "max_tokens",
        http_error(400, "You passed 900 input tokens and requested 4096 output tokens; the context has 4096."),
    ),
    "figures of a stream": ("stream_options", Reply(422, '{"detail": "Unsupported fields: {\'stream_options\'}"}')),
    "streams": ("stream", http_error(400, "Streaming is not supported.")),
}


@pytest.mark.parametrize(("field", "reply"), FIELDS.values(), ids=FIELDS)
def test_a_field_that_a_server_refuses_is_left_out(field: str, reply: Reply) -> None:
    config = LVLMConfig(model="m", url="http://x")
    with serve(refuses(field, reply), endless=True) as server:
        config = replace(config, url=server.url)
        with open_chat(config) as chat:
            assert generate_prompts(chat, FRAMES, INSTRUCTION, STYLE, TOKENIZER, config) == PAIR
            asked = len(server.requests)
            assert asked <= 3 and field in server.requests[0].body
            generate_prompts(chat, FRAMES, INSTRUCTION, STYLE, TOKENIZER, config)
        assert len(server.requests) == asked + 1  # it is remembered
    if field != "response_format":  # the others stay
        assert server.requests[-1].body["response_format"]["type"] == "json_schema"


def test_a_fault_of_the_moment_costs_no_field() -> None:
    with serve(http_error(500, **RETRY_SOON), completion(GOOD)) as server:
        write(server.url)
    assert "response_format" in server.requests[1].body


def test_the_length_of_an_answer_is_limited_by_both() -> None:
    with serve(completion(GOOD)) as server:
        write(server.url)
    limit = server.requests[0].body["max_tokens"]
    for tokens, ours in ((limit, True), (16, False)):
        with serve(completion("A boat", "length", tokens=tokens), endless=True) as server:
            error = refused(server.url)
        assert ("be shorter" in error) is ours and ("the server's own limit" in error) is not ours


def test_a_lost_connection_is_tried_again_and_a_time_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("v2edit.prompts.endpoint.FIRST_PAUSE", 0.01)
    lost = replace(completion(GOOD), body="", cuts=True)
    with serve(lost, lost, lost, completion(GOOD)) as server:
        assert write(server.url) == PAIR and len(server.requests) == RETRIES + 1
    with serve(Reply(hangs=True), completion(GOOD)) as server:
        assert write(server.url, timeout=0.2) == PAIR
    with serve(lost, endless=True) as server:
        assert "cannot reach" in refused(server.url) and len(server.requests) == RETRIES + 1


def test_the_model_that_is_asked_is_named(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an answer comes, its length is told, too."""
    monkeypatch.setattr("v2edit.prompts.endpoint.PROGRESS_PERIOD", 0.0)
    caplog.set_level(logging.INFO, "v2edit")
    with serve(stream(*DELTAS["content"])) as server:
        write(server.url)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("v2edit")]
    assert lines[0] == "asking m" and "is answering" in lines[1] and len(set(lines)) > 2


# --- models that see nothing ----------------------------------------------------------------------

BLIND = [
    (500, "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"),
    (400, "this model does not support image input"),
    (400, "Invalid content type. image_url is only supported by certain models."),
    (404, "No endpoints found that support image input"),
    (400, "Qwen/Qwen3-8B is not a multimodal model"),
    (400, "At most 0 image(s) may be provided in one prompt."),
    (422, "messages[5]: unknown variant `image_url`, expected `text`"),
]


@pytest.mark.parametrize(("status", "words"), BLIND)
def test_a_model_that_sees_no_pictures_is_told_in_one_line(status: int, words: str) -> None:
    with serve(http_error(status, words), endless=True) as server:
        error = refused(server.url)
    assert "sees no pictures" in error and words in error and len(server.requests) == 1
    assert "try again later" not in error


def counts(tokens_of_a_picture: int) -> Callable[[Request], Reply]:
    """Return a server that counts the words of a prompt, and so many tokens for each of its pictures."""

    def answer(request: Request) -> Reply:
        contents = [one["content"] for one in request.messages]
        parts = [part for one in contents for part in ([text_part(one)] if isinstance(one, str) else one)]
        words = sum(len(part["text"].split()) * 5 // 4 + 4 for part in parts if "text" in part)
        pictures = sum("image_url" in part for part in parts)
        usage = {"prompt_tokens": words + tokens_of_a_picture * pictures, "completion_tokens": 100}
        return message({"role": "assistant", "content": JSON}, usage=usage)

    return answer


def test_pictures_that_a_server_drops_are_noticed() -> None:
    """By the number of tokens, which is the same without pictures."""
    with serve(counts(0), endless=True) as server:
        error = refused(server.url)
    assert "was shown no pictures" in error and len(server.requests) == 2
    assert "image_url" not in server.requests[1].text and server.requests[1].body["max_tokens"] == 1


@pytest.mark.parametrize("tokens", [4, 64, 2000])
def test_pictures_that_a_server_counts_are_seen(tokens: int) -> None:
    with serve(counts(tokens), endless=True) as server:
        assert write(server.url) == PAIR
        assert len(server.requests) == (1 if tokens == 2000 else 2)


@pytest.mark.parametrize("tokens", [0, 1, 10])
def test_a_count_that_cannot_be_is_no_proof(tokens: int) -> None:
    with serve(message({"content": JSON}, usage={"prompt_tokens": tokens}), endless=True) as server:
        assert write(server.url) == PAIR


# --- a known source prompt ------------------------------------------------------------------------


def test_a_known_source_prompt_is_the_source() -> None:
    config = LVLMConfig(model="m")
    known = SOURCE.replace("A small red boat", "One small red boat")
    target = known.replace("red", "blue")
    for answer in ({"source": SOURCE, "target": target}, {"target": target}):  # whatever the model made of it
        with serve(completion({"source": SOURCE, "target": known}), completion(answer)) as server:
            config = LVLMConfig(model="m", url=server.url)
            with open_chat(config) as chat:
                prompts = generate_prompts(chat, FRAMES, INSTRUCTION, STYLE, TOKENIZER, config, source=known)
        assert prompts == PromptPair(known, target)
        first, second = server.requests
        assert known in first.last_text and "are the same" in second.last_text
