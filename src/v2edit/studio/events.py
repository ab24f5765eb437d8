"""The events of a studio: a log that keeps the latest of each thing only, and its clients, as server-sent events.

An event is the whole state of what it is about, so that an older one of the same thing says nothing any more. That
bounds the log, and what waits for a client that reads slowly or not at all.

A client lists jobs, runs and uploads after `hello` has come, not before it connects: events between a list and the
connection are in neither."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

MOST_EVENTS = 2000  # that the log keeps, and a client's queue
PING_EVERY = 15.0  # seconds
GATHER = 0.05  # seconds in which events of one thing become one
Key = tuple[str, str]  # kind and id


@dataclass(frozen=True)
class Event:
    """An event: its number, its name and its data as JSON."""

    number: int
    name: str
    data: bytes


class EventLog:
    """The latest event of each thing. `publish` may be called from any thread."""

    def __init__(self, most: int = MOST_EVENTS) -> None:
        self.epoch, self.most = secrets.token_hex(4), most
        self._lock = threading.Lock()
        self._number = self._floor = 0  # of the latest event, and of the latest that the log has dropped
        self._latest: OrderedDict[Key, Event] = OrderedDict()
        self._clients: set[Client] = set()
        self.is_closed = False

    def publish(self, kind: str, id: str, data: Any) -> None:
        """Publish the state of a thing; an event "gone" says that there is none, with `data` of None."""
        name, facts = (kind, data) if data is not None else ("gone", {"kind": kind, "id": id})
        text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"), default=str).encode(errors="replace")
        with self._lock:
            self._number += 1
            event = Event(self._number, name, text)
            self._latest.pop((kind, id), None)
            self._latest[kind, id] = event
            while len(self._latest) > self.most:
                self._floor = self._latest.popitem(last=False)[1].number
            for client in self._clients:
                client.add((kind, id), event)

    def connect(self, last_id: str, wake: Callable[[], None]) -> Client:
        """Return a client that has the events after `last_id`, an id of this log, or begins anew: with `hello`, whose
        "reset" says that what it knew is to be read again. `wake` is called, from any thread, when there is more."""
        epoch, _, number = last_id.partition("-")
        with self._lock:
            known = epoch == self.epoch and number.isdecimal() and self._floor <= int(number) <= self._number
            begin = int(number) if known else self._number
            client = Client(self, wake, self.hello(begin, reset=not known))
            for key, event in self._latest.items():
                if event.number > begin:
                    client.add(key, event)
            self._clients.add(client)
        return client

    def close(self) -> None:
        """End the streams of all clients."""
        self.is_closed = True
        with self._lock:
            for client in self._clients:
                client.wake()

    def hello(self, number: int, reset: bool) -> Event:
        return Event(number, "hello", json.dumps({"epoch": self.epoch, "reset": reset}).encode())

    def disconnect(self, client: Client) -> None:
        with self._lock:
            self._clients.discard(client)

    def reset(self) -> Event:
        """Return the event for a client that has missed too much."""
        return self.hello(self._number, reset=True)

    @property
    def clients(self) -> int:
        """How many clients listen."""
        return len(self._clients)


class Client:
    """What waits for a client: the latest event of each thing."""

    def __init__(self, log: EventLog, wake: Callable[[], None], first: Event) -> None:
        self._log, self.wake = log, wake
        self._lock = threading.Lock()
        self._waiting: OrderedDict[Key, Event] = OrderedDict({("hello", ""): first})

    def add(self, key: Key, event: Event) -> None:
        with self._lock:
            self._waiting.pop(key, None)
            self._waiting[key] = event
            if len(self._waiting) > self._log.most:
                self._waiting = OrderedDict({("hello", ""): self._log.hello(event.number, reset=True)})
        self.wake()

    def take(self) -> list[Event]:
        """Return what waits, in order, and wait for nothing more of it."""
        with self._lock:
            waiting, self._waiting = self._waiting, OrderedDict()
        return list(waiting.values())

    @property
    def waiting(self) -> int:
        return len(self._waiting)


class EventStream(Response):
    """An ASGI response: the events of a log as they come, until the client goes or takes nothing for `patience`
    seconds."""

    def __init__(self, log: EventLog, last_id: str, patience: float) -> None:
        self.log, self.last_id, self.patience, self.background = log, last_id, patience, None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        loop, more = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # The loop has ended.
                loop.call_soon_threadsafe(more.set)

        async def write(body: bytes) -> None:
            message = {"type": "http.response.body", "body": body, "more_body": True}
            await asyncio.wait_for(send(message), self.patience)

        client = self.log.connect(self.last_id, wake)
        more.set()
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            while not gone.done() and not self.log.is_closed:
                waiter = asyncio.ensure_future(more.wait())
                await asyncio.wait({gone, waiter}, timeout=PING_EVERY, return_when=asyncio.FIRST_COMPLETED)
                waiter.cancel()
                if gone.done():
                    break
                if not more.is_set():
                    await write(b": ping\n\n")
                    continue
                await asyncio.sleep(GATHER)
                more.clear()
                await write(b"".join(map(self.format, client.take())))
            if not gone.done():  # The studio ends.
                await send({"type": "http.response.body", "body": b""})
        except (TimeoutError, asyncio.CancelledError):
            pass  # The server closes what has no end.
        finally:
            gone.cancel()
            self.log.disconnect(client)

    def format(self, event: Event) -> bytes:
        """Return an event in the form that browsers read."""
        return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (
            self.log.epoch.encode(), event.number, event.name.encode(), event.data,
        )  # fmt: skip


async def _wait_for_disconnect(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
