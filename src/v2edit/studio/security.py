"""Who may ask what: hosts, origins, tokens, kinds and sizes of requests, and the headers of every answer."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from typing import Any

from v2edit.studio.settings import Settings

API, STUDY, REPORT, LOGIN = "/api/v1/", "/study/", "/report/", "/login"
COOKIE = "v2edit_studio"
SAFE = ("GET", "HEAD")
UNSAFE = ("POST", "PUT", "PATCH", "DELETE")
DRAIN_BYTES, DRAIN_SECONDS = 16 * 2**20, 0.2
LEAST_RATE = 1024  # bytes a second of a body, on average
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self' blob: data:; worker-src 'self' blob:; frame-src 'self'; "
    "frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'"
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"x-frame-options": b"DENY",
    b"cache-control": b"no-store",
}


class Refusal(Exception):
    """A request that is refused: the status and one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Guard:
    """ASGI middleware that lets through what may be asked, and puts its headers on every answer."""

    def __init__(self, app: Any, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None
        started = False

        async def answer(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                given = {name.lower() for name, _ in message["headers"]}
                more = [(name, value) for name, value in HEADERS.items() if name not in given]
                message = message | {"headers": [*message["headers"], *more]}
            await send(message)

        try:
            self.check(scope)
            await self.app(scope, Body(scope, receive, self.limit(scope), self.settings.read_timeout), answer)
        except Refusal as refusal:
            if started:
                raise  # The server closes the connection.
            await drain(receive)
            await refuse(answer, refusal)

    def check(self, scope: Any) -> None:
        """Raise `Refusal` for what may not be asked."""
        method, path = scope["method"], scope["path"]
        headers = Headers(scope["headers"])
        host = headers.one("host").lower()
        if not self.settings.allows(host):
            raise Refusal(403, "this address is not the studio's: --allow-host allows more names")
        if "\0" in path or "\\" in path or any(part in (".", "..") for part in path.split("/")):
            raise Refusal(404, "there is no such page")
        if method not in SAFE:
            if method not in UNSAFE:
                raise Refusal(405, f"{method} is not allowed")
            self._check_same_origin(headers, host)
            self._check_type(method, path, headers)
        elif path.startswith(API) and not self._may_read(headers, host):
            raise Refusal(403, "another site asks this")
        if self.settings.token is not None and path.startswith(API) and not self._has_token(headers):
            raise Refusal(401, "the studio's token is needed: open the address that v2edit studio printed")

    def _is_own_origin(self, headers: Headers, host: str) -> bool:
        """Return whether a page of the studio asks, or no page: frames of reports have the origin `null`."""
        return headers.one("origin").lower() in ("", f"http://{host}", f"https://{host}")

    def _may_read(self, headers: Headers, host: str) -> bool:
        return headers.one("sec-fetch-site") != "cross-site" and self._is_own_origin(headers, host)

    def _check_same_origin(self, headers: Headers, host: str) -> None:
        if not self._is_own_origin(headers, host) or headers.one("sec-fetch-site") not in ("", "same-origin", "none"):
            raise Refusal(403, "another site asks this")

    def _check_type(self, method: str, path: str, headers: Headers) -> None:
        kind = headers.one("content-type").partition(";")[0].strip().lower()
        length = headers.one("content-length")
        has_body = "chunked" in headers.one("transfer-encoding").lower() or length not in ("", "0")
        if method == "PUT":
            if kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
                raise Refusal(415, "a file is sent as it is, not as a form")
        elif kind != "application/json" and (kind or has_body):
            raise Refusal(415, "the body must be application/json")
        if length and (not length.isdecimal() or len(length) > 18):
            raise Refusal(400, "Content-Length is no number")
        if length and int(length) > self.limit({"path": path, "method": method}):
            raise Refusal(413, "the body is too large")

    def _has_token(self, headers: Headers) -> bool:
        assert self.settings.token is not None
        given = headers.one("authorization")
        token = given[7:].strip() if given[:7].lower() == "bearer " else ""
        if not token:
            try:
                morsel = SimpleCookie(headers.one("cookie")).get(COOKIE)
            except CookieError:
                morsel = None
            token = morsel.value if morsel else ""
        return same(token, self.settings.token)

    def limit(self, scope: Any) -> int:
        """Return the most bytes of a request's body."""
        if scope["method"] == "PUT":
            return self.settings.max_upload_bytes
        if scope["path"].rstrip("/") == API + "masks":
            return self.settings.max_mask_bytes
        return self.settings.max_json_bytes


def same(given: str, token: str) -> bool:
    """Return whether a token is the right one, in a time that does not tell how much of it is."""
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())


class Headers:
    """The headers of a request."""

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self._pairs = pairs

    def one(self, name: str) -> str:
        """Return a header, "" where there is none. Raises `Refusal` where there are two."""
        found = [value for key, value in self._pairs if key == name.encode()]
        if len(found) > 1:
            if name == "cookie":
                return "; ".join(value.decode("latin-1") for value in found)
            raise Refusal(400, f"there are two {name} headers")
        return found[0].decode("latin-1") if found else ""


class Body:
    """The `receive` of a request whose body is bounded, and comes at a bounded pace."""

    def __init__(self, scope: Any, receive: Any, limit: int, timeout: float) -> None:
        self._receive, self._limit, self._timeout = receive, limit, timeout
        self._size, self._begin, self._is_whole = 0, time.monotonic(), False

    async def __call__(self) -> Any:
        if self._is_whole:
            return await self._receive()  # the disconnection
        try:
            message = await asyncio.wait_for(self._receive(), self._timeout)
        except TimeoutError:
            raise Refusal(408, "the request came too slowly") from None
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
            if self._size > self._limit:
                raise Refusal(413, "the body is too large")
            late = time.monotonic() - self._begin - 2 * self._timeout
            if not self._is_whole and late > self._size / LEAST_RATE:
                raise Refusal(408, "the request came too slowly")
        return message


async def drain(receive: Any) -> None:
    """Take a little of a body that is refused: a client that is cut off while it sends may not see the answer."""
    size, end = 0, time.monotonic() + 10 * DRAIN_SECONDS
    with suppress(TimeoutError):
        while size < DRAIN_BYTES and time.monotonic() < end:
            message = await asyncio.wait_for(receive(), DRAIN_SECONDS)
            if not message.get("more_body", False):
                return
            size += len(message.get("body", b""))


async def refuse(send: Any, refusal: Refusal) -> None:
    """Answer a request with an error and close its connection, whose body may not have been read."""
    body = json.dumps({"error": refusal.text}).encode()
    headers = [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close"),
    ]  # fmt: skip
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
