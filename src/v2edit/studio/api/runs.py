"""Runs: the library, files and downloads, notes and the trash."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import wait
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from v2edit.errors import UserError
from v2edit.runs.layout import EDITED_SPLAT
from v2edit.studio.api.common import Asked, answer, conflict, read_body, studio_of, wait_for
from v2edit.studio.core import Studio, Unknown
from v2edit.studio.library import Run, to_json
from v2edit.studio.media import FileAnswer, find_file, list_files
from v2edit.studio.reading import TRANSCODED, ZIP_KINDS, find_edited
from v2edit.studio.records import ACTIVE
from v2edit.studio.settings import GIB
from v2edit.studio.tools import READER, ToolsBusy
from v2edit.studio.views import find_preview, job_view, run_view

router = APIRouter()
MAX_LISTED = 500
ZIP_BYTES = 8 * GIB
DESCRIBE_SECONDS = 5.0  # that a run waits for what is read of its video
Sort = Literal["started", "finished", "title", "seconds"]


class NotePatch(Asked):
    title: str | None = Field(None, max_length=200)
    note: str | None = Field(None, max_length=20_000)
    starred: bool | None = None


def find_run(studio: Studio, name: str) -> Run:
    run = studio.library.get(name)
    if run is None:
        raise Unknown("there is no such run")
    return run


@router.get("/runs")
async def list_runs(
    request: Request,
    q: str = "",
    kind: str = "",
    state: str = "",
    model: str = "",
    starred: bool = False,
    parent: str = "",
    sort: str = "-started",
    limit: int = 60,
    offset: int = 0,
) -> Response:
    studio = studio_of(request)
    query = (q[:200].lower(), kind, state, model, starred, parent, sort)
    limit, offset = min(max(limit, 0), MAX_LISTED), max(offset, 0)
    body, etag = _listing(studio, studio.library.version, query, limit, offset)
    headers = {"etag": etag, "cache-control": "private, no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@lru_cache(maxsize=64)
def _listing(studio: Studio, version: int, query: tuple[Any, ...], limit: int, offset: int) -> tuple[bytes, str]:
    """Return a page of the list as JSON, and its tag; made once for each state of the library."""
    q, kind, state, model, starred, parent, sort = query
    words = q.split()
    found = []
    for run in studio.library.all():
        one = run.summary
        text = f"{one['name']} {one['title']} {one['note']} {one['prompts'] and one['prompts'].get('target')}".lower()
        if (
            (run.parent or "") == parent
            and (not kind or run.kind in kind.split(","))
            and (not state or run.state in state.split(","))
            and (not model or one["model"] == model)
            and (not starred or one["starred"])
            and all(word in text for word in words)
        ):
            found.append(one)
    key = sort.lstrip("-")
    if key in ("finished", "title", "seconds"):
        found.sort(key=lambda one: (one[key] is not None, one[key] or 0 if key == "seconds" else one[key] or ""))
        if sort.startswith("-"):
            found.reverse()
    elif not sort.startswith("-"):
        found.reverse()
    models = sorted({run.summary["model"] for run in studio.library.all() if run.summary["model"]})
    body = to_json({"runs": found[offset : offset + limit], "total": len(found), "models": models})
    return body, f'"{hashlib.sha256(body).hexdigest()[:24]}"'


@router.get("/runs/{name}")
async def get_run(request: Request, name: str) -> Response:
    studio = studio_of(request)
    run = find_run(studio, name)
    if run.state == "done" and run.summary["frames"] is None:
        with suppress(ToolsBusy):  # Then the thumbnail asks again.
            _, call = await asyncio.to_thread(studio.describe, name)
            if call is not None:  # What takes longer, an event brings.
                await asyncio.to_thread(wait, [call], DESCRIBE_SECONDS)
            run = find_run(studio, name)
    return answer(await asyncio.to_thread(run_view, run))


@router.patch("/runs/{name}")
async def patch_run(request: Request, name: str) -> Response:
    studio, asked = studio_of(request), await read_body(request, NotePatch)
    find_run(studio, name)
    changes = asked.model_dump(exclude_unset=True)
    await asyncio.to_thread(studio.notes.change, name, **changes)
    studio.library.refresh(name)
    return answer(find_run(studio, name).summary)


@router.delete("/runs/{name}")
async def delete_run(request: Request, name: str) -> Response:
    studio = studio_of(request)
    run = find_run(studio, name)
    if any(one.run == name and one.state in (*ACTIVE, "queued") for one in studio.queue.all()):
        raise conflict(UserError("a job is making this run: stop it first"))
    try:
        id = await asyncio.to_thread(studio.trash.throw, run.folder)
    except UserError as error:
        raise conflict(error) from error
    await asyncio.to_thread(studio.library.scan)
    return answer({"trash": id})


@router.post("/runs/{name}/resume")
async def resume_run(request: Request, name: str) -> Response:
    studio = studio_of(request)
    try:
        record = await asyncio.to_thread(studio.resume_run, name)
    except UserError as error:
        raise conflict(error) from error
    return answer(job_view(studio, record), 201)


@router.post("/runs/{name}/input")
async def take_input(request: Request, name: str) -> Response:
    """Return what a run was made of, as the input of a job."""
    return answer({"input": await asyncio.to_thread(studio_of(request).take_source, name)})


@router.get("/trash")
async def list_trash(request: Request) -> Response:
    return answer({"runs": await asyncio.to_thread(studio_of(request).trash.list)})


@router.post("/trash/{id}/restore")
async def restore_run(request: Request, id: str) -> Response:
    studio = studio_of(request)
    try:
        name = await asyncio.to_thread(studio.trash.restore, id, studio.settings.folder)
    except KeyError:
        raise Unknown("there is no such run in the trash") from None
    await asyncio.to_thread(studio.library.scan)
    return answer({"name": name})


@router.delete("/trash/{id}")
async def empty_trash(request: Request, id: str) -> Response:
    try:
        await asyncio.to_thread(studio_of(request).trash.remove, id)
    except KeyError:
        raise Unknown("there is no such run in the trash") from None
    return Response(status_code=204)


@router.api_route("/runs/{name}/files/{path:path}", methods=["GET", "HEAD"])
async def get_file(request: Request, name: str, path: str) -> Response:
    run = find_run(studio_of(request), name)
    found = await asyncio.to_thread(find_file, run.folder, path)
    if found is None:
        raise Unknown("the run has no such file")
    return FileAnswer(found, run.folder)


@router.api_route("/runs/{name}/thumb.jpg", methods=["GET", "HEAD"])
async def get_thumb(request: Request, name: str) -> Response:
    studio = studio_of(request)
    find_run(studio, name)
    thumb, call = await asyncio.to_thread(studio.describe, name)
    if call is not None:
        try:
            await wait_for(call)
        except UserError as error:
            raise Unknown(str(error)) from error
    return FileAnswer(thumb, thumb.parent)


@router.get("/runs/{name}/preview")
async def get_preview(request: Request, name: str) -> Response:
    studio = studio_of(request)
    if any(one.run == name for one in studio.queue.all()):  # maybe before the library knows of it
        folder = studio.settings.folder / name
    else:
        folder = find_run(studio, name).folder
    found = await asyncio.to_thread(find_preview, folder)
    if found is None:
        return Response(status_code=204)  # No mistake: the run may be done since its job was told of.
    return FileAnswer(found, folder)


@router.get("/runs/{name}/download")
async def download(request: Request, name: str, format: str = "mp4") -> Response:
    studio = studio_of(request)
    run = find_run(studio, name)
    if format == "ply":
        path = run.folder / EDITED_SPLAT
        if not path.is_file():
            raise Unknown("the run has no scene")
        return FileAnswer(path, run.folder, f"{run.folder.name}.ply")
    if format not in (*TRANSCODED, *ZIP_KINDS):
        raise UserError(f"format is {format[:20]!r}, expected {', '.join([*TRANSCODED, *ZIP_KINDS, 'ply'])}")
    if run.state != "done":
        raise conflict(UserError("the run is not done yet"))
    suffix = TRANSCODED.get(format, ".zip")
    saved_as = f"{run.folder.name}{'-frames' if format == 'png-zip' else ''}{suffix}"
    edited = await asyncio.to_thread(find_edited, run.folder)
    if edited is not None and edited.suffix == suffix:
        return FileAnswer(edited, run.folder, saved_as)
    place = studio.cache_of(name)
    path = place / f"{format}{suffix}"
    if not path.is_file():
        await asyncio.to_thread(partial(place.mkdir, parents=True, exist_ok=True))
        arguments: dict[str, Any] = {"folder": str(run.folder), "out": str(path)}
        if format == "run-zip":
            files = await asyncio.to_thread(list_files, run.folder)
            if sum(one["bytes"] for one in files) > ZIP_BYTES:
                raise UserError("the run is too large for an archive: take its files one by one")
            call = studio.tools.call(
                "zip_files", READER, studio.settings.tool_seconds, names=[one["name"] for one in files], **arguments
            )
        else:
            call = studio.tools.call("transcode", READER, studio.settings.tool_seconds, kind=format, **arguments)
        await wait_for(call)
    return FileAnswer(path, place, saved_as)
