"""Edits of one video with several seeds: an ordinary run folder a seed, in one folder with a sheet of all of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from v2edit.errors import UserError
from v2edit.files import atomic_write, read_json
from v2edit.jobs.clip import read_edited
from v2edit.runs import (
    MANIFEST,
    Request,
    RunState,
    RunWriter,
    display_path,
    read_run_state,
    remove_leftover_state,
)
from v2edit.runs.layout import SEEDS_SHEET, seed_folder
from v2edit.runs.manifest import STATE_DIR, read_request

if TYPE_CHECKING:
    import numpy as np

    from v2edit.editing.editor import Progress
    from v2edit.video.stream import Frames

MOST_SEEDS = 16
SHEET_COLUMNS = 5
OnProgress = Callable[["Progress"], None]


def request_seeds(request: Request, count: int) -> Request:
    """Return the request of `count` edits, the first of which is that of an edit, with its seed and those after it."""
    first, steps = request.facts["seed"], sum(request.plan.values())
    seeds = list(range(first, first + count))
    facts, plan = request.facts | {"seeds": seeds}, {seed_folder(seed): steps for seed in seeds}
    return replace(request, kind="seeds", facts=facts, plan=plan)


def edit_seeds(
    group: RunWriter,
    source: Frames,
    part: slice,
    steps: Mapping[str, int],
    edit: Callable[[RunWriter, int, OnProgress], object],
    save: Callable[[Path], None],
    on_progress: OnProgress | None,
) -> None:
    """Make the runs of a group that are not done, one after the other, then the sheet. `edit` is called with a run to
    write, its seed, and the callback for its steps; `steps` are those of each of its loops, and `source` is the video,
    uint8 [T, H, W, 3], of which the sheet shows the part that is edited; `save` is that of `RunWriter.begin`. What a
    seed's run is to do is what the group's request says, but for the seed."""
    request, facts = group.request, read_request(group.out / STATE_DIR).facts
    assert request is not None
    seeds = facts.pop("seeds")
    for number, seed in enumerate(seeds, start=1):
        folder, place = group.out / seed_folder(seed), {"seed": seed, "seed_number": number, "seeds": len(seeds)}
        state = _state_of(folder)
        if state is not None and state.state == "done":
            remove_leftover_state(folder)
            group.snapshots.on_step(folder.name, 0)
            continue
        own = facts | {"config": facts["config"] | {"seed": seed}, "seed": seed}
        try:
            with RunWriter(folder, resume=state is not None) as run:
                if state is None:
                    run.begin(Request("edit", own, dict(steps), request.save_every, request.command), save)
                edit(run, seed, partial(_report, group, place, on_progress))
        except UserError as error:  # the group names the command that goes on
            raise error.__cause__ if isinstance(error.__cause__, (UserError, OSError)) else error from None
        group.snapshots.on_step(folder.name, 0)
    _write_sheet(group, source, part, seeds)


def _report(group: RunWriter, place: dict[str, int], on_progress: OnProgress | None, progress: Progress) -> None:
    """Note a step of a seed's run in the group, and report it with the seed's place among the seeds."""
    if progress.stage == "editing":
        subtasks = (progress.shots - progress.shot_number + 1) * progress.subtasks - progress.subtask
        left = (subtasks + 1) * progress.steps - progress.step
        group.snapshots.on_step(seed_folder(place["seed"]), left)
    if on_progress is not None:
        on_progress(replace(progress, **place))


def keep_seeds(folder: str | Path, seeds: Sequence[int]) -> list[Path]:
    """Remove the runs of all other seeds from the folder of a run of several, and return their folders. Raises
    `UserError` where it is no such run, or is not done, or has no run of one of the seeds; nothing is removed then."""
    folder = Path(folder)
    state = read_run_state(folder)
    if state.kind != "seeds":
        raise UserError(f"{folder} is a run of one seed: keep chooses among those of --seeds")
    name = display_path(folder)
    if state.state != "done":
        how = "wait for it" if state.state == "running" else f"v2edit resume {name} makes it so"
        raise UserError(f"{name} is not done yet: {how}")
    there = {seed: path for seed in state.seeds if (path := folder / seed_folder(seed)).is_dir()}
    if missing := sorted({*seeds} - there.keys()):
        plural = "s" * (len(missing) > 1)
        raise UserError(
            f"there is no run of seed{plural} {', '.join(map(str, missing))} in {name}; there are "
            f"{', '.join(map(str, there)) or 'none'}"
        )
    if not seeds:
        raise UserError("which seeds are to be kept? Name one or more")
    removed = [path for seed, path in there.items() if seed not in seeds]
    for path in removed:
        shutil.rmtree(path)
    facts = read_json(folder / MANIFEST) | {"seeds": [seed for seed in there if seed in seeds]}
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    atomic_write(folder / MANIFEST, (text + "\n").encode(errors="backslashreplace"))
    return removed


def _state_of(folder: Path) -> RunState | None:
    """Return the state of a seed's run; None where it has not begun."""
    try:
        return read_run_state(folder)
    except UserError:
        return None


def _write_sheet(group: RunWriter, source: Frames, part: slice, seeds: Sequence[int]) -> None:
    """Write the sheet: the source's frames, and below them those of each seed's video, as its file has them."""
    from v2edit import video
    from v2edit.video.sheets import spread_columns

    def columns(frames: Frames) -> np.ndarray:  # of one video at a time
        return frames[spread_columns(len(frames), min(SHEET_COLUMNS, len(frames)))]

    rows = {"source": columns(source[part])}
    for seed in seeds:
        rows[f"seed {seed}"] = columns(read_edited(group.out / seed_folder(seed)).frames[part])
    video.contact_sheet(rows, group.folder / SEEDS_SHEET, SHEET_COLUMNS)
    group.write_manifest()
