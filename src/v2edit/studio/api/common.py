"""What the routes share: the studio of a request, bodies, answers, and the status of each error."""

from __future__ import annotations

import asyncio
import errno
from concurrent.futures import Future
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from v2edit.errors import UserError
from v2edit.files import parse_json
from v2edit.studio.core import Studio, Unknown
from v2edit.studio.library import to_json
from v2edit.studio.messages import for_browser
from v2edit.studio.queue import QueueFull, UnknownJob
from v2edit.studio.security import Refusal
from v2edit.studio.tools import ToolsBusy
from v2edit.studio.uploads import DiskFull, TooLarge

Model = TypeVar("Model", bound=BaseModel)


class Asked(BaseModel):
    """The body of a request, with no more than what it names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def studio_of(request: Request) -> Studio:
    return request.app.state.studio


async def read_body(request: Request, model: type[Model]) -> Model:
    """Read the body of a request. Raises `Refusal` where it is no JSON, or not what is expected."""
    raw = await request.body()
    try:
        return model.model_validate(parse_json(raw.decode()) if raw else {})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Refusal(422, f"{place}: {first['msg']}"[:300] if place else first["msg"]) from error
    except ValueError as error:
        raise Refusal(400, f"the body is no JSON: {str(error)[:200]}") from error


def answer(value: Any, status: int = 200, **headers: str) -> Response:
    """Return a value as JSON."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Response(to_json(value), status, named, "application/json")


async def wait_for(call: Future[dict[str, Any]]) -> dict[str, Any]:
    """Wait for what the tools do."""
    return await asyncio.wrap_future(call)


def conflict(error: UserError) -> Refusal:
    """Return the refusal of what does not go with the state that something is in."""
    return Refusal(409, for_browser(str(error)))


STATUS: dict[type[Exception], int] = {
    UserError: 422, Unknown: 404, UnknownJob: 404, QueueFull: 429, ToolsBusy: 429, TooLarge: 413, DiskFull: 507,
}  # fmt: skip


def handle_errors(app: FastAPI) -> None:
    """Answer each error with its status and one line."""

    async def on_known(request: Request, error: Exception) -> Response:
        status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
        text = "there is no such job" if isinstance(error, UnknownJob) else for_browser(" ".join(str(error).split()))
        return answer({"error": text}, status)

    async def on_refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return answer({"error": error.text}, error.status, connection="close")

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        texts = {404: "there is no such page", 405: "this method is not allowed here"}
        return answer({"error": texts.get(error.status_code, str(error.detail))}, error.status_code)

    async def on_query(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return answer({"error": f"{first['loc'][-1]}: {first['msg']}"[:300]}, 422)

    async def on_disk(request: Request, error: Exception) -> Response:
        assert isinstance(error, OSError)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return answer({"error": f"the disk: {error.strerror}"}, 507 if full else 500)

    async def on_any(request: Request, error: Exception) -> Response:
        return answer({"error": "the studio has made a mistake; its log says which"}, 500)

    for kind in STATUS:
        app.add_exception_handler(kind, on_known)
    app.add_exception_handler(Refusal, on_refusal)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_query)
    app.add_exception_handler(OSError, on_disk)
    app.add_exception_handler(Exception, on_any)
