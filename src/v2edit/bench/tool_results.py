"""Results that another tool made of a suite's clips and scenes: found by name in the layouts that tools use; fitted.

FOLDER/NAME.mp4             NAME: the task's name, the name its benchmark gives its results, or, where the suite
FOLDER/NAME/                edits a clip once, the clip's; frames, one video, or a run folder of this project
FOLDER/NAME_TARGET….mp4     and the target prompt, the instruction or the kind behind it, also as NAME/TARGET….mp4
TABLE.csv                   with original_video and edited_result_path, as OpenVE-Bench's

Of a scene NAME is a splat .ply in the scene's coordinates, which is rendered along the path, or the renders as a video;
a folder may hold the splat and the edited video that it was made of.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from v2edit.bench.file_tasks import FileTask
from v2edit.bench.fitting import fit_clip
from v2edit.bench.methods import Method, Unedited
from v2edit.bench.task_lines import read_table
from v2edit.bench.tasks import Arrays
from v2edit.bench.trials import Trial, load_result
from v2edit.errors import UserError
from v2edit.runs.layout import EDITED, EDITED_SPLAT, subtask_video
from v2edit.video.stream import Frames

SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".gif", ".avi", ".m4v", ".webp")
SPLAT = ".ply"
CUT = 16  # letters from which on a name may be the beginning of a text
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class ToolResults:
    """The results of another tool, from a folder or a table."""

    folder: Path

    def build(self, backbone: object) -> Method:
        raise AssertionError("another tool's results are there already")


@dataclass(frozen=True)
class ToolTrial(Trial):
    """What another tool made of a task, as it is in its file."""

    is_given: ClassVar[bool] = True

    def load(self) -> Arrays:
        """Return the frames in the source's size and length, and what was done to get them, `fitted`; of a scene also
        the edited `video` from before the reconstruction, where it is there. Raises `UserError` where they cannot be
        read, or are far too few."""
        from v2edit import video

        assert isinstance(self.task, FileTask)
        more: Arrays = {}
        if self.task.line.is_scene:
            frames, notes, more = self._load_scene()
        else:
            frames, notes = fit_clip(video.read(self.path), self.task.clip)
        facts = {"seconds": math.nan, "code": self.code, "fitted": "; ".join(notes)}
        return {"frames": frames, **more} | {name: np.asarray(value) for name, value in facts.items()}

    def _load_scene(self) -> tuple[Frames, list[str], Arrays]:
        """Return the edited scene's renders along the path, what was done to get them, and the edited video."""
        from v2edit import video
        from v2edit.bench.file_scenes import FileScene

        assert isinstance(self.task, FileScene) and self.start is not None
        source = np.asarray(load_result(self.start)["frames"])
        splat, clip = scene_files(self.path)
        if splat is None:
            assert clip is not None
            frames, notes = fit_clip(video.read(clip), video.Video(source, self.task.fps))
            return frames, notes, {}
        frames = self.task.render(splat, len(source))
        if clip is None:
            return frames, [], {}
        given = video.read(clip)
        size = video.Video(np.zeros((len(source), *given.frames.shape[1:]), np.uint8), self.task.fps)
        edited, notes = fit_clip(given, size)
        return frames, [f"its video has {note}" for note in notes], {"video": edited}


def parse_results(given: Sequence[str]) -> dict[str, ToolResults]:
    """Return the tools of NAME=FOLDER by name. Raises `UserError` for anything else."""
    tools: dict[str, ToolResults] = {}
    for one in given:
        name, equals, folder = one.partition("=")
        if not (name.strip() and equals and folder):
            raise UserError(f"cannot read --results {one!r}, expected NAME=FOLDER")
        if not os.path.exists(folder):
            raise UserError(f"there are no results of {name} in {folder!r}: no such folder")
        if name in tools:
            raise UserError(f"--results names {name} twice")
        tools[name] = ToolResults(Path(folder).absolute())
    return tools


def list_tool_trials(tasks: Sequence[FileTask], tools: dict[str, ToolResults]) -> list[ToolTrial]:
    """Return what is there of the tools' results. Raises `UserError` for a tool that has none of them."""
    edits: dict[Path, int] = {}
    for task in tasks:
        edits[task.line.path] = edits.get(task.line.path, 0) + 1
    trials = []
    for title, tool in tools.items():
        found = {task: find_result(tool.folder, task, edits[task.line.path] == 1) for task in tasks}
        if not any(found.values()):
            names = ", ".join(task.name for task in tasks[:3])
            raise UserError(f"{tool.folder} has no result of {title} for any task; they are found by names: {names} …")
        trials += [ToolTrial(task, title, tool, path, "") for task, path in found.items() if path is not None]
    return trials


def from_starts(given: Sequence[ToolTrial], made: Sequence[Trial]) -> list[ToolTrial]:
    """Return the tools' results, those of scenes with the unedited scene's result, which they are measured against."""
    starts = {trial.task: trial.path for trial in made if isinstance(trial.config, Unedited)}
    return [replace(one, start=starts[one.task]) if one.task.has_start else one for one in given]


def find_result(folder: Path, task: FileTask, only_edit: bool) -> Path | None:
    """Return the file or the folder of frames that a tool made of a task; `only_edit`: whether no other task of the
    suite edits the same clip, so that the clip's name says which it is."""
    line = task.line
    get = _scene_content if line.is_scene else _content
    if folder.is_file():
        return _rows(folder).get(_key(line.path.stem))
    clip = line.path.stem if line.path.is_file() else line.path.name
    texts = [line.pair.target if line.pair else "", line.instruction, line.kind]
    ends = [key for key in map(_key, texts) if key]
    entries = _entries(folder)
    for name in dict.fromkeys((line.name, *line.aliases)):
        if "/" in name and (found := get(folder / name)):
            return found
        if (found := entries.get(_key(name))) and (content := get(found)):
            return content
    named = [path for key, path in entries.items() if key.startswith(_key(clip)) and key != _key(clip)]
    if found := _by_end(named, _key(clip), ends, get):
        return found
    inside = entries.get(_key(clip))
    if inside is not None and inside.is_dir() and (found := _by_end(sorted(inside.iterdir()), "", ends, get)):
        return found
    return get(inside) if only_edit and inside is not None else None


def _by_end(paths: Sequence[Path], start: str, ends: Sequence[str], get: Callable[[Path], Path | None]) -> Path | None:
    """Return the path whose name, behind `start`, is one of these texts, or its beginning where it was cut."""
    for end in ends:
        for path in paths:
            rest = _key(path.name if path.is_dir() else path.stem).removeprefix(start).strip("-")
            is_named = rest == end or (len(rest) >= CUT and end.startswith(rest))
            if is_named and (found := get(path)):
                return found
    return None


def _content(path: Path) -> Path | None:
    """Return the video that a path is or holds: a file, a folder of frames, a run folder, a folder with one video."""
    if path.is_file():
        return path if path.suffix.lower() in SUFFIXES else None
    if not path.is_dir():
        with_suffix = (path.with_name(path.name + suffix) for suffix in SUFFIXES)
        return next((file for file in with_suffix if file.is_file()), None)
    files = sorted(path.iterdir())
    if edited := next((file for file in files if file.stem == EDITED), None):
        return _content(edited)
    videos = [file for file in files if file.suffix.lower() in SUFFIXES and file.is_file()]
    if len(videos) == 1:
        return videos[0]
    return path if not videos and any(file.suffix.lower() in IMAGES for file in files) else None


def _scene_content(path: Path) -> Path | None:
    """Return the path where it is or holds an edited scene: a splat, or else its renders as a video."""
    if path.suffix.lower() == SPLAT and path.is_file():
        return path
    if not path.is_dir():
        splat = path.with_name(path.name + SPLAT)
        return splat if splat.is_file() else _content(path)
    return path if scene_files(path)[0] is not None else _content(path)


def scene_files(path: Path) -> tuple[Path | None, Path | None]:
    """Return the splat of a result and its video: of a run folder of this project the edited scene and the last
    subtask's video; of another folder its only splat, and its only video."""
    if not path.is_dir():
        return (path, None) if path.suffix.lower() == SPLAT else (None, path)
    files = [file for file in sorted(path.iterdir()) if file.is_file()]
    if (path / EDITED_SPLAT).is_file():
        subtasks = [file for number in range(1, 1 + len(files)) if (file := path / subtask_video(number)).is_file()]
        if subtasks:
            return path / EDITED_SPLAT, subtasks[-1]
        splats = [path / EDITED_SPLAT]
    else:
        splats = [file for file in files if file.suffix.lower() == SPLAT]
    videos = [file for file in files if file.suffix.lower() in SUFFIXES]
    video = videos[0] if len(videos) == 1 else None
    return (splats[0], video) if len(splats) == 1 else (None, _content(path))


@lru_cache(maxsize=64)
def _entries(folder: Path) -> dict[str, Path]:
    """Return what is in a folder, by its name's key; of a video and a folder of one name the video."""
    entries: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda one: one.is_file()):
        if path.is_dir() or path.suffix.lower() in (*SUFFIXES, SPLAT):
            entries[_key(path.name if path.is_dir() else path.stem)] = path
    return entries


@lru_cache(maxsize=8)
def _rows(file: Path) -> dict[str, Path]:
    rows = csv.DictReader(io.StringIO(read_table(file), newline=""))
    if not {"original_video", "edited_result_path"} <= set(rows.fieldnames or ()):
        raise UserError(f"{file} is no table of results: it has no original_video and edited_result_path")
    found = {_key(Path(row["original_video"]).stem): file.parent / (row["edited_result_path"] or "") for row in rows}
    return {key: path for key, path in found.items() if path.is_file()}


def _key(text: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))
