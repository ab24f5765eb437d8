"""Blind comparison (the paper's user study): voters score edited videos without knowing what made them.

A study is a folder: `study.json` is written once and when it is closed, `votes.jsonl` is only ever appended to, and
`media/` holds the videos under names that tell nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import random
import re
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from v2edit.errors import UserError
from v2edit.files import atomic_write, read_json, try_flock
from v2edit.runs import utc_now

STUDY_FILE, VOTES_FILE, MEDIA_DIR = "study.json", "votes.jsonl", "media"
STUDY_ID, MEDIA_NAME = re.compile(r"[\w-]{8}"), re.compile(r"[0-9a-f]{16}\.\w{1,8}")
Shown = Literal["lists", "pairs", "single"]
QUESTIONS = {
    "quality": "How good does the video look?",
    "preservation": "How well is kept what the instruction does not touch?",
    "fulfilment": "How well does it do what the instruction says?",
}
SCALE = 5  # scores are 1 to SCALE
MAX_CANDIDATES, MAX_COMPARISONS, MAX_VOTERS = 12, 400, 1000
LOCK_TIMEOUT = 10.0  # seconds that a vote waits for others to be written
Crop = Literal["left", "right"] | tuple[int, int, int, int]  # of compare.mp4, or x, y, width, height in pixels


@dataclass(frozen=True)
class Clip:
    """A video file, or the part of its picture that is shown."""

    path: Path
    crop: Crop | None = None


@dataclass(frozen=True)
class Entry:
    """One video and instruction, and what each of several methods or settings made of it, by their labels."""

    instruction: str
    source: Clip
    edits: Mapping[str, Clip]


class Media(BaseModel, frozen=True):
    """A file in the study's media folder, the part of its picture that is shown, and its frames a second."""

    file: str
    crop: Crop | None = None
    fps: float | None = None


class Candidate(BaseModel, frozen=True):
    """An edited video under a key that tells nothing; `label` is what the results call it."""

    key: str
    label: str
    media: Media


class Comparison(BaseModel, frozen=True):
    """One video and instruction with all its candidates."""

    id: str
    instruction: str
    source: Media
    candidates: list[Candidate]


class Study(BaseModel, frozen=True):
    """A study, as it is kept in study.json. `token` is in the link for voters; `secret` signs their numbers."""

    id: str
    title: str
    shown: Shown
    token: str
    secret: str
    created: str
    questions: dict[str, str]
    comparisons: list[Comparison]
    voters_max: int = MAX_VOTERS
    closed: str | None = None

    @property
    def labels(self) -> list[str]:
        """What is compared, in the order of its first appearance."""
        return list(dict.fromkeys(one.label for each in self.comparisons for one in each.candidates))


class Ballot(BaseModel, frozen=True):
    """What a voter is shown at once: a comparison and the keys of its candidates, in this voter's order."""

    comparison: str
    keys: tuple[str, ...]


class Vote(BaseModel, frozen=True):
    """A line of votes.jsonl: one voter's scores of a ballot, by candidate and question. A later one replaces it."""

    voter: str
    comparison: str
    scores: dict[str, dict[str, int]] = Field(min_length=1)
    at: str


def create_study(
    studies: Path, title: str, shown: Shown, entries: Sequence[Entry], questions: Mapping[str, str] = QUESTIONS
) -> Path:
    """Write a study of `entries` into a new folder of `studies`, with its own links to or copies of the videos, and
    return the folder. Raises `UserError` where there is nothing to compare, or too much."""
    least = 1 if shown == "single" else 2
    if not entries or len(entries) > MAX_COMPARISONS:
        raise UserError(f"a study takes 1 to {MAX_COMPARISONS} videos, here are {len(entries)}")
    for entry in entries:
        if not least <= len(entry.edits) <= MAX_CANDIDATES:
            edits = f"“{entry.instruction:.60}” has {len(entry.edits)} edits to compare"
            raise UserError(f"{edits}, expected {least} to {MAX_CANDIDATES}")
    if not questions:
        raise UserError("a study asks at least one question")
    study_id = secrets.token_urlsafe(6)
    folder = studies / study_id
    (folder / MEDIA_DIR).mkdir(parents=True)
    try:
        comparisons = [_comparison(entry, folder / MEDIA_DIR) for entry in entries]
        study = Study(
            id=study_id, title=title.strip() or "Which edit is better?", shown=shown, token=secrets.token_urlsafe(16),
            secret=secrets.token_hex(16), created=utc_now(), questions=dict(questions), comparisons=comparisons,
        )  # fmt: skip
        _write(folder, study)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def read_study(folder: Path) -> Study:
    """Read a study. Raises `UserError` where the folder holds none, or it is damaged."""
    try:
        return Study.model_validate(read_json(folder / STUDY_FILE))
    except (OSError, ValueError, ValidationError) as error:
        raise UserError(f"there is no study in {folder}, or it is damaged") from error


def find_studies(studies: Path) -> list[tuple[Path, Study]]:
    """Return all studies with their folders, oldest first; damaged ones are left out."""
    found = []
    for path in studies.glob(f"*/{STUDY_FILE}"):
        with suppress(UserError):
            found.append((path.parent, read_study(path.parent)))
    return sorted(found, key=lambda one: one[1].created)


class Studies:
    """The studies of a folder by their ids and tokens: each is read once, and again when its file has changed, so that
    finding one costs the same however many there are. Methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[int, int], Study]] = {}  # by id, with what tells that its file has changed
        self._ids: dict[str, str] = {}  # by token

    def get(self, id: str) -> tuple[Path, Study] | None:
        """Return a study with its folder, None where there is none of this id, or it is damaged."""
        if not STUDY_ID.fullmatch(id):
            return None
        folder = self.folder / id
        with self._lock, suppress(OSError, UserError):
            found = (folder / STUDY_FILE).stat()
            stamp = found.st_mtime_ns, found.st_ino
            if id not in self._known or self._known[id][0] != stamp:
                study = read_study(folder)
                if study.id != id:  # a copy, whose link would be the original's
                    return None
                self._known[id], self._ids[study.token] = (stamp, study), id
            return folder, self._known[id][1]
        return None

    def of_token(self, token: str) -> tuple[Path, Study] | None:
        """Return the study whose link for voters has this token, None where there is none."""
        if token not in self._ids and self.folder.is_dir():  # made since, or before this server began
            for name in {path.name for path in self.folder.iterdir()} - self._known.keys():
                self.get(name)
        id = self._ids.get(token)
        return None if id is None else self.get(id)


def close_study(folder: Path) -> Study:
    """Take no more votes, and return the study."""
    study = read_study(folder)
    if study.closed is None:
        study = study.model_copy(update={"closed": utc_now()})
        _write(folder, study)
    return study


def new_voter(study: Study) -> str:
    """Return a voter's number, signed so that nobody can make up another's."""
    number = secrets.token_urlsafe(9)
    return f"{number}.{_signature(study, number)}"


def is_voter(study: Study, voter: str) -> bool:
    """Return whether a voter's number is one that `new_voter` gave out."""
    number, dot, signature = voter.rpartition(".")
    return bool(dot) and hmac.compare_digest(signature.encode(), _signature(study, number).encode())


def ballots_of(study: Study, voter: str) -> list[Ballot]:
    """Return all that a voter is asked, in an order of their own: comparisons and candidates are shuffled by the
    voter's number, so that a reload shows the same. Of pairs each voter gets one of each comparison."""
    order = random.Random(f"{study.id} {voter}")
    ballots = []
    for comparison in study.comparisons:
        keys = [one.key for one in comparison.candidates]
        order.shuffle(keys)
        together = {"single": 1, "pairs": 2, "lists": len(keys)}[study.shown]
        shown = keys if study.shown == "single" else keys[:together]
        sets = [tuple(shown[start : start + together]) for start in range(0, len(shown), together)]
        ballots += [Ballot(comparison=comparison.id, keys=some) for some in sets]
    order.shuffle(ballots)
    return ballots


def record_vote(
    folder: Path, study: Study, voter: str, keys: Sequence[str], scores: Mapping[str, Mapping[str, int]]
) -> Vote:
    """Append a voter's scores of the ballot with these keys, on the disk when this returns. Raises `UserError` where
    the study is closed or full, or the scores are not those that the ballot asks for."""
    if read_study(folder).closed:
        raise UserError("this study is closed, and takes no more votes")
    ballot = next((one for one in ballots_of(study, voter) if one.keys == tuple(keys)), None)
    if not is_voter(study, voter) or ballot is None:
        raise UserError("this is no ballot of this study: load the page again")
    plain = {key: dict(scores.get(key, {})) for key in ballot.keys}
    if set(scores) != set(ballot.keys) or any(set(one) != set(study.questions) for one in plain.values()):
        raise UserError("each video needs a score for each question")
    if not all(type(score) is int and 1 <= score <= SCALE for one in plain.values() for score in one.values()):
        raise UserError(f"scores are whole numbers, 1 to {SCALE}")
    vote = Vote(voter=voter, comparison=ballot.comparison, scores=plain, at=utc_now())
    with (folder / VOTES_FILE).open("ab+") as file:
        if not try_flock(file, exclusive=True, timeout=LOCK_TIMEOUT):
            raise UserError("too many votes at once: try again")
        file.seek(0)
        before = file.read()
        voters = {one.voter for one in _parse(before)}
        if voter not in voters and len(voters) >= study.voters_max:
            raise UserError(f"this study has its {study.voters_max} voters, and takes no more")
        # A process that was killed may have left half a line.
        torn = b"" if before.endswith(b"\n") or not before else b"\n"
        file.write(torn + vote.model_dump_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return vote


def read_votes(folder: Path) -> list[Vote]:
    """Read the votes, the last one of each voter and ballot; half a line, of a process that was killed, is skipped."""
    path = folder / VOTES_FILE
    latest: dict[tuple[str, ...], Vote] = {}
    for vote in _parse(path.read_bytes() if path.exists() else b""):
        latest[(vote.voter, vote.comparison, *sorted(vote.scores))] = vote
    return list(latest.values())


def _parse(lines: bytes) -> Iterator[Vote]:
    for line in lines.splitlines():
        with suppress(ValidationError):
            yield Vote.model_validate_json(line)


def _signature(study: Study, number: str) -> str:
    return hmac.new(study.secret.encode(), number.encode(), hashlib.sha256).hexdigest()[:16]


def _comparison(entry: Entry, media: Path) -> Comparison:
    candidates = [Candidate(key=secrets.token_hex(4), label=label, media=_keep(clip, media))
                  for label, clip in entry.edits.items()]  # fmt: skip
    source = _keep(entry.source, media)
    source = source.model_copy(update={"fps": _read_rate(media / source.file)})  # the others are in step with it
    return Comparison(id=secrets.token_hex(4), instruction=entry.instruction, source=source, candidates=candidates)


def _keep(clip: Clip, media: Path) -> Media:
    """Link or copy a clip's file into the study's folder, so that it outlives its run."""
    name = secrets.token_hex(8) + clip.path.suffix.lower()
    try:
        os.link(clip.path, media / name)
    except OSError:  # another disk, or one without links
        shutil.copyfile(clip.path, media / name)
    return Media(file=name, crop=clip.crop)


def _read_rate(path: Path) -> float | None:
    """Return the frame rate that a video file names, or None."""
    from v2edit.video.decoding import find_video_stream, named_rates, open_container  # which load FFmpeg

    with suppress(UserError), open_container(path) as container:
        stream = find_video_stream(container)
        return next((float(rate) for rate in named_rates(stream)), None) if stream else None


def _write(folder: Path, study: Study) -> None:
    atomic_write(folder / STUDY_FILE, study.model_dump_json(indent=1).encode())
