"""What a blind comparison compares: runs of one video and instruction, or the tasks of a bench report."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote

from v2edit.errors import UserError
from v2edit.files import read_json
from v2edit.runs import MANIFEST, read_run_state
from v2edit.runs.layout import AFTER_VIDEO, BEFORE_VIDEO, COMPARISON_VIDEO, EDITED
from v2edit.studio.studies import Clip, Entry

PLAYABLE = (".mp4", ".webm")  # what every browser plays
EMBEDDED = "data:video/mp4;base64,"


def entries_of_runs(runs: Sequence[Path], labels: Mapping[Path, str] | None = None) -> list[Entry]:
    """Return an entry for each video and instruction that finished `runs` are of. Unless `labels` name them, runs are
    called after the settings in which they differ. Raises `UserError` for a run that is not done, and where two runs of
    one video and instruction have one label."""
    manifests = {run: _read_done(run) for run in runs}
    named = {run: (labels or {}).get(run) or label for run, label in _label_by_settings(manifests).items()}
    groups: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for run, facts in manifests.items():
        groups[facts["input"]["sha256"], _instruction(facts)].append(run)
    entries = []
    for (_, instruction), group in groups.items():
        edits = {named[run]: _edited_clip(run) for run in group}
        if len(edits) < len(group):
            raise UserError(f"two runs of “{instruction:.60}” have one label: give each its own")
        entries.append(Entry(instruction, _source_clip(group[0]), edits))
    return entries


@contextmanager
def entries_of_bench(page: Path) -> Iterator[list[Entry]]:
    """Yield an entry for each task of a bench report (its page), with the methods but the references; its videos are
    parts of the page's films. Raises `UserError` where it is no such page."""
    from v2edit.bench.methods import UNEDITED  # which loads torch
    from v2edit.bench.page import read_page

    data = read_page(page)
    with TemporaryDirectory() as folder:
        entries = []
        for number, task in enumerate(data["tasks"]):
            film = Path(folder) / f"{number}.mp4"
            if task["film"].startswith(EMBEDDED):
                film.write_bytes(base64.b64decode(task["film"].removeprefix(EMBEDDED)))
            else:
                film = _beside(page, unquote(task["film"]))
            width, height = task["width"], task["height"]
            clips = {title: Clip(film, (at * width, 0, width, height)) for at, title in enumerate(task["titles"])}
            edits = {title: clip for title, clip in clips.items() if title not in data["references"]}
            entries.append(Entry(task["instruction"], clips[UNEDITED], edits))
        yield entries


def _beside(page: Path, name: str) -> Path:
    film = (page.parent / name).resolve()
    if not film.is_relative_to(page.parent.resolve()) or not film.is_file():
        raise UserError(f"{page.name} shows {name:.80}, which is not beside it")
    return film


def _read_done(run: Path) -> dict[str, Any]:
    state = read_run_state(run)
    if state.state != "done" or state.kind == "seeds":
        what = "a run of several seeds: give the runs in it" if state.kind == "seeds" else f"{state.state}, not done"
        raise UserError(f"{run.name} is {what}")
    return read_json(run / MANIFEST)


def _instruction(facts: Mapping[str, Any]) -> str:
    return facts.get("instruction") or facts["prompts"]["target"]


def _label_by_settings(manifests: Mapping[Path, Mapping[str, Any]]) -> dict[Path, str]:
    """Return a label for each run: the values of the settings that are not the same for all."""
    settings = {
        run: {"model": facts["model"]["name"], "lvlm": facts.get("lvlm"), **facts["config"]}
        for run, facts in manifests.items()
    }
    names = list(dict.fromkeys(name for one in settings.values() for name in one))
    differing = [name for name in names if len({repr(one.get(name)) for one in settings.values()}) > 1]
    described = {run: ", ".join(f"{name} {one.get(name)}" for name in differing)[:200] for run, one in settings.items()}
    return {run: text or run.name for run, text in described.items()}


def _edited_clip(run: Path) -> Clip:
    names = [EDITED + suffix for suffix in PLAYABLE] + [AFTER_VIDEO]
    found = next((run / name for name in names if (run / name).is_file()), None)
    return Clip(found) if found else Clip(_comparison(run), "right")


def _source_clip(run: Path) -> Clip:
    before = run / BEFORE_VIDEO
    return Clip(before) if before.is_file() else Clip(_comparison(run), "left")


def _comparison(run: Path) -> Path:
    if not (run / COMPARISON_VIDEO).is_file():
        raise UserError(f"{run.name} has no {COMPARISON_VIDEO} to show")
    return run / COMPARISON_VIDEO
