"""Uploads and masks: files in, pictures of them out."""

from __future__ import annotations

import asyncio
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from v2edit.errors import UserError
from v2edit.files import atomic_write
from v2edit.studio.api.common import Asked, answer, conflict, read_body, studio_of, wait_for
from v2edit.studio.api.jobs import Input
from v2edit.studio.core import Studio, Unknown
from v2edit.studio.library import API, to_json
from v2edit.studio.masks import MASK, MAX_KEYFRAMES, PREVIEW
from v2edit.studio.media import FileAnswer
from v2edit.studio.records import make_id
from v2edit.studio.settings import ID
from v2edit.studio.tools import READER
from v2edit.studio.uploads import Receiver, Upload

router = APIRouter()
GATHER = 2**20  # bytes that are written at a time
MAX_FRAME = 10**7


class NewUpload(Asked):
    name: str = Field(min_length=1, max_length=1000)
    bytes: int = Field(ge=0, le=2**60)
    files: int = 1
    kind: Literal["file", "frames", "scene"] = "file"


class Keyframe(Asked):
    frame: int
    png: str


class NewMask(Asked):
    input: Input
    keyframes: list[Keyframe] = Field([], max_length=MAX_KEYFRAMES)
    box: tuple[float, float, float, float] | None = None
    carry: Literal["still", "follow"] = "still"
    grow: int | None = Field(None, ge=0, le=1000)


def find_upload(studio: Studio, id: str) -> Upload:
    try:
        return studio.uploads.get(id)
    except KeyError:
        raise Unknown("there is no such upload") from None


@router.get("/uploads")
async def list_uploads(request: Request) -> Response:
    return answer({"uploads": [one.view for one in studio_of(request).uploads.all()]})


@router.post("/uploads")
async def create_upload(request: Request) -> Response:
    studio, asked = studio_of(request), await read_body(request, NewUpload)
    make = partial(studio.uploads.create, asked.name, asked.bytes, asked.files, asked.kind)
    return answer((await asyncio.to_thread(make)).view, 201)


@router.put("/uploads/{id}/{filename}")
async def put_file(request: Request, id: str, filename: str) -> Response:
    studio = studio_of(request)
    find_upload(studio, id)
    length = request.headers.get("content-length")
    try:
        path, most = studio.uploads.expect(id, filename, None if length is None else int(length))
    except UserError as error:
        raise conflict(error) from error
    receiver = await asyncio.to_thread(Receiver, path, most)
    try:
        pieces = bytearray()
        async for piece in request.stream():
            pieces += piece
            if len(pieces) >= GATHER:
                await asyncio.to_thread(receiver.write, bytes(pieces))
                pieces.clear()
        await asyncio.to_thread(receiver.write, bytes(pieces))
        await asyncio.to_thread(receiver.commit)
    except ClientDisconnect:
        receiver.discard()
        studio.uploads.dropped(id, path)
        return Response(status_code=400)
    except BaseException:
        receiver.discard()
        studio.uploads.dropped(id, path)
        raise
    return answer(studio.uploads.received(id, path, receiver.size).view)


@router.post("/uploads/{id}/finish")
async def finish_upload(request: Request, id: str) -> Response:
    studio = studio_of(request)
    if find_upload(studio, id).state == "open":
        upload = await asyncio.to_thread(studio.uploads.finish, id)
        studio.publish_upload(upload)
        studio.probe(id)
    return answer(find_upload(studio, id).view, 202)


@router.get("/uploads/{id}")
async def get_upload(request: Request, id: str) -> Response:
    return answer(find_upload(studio_of(request), id).view)


@router.delete("/uploads/{id}")
async def remove_upload(request: Request, id: str) -> Response:
    studio = studio_of(request)
    find_upload(studio, id)
    if any(one.input.get("upload") == id and one.state != "done" for one in studio.queue.all()):
        raise conflict(UserError("a job of the queue needs this upload"))
    await asyncio.to_thread(studio.uploads.remove, id)
    studio.events.publish("upload", id, None)
    return Response(status_code=204)


def _picture(studio: Studio, id: str, name: str) -> FileAnswer:
    if find_upload(studio, id).state != "ready":
        raise Unknown("the upload is not ready")
    place = studio.uploads.place(id)
    return FileAnswer(place / name, place, immutable=True)


@router.api_route("/uploads/{id}/proxy.mp4", methods=["GET", "HEAD"])
async def get_proxy(request: Request, id: str) -> Response:
    return _picture(studio_of(request), id, "proxy.mp4")


@router.api_route("/uploads/{id}/thumb.jpg", methods=["GET", "HEAD"])
async def get_upload_thumb(request: Request, id: str) -> Response:
    return _picture(studio_of(request), id, "thumb.jpg")


@router.api_route("/uploads/{id}/splat.{kind}", methods=["GET", "HEAD"])
async def get_splat(request: Request, id: str, kind: str) -> Response:
    studio = studio_of(request)
    if find_upload(studio, id).splat_suffix != f".{kind}":
        raise Unknown("the upload has no such splat")
    return FileAnswer(studio.uploads.path(id), studio.uploads.place(id), immutable=True)


@router.get("/uploads/{id}/frames/{number}.jpg")
async def get_frame(request: Request, id: str, number: int) -> Response:
    studio = studio_of(request)
    upload = find_upload(studio, id)
    if upload.state != "ready" or not 0 <= number < min(MAX_FRAME, upload.facts.get("frames") or 0):
        raise Unknown("there is no such frame")
    place = studio.uploads.place(id)
    path = place / "frames" / f"{number}.jpg"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        arguments = {"path": str(studio.uploads.path(id)), "number": number, "out": str(path)}
        await wait_for(studio.tools.call("write_frame", READER, studio.settings.tool_seconds, **arguments))
    return FileAnswer(path, place, immutable=True)


@router.post("/masks")
async def create_mask(request: Request) -> Response:
    studio, asked = studio_of(request), await read_body(request, NewMask)
    if bool(asked.keyframes) == (asked.box is not None):
        raise UserError("a mask is keyframes or a box: give one of them")
    path, _ = await asyncio.to_thread(studio.find_input, asked.input.model_dump(exclude_none=True), "edit")
    id = make_id()
    place = studio.masks / id
    await asyncio.to_thread(place.mkdir)
    arguments: dict[str, Any] = {
        "path": str(path), "out": str(place), "keyframes": [one.model_dump() for one in asked.keyframes],
        "box": asked.box, "carry": asked.carry,
    }  # fmt: skip
    try:
        made = await wait_for(studio.tools.call("draw_mask", READER, studio.settings.tool_seconds, **arguments))
        await asyncio.to_thread(atomic_write, place / "mask.json", to_json({"grow": asked.grow, **made}))
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return answer({"id": id, "preview": f"{API}/masks/{id}/{PREVIEW}", "share": made["share"]}, 201)


@router.api_route("/masks/{id}/{name}", methods=["GET", "HEAD"])
async def get_mask(request: Request, id: str, name: str) -> Response:
    place: Path = studio_of(request).masks / id
    if not ID.fullmatch(id) or name not in (MASK, PREVIEW) or not place.is_dir():
        raise Unknown("there is no such mask")
    return FileAnswer(place / name, place, immutable=True)
