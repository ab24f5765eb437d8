"""`v2edit bench`: from options to a folder of results, tables and a page. Torch is loaded when the work begins."""

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

from tyro.conf import Suppress, arg

from v2edit.backbones.families import BUILT_IN
from v2edit.backbones.hub import find
from v2edit.bench import methods as known_methods
from v2edit.bench import suites
from v2edit.errors import UserError
from v2edit.files import atomic_write, lock_folder
from v2edit.host import available_cores, find_device
from v2edit.runs import PACKAGES, redact

if TYPE_CHECKING:
    from v2edit.metrics.attributes import Read
else:
    Read = Any  # Its module loads torch; the command line that is made from the signature needs no more.

Seeds = Literal["reporting", "tuning"]


@dataclass(frozen=True)
class Report:
    """What a benchmark left: its folder, and in it the tables (`.md`), the rows (`.csv`), the page (`.html`) and what
    was run (`.json`)."""

    folder: Path
    markdown: str
    files: list[Path]


def benchmark(
    *,
    suite: suites.Name = "primitives",
    quick: bool = False,
    methods: Annotated[tuple[str, ...], arg(metavar="METHOD", help_behavior_hint="")] = (),
    kinds: Annotated[tuple[str, ...], arg(metavar="KIND", help_behavior_hint="")] = (),
    count: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
    seeds: Annotated[Seeds | None, arg(help_behavior_hint="")] = None,
    steps: int = 25,
    settings: Annotated[tuple[str, ...], arg(name="set", metavar="FIELD=VALUE", help_behavior_hint="")] = (),
    sweep: Annotated[tuple[str, ...], arg(metavar="FIELD=VALUE,VALUE", help_behavior_hint="")] = (),
    model: Annotated[str, arg(metavar="MODEL")] = BUILT_IN,
    device: Annotated[str, arg(metavar="DEVICE")] = "auto",
    processes: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
    clip: Annotated[str | None, arg(metavar="CLIP", help_behavior_hint="")] = None,
    sheets: bool = False,
    out: Annotated[Path | None, arg(aliases=["-o"], metavar="FOLDER", help_behavior_hint="")] = None,
    read: Annotated[Read | None, Suppress] = None,
    on_progress: Annotated[Callable[[int, int, str], None] | None, Suppress] = None,
    command: Annotated[Sequence[str] | None, Suppress] = None,
) -> Report:
    """Compare V2Edit, its ablations and baselines on edits whose true result is known.

    Results are kept one by one: the same command goes on where a stopped one stood, and a larger one takes what is
    there. Nothing is run twice.

    Args:
        suite: The tasks: edits of clips of the built-in world (primitives), or of its 3D scenes (scenes).
        quick: 3 tasks of each kind instead of 20 (of scenes 1 instead of 3): minutes instead of hours.
        methods: Which methods (default: all, or with a sweep none but its own): full, wo-progression, wo-inc, wo-pnc,
            wo-amr, wo-pnc-amr, wo-reconstruction (between the subtasks of scenes), v2v, flowedit, ddim-p2p.
        kinds: Which kinds of edit (default: all): recolour, reshape, resize, insert, remove, floor, sky,
            reshape-and-recolour (of scenes the first two and from insert to sky unless named).
        count: Tasks of each kind.
        seeds: The reporting seeds, or, to choose settings by, the tuning ones (default: those for a sweep).
        steps: Denoising steps, of all methods alike.
        settings: Settings of V2Edit (mixture=0.3), or of the method that is named before a dot (v2v.strength=0.6); of
            scenes also their reconstruction's (fit.refit_steps=600).
        sweep: The same with several values: every combination is a method, compared with the one it varies.
        model: The built-in model, a Hugging Face id or a local diffusers folder.
        device: A torch device, such as cpu or cuda:1; auto takes a GPU where there is one.
        processes: Edits at a time, each on one thread (default: one for each core; one on a GPU).
        clip: A CLIP for CTIDS and CDC: a Hugging Face id or a folder, or primitives, the built-in one.
        sheets: Also write a contact sheet of each task.
        out: The folder of results and reports (default: runs/bench-<suite>-<seeds>).
        read: Tells the scene that a clip shows; by default the reader of the built-in world.
        on_progress: Called with how much is done, of how much, and what it was.
        command: The command line to note in the report.

    Raises:
        UserError: for what the user can mend, in one line.
    """
    if seeds is None:
        seeds = "tuning" if sweep else "reporting"
    elif sweep and seeds == "reporting":
        raise UserError("settings are chosen on tuning seeds and reported on others: sweep without --seeds reporting")
    if processes is not None and processes < 1:
        raise UserError(f"--processes is {processes}, expected 1 or more")
    checkpoint = find(model)
    chosen = suites.suite_of(suite, steps, settings)
    compared = known_methods.swept(chosen.methods, sweep) if sweep else {}
    if methods or not sweep:
        compared |= known_methods.chosen(chosen.methods, methods)

    import torch

    from v2edit.bench import page, report, run, scoring

    if count is None:
        count = chosen.quick_count if quick else chosen.count
    todo = chosen.tasks(seeds, count, kinds)
    judges = scoring.Judges(read, clip)
    judges.prepare()  # What is missing is missed before the work, not after it.
    where = str(find_device(device))
    if processes is None:
        processes = 1 if torch.device(where).type != "cpu" else available_cores()
    workers = run.Workers(checkpoint, where, processes)
    folder = Path(os.path.abspath(out or Path("runs") / f"bench-{suite}-{seeds}"))
    with lock_folder(folder, run.LOCK, "benchmark"):
        jobs = run.jobs_of(todo, known_methods.REFERENCES | compared, workers, folder / "results")
        with run.started(workers) as pool:
            run.run(jobs, pool, on_progress or _silent)
            pictures = folder / "sheets" if sheets else None
            scored = scoring.score(jobs, judges, pool, on_progress or _silent, pictures)

        rows = [row for one in scored for row in one.rows]
        table = report.Table(rows)
        title = f"V2Edit benchmark: {suite}"
        facts = (
            f"{seeds} seeds; model {model} ({workers.model_identity[:16]}); {steps} steps where nothing else is said;"
            f" {''.join(f'{one}; ' for one in settings)}{where}; {datetime.now(UTC):%Y-%m-%d},"
            f" v2edit {version('v2edit')}"
        )
        notes = _notes(compared, sum(one.other_code for one in scored))
        line = f"    {shlex.join(redact(command))}\n\n" if command else ""
        markdown = f"# {title}\n\n{line}{facts}.\n{notes}\n{report.as_markdown(table, next(iter(compared)))}"
        facts_json = {
            "command": None if command is None else redact(command),
            "tasks": [{"kind": task.kind, "seed": task.seed} for task in todo],
            "methods": {title: {"is": type(one).__name__, **asdict(one)} for title, one in compared.items()},  # pyright: ignore[reportArgumentType]
            "model": {"name": model, "identity": workers.model_identity, "device": where},
            "clip": clip,
            "versions": {name: version(name) for name in PACKAGES},
        }
        stem = _stem(quick, sweep)
        contents = {
            ".md": markdown,
            ".csv": report.as_csv(rows, table.measures),
            ".html": page.as_html(scored, table, title, facts),
            ".json": json.dumps(facts_json, indent=1) + "\n",
        }
        for ending, text in contents.items():
            atomic_write(folder / f"{stem}{ending}", text.encode())
    return Report(folder, markdown, [folder / f"{stem}{ending}" for ending in contents])


def _notes(compared: dict[str, known_methods.Settings], other_code: int) -> str:
    """What a reader of the tables must know."""
    notes, first = [], {}
    for title, settings in compared.items():
        if settings in first.values():
            twin = next(name for name, one in first.items() if one == settings)
            notes.append(f"{title} is the same configuration as {twin} here.")
        first.setdefault(title, settings)
    if other_code:
        notes.append(f"{other_code} results were made by other code than today's; delete `results` to make them anew.")
    return "\n".join([*notes, ""])


def _stem(quick: bool, sweep: Sequence[str]) -> str:
    """What the report's files are called: a folder holds those of the whole suite, of the quick one and of sweeps."""
    if not sweep:
        return "quick" if quick else "report"
    fields = (re.sub(r"\W+", "-", one.partition("=")[0]) for one in sweep)
    return "-".join(["sweep", *fields])


def _silent(done: int, total: int, what: str) -> None:
    pass
