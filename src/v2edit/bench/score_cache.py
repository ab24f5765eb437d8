"""Figures and films that are kept beside the results: a run in which nothing has changed measures nothing again.

A figure's key is a checksum of all that it depends on: the result's and its source's files, what it is compared with,
what measures it, and the code. A film's is one of all results that it shows.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from v2edit.bench.trials import Trial, code_digest, digest_of
from v2edit.files import atomic_write, read_json
from v2edit.metrics.registry import MetricOptions, import_object
from v2edit.runs import PACKAGES, fingerprint_input

# All code that figures and films are made by.
CODE = ("bench", "editing/resize.py", "metrics", "primitives", "scenes", "video")


@dataclass(frozen=True)
class Scores:
    """What is kept of one result: its figures by name, what was done to fit it, and the checksum of the code that made
    it; or only why it was left out."""

    figures: Mapping[str, float]
    fitted: str = ""
    code: str = ""
    is_left_out: bool = False


@dataclass(frozen=True)
class Film:
    """A task's film, as an MP4 file of clips side by side: the order of its `titles`, each one's `size` (width,
    height), its frames, and the checksum of its file."""

    titles: list[str]
    size: tuple[int, int]
    frames: int
    checksum: str


@dataclass(frozen=True)
class ScoreCache:
    """The folder of figures and films; `measuring` is what all figures depend on (`open_cache`). Each file is read
    for its checksum once: results stay as they are while they are scored."""

    folder: Path
    measuring: str
    contents: dict[Path, str] = field(default_factory=dict, compare=False, repr=False)

    def scores_path(self, trial: Trial) -> Path:
        """Return the file of a result's figures."""
        task = trial.task
        start = trial.start and self._content(trial.start)
        parts = [self.measuring, task.identity, task.measured_with, trial.title, self._content(trial.path), start]
        return self.folder / f"{_key(parts)}.json"

    def film_path(self, trials: Sequence[Trial]) -> Path:
        """Return the file of what is known of a task's film."""
        task, shown = trials[0].task, [(one.title, self._content(one.path)) for one in trials]
        return self.folder / f"{_key([self.measuring, task.identity, task.measured_with, shown])}-film.json"

    def _content(self, path: Path) -> str:
        if path not in self.contents:
            self.contents[path] = content_of(path)
        return self.contents[path]

    def read_scores(self, path: Path) -> Scores | None:
        """Return the figures that a file keeps, or None where there are none."""
        return _read(path, lambda kept: Scores(_with_nan(kept.pop("figures")), **kept))

    def read_film(self, path: Path, film: Path) -> Film | None:
        """Return what is kept of a film, or None where there is nothing, or its file is not what was written."""
        found = _read(path, lambda kept: Film(kept["titles"], (kept["size"][0], kept["size"][1]), kept["frames"],
                                              kept["checksum"]))  # fmt: skip
        return found if found is not None and film.is_file() and checksum_of(film) == found.checksum else None

    def write(self, path: Path, kept: Scores | Film) -> None:
        """Keep figures, or what is known of a film."""
        path.parent.mkdir(exist_ok=True)
        content = asdict(kept)
        if isinstance(kept, Scores):
            content["figures"] = {name: None if math.isnan(one) else one for name, one in kept.figures.items()}
        atomic_write(path, json.dumps(content).encode())


def open_cache(folder: Path, options: MetricOptions, names: Sequence[str]) -> ScoreCache:
    """Return the cache of what these metrics measure, which depends on code, versions, and the files they load."""
    package = Path(__file__).parents[1]
    own = [_source_of(name) for name in names if ":" in name]
    models = [_model_content(one) for one in (options.clip, options.lpips, options.dino)]
    weights = [digest_of(package / "weights" / name) for name in ("classifier", "clip")]
    versions = {name: version(name) for name in PACKAGES}
    parts = [code_digest(CODE), versions, weights, list(names), own, models, options.device]
    return ScoreCache(folder, _key(parts))


def content_of(path: Path) -> str:
    """Return the checksum of a result: of its file, with the video beside it where there is one, or of a folder."""
    if path.is_dir():
        return digest_of(path)
    if not path.is_file():
        return ""
    beside = path.with_suffix(".mkv") if path.suffix == ".npz" else path
    return "".join(checksum_of(one) for one in dict.fromkeys((path, beside)) if one.is_file())


def checksum_of(file: Path) -> str:
    return fingerprint_input(file)["sha256"]


def _model_content(name: str | Path | None) -> Any:
    """Return what tells a model from another: its name, and of a local folder its files' names, sizes and times."""
    if name is None or not Path(name).exists():
        return str(name)
    path = Path(name)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [str(name), [(one.name, (at := one.stat()).st_size, at.st_mtime_ns) for one in files if one.is_file()]]


@cache
def _source_of(name: str) -> str:
    """Return the checksum of the file that an own metric is in."""
    file = inspect.getsourcefile(import_object(name, "a function"))
    return "" if file is None else checksum_of(Path(file))


def _key(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _with_nan(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in figures.items()}


def _read(path: Path, parse: Callable[[dict[str, Any]], Any]) -> Any:
    try:
        return parse(read_json(path))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or half of one: it is measured again
