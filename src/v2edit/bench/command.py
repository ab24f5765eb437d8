"""`v2edit bench`: from options to a folder of results, tables and a page. Torch is loaded when work begins."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from v2edit.backbones.families import BUILT_IN
from v2edit.backbones.hub import find
from v2edit.bench import suites
from v2edit.bench.methods import REFERENCES, MethodConfig
from v2edit.bench.selection import select_methods, sweep_methods
from v2edit.errors import UserError
from v2edit.files import atomic_write, lock_folder
from v2edit.host import available_cores, find_device
from v2edit.jobs.options import OUT, expect_folder
from v2edit.runs import PACKAGES, redact

if TYPE_CHECKING:
    from v2edit.bench.scoring import ScoredTask
    from v2edit.bench.tasks import BenchTask
    from v2edit.metrics.attributes import Classify

Seeds = Literal["reporting", "tuning"]


@dataclass(frozen=True)
class BenchOptions:
    """Which methods are compared on which tasks, and where."""

    suite: suites.Name = "primitives"
    """The tasks: edits of clips of the built-in world (primitives), or of its 3D scenes (scenes)."""
    quick: bool = False
    """3 tasks of each kind instead of 20 (of scenes 1 instead of 3): minutes instead of hours."""
    methods: Annotated[tuple[str, ...], arg(metavar="METHOD", help_behavior_hint="")] = ()
    """Which methods (default: all, or with a sweep none but its own): v2edit, v2edit-own-mask, wo-progression, wo-inc,
    wo-pnc, wo-amr, wo-pnc-amr, wo-reconstruction (between the subtasks of scenes), v2v, flowedit, ddim-p2p."""
    kinds: Annotated[tuple[str, ...], arg(metavar="KIND", help_behavior_hint="")] = ()
    """Which kinds of edit (default: all): recolour, reshape, resize, insert, remove, floor, sky, reshape-and-recolour
    (of scenes the first two and from insert to sky unless named)."""
    count: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Tasks of each kind."""
    seeds: Annotated[Seeds | None, arg(help_behavior_hint="")] = None
    """The reporting seeds, or, to choose settings by, the tuning ones (default: those for a sweep)."""
    steps: int = 25
    """Denoising steps, of all methods alike."""
    settings: Annotated[tuple[str, ...], arg(name="set", metavar="FIELD=VALUE", help_behavior_hint="")] = ()
    """Settings of V2Edit (mixture=0.3), or of the method that is named before a dot (v2v.strength=0.6); of scenes also
    their reconstruction's (fit.refit_steps=600)."""
    sweep: Annotated[tuple[str, ...], arg(metavar="FIELD=VALUE,VALUE", help_behavior_hint="")] = ()
    """The same with several values: every combination is a method, compared with the one it varies."""

    model: Annotated[str, arg(metavar="MODEL")] = BUILT_IN
    """The built-in model, a Hugging Face id or a local diffusers folder."""
    device: Annotated[str, arg(metavar="DEVICE")] = "auto"
    """A torch device, such as cpu, cuda:1, mps or xpu; auto takes CUDA where there is one."""
    processes: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Edits at a time, each on one thread (default: one for each core; one on a GPU)."""
    clip: Annotated[str | None, arg(metavar="CLIP", help_behavior_hint="")] = None
    """A CLIP for CTIDS and CDC: a Hugging Face id or a folder, or primitives, the built-in one."""
    sheets: bool = False
    """Also write a contact sheet of each task."""
    out: Annotated[Path | None, arg(aliases=OUT, metavar="FOLDER", help_behavior_hint="")] = None
    """The folder of results and reports (default: runs/bench-<suite>-<seeds>)."""

    def __post_init__(self) -> None:
        expect_folder(self.out)
        if self.processes is not None and self.processes < 1:
            raise UserError(f"--processes is {self.processes}, expected 1 or more")
        if self.sweep and self.seeds == "reporting":
            raise UserError(
                "settings are chosen on tuning seeds, not on those reported: sweep without --seeds reporting"
            )

    @property
    def seed_set(self) -> Seeds:
        return self.seeds or ("tuning" if self.sweep else "reporting")

    @property
    def report_name(self) -> str:
        """The stem of the report's files: one folder holds those of the whole suite, the quick one and of sweeps."""
        if not self.sweep:
            return "quick" if self.quick else "report"
        fields = (re.sub(r"\W+", "-", one.partition("=")[0]) for one in self.sweep)
        return "-".join(["sweep", *fields])

    def list_tasks(self, suite: suites.Suite) -> Sequence[BenchTask]:
        """Return the tasks. Raises `UserError` for an unknown kind or a count that is out of range."""
        default = suite.quick_count if self.quick else suite.count
        return suite.tasks(self.seed_set, default if self.count is None else self.count, self.kinds)

    def list_methods(self, suite: suites.Suite) -> dict[str, MethodConfig]:
        """Return the methods to compare, by title. Raises `UserError` for one that is unknown."""
        selected = sweep_methods(suite.methods, self.sweep) if self.sweep else {}
        if self.methods or not self.sweep:
            selected |= select_methods(suite.methods, self.methods)
        return selected


@dataclass(frozen=True)
class BenchReport:
    """A finished benchmark: its folder, and in it the tables (`.md`), the rows (`.csv`), the page (`.html`) and the
    options (`.json`)."""

    folder: Path
    markdown: str
    files: list[Path]


def benchmark(
    options: BenchOptions = BenchOptions(),
    classify: Classify | None = None,
    on_progress: Callable[[int, int, str], None] = lambda done, total, what: None,
    command: Sequence[str] | None = None,
) -> BenchReport:
    """Compare V2Edit, its ablations and baselines on edits whose true result is known.

    Each result is stored: the same command goes on after an interruption, and a larger one takes what is there.
    `classify` returns the scene that a clip shows (default: the built-in world's classifier); `on_progress` gets the
    number of results, of how many, and the latest one's name; `command` is the command line, for the report. Raises
    `UserError`, in one line, for what the user can mend."""
    checkpoint = find(options.model)
    suite = suites.make_suite(options.suite, options.steps, options.settings)
    selected = options.list_methods(suite)
    from v2edit.bench import scoring, trials

    tasks = options.list_tasks(suite)
    models = scoring.MetricModels(classify, options.clip)
    models.load()  # A CLIP that is missing is an error before the work, not after it.
    place, identity = find_device(options.device), trials.model_identity(checkpoint)
    processes = options.processes or (available_cores() if place.type == "cpu" else 1)
    folder = Path(os.path.abspath(options.out or Path("runs") / f"bench-{options.suite}-{options.seed_set}"))
    facts = {
        "command": None if command is None else redact(command),
        "tasks": [{"kind": task.kind, "seed": task.seed} for task in tasks],
        "methods": {title: {"is": type(one).__name__, **asdict(one)} for title, one in selected.items()},  # pyright: ignore[reportArgumentType]
        "model": {"name": options.model, "identity": identity, "device": str(place)},
        "clip": options.clip,
        "versions": {name: version(name) for name in PACKAGES},
    }
    with lock_folder(folder, trials.LOCK, "benchmark"):
        listed = trials.list_trials(tasks, REFERENCES | selected, identity, place, folder / "results")
        with trials.open_pool(checkpoint, place, processes) as pool:
            trials.run_trials(listed, pool, on_progress)
            sheets = folder / "sheets" if options.sheets else None
            scored = scoring.score_trials(listed, models, pool, sheets, on_progress)
        return _write_report(folder, options, facts, selected, scored)


def _write_report(
    folder: Path,
    comparison: BenchOptions,
    facts: dict[str, Any],
    selected: dict[str, MethodConfig],
    scored: Sequence[ScoredTask],
) -> BenchReport:
    from v2edit.bench import page, report

    rows = [row for one in scored for row in one.rows]
    table = report.Table(rows)
    title = f"V2Edit benchmark: {comparison.suite}"
    summary = (
        f"{comparison.seed_set} seeds; model {facts['model']['name']} ({facts['model']['identity'][:16]});"
        f" {comparison.steps} steps where nothing else is said; {''.join(f'{one}; ' for one in comparison.settings)}"
        f"{facts['model']['device']}; {datetime.now(UTC):%Y-%m-%d}, v2edit {version('v2edit')}"
    )
    notes = _notes(selected, sum(one.other_code for one in scored))
    line = f"    {shlex.join(facts['command'])}\n\n" if facts["command"] else ""
    markdown = f"# {title}\n\n{line}{summary}.\n{notes}\n{report.as_markdown(table, next(iter(selected)))}"
    contents = {
        ".md": markdown,
        ".csv": report.as_csv(rows, table.columns),
        ".html": page.as_html(scored, table, title, summary),
        ".json": json.dumps(facts, indent=1) + "\n",
    }
    files = [folder / f"{comparison.report_name}{ending}" for ending in contents]
    for path, text in zip(files, contents.values(), strict=True):
        atomic_write(path, text.encode())
    return BenchReport(folder, markdown, files)


def _notes(selected: dict[str, MethodConfig], other_code: int) -> str:
    """Return notes on methods that are the same configuration, and on results made by other code."""
    notes, first = [], {}
    for title, config in selected.items():
        if config in first.values():
            twin = next(name for name, one in first.items() if one == config)
            notes.append(f"{title} is the same configuration as {twin} here.")
        first.setdefault(title, config)
    if other_code:
        notes.append(f"{other_code} results were made by other code than today's; delete `results` to make them anew.")
    return "\n".join([*notes, ""])
