"""This machine, and what an edit would be and take: prompts and estimates."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from v2edit import __version__
from v2edit.errors import UserError
from v2edit.studio.api.common import Asked, answer, read_body, studio_of, wait_for
from v2edit.studio.api.jobs import Input
from v2edit.studio.core import Studio
from v2edit.studio.options import lvlm_view
from v2edit.studio.tools import THINKER

router = APIRouter()
PROMPT_SECONDS, ESTIMATE_SECONDS = 300.0, 120.0


class AskedEdit(Asked):
    kind: Literal["edit", "scene"] = "edit"
    input: Input
    instruction: str | None = Field(None, max_length=2000)
    source_prompt: str | None = None
    target_prompt: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    mask: str | None = None
    trim: tuple[float | None, float | None] | None = None


@router.get("/machine")
async def get_machine(request: Request) -> Response:
    studio = studio_of(request)
    settings = studio.settings
    try:
        found = await wait_for(studio.describe_machine())
    except UserError as error:
        found = {"devices": [], "models": [], "problems": [str(error)], "default_model": settings.model}
    limits = {"max_upload_bytes": settings.max_upload_bytes, "max_mask_bytes": settings.max_mask_bytes}
    limits |= {"max_queued": settings.max_queued, "jobs_per_minute": settings.jobs_per_minute}
    lvlm = lvlm_view(settings.lvlm)
    return answer({"version": __version__, "folder": settings.folder.name, "lvlm": lvlm, "limits": limits, **found})


def _build(studio: Studio, asked: AskedEdit) -> Any:
    if (asked.input.upload is None) == (asked.input.run is None):
        raise UserError("input is an upload or a run: give one of them")
    path, _ = studio.find_input(asked.input.model_dump(exclude_none=True), asked.kind)
    own = {"source_prompt": asked.source_prompt, "target_prompt": asked.target_prompt}
    options = asked.options | {name: text for name, text in own.items() if text is not None}
    trim = None if asked.trim is None else list(asked.trim)
    return studio.build(asked.kind, path, asked.instruction, options, asked.mask, trim)[0]


@router.post("/prompts")
async def preview_prompts(request: Request) -> Response:
    studio, asked = studio_of(request), await read_body(request, AskedEdit)
    job = await asyncio.to_thread(_build, studio, asked)
    return answer(await wait_for(studio.tools.call("preview_prompts", THINKER, PROMPT_SECONDS, job=job)))


@router.post("/estimates")
async def estimate(request: Request) -> Response:
    studio, asked = studio_of(request), await read_body(request, AskedEdit)
    job = await asyncio.to_thread(_build, studio, asked)
    return answer(await wait_for(studio.tools.call("estimate", THINKER, ESTIMATE_SECONDS, job=job)))
