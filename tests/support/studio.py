"""A studio on a real port with real worker processes, and a client that may send anything."""

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.processes import SERVER, ForkingPool, PreloadedPool
from v2edit.primitives.sample import write_sample
from v2edit.studio.settings import Settings
from v2edit.workers import ProcessPool

API = "/api/v1"
PATIENCE = 300.0  # seconds that a test waits for what must come; a busy machine is no fault


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        text = self.json["error"]
        assert text and "\n" not in text
        return text


@dataclass
class Client:
    """A client of the studio at a port. `headers` go with every request."""

    port: int
    folder: Path
    headers: dict[str, str] = field(default_factory=dict)
    studio: Any = None  # in this process, where it is

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send a request; a body that is no bytes goes as JSON. Header names have _ for -."""
        own = dict(self.headers) | {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            own.setdefault("content-type", "application/json")
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            connection.request(method, path, body, own)
            reply = connection.getresponse()
            return Answer(reply.status, {key.lower(): text for key, text in reply.getheaders()}, reply.read())

    def api(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        return self.ask(method, API + path, body, **headers)

    def get(self, path: str) -> Any:
        answer = self.api("GET", path)
        assert answer.status == 200, answer
        return answer.json

    def upload(self, *files: Path, kind: str = "file", name: str = "") -> dict[str, Any]:
        """Upload files and wait until they are read."""
        facts = {"name": name or files[0].name, "bytes": sum(one.stat().st_size for one in files), "files": len(files)}
        id = self.api("POST", "/uploads", facts | {"kind": kind}).json["id"]
        for file in files:
            answer = self.api("PUT", f"/uploads/{id}/{file.name}", file.read_bytes())
            assert answer.status == 200, answer
        assert self.api("POST", f"/uploads/{id}/finish").status == 202
        return self.wait(f"/uploads/{id}", lambda one: one["state"] in ("ready", "failed"))

    def submit(self, upload: str, instruction: str | None, **options: Any) -> str:
        body = {"input": {"upload": upload}, "instruction": instruction, "options": options}
        answer = self.api("POST", "/jobs", body)
        assert answer.status == 201, answer
        return answer.json["id"]

    def wait(self, path: str, until: Callable[[Any], bool]) -> Any:
        """Ask again and again until what is answered is as wanted."""
        deadline = time.monotonic() + PATIENCE
        while not until(thing := self.get(path)):
            assert time.monotonic() < deadline, thing
            time.sleep(0.02)
        return thing

    def ended(self, job: str, state: str = "done") -> Any:
        found = self.wait(f"/jobs/{job}", lambda one: one["state"] in ("done", "failed", "stopped"))
        assert found["state"] == state, found
        return found

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def listen(self, last: str = "") -> "Listener":
        return Listener(self, last)


class Listener:
    """A client of the events, which it collects."""

    def __init__(self, client: Client, last: str = "") -> None:
        self.socket = client.connect()
        head = f"GET {API}/events HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n"
        more = "".join(f"{name}: {value}\r\n" for name, value in client.headers.items())
        self.socket.sendall(f"{head}{more}Last-Event-ID: {last}\r\n\r\n".encode())
        self._file = self.socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        while self._file.readline().strip():
            pass
        self.events: list[tuple[str, str, Any]] = []  # id, name and data

    def next(self) -> tuple[str, str, Any]:
        """Return the next event, with its id."""
        facts: dict[str, str] = {}
        deadline = time.monotonic() + PATIENCE
        while True:
            assert time.monotonic() < deadline, self.events[-3:]
            line = self._file.readline().decode()
            assert line, "the events have ended"
            if facts.get("data") and not line.strip():
                event = facts["id"], facts["event"], json.loads(facts["data"])
                self.events.append(event)
                return event
            if ": " in line and not line.startswith(":"):
                name, _, value = line.strip().partition(": ")
                facts[name] = value

    def until(self, wanted: Callable[[str, Any], bool]) -> Any:
        """Read on to an event as wanted, and return its data; one that has come already is as good."""
        for _, name, data in self.events:
            if wanted(name, data):
                return data
        deadline = time.monotonic() + PATIENCE
        while True:
            assert time.monotonic() < deadline, self.events[-3:]
            _, name, data = self.next()
            if wanted(name, data):
                return data

    def close(self) -> None:
        self._file.close()
        self.socket.close()


def settings_for(folder: Path, port: int, **changes: Any) -> Settings:
    defaults: dict[str, Any] = {"devices": ("cpu",), "jobs_per_minute": 10_000, "max_queued": 10_000}
    return Settings(folder=folder, port=port, **defaults | changes)


@contextmanager
def serving(folder: Path, pool: type[ProcessPool] = PreloadedPool, **changes: Any) -> Iterator[Client]:
    """Serve a studio in a thread of this process; its workers are processes."""
    from v2edit.studio.app import create_app
    from v2edit.studio.core import Studio
    from v2edit.studio.server import make_server

    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = settings_for(folder, listener.getsockname()[1], **changes)
        folder.mkdir(exist_ok=True)
        studio = Studio(settings, pool)
        studio.start()
        server = make_server(create_app(studio), settings)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            headers = {} if settings.token is None else {"authorization": f"Bearer {settings.token}"}
            yield Client(settings.port, folder, headers, studio)
        finally:
            server.should_exit = server.force_exit = True
            thread.join()
            studio.close()


@contextmanager
def server_process(folder: Path, **changes: Any) -> Iterator[tuple[Client, Any]]:
    """Serve a studio in a process of its own, which may be killed."""
    port = free_port()  # another each time: workers of a server that was killed may hold its port for a moment
    process = SERVER.Process(target=_serve, args=(folder, port, changes))
    process.start()
    client = Client(port, folder)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                client.connect().close()
                break
            except OSError:
                assert time.monotonic() < deadline and process.is_alive()
                time.sleep(0.02)
        yield client, process
    finally:
        process.kill()
        process.join()


def _serve(folder: Path, port: int, changes: dict[str, Any]) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with socket.create_server(("127.0.0.1", port)) as listener:
        from v2edit.studio.app import create_app
        from v2edit.studio.core import Studio
        from v2edit.studio.server import make_server

        settings = settings_for(folder, port, **changes)
        studio = Studio(settings, ForkingPool)
        studio.start()
        make_server(create_app(studio), settings).run([listener])
        studio.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@dataclass(frozen=True)
class Sample:
    """A clip of the built-in world, an instruction, and options that make an edit of it short."""

    clip: Path
    instruction: str
    source_prompt: str
    options: dict[str, Any]


def make_sample(folder: Path, model: Path) -> Sample:
    write_sample(7, folder, "recolour", frames=5, size=32)
    facts = json.loads((folder / "clip.json").read_text())
    options = {"steps": 4, "guidance": 1.0, "seed": 5, "save_every": 1, "source_prompt": facts["source_prompt"]}
    options["model"] = str(model)
    return Sample(folder / "clip.mp4", facts["instruction"], facts["source_prompt"], options)
