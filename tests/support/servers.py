"""A real HTTP server on loopback that speaks the chat-completions protocol and plays a script."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any


@dataclass
class Reply:
    """An HTTP response. `hangs` never answers; `cuts` announces more bytes than it sends."""

    status: int = 200
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    hangs: bool = False
    cuts: bool = False


def completion(content: Any, finish: str = "stop", tokens: int | None = None, model: str = "m") -> Reply:
    """Build a chat completion with a text, or with the JSON of any other value; `tokens` is its reported length."""
    text = content if isinstance(content, str) or content is None else json.dumps(content)
    usage = {} if tokens is None else {"completion_tokens": tokens}
    return message({"role": "assistant", "content": text}, finish, usage, model)


def message(
    message: Mapping[str, Any], finish: str = "stop", usage: Mapping[str, int] | None = None, model: str = "m"
) -> Reply:
    """Build a chat completion with a message of any shape."""
    body = {"id": "1", "object": "chat.completion", "model": model, "usage": usage or {}}
    return Reply(body=json.dumps(body | {"choices": [{"index": 0, "finish_reason": finish, "message": message}]}))


def stream(*deltas: Mapping[str, Any], finish: str | None = "stop", usage: Mapping[str, int] | None = None) -> Reply:
    """Build a streamed chat completion of these pieces of a message, with the comments that keep a connection open."""
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    bodies: list[Any] = [{"model": "m", "choices": [one]} for one in (*choices, {"delta": {}, "finish_reason": finish})]
    bodies.append({"model": "m", "choices": [], "usage": usage or {}})
    events = [": PROCESSING", *(f"data: {json.dumps(body)}" for body in bodies), "data: [DONE]"]
    return Reply(body="\n\n".join(events) + "\n\n", headers={"Content-Type": "text/event-stream"})


def http_error(status: int, message: str = "no", **headers: str) -> Reply:
    return Reply(
        status, json.dumps({"error": {"message": message}}), {k.replace("_", "-"): v for k, v in headers.items()}
    )


RETRY_SOON = {"Retry_After": "0.01"}


@dataclass
class Request:
    """A request as it arrived."""

    path: str
    headers: Message  # whatever the case of a name
    text: str

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.text)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return self.body["messages"]

    @property
    def last_text(self) -> str:
        """Return the text of the last turn."""
        content = self.messages[-1]["content"]
        return content if isinstance(content, str) else "\n".join(part["text"] for part in content if "text" in part)


class Server:
    """Plays a script of replies in turn, the last one again and again if `endless`. A reply may be a function of the
    request. `requests` holds the questions that arrived, `models` what the server lists."""

    def __init__(self, *script: Reply | Callable[[Request], Reply], endless: bool = False) -> None:
        self.script, self.endless = list(script), endless
        self.models, self.requests = ["m"], list[Request]()
        self.over = Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.list_models(self)

            def do_POST(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def list_models(self, handler: BaseHTTPRequestHandler) -> None:
        data = json.dumps({"object": "list", "data": [{"id": name} for name in self.models]}).encode()
        handler.send_response(200 if self.models else 404)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        text = handler.rfile.read(int(handler.headers["Content-Length"])).decode()
        request = Request(handler.path, handler.headers, text)
        self.requests.append(request)
        number = len(self.requests) - 1
        if number < len(self.script) or self.endless:
            reply = self.script[min(number, len(self.script) - 1)]
            reply = reply(request) if callable(reply) else reply
        else:
            reply = http_error(418, "the script is over")
        if reply.hangs:
            self.over.wait(30)
            return
        data = reply.body.encode()
        handler.send_response(reply.status)
        if "Content-Type" not in reply.headers:
            handler.send_header("Content-Type", "text/html" if data.startswith(b"<") else "application/json")
        handler.send_header("Content-Length", str(len(data) + 10 * reply.cuts))
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)


@contextmanager
def serve(*script: Reply | Callable[[Request], Reply], endless: bool = False) -> Iterator[Server]:
    server = Server(*script, endless=endless)
    Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.http.shutdown()
        server.http.server_close()
