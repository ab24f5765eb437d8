"""`v2edit bench`: from options to a folder of results, tables and a page. Torch is loaded when work begins."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, arg

from v2edit.backbones.families import BUILT_IN
from v2edit.backbones.hub import find
from v2edit.bench import suites
from v2edit.bench.methods import MethodConfig
from v2edit.bench.selection import select_methods, sweep_methods
from v2edit.errors import UserError
from v2edit.files import atomic_write, lock_folder
from v2edit.host import find_device
from v2edit.jobs.options import OUT, expect_folder
from v2edit.metrics.columns import COLUMNS, Column
from v2edit.metrics.lvlm_score import JudgeConfig
from v2edit.metrics.registry import DINO, Metric, MetricOptions, find_metrics
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.runs import PACKAGES, redact

if TYPE_CHECKING:
    from v2edit.bench.report import Table
    from v2edit.bench.scoring import ScoredTask
    from v2edit.bench.tasks import Task
    from v2edit.bench.trials import Trial
    from v2edit.metrics.attributes import Read

Seeds = Literal["reporting", "tuning"]


@dataclass(frozen=True)
class BenchOptions:
    """Which methods are compared on which tasks, and where."""

    suite: Annotated[str, arg(metavar="SUITE")] = "primitives"
    """The tasks: edits of clips of the built-in world (primitives), of its 3D scenes (scenes), or your own: a file
    (.jsonl, .json, .csv) with a task a line, or the folder of FiVE-Bench, LOVEU-TGVE, IVEBench or OpenVE-Bench."""
    quick: bool = False
    """One task of each kind instead of 10 (of scenes instead of 3; of your own 3 instead of all): minutes instead of
    hours."""
    methods: Annotated[tuple[str, ...], arg(metavar="METHOD", help_behavior_hint="")] = ()
    """Which methods (default: all, or with a sweep none but its own): v2edit, v2edit-own-mask, wo-progression, wo-inc,
    wo-pnc, wo-amr, wo-pnc-amr, wo-reconstruction (between the subtasks of scenes), v2v, flowedit, ddim-p2p; your own
    as package.module:Class; none for --results alone."""
    results: Annotated[tuple[str, ...], arg(metavar="NAME=FOLDER", help_behavior_hint="")] = ()
    """What other tools made of the same clips, in the same tables: found by the tasks' names, fitted to the sources."""
    metrics: Annotated[tuple[str, ...], arg(metavar="METRIC", help_behavior_hint="")] = ()
    """What is measured of your own suite (default: all that loads nothing): clip (CTIDS, CDC, …), pixels, lpips,
    structure, warp, flicker, colour; your own as module:function. Of built-in suites, besides their figures."""
    kinds: Annotated[tuple[str, ...], arg(metavar="KIND", help_behavior_hint="")] = ()
    """Which kinds of edit (default: all, of scenes eleven): recolour, reshape, resize, insert, remove, floor, sky,
    reshape-and-recolour, outline, wear, air, behind, exchange, multiply, motion, material, style, uncover; scenes have
    no motion and no style."""
    count: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Tasks of each kind."""
    frames: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """How many frames of each clip of your own suite are taken, from its beginning (default: all)."""
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
    ray: Annotated[str | None, arg(metavar="ADDRESS", help_behavior_hint="")] = None
    """Let Ray find the devices: the address of a cluster, whose machines share the folder, auto for the one that this
    machine belongs to, or local to start Ray here."""
    processes: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Edits at a time, each on one thread (default: one for each core; one on a GPU)."""
    clip: Annotated[str | None, arg(metavar="CLIP", help_behavior_hint="")] = None
    """A CLIP for CTIDS and CDC: a Hugging Face id or a folder, or primitives, the built-in one."""
    lpips: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The weights of LPIPS as .npz (default: those of the package lpips)."""
    dino: Annotated[str, arg(metavar="MODEL")] = DINO
    """The DINO of the metric structure: a Hugging Face id or a folder."""
    lvlm: Annotated[OmitArgPrefixes[LVLMConfig], arg(name="language-model")] = LVLMConfig()
    judging: Annotated[OmitArgPrefixes[JudgeConfig], arg(name="judge")] = JudgeConfig()
    judges: Annotated[tuple[str, ...], arg(metavar="MODEL", help_behavior_hint="")] = ()
    """More models at the judge's address; all are averaged, and how far they agree is told."""
    sheets: bool = False
    """Also write a contact sheet of each task."""
    out: Annotated[Path | None, arg(aliases=OUT, metavar="FOLDER", help_behavior_hint="")] = None
    """The folder of results and reports (default: runs/bench-<suite>-<seeds>)."""

    def __post_init__(self) -> None:
        expect_folder(self.out)
        for name in ("processes", "frames"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name} is {value}, expected 1 or more")
        if self.judges and self.judging.model is None:
            raise UserError("--judges are more judges: name the first with --judge")
        if self.suite in suites.BUILT_IN_SUITES and (self.results or self.frames):
            raise UserError(f"--{'results' if self.results else 'frames'} is for a suite of your own, by --suite FILE")
        if self.sweep and self.seeds == "reporting":
            raise UserError(
                "settings are chosen on tuning seeds, not on those reported: sweep without --seeds reporting"
            )

    @property
    def seed_set(self) -> Seeds:
        return self.seeds or ("tuning" if self.sweep else "reporting")

    @property
    def own_methods(self) -> list[str]:
        return [name for name in self.methods if ":" in name]

    @property
    def metric_options(self) -> MetricOptions:
        return MetricOptions(self.clip, self.lpips, self.dino)

    @property
    def report_name(self) -> str:
        """The stem of the report's files: one folder holds those of the whole suite, the quick one and of sweeps."""
        if not self.sweep:
            return "quick" if self.quick else "report"
        fields = (re.sub(r"\W+", "-", one.partition("=")[0]) for one in self.sweep)
        return "-".join(["sweep", *fields])

    def list_tasks(self, suite: suites.Suite) -> Sequence[Task]:
        """Return the tasks. Raises `UserError` for an unknown kind or a count that is out of range."""
        default = suite.quick_count if self.quick else suite.count
        return suite.tasks(self.seed_set, default if self.count is None else self.count, self.kinds)

    def list_methods(self, suite: suites.Suite) -> dict[str, MethodConfig]:
        """Return the methods to compare, by title. Raises `UserError` for one that is unknown."""
        selected = sweep_methods(suite.methods, self.sweep) if self.sweep else {}
        if self.methods == ("none",):
            if not self.results:
                raise UserError("--methods none leaves nothing to compare; it is for --results NAME=FOLDER")
            return {}
        if self.methods or not self.sweep:
            selected |= select_methods(suite.methods, self.methods)
        return selected


@dataclass(frozen=True)
class BenchReport:
    """A finished benchmark: its folder, and in it the tables (`.md`, and the paper's as `-tables.csv` and `.tex`), the
    rows (`.csv`), the page (`.html`) and the options (`.json`)."""

    folder: Path
    markdown: str
    files: list[Path]


def benchmark(
    options: BenchOptions = BenchOptions(),
    read: Read | None = None,
    on_progress: Callable[[int, int, str], None] = lambda done, total, what: None,
    command: Sequence[str] | None = None,
) -> BenchReport:
    """Compare V2Edit, its ablations and baselines on edits whose true result is known.

    Each result is stored: the same command goes on after an interruption, and a larger one takes what is there.
    `read` returns the answers to `questions.QUESTIONS` on a clip (default: the built-in world's classifier);
    `on_progress` gets the number of results, of how many, and the latest one's name; `command` is the command line, for
    the report. Raises `UserError`, in one line, for what the user can mend."""
    checkpoint = find(options.model)
    suite = suites.make_suite(options.suite, options.steps, options.settings, options.own_methods, options.frames)
    selected = options.list_methods(suite)
    metrics = find_metrics(options.metrics, options.clip is not None) if options.metrics or suite.of_files else []
    from v2edit.bench import score_cache, scoring, tool_results, trials, writing

    tasks = options.list_tasks(suite)
    label = suite.name if suite.of_files else f"{suite.name}-{options.seed_set}"
    folder = Path(os.path.abspath(options.out or Path("runs") / f"bench-{label}"))
    if suite.of_files and selected:
        tasks = writing.write_prompts_for_tasks(tasks, checkpoint, options.lvlm, folder / "prompts", on_progress)  # pyright: ignore[reportArgumentType]
    tools = tool_results.parse_results(options.results)
    if clash := tools.keys() & (suite.methods | suite.references).keys():
        raise UserError(f"--results {min(clash)} is the name of a method: give the tool another")
    given = tool_results.list_tool_trials(tasks, tools) if tools else []  # pyright: ignore[reportArgumentType]
    models = scoring.MetricModels(read, options.metric_options, tuple(one.name for one in metrics))
    models.load()  # What is missing is an error before the work, not after it.
    identity = trials.model_identity(checkpoint)
    if options.ray is None:
        find_device(options.device)  # an error before the work, too
    facts = {
        "command": None if command is None else redact(command),
        "tasks": [{"kind": task.kind, "name": task.name, "seed": task.seed} for task in tasks],
        "left out": list(suite.mistakes),
        "results": {title: str(tool.folder) for title, tool in tools.items()},
        "model": {"name": options.model, "identity": identity},
        **_settings(options, selected, metrics),
    }
    with lock_folder(folder, trials.LOCK, "benchmark"):
        with trials.open_pool(checkpoint, options.device, options.processes, options.ray) as (pool, place):
            facts["model"]["device"] = str(place)
            made = trials.list_trials(tasks, suite.references | selected, identity, place, folder / "results")
            order = {task: number for number, task in enumerate(tasks)}
            given = tool_results.from_starts(given, made)
            listed = sorted([*made, *given], key=lambda trial: order[trial.task])  # pyright: ignore[reportArgumentType]
            trials.run_trials(listed, pool, on_progress)
            sheets = folder / "sheets" if options.sheets else None
            films = folder / f"{options.report_name}-films"
            cache = None
            if read is None or suite.of_files:  # what another classifier sees is known by no checksum
                cache = score_cache.open_cache(folder / "scores", models.options, models.names)
            scored = scoring.score_trials(listed, models, pool, sheets, films, cache, on_progress)
        judged: list[str] = []
        columns = COLUMNS | {name: one for metric in metrics for name, one in metric.columns.items()}
        if options.judging.model is not None:
            scored, said = _judge(options, listed, suite, scored, folder, on_progress)
            judged += said
        return _write_report(folder, options, suite, facts, selected, scored, columns, judged)


def _settings(options: BenchOptions, selected: dict[str, MethodConfig], metrics: Sequence[Metric]) -> dict[str, Any]:
    """Return what is compared and measured, for the report's record."""
    return {
        "methods": {title: {"is": type(one).__name__, **asdict(one)} for title, one in selected.items()},  # pyright: ignore[reportArgumentType]
        "metrics": [one.name for one in metrics],
        "clip": options.clip,
        "versions": {name: version(name) for name in PACKAGES},
    }


def _judge(
    options: BenchOptions,
    trials: Sequence[Trial],
    suite: suites.Suite,
    scored: Sequence[ScoredTask],
    folder: Path,
    on_progress: Callable[[int, int, str], None],
) -> tuple[list[ScoredTask], list[str]]:
    """Return the scored tasks with what judges say of the methods, and notes on the judges."""
    from v2edit.bench.judging import judge_trials

    assert options.judging.model is not None
    models = list(dict.fromkeys([options.judging.model, *options.judges]))
    figures, notes = judge_trials(trials, suite.references, options.judging, models, folder / "judge", on_progress)
    named = f"{options.judging.queries} queries a task" if options.judging.queries > 1 else "1 query a task"
    notes = [f"LVLM score by {', '.join(models)}: {named}, {options.judging.frames} frames.", *notes]
    return [
        replace(
            one, rows=[replace(row, figures=row.figures | figures.get((row.method, row.task), {})) for row in one.rows]
        )
        for one in scored
    ], notes


def _write_report(
    folder: Path,
    options: BenchOptions,
    suite: suites.Suite,
    facts: dict[str, Any],
    selected: dict[str, MethodConfig],
    scored: Sequence[ScoredTask],
    columns: Mapping[str, Column],
    judged: Sequence[str],
) -> BenchReport:
    from v2edit.bench import page, paper_tables, report

    rows = [row for one in scored for row in one.rows]
    table = report.Table(rows, columns, suite.references)
    title = f"V2Edit benchmark: {suite.name}"
    summary = (
        f"{'' if suite.of_files else f'{options.seed_set} seeds; '}"
        f"model {facts['model']['name']} ({facts['model']['identity'][:16]});"
        f" {options.steps} steps where nothing else is said; {''.join(f'{one}; ' for one in options.settings)}"
        f"{facts['model']['device']}; {datetime.now(UTC):%Y-%m-%d}, v2edit {version('v2edit')}"
    )
    notes = "\n".join([*_notes(table, selected, suite, scored), *judged, ""])
    line = f"    {shlex.join(facts['command'])}\n\n" if facts["command"] else ""
    against = next(iter(selected), next(iter(facts["results"]), ""))
    by_kind = [[row for one in scored if one.task.has_start is scenes for row in one.rows] for scenes in (False, True)]
    of_kind = [report.Table(some, columns, suite.references) if some else None for some in by_kind]
    tables = paper_tables.paper_tables(*of_kind)
    own = f"{report.as_markdown(table, against)}{paper_tables.as_markdown(tables)}"
    markdown = f"# {title}\n\n{line}{summary}.\n{notes}\n{own}"
    contents = {
        ".md": markdown,
        ".csv": report.as_csv(rows, table.columns),
        ".html": page.as_html(scored, table, title, summary),
        ".json": json.dumps(facts, indent=1) + "\n",
        "-tables.csv": paper_tables.as_csv(tables),
        ".tex": paper_tables.as_latex(tables),
    }
    files = [folder / f"{options.report_name}{ending}" for ending in contents]
    for path, text in zip(files, contents.values(), strict=True):
        atomic_write(path, text.encode())
    return BenchReport(folder, markdown, files)


def _notes(
    table: Table, selected: dict[str, MethodConfig], suite: suites.Suite, scored: Sequence[ScoredTask]
) -> list[str]:
    """Return notes on methods that are the same configuration, on results that were made by other code, fitted or are
    missing, and on lines of the suite that were left out."""
    notes, first = [], {}
    for title, config in selected.items():
        if config in first.values():
            twin = next(name for name, one in first.items() if one == config)
            notes.append(f"{title} is the same configuration as {twin} here.")
        first.setdefault(title, config)
    if other_code := sum(one.other_code for one in scored):
        notes.append(f"{other_code} results were made by other code than today's; delete `results` to make them anew.")
    for title in table.methods:
        if (measured := table.measured(title)) < table.count:
            notes.append(f"{title} has results of {measured} of {table.count} tasks.")
    fitted = Counter(f"{title}: {text}" for one in scored for title, text in one.fitted)
    notes += [f"{what} ({count} task{'s' * (count > 1)})." for what, count in fitted.items()]
    if suite.mistakes:
        notes.append(f"{len(suite.mistakes)} lines of the suite were left out for their mistakes.")
    return notes
