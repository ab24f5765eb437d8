"""Events as they come."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from v2edit.studio.api.common import studio_of
from v2edit.studio.events import EventStream
from v2edit.studio.security import Refusal

router = APIRouter()


@router.get("/events")
async def get_events(request: Request) -> Response:
    studio = studio_of(request)
    if studio.events.clients >= studio.settings.max_streams:
        raise Refusal(429, "too many listen already")
    last = request.headers.get("last-event-id") or request.query_params.get("last") or ""
    return EventStream(studio.events, last[:100], studio.settings.read_timeout)
