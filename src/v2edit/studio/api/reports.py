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
FOLDER = (
    b"<!doctype html><meta charset=utf-8><title>A folder</title><body style='font: 16px sans-serif; margin: 2em'>"
    b"<p>This folder is a run of its own: it is in the gallery.</p><button onclick='history.back()'>Back</button>"
)


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
    if any(part.startswith(".") for part in parts):
        raise Unknown("the report has no such file")
    # The frame's origin is none, from which this one's files are another's.
    headers = {"cross-origin-resource-policy": "cross-origin", "x-frame-options": "SAMEORIGIN"}
    if path.endswith("/") and all(parts[:-1]):  # a page's link to what is beside it
        if not await asyncio.to_thread(_has_folder, run.folder, path):
            raise Unknown("the report has no such folder")
        return Response(FOLDER, headers=headers | _page_headers(request, studio, run))
    if not all(parts) or Path(path).suffix.lower() not in SHOWN:
        raise Unknown("the report has no such file")
    if Path(path).suffix in PAGES:
        if len(parts) > 1:
            raise Unknown("the report has no such page")
        headers |= _page_headers(request, studio, run)
    return FileAnswer(run.folder.joinpath(*parts), run.folder, headers=headers)


def _has_folder(base: Path, name: str) -> bool:
    """Whether a folder has another of that name, by no link."""
    return (base / name).is_dir() and (base / name).resolve() == base.resolve() / name


def _page_headers(request: Request, studio: Studio, run: Run) -> dict[str, str]:
    """Return the policy of a page: it runs its own scripts, and reaches nothing but its own files."""
    host = request.headers["host"]
    own = "'self'" if host.startswith("[") else f"{host}{_base(studio, run)}"  # a policy names no IPv6 address
    return {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
        f"style-src 'unsafe-inline'; img-src {own} data:; media-src {own} data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'self'",
    }


def _base(studio: Studio, run: Run) -> str:
    return f"{REPORT}{quote(run.name)}/{_sign(studio, run)}/"


def _sign(studio: Studio, run: Run) -> str:
    """Return what nobody but this server can say of a run."""
    return hmac.new(studio.secret, run.name.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()[:32]
