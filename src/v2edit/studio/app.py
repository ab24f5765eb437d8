"""The web application of a studio: its routes, its page, and the guard before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from pydantic import Field
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from v2edit.studio.api import events, jobs, machine, reports, runs, studies, uploads
from v2edit.studio.api.common import Asked, answer, handle_errors, read_body
from v2edit.studio.core import Studio
from v2edit.studio.security import API, COOKIE, LOGIN, Guard, Refusal, same

PAGE = Path(__file__).with_name("page")


class Login(Asked):
    token: str = Field(max_length=500)


class Page(StaticFiles):
    """The files of the page, which browsers ask for anew when the program is another."""

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "no-cache"
        return response


def create_app(studio: Studio) -> Guard:
    """Return the application of a studio that has started, for a server."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.studio = studio
    handle_errors(app)
    for module in (machine, uploads, jobs, runs, reports, studies, events):
        app.include_router(module.router, prefix=API.rstrip("/"))
    app.include_router(studies.voters_router)
    app.include_router(reports.frame_router)

    @app.post(LOGIN)
    async def log_in(request: Request) -> Response:
        asked = await read_body(request, Login)
        token = studio.settings.token
        if token is not None and not same(asked.token, token):
            raise Refusal(401, "this is not the studio's token")
        response = answer({})
        if token is not None:
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict", max_age=90 * 86400)
        return response

    @app.api_route(LOGIN, methods=["GET", "HEAD"])
    async def show_login(request: Request) -> Response:
        return await page.get_response("login.html", request.scope)

    page = Page(directory=PAGE, html=True, check_dir=False)
    app.mount("/", page)
    return Guard(app, studio.settings)
