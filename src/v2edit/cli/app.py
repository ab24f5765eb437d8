"""The `v2edit` command: parse, call, show.

Options are made from the signatures of the functions called. Exit codes: 0 done, 1 a bug (with a traceback),
2 a mistake in the command or its input, in one line, 130 interrupted.
"""

import functools
import inspect
import io
import itertools
import json
import logging
import math
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from tyro.conf import OmitArgPrefixes, Positional, arg
from tyro.extras import SubcommandApp

from v2edit.batch.command import batch_status, run_batch
from v2edit.bench.command import benchmark
from v2edit.cli import output as progress
from v2edit.cli.output import DryRunOptions, JsonReporter, OutputOptions, Reporter, TextReporter, reporter_for
from v2edit.errors import UserError
from v2edit.host import memory_advice
from v2edit.jobs.estimate import duration, estimate_edit, estimate_scene
from v2edit.jobs.evaluate import evaluate
from v2edit.jobs.resume import resume_run
from v2edit.jobs.scene import edit_scene
from v2edit.jobs.video import edit_video, preview_edit
from v2edit.runs import RunState, RunWriter, find_runs, read_run_state, redact

if TYPE_CHECKING:
    from v2edit.batch.state import BatchStatus
    from v2edit.jobs.estimate import Estimate
    from v2edit.prompts import PromptPair
    from v2edit.prompts.comparison import PromptComparison


def edit(words: Sequence[str], /, *args: Any, shown: Reporter, dry_run: bool, **options: Any) -> None:
    """Run `edit_video` and show what came of it, or what it would take."""
    if dry_run:
        return told_beforehand(estimate_edit, args, options, shown)
    with shown.working():
        run = edit_video(*args, **options | {"on_progress": shown.edit, "command": ["v2edit", *words]})
    made(run.folder, run.prompts, shown)


def resume(words: Sequence[str], /, folder: str | Path, *, shown: Reporter, **options: Any) -> None:
    """Run `resume_run` and show what came of it."""
    step = shown.stage if read_run_state(folder).kind == "scene" else shown.edit
    with shown.working():
        run = resume_run(folder, **options | {"on_progress": step, "command": ["v2edit", *words]})
    made(run.folder, run.prompts, shown)


def list_runs(folder: Annotated[Path, Positional, arg(metavar="FOLDER")] = Path("runs")) -> list[RunState]:
    """List the runs in a folder: which are running, stopped, failed or done, how far, and how long they still take.

    Args:
        folder: The folder that run folders are in, or one of them.
    """
    return find_runs(folder)


def listed(*args: Any, shown: Reporter, **options: Any) -> None:
    """Run `list_runs` and show what it finds."""
    found = list_runs(*args, **options)
    width = max((len(str(one.folder)) for one in found), default=0)
    for one in found:
        share = f"{one.done}/{one.total} steps" if one.total else ""
        left = "" if one.seconds_left is None or one.state == "done" else f"{duration(one.seconds_left)} left"
        started = f"{datetime.fromisoformat(one.started).astimezone():%Y-%m-%d %H:%M}"
        line = f"{one.folder!s:{width}}  {one.state:7}  {started}  {share:>16}  {left}"
        print(f"{line}  {one.reason or ''}".rstrip())
    shown.result(runs=[asdict(one) for one in found])


def scene(words: Sequence[str], /, *args: Any, shown: Reporter, dry_run: bool, **options: Any) -> None:
    """Run `edit_scene` and show what came of it, or what it would take."""
    if dry_run:
        return told_beforehand(estimate_scene, args, options, shown)
    with shown.working():
        run = edit_scene(*args, **options | {"on_stage": shown.stage, "command": ["v2edit", *words]})
    made(run.folder, run.prompts, shown)
    print(f"to look around in it: v2edit view {shlex.quote(str(run.folder))}")


def made(folder: Path, prompts: "PromptPair", shown: Reporter) -> None:
    """A finished run."""
    files = sorted(folder.iterdir())
    print(f"source prompt: {prompts.source}\ntarget prompt: {prompts.target}", *files, sep="\n")
    shown.result(folder=folder, files=files, prompts=asdict(prompts))


def told_beforehand(plans: Callable[..., "Estimate"], args: Any, options: dict[str, Any], shown: Reporter) -> None:
    """What a run would do and take, with the start of this process, which the run's own will have, too."""
    starting = progress.age()
    plan = plans(*args, **options)
    plan = replace(plan, seconds={"starting": starting} | plan.seconds)
    print(plan.text)
    shown.result(**plan.figures)


def prompts(*args: Any, shown: Reporter, **options: Any) -> None:
    """Run `preview_edit` and show what it finds: in colour on a terminal, with plain marks elsewhere."""
    found = preview_edit(*args, **options)
    source, *others = found.prompts.chain
    names = [*(f"step {k}" for k, _ in enumerate(found.prompts.intermediate, start=1)), "target"]
    print(f"source  {source}")
    for name, text, one in zip(names, others, found.comparisons, strict=True):
        print(f"{name:6}  {text}\n  diff  ", end="")
        show_pieces(one)
        print(f"        {one.summary}")
    counts, each = len(found.forwards), " + ".join(map(str, found.forwards))
    what = f"{counts} subtask{'s' if counts > 1 else ''} of {found.steps} denoising steps (of {found.of_steps})"
    print(f"plan    {what}: {each} forwards (v2edit edit --dry-run tells their time and memory)")
    if (out := options.get("out")) is not None:
        print(f"saved   {out}")
    shown.result(
        prompts=asdict(found.prompts),
        shared=[one.summary for one in found.comparisons],
        steps=found.steps,
        forwards=found.forwards,
        files=[] if out is None else [out],
    )


def measured(*args: Any, shown: Reporter, **options: Any) -> None:
    """Run `evaluate` and show its table."""
    with shown.working():
        found = evaluate(*args, **options | {"on_progress": shown.count})
    print(found.markdown)
    rows = {run: {k: x if math.isfinite(x) else None for k, x in row.items()} for run, row in found.rows.items()}
    shown.result(rows=rows, files=[] if options.get("out") is None else [options["out"]])


def show_pieces(found: "PromptComparison") -> None:
    """A comparison's texts: what goes in red, what comes in green, what is cut dim."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    if console.color_system is None or console.no_color:
        print(found.marked)
        return
    styles = {"shared": "", "removed": "red strike", "added": "green", "cut": "dim strike"}
    console.print(Text.assemble(*((text, styles[kind]) for kind, text in found.pieces)))


def view(run: Annotated[Path, Positional, arg(metavar="RUN")], port: int = 8080) -> None:
    """Look around in a scene before and after its edit, in a browser.

    Args:
        run: The run folder of v2edit scene, or a splat .ply.
        port: The local port to serve on.
    """
    from v2edit.scenes.viewer import serve

    serve(run, port)


def viewed(*args: Any, shown: Reporter, **options: Any) -> None:
    view(*args, **options)


def sample(
    out: Annotated[Path, arg(aliases=["-o"], metavar="FOLDER")],
    seed: int = 0,
    kind: Annotated[str | None, arg(metavar="KIND", help_behavior_hint="")] = None,
    scene: bool = False,
) -> tuple[Path, str]:
    """Make a clip or a scene of the built-in world, with its prompts, an edit to try and that edit's true result.

    Args:
        out: The folder to make.
        seed: Which clip.
        kind: Which kind of edit: recolour, reshape, resize, insert, remove, floor, sky or reshape-and-recolour
            (default: any).
        scene: Make posed images of a still scene instead of a clip.
    """
    kind = kind and kind.replace("-", " ")
    with RunWriter(out) as run:
        if scene:
            from v2edit.scenes.primitives import write_task

            write_task(seed, run.folder, kind)
        else:
            from v2edit.primitives.sample import write_sample

            write_sample(seed, run.folder, kind)
    facts, words = ("scene.json", ["scene", out]) if scene else ("clip.json", ["edit", out / "clip.mp4"])
    instruction = json.loads((run.out / facts).read_text(encoding="utf-8"))["instruction"]
    return run.out, f'v2edit {shlex.join(map(str, words))} "{instruction}"'


def sampled(*args: Any, shown: Reporter, **options: Any) -> None:
    """Run `sample` and show what it made."""
    folder, command = sample(*args, **options)
    files = sorted(folder.iterdir())
    print(*files, f"try: {command}", sep="\n")
    shown.result(folder=folder, files=files, command=command)


def bench(words: Sequence[str], /, *, shown: Reporter, **options: Any) -> None:
    """Run `benchmark`, showing how far it is, and show its tables."""
    try:
        with shown.working():
            report = benchmark(**options | {"on_progress": shown.count, "command": ["v2edit", *words]})
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from here") from None
    print(report.markdown, *report.files, sep="\n")
    shown.result(folder=report.folder, files=report.files)


def batch(words: Sequence[str], /, *args: Any, shown: Reporter, **options: Any) -> None:
    """Run `run_batch`, showing how far it is. Raises `UserError` when all that could be done is, and some failed."""
    try:
        with shown.working():
            status = run_batch(*args, **options | {"on_progress": shown.count, "command": ["v2edit", *words]})
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from here") from None
    show_status(status, shown)
    if status.failed:
        again = "--retry-failed tries them again" if len(status.failed) > 1 else "--retry-failed tries it again"
        raise UserError(f"{len(status.failed)} of {len(status.tasks)} tasks failed, for the reasons above; {again}")


def show_status(status: "BatchStatus", shown: Reporter) -> None:
    """What is done, and of the rest a line each, as far as there is something to say."""
    counts = {"done": len(status.done), "running": len(status.running), "waiting": status.waiting}
    counts["failed"] = len(status.failed)
    print(f"{len(status.tasks)} tasks: {', '.join(f'{count} {what}' for what, count in counts.items() if count)}")
    for one in status.running:
        print(f"running  {one.name}: {one.worker}, attempt {one.attempt}, since {one.since}")
    for one in status.failed:
        print(f"failed   {one.name}: {one.reason} ({one.attempts} attempt{'s' if one.attempts > 1 else ''})")
    if not status.active and status.waiting:
        print("no batch is at work here; the same command goes on")
    print(status.folder / "index.html")
    shown.result(
        folder=status.folder,
        counts=counts,
        failed=[{"name": one.name, "reason": one.reason, "attempts": one.attempts} for one in status.failed],
    )


def batched(*args: Any, shown: Reporter, **options: Any) -> None:
    """Show how far a batch is."""
    show_status(batch_status(*args, **options), shown)


def parse(words: Sequence[str], aloud: bool = True) -> functools.partial[None]:
    """What a command line asks for, ready to be called with a reporter_for.

    Raises `SystemExit` as every parser does, having said why, or where this is not to be said aloud `UserError`;
    `UserError`, too, for values that the dataclasses refuse.
    """

    def deferred(
        function: Callable[..., Any], call: Callable[..., None], speaks: type[OutputOptions] = OutputOptions
    ) -> Callable[..., functools.partial[None]]:
        """The command of a function: its options and help come from there, with those on how the command speaks."""

        @functools.wraps(function)
        def bind(*args: Any, showing: OutputOptions, **options: Any) -> functools.partial[None]:
            if isinstance(showing, DryRunOptions):
                options["dry_run"] = showing.dry_run
            return functools.partial(call, *args, **options)

        hint: Any = OmitArgPrefixes[speaks]
        del bind.__wrapped__  # or the parser would look there, and see none of what is added here
        own = inspect.signature(function)
        more = inspect.Parameter("showing", inspect.Parameter.KEYWORD_ONLY, default=speaks(), annotation=hint)
        bind.__signature__ = own.replace(parameters=[*own.parameters.values(), more])
        bind.__annotations__ = get_type_hints(function, include_extras=True) | {"showing": hint}
        return bind

    app = SubcommandApp()
    app.command(name="edit")(deferred(edit_video, functools.partial(edit, words), DryRunOptions))
    app.command(name="prompts")(deferred(preview_edit, prompts))
    app.command(name="eval")(deferred(evaluate, measured))
    app.command(name="scene")(deferred(edit_scene, functools.partial(scene, words), DryRunOptions))
    app.command(name="resume")(deferred(resume_run, functools.partial(resume, words)))
    app.command(name="runs")(deferred(list_runs, listed))
    app.command(name="view")(deferred(view, viewed))
    app.command(name="sample")(deferred(sample, sampled))
    app.command(name="batch")(deferred(run_batch, functools.partial(batch, words)))
    app.command(name="batch-status")(deferred(batch_status, batched))
    app.command(name="bench")(deferred(benchmark, functools.partial(bench, words)))

    read = functools.partial(app.cli, prog="v2edit", description="Edit a video with one sentence.", args=words)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return read()
    except SystemExit as stop:
        if not stop.code:
            raise
        # A dataclass's own refusal is one line already: it needs no box around it.
        cause: BaseException | None = stop
        while cause := cause.__context__:
            if isinstance(cause, UserError):
                raise cause from None
    if not aloud:
        raise UserError(" ".join(re.sub("[│╭╮╰╯─]", " ", said.getvalue()).split()))
    return read()  # Once more, aloud.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (the process's own by default) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if words == ["--version"]:
        from v2edit import __version__

        print(f"v2edit {__version__}")
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be no text that a terminal takes
        sys.stdout.reconfigure(errors="backslashreplace")
    shown: Reporter = TextReporter()
    told = logging.getLogger("v2edit")
    try:
        shown = reporter_for(OutputOptions.of(words))
        told.addHandler(notes := Notes(shown))
        try:
            task = parse(flags_last(words), aloud=not isinstance(shown, JsonReporter))
            shown.start(redact(["v2edit", *words]))
            with shown.alone(), termination_as_interrupt():
                task(shown=shown)
        finally:
            told.removeHandler(notes)
    except (UserError, OSError) as error:
        return fail(shown, str(error))
    except KeyboardInterrupt as stop:
        shown.interrupted(str(stop) or "nothing was written", 130)
        return 130
    except Exception as error:
        if short := memory_advice(error):
            return fail(shown, short)
        shown.bug(error, 1)
        raise
    return 0


def flags_last(words: Sequence[str]) -> list[str]:
    """The command line with what is said before the command, on how it speaks, after it, where its parser looks."""
    own = list(itertools.takewhile({"--quiet", "-q", "--json"}.__contains__, words))
    rest = list(words[len(own) :])
    end = rest.index("--") if "--" in rest else len(rest)
    return [*rest[:end], *own, *rest[end:]]


def fail(shown: Reporter, message: str) -> int:
    shown.error(" ".join(message.split()), 2)
    return 2


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Whoever ends the process politely gets the cleaning up that Ctrl-C gets."""
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Notes(logging.Handler):
    """What the package logs, shown one line each."""

    def __init__(self, shown: Reporter) -> None:
        super().__init__()
        self.shown = shown

    def emit(self, record: logging.LogRecord) -> None:
        self.shown.note(record.getMessage())
