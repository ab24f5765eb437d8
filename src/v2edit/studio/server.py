"""The HTTP server: uvicorn's, which ends connections that send or take nothing for long."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from v2edit.studio.settings import Settings

EVENTS_PATH = "/events"
MAX_CONNECTIONS = 512
DOWNLOAD_PATIENCE = 600.0  # seconds: players of videos stop reading while they are paused


class PatientProtocol(H11Protocol):
    """HTTP/1.1 with bounds on silence: `patience` seconds for the head of a request, and for a client of events to take
    what waits for it, else `DOWNLOAD_PATIENCE`."""

    patience = 30.0
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if (raw := transport.get_extra_info("socket")) is not None:
            # Else the body waits until the client has acknowledged the head, 40 ms; asyncio does so only for sockets
            # that name their protocol.
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel("_head_timer")
        elif self._head_timer is None:
            self._await_head()

    def on_response_complete(self) -> None:
        self._cancel("_head_timer")
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        streams = self.scope is not None and self.scope["path"].endswith(EVENTS_PATH)
        patience = self.patience if streams else max(self.patience, DOWNLOAD_PATIENCE)
        self._write_timer = self.loop.call_later(patience, self.transport.abort)

    def resume_writing(self) -> None:
        self._cancel("_write_timer")
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel("_head_timer")
        self._cancel("_write_timer")
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.patience, self.transport.abort)

    def _cancel(self, name: str) -> None:
        if (timer := getattr(self, name)) is not None:
            timer.cancel()
            setattr(self, name, None)


class Server(uvicorn.Server):
    """A server that calls `on_shutdown` as soon as it is to end, before it waits for its connections."""

    on_shutdown: Callable[[], None] | None = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.on_shutdown is not None:
            self.on_shutdown()
        await super().shutdown(sockets)


def make_server(app: Any, settings: Settings) -> Server:
    """Return a server of an app, not started; it logs no requests, whose paths are nobody's business."""
    protocol = type("Protocol", (PatientProtocol,), {"patience": settings.read_timeout})
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, http=protocol, ws="none", loop="asyncio", log_config=None,
        access_log=False, server_header=False, proxy_headers=False, limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=30, timeout_graceful_shutdown=3, lifespan="off",
    )  # fmt: skip
    return Server(config)
