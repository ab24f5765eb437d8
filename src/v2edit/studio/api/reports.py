"""Pages of batches and of benchmarks, shown in a frame: they run their own scripts, and reach nothing but their own
files.

Such a page may be anybody's. It has an origin of its own (`sandbox` without `allow-same-origin`), so that the studio's
cookie never goes with what it asks, and its files are under an address that only this server can sign.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from v2edit.studio.api.common import answer, studio_of
from v2edit.studio.core import Studio, Unknown
from v2edit.studio.library import Run, quote
from v2edit.studio.media import TYPES, FileAnswer
from v2edit.studio.security import REPORT, same

router, frame_router = APIRouter(), APIRouter()  # under /api/v1, and of what the frame loads
PAGES = (".html",)
SHOWN = (*PAGES, *TYPES)


@router.get("/runs/{name}/report/{page}")
async def get_report(request: Request, name: str, page: str) -> Response:
    """Return the address of a page of a run, for a sandboxed frame."""
    studio = studio_of(request)
    run = studio.library.get(name)
    if run is None or Path(page).suffix not in PAGES or not await asyncio.to_thread((run.folder / page).is_file):
        raise Unknown("the run has no such page")
    return answer({"url": f"{_base(studio, run)}{quote(page)}"})


@frame_router.api_route(f"{REPORT}{{name}}/{{token}}/{{path:path}}", methods=["GET", "HEAD"])
async def get_file(request: Request, name: str, token: str, path: str) -> Response:
    """Return a page, or a picture or video beside it."""
    studio = studio_of(request)
    run, parts = studio.library.get(name), path.split("/")
    if run is None or not same(token, _sign(studio, run)):
        raise Unknown("there is no such page")
    # A hidden file is none of a report's, nor is one in a hidden folder; links are not followed.
    if any(not part or part.startswith(".") for part in parts) or Path(path).suffix.lower() not in SHOWN:
        raise Unknown("the report has no such file")
    if Path(path).suffix in PAGES and len(parts) > 1:
        raise Unknown("the report has no such page")
    # The frame's origin is none, from which this one's files are another's.
    headers = {"cross-origin-resource-policy": "cross-origin", "x-frame-options": "SAMEORIGIN"}
    if Path(path).suffix in PAGES:
        host = request.headers["host"]
        own = "'self'" if host.startswith("[") else f"{host}{_base(studio, run)}"  # a policy names no IPv6 address
        headers["content-type"] = "text/html; charset=utf-8"
        headers["content-security-policy"] = (
            "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
            f"img-src {own} data:; media-src {own} data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
        )
    return FileAnswer(run.folder.joinpath(*parts), run.folder, headers=headers)


def _base(studio: Studio, run: Run) -> str:
    return f"{REPORT}{quote(run.name)}/{_sign(studio, run)}/"


def _sign(studio: Studio, run: Run) -> str:
    """Return what nobody but this server can say of a run."""
    return hmac.new(studio.secret, run.name.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()[:32]
