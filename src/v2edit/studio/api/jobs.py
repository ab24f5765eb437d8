"""Jobs: the queue, and what becomes of it."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from v2edit.backbones.families import BUILT_IN
from v2edit.backbones.hub import check_family
from v2edit.errors import UserError
from v2edit.jobs.prompts import given_prompts
from v2edit.studio.api.common import Asked, answer, conflict, read_body, studio_of
from v2edit.studio.options import check_options
from v2edit.studio.records import ACTIVE, JobRecord
from v2edit.studio.views import job_view

router = APIRouter()
MAX_ENDED = 200  # jobs that have ended, of those that are listed


class Input(Asked):
    upload: str | None = None
    run: str | None = None
    file: str | None = None


class NewJob(Asked):
    kind: Literal["edit", "scene"] = "edit"
    input: Input
    instruction: str | None = Field(None, max_length=2000)
    options: dict[str, Any] = Field(default_factory=dict)
    mask: str | None = None
    trim: tuple[float | None, float | None] | None = None


class Move(Asked):
    before: str | None = None


@router.get("/jobs")
async def list_jobs(request: Request, ended: int = MAX_ENDED) -> Response:
    studio = studio_of(request)
    records = studio.queue.all()
    waiting = [one for one in records if one.state in ("queued", *ACTIVE)]
    others = sorted((one for one in records if one not in waiting), key=lambda one: one.finished or "", reverse=True)
    shown = [*waiting, *others[: max(0, ended)]]
    return answer({"jobs": [job_view(studio, one) for one in shown], "total": len(records)})


@router.post("/jobs")
async def create_job(request: Request) -> Response:
    studio, asked = studio_of(request), await read_body(request, NewJob)
    record = await asyncio.to_thread(_submit, studio, asked)
    return answer(job_view(studio, record), 201)


def _submit(studio: Any, asked: NewJob) -> JobRecord:
    """Check all that can be checked before the job's turn, and put it into the queue."""
    given = asked.input.model_dump(exclude_none=True)
    if (asked.input.upload is None) == (asked.input.run is None):
        raise UserError("input is an upload or a run: give one of them")
    path, _ = studio.find_input(given, asked.kind)
    options = check_options(asked.kind, asked.options, studio.settings)
    trim = None if asked.trim is None else list(asked.trim)
    job, _ = studio.build(asked.kind, path, asked.instruction, options, asked.mask, trim)
    # What is wrong with the prompts is told at once; what is wrong with the input, the upload has told.
    check_family(job.model_options.model)
    model = job.model_options.model

    def source_prompt() -> str | None:
        beside = job.source_prompt_beside()
        if beside is None and model == BUILT_IN and asked.input.upload is not None and trim is None:
            return studio.uploads.get(asked.input.upload).facts.get("source_prompt")  # as the classifier has read it
        return beside

    given_prompts(path, asked.instruction, job.prompt_options, job.lvlm, model, source_prompt)
    title = asked.instruction or str(options.get("target_prompt") or path.name)
    return studio.queue.submit(
        kind=asked.kind, title=title[:200], input=given, instruction=asked.instruction, options=options,
        mask=asked.mask, trim=trim,
    )  # fmt: skip


@router.get("/jobs/{id}")
async def get_job(request: Request, id: str) -> Response:
    studio = studio_of(request)
    return answer(job_view(studio, studio.queue.get(id)))


@router.delete("/jobs/{id}")
async def remove_job(request: Request, id: str) -> Response:
    try:
        await asyncio.to_thread(studio_of(request).queue.remove, id)
    except UserError as error:
        raise conflict(error) from error
    return Response(status_code=204)


@router.post("/jobs/{id}/cancel")
async def cancel_job(request: Request, id: str) -> Response:
    studio = studio_of(request)
    return answer(job_view(studio, await asyncio.to_thread(studio.queue.cancel, id)))


@router.post("/jobs/{id}/resume")
async def resume_job(request: Request, id: str) -> Response:
    studio = studio_of(request)
    try:
        return answer(job_view(studio, await asyncio.to_thread(studio.queue.resume, id)))
    except UserError as error:
        raise conflict(error) from error


@router.post("/jobs/{id}/again")
async def repeat_job(request: Request, id: str) -> Response:
    studio = studio_of(request)
    if studio.queue.get(id).resumes:
        raise conflict(UserError("this job went on with a run that was begun elsewhere: resume that"))
    facts = studio.queue.get(id).model_dump(
        include={"kind", "title", "input", "instruction", "options", "mask", "trim"}
    )
    return answer(job_view(studio, await asyncio.to_thread(lambda: studio.queue.submit(**facts))), 201)


@router.post("/jobs/{id}/move")
async def move_job(request: Request, id: str) -> Response:
    studio, asked = studio_of(request), await read_body(request, Move)
    try:
        return answer(job_view(studio, await asyncio.to_thread(studio.queue.move, id, asked.before)))
    except UserError as error:
        raise conflict(error) from error
