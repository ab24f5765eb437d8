"""Routes of blind comparisons: for who makes one, and, with nothing but the link's token, for who votes."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import FileResponse, Response

from v2edit.errors import UserError
from v2edit.studio.api.common import Asked, answer, conflict, read_body, studio_of, wait_for
from v2edit.studio.core import Studio, Unknown
from v2edit.studio.media import FileAnswer
from v2edit.studio.security import API
from v2edit.studio.studies import (
    MEDIA_DIR,
    MEDIA_NAME,
    QUESTIONS,
    SCALE,
    Media,
    Shown,
    Study,
    ballots_of,
    close_study,
    create_study,
    find_studies,
    is_voter,
    new_voter,
    read_votes,
    record_vote,
)
from v2edit.studio.study_entries import entries_of_bench, entries_of_runs
from v2edit.studio.study_results import votes_csv
from v2edit.studio.tools import THINKER

PAGE = Path(__file__).parent.parent / "page"
ASSETS = {"study.css": "text/css", "study.js": "text/javascript"}
RESULT_SECONDS = 60.0

router, voters_router = APIRouter(), APIRouter()  # under /api/v1, and of the pages of voters


class StudyRun(Asked):
    """A run to compare, and what the results call it."""

    run: str = Field(max_length=255)
    label: str | None = Field(None, min_length=1, max_length=200)


class NewStudy(Asked):
    """A study of runs, or of a bench report: its run name and the name of its page."""

    title: str = Field("", max_length=200)
    shown: Shown = "lists"
    runs: list[StudyRun] = Field([], max_length=1000)
    bench: str | None = Field(None, max_length=255)
    page: str = Field("report.html", pattern=r"[\w-]{1,60}\.html")
    questions: dict[str, str] = Field(default_factory=lambda: dict(QUESTIONS), max_length=6)


class NewVote(Asked):
    """A voter's scores of a ballot, by candidate and question."""

    voter: str = Field(max_length=60)
    keys: list[str] = Field(max_length=12)
    scores: dict[str, dict[str, int]] = Field(max_length=12)


@router.post("/studies")
async def create(request: Request) -> Response:
    """Make a study; answers with its link for voters."""
    asked, studio = await read_body(request, NewStudy), studio_of(request)
    folder = await asyncio.to_thread(_create, studio, asked)
    return answer(describe(*await _study(studio, folder.name)), 201)


@router.get("/studies")
async def list_all(request: Request) -> Response:
    """List all studies, oldest first."""
    found = await asyncio.to_thread(find_studies, studio_of(request).studies.folder)
    return answer({"studies": [describe(*one) for one in found]})


@router.get("/studies/{id}")
async def show(request: Request, id: str) -> Response:
    """Return a study and how many have voted."""
    return answer(describe(*await _study(studio_of(request), id)))


@router.get("/studies/{id}/results")
async def results(request: Request, id: str) -> Response:
    """Return means, preferences and agreement, with 95 % intervals."""
    studio = studio_of(request)
    folder, _ = await _study(studio, id)
    return answer(await wait_for(studio.tools.call("summarise_study", THINKER, RESULT_SECONDS, folder=str(folder))))


@router.get("/studies/{id}/results.csv")
async def scores(request: Request, id: str) -> Response:
    """Return all scores, a line each."""
    folder, study = await _study(studio_of(request), id)
    text = await asyncio.to_thread(lambda: votes_csv(study, read_votes(folder)))
    headers = {"content-disposition": f'attachment; filename="study-{id}.csv"'}
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


@router.post("/studies/{id}/close")
async def close(request: Request, id: str) -> Response:
    """Take no more votes."""
    folder, _ = await _study(studio_of(request), id)
    return answer(describe(folder, await asyncio.to_thread(close_study, folder)))


@voters_router.get("/study/assets/{name}")
async def asset(name: str) -> Response:
    """Return a file of the voters' page."""
    if name not in ASSETS:
        raise Unknown("there is no such page")
    return FileResponse(PAGE / name, media_type=ASSETS[name])


@voters_router.get("/study/{token}")
async def vote_page(request: Request, token: str) -> Response:
    """Return the voters' page."""
    await _voted_on(studio_of(request), token)
    return FileResponse(PAGE / "study.html", media_type="text/html")


@voters_router.get("/study/{token}/ballot")
async def ballot(request: Request, token: str, voter: str = "") -> Response:
    """Return what a voter is to score next; one without a number gets one."""
    folder, study = await _voted_on(studio_of(request), token)
    if not is_voter(study, voter):
        voter = new_voter(study)
    return answer(await asyncio.to_thread(_ballot, folder, study, voter))


@voters_router.post("/study/{token}/votes")
async def vote(request: Request, token: str) -> Response:
    """Take the scores of a ballot, and return the next one."""
    asked = await read_body(request, NewVote)
    folder, study = await _voted_on(studio_of(request), token)
    try:
        await asyncio.to_thread(record_vote, folder, study, asked.voter, asked.keys, asked.scores)
    except UserError as error:
        raise conflict(error) from error
    return answer(await asyncio.to_thread(_ballot, folder, study, asked.voter))


@voters_router.get("/study/{token}/media/{name}")
async def media(request: Request, token: str, name: str) -> Response:
    """Return a video of a study, by the name that its ballots give it."""
    folder, _ = await _voted_on(studio_of(request), token)
    if not MEDIA_NAME.fullmatch(name):
        raise Unknown("there is no such video")
    return FileAnswer(folder / MEDIA_DIR / name, folder, immutable=True)


def describe(folder: Path, study: Study) -> dict[str, Any]:
    """Return what the page shows of a study: nothing that signs voters' numbers."""
    voters = {vote.voter for vote in read_votes(folder)}
    facts = {
        name: getattr(study, name) for name in ("id", "title", "shown", "created", "closed", "questions", "labels")
    }
    counts = {"comparisons": len(study.comparisons), "voters": len(voters), "voters_max": study.voters_max}
    return facts | counts | {"link": f"/study/{study.token}", "csv": f"{API}studies/{study.id}/results.csv"}


async def _study(studio: Studio, id: str) -> tuple[Path, Study]:
    """Return a study by its id. Raises `Unknown`."""
    return _expect(await asyncio.to_thread(studio.studies.get, id))


async def _voted_on(studio: Studio, token: str) -> tuple[Path, Study]:
    """Return a study by the token of its link. Raises `Unknown`."""
    return _expect(await asyncio.to_thread(studio.studies.of_token, token))


def _expect(found: tuple[Path, Study] | None) -> tuple[Path, Study]:
    if found is None:
        raise Unknown("there is no such study")
    return found


def _create(studio: Studio, asked: NewStudy) -> Path:
    with ExitStack() as stack:
        if asked.bench is not None:
            bench = studio.library.get(asked.bench)
            if bench is None or asked.runs:
                raise Unknown("there is no such report") if bench is None else UserError("give runs or a report")
            entries = stack.enter_context(entries_of_bench(bench.folder / asked.page))
        else:
            folders: dict[Path, str] = {}
            for one in asked.runs:
                run = studio.library.get(one.run)
                if run is None:
                    raise Unknown(f"there is no run {one.run!r:.80}")
                folders[run.folder] = one.label or ""
            entries = entries_of_runs(list(folders), {folder: label for folder, label in folders.items() if label})
        studio.studies.folder.mkdir(parents=True, exist_ok=True)
        return create_study(studio.studies.folder, asked.title, asked.shown, entries, asked.questions)


def _ballot(folder: Path, study: Study, voter: str) -> dict[str, Any]:
    ballots = ballots_of(study, voter)
    voted = {(vote.comparison, frozenset(vote.scores)) for vote in read_votes(folder) if vote.voter == voter}
    open_ones = [one for one in ballots if (one.comparison, frozenset(one.keys)) not in voted]
    facts: dict[str, Any] = {
        "title": study.title, "voter": voter, "done": len(ballots) - len(open_ones), "of": len(ballots),
        "questions": [{"name": name, "text": text} for name, text in study.questions.items()], "scale": SCALE,
        "comparison": None, "closed": study.closed is not None,
    }  # fmt: skip
    if not open_ones or study.closed:
        return facts
    comparison = next(one for one in study.comparisons if one.id == open_ones[0].comparison)
    shown = {one.key: one.media for one in comparison.candidates}

    def view(media: Media) -> dict[str, Any]:
        return {"url": f"/study/{study.token}/media/{media.file}", "crop": media.crop, "fps": media.fps}

    candidates = [{"key": key, "media": view(shown[key])} for key in open_ones[0].keys]
    return facts | {
        "comparison": {
            "id": comparison.id, "instruction": comparison.instruction, "source": view(comparison.source),
            "candidates": candidates,
        }
    }  # fmt: skip
