"""The `v2edit` command: parse, call, show.

Options are made from the signatures of the functions called. Exit codes: 0 done, 1 a bug (with a traceback),
2 a mistake in the command or its input, in one line, 130 interrupted.
"""

import functools
import io
import json
import logging
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg
from tyro.extras import SubcommandApp

from v2edit.api import edit_video, preview_edit
from v2edit.api_scene import SceneRun, edit_scene
from v2edit.bench.command import benchmark
from v2edit.errors import UserError
from v2edit.metrics.evaluate import evaluate
from v2edit.resume import resume_run
from v2edit.runs import RunWriter, runs_in, state_of

if TYPE_CHECKING:
    from v2edit.api import EditRun
    from v2edit.editing.editor import Progress
    from v2edit.prompts.view import Comparison
    from v2edit.scenes.edit import Stage


def edit(words: Sequence[str], /, *args: Any, **options: Any) -> None:
    """Run `edit_video`, showing how far it is."""
    with progress_display() as show:
        show_run(edit_video(*args, **options | {"on_progress": show, "command": ["v2edit", *words]}))


def show_run(run: "EditRun | SceneRun") -> None:
    print(f"source prompt: {run.prompts.source}\ntarget prompt: {run.prompts.target}")
    for path in sorted(run.folder.iterdir()):
        print(path)
    if isinstance(run, SceneRun):
        print(f"to look around in it: v2edit view {shlex.quote(str(run.folder))}")


def resume(words: Sequence[str], /, folder: str | Path, **options: Any) -> None:
    """Run `resume_run`, showing how far it is."""
    with (stage_display if state_of(folder).kind == "scene" else progress_display)() as show:
        show_run(resume_run(folder, **options | {"on_progress": show, "command": ["v2edit", *words]}))


def list_runs(folder: Annotated[Path, Positional, arg(metavar="FOLDER")] = Path("runs")) -> None:
    """List the runs in a folder: which are running, stopped, failed or done, how far, and how long they still take.

    Args:
        folder: The folder that run folders are in, or one of them.
    """
    found = runs_in(folder)
    width = max((len(str(one.folder)) for one in found), default=0)
    for one in found:
        share = f"{one.done}/{one.total} steps" if one.total else ""
        left = "" if one.seconds_left is None or one.state == "done" else f"{duration(one.seconds_left)} left"
        started = f"{datetime.fromisoformat(one.started).astimezone():%Y-%m-%d %H:%M}"
        line = f"{one.folder!s:{width}}  {one.state:7}  {started}  {share:>16}  {left}"
        print(f"{line}  {one.reason or ''}".rstrip())


def duration(seconds: float) -> str:
    """As a person says it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def prompts(*args: Any, **options: Any) -> None:
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
    print(f"plan    {what}: {each} forwards")
    if (out := options.get("out")) is not None:
        print(f"saved   {out}")


def measured(*args: Any, **options: Any) -> None:
    """Run `evaluate` and print its table."""
    print(evaluate(*args, **options).markdown)


def show_pieces(found: "Comparison") -> None:
    """A comparison's texts: what goes in red, what comes in green, what is cut dim."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    if console.color_system is None or console.no_color:
        print(found.marked)
        return
    styles = {"shared": "", "removed": "red strike", "added": "green", "cut": "dim strike"}
    console.print(Text.assemble(*((text, styles[kind]) for kind, text in found.pieces)))


def scene(words: Sequence[str], /, *args: Any, **options: Any) -> None:
    """Run `edit_scene`, showing how far it is."""
    with stage_display() as show:
        show_run(edit_scene(*args, **options | {"on_stage": show, "command": ["v2edit", *words]}))


def view(run: Annotated[Path, Positional, arg(metavar="RUN")], port: int = 8080) -> None:
    """Look around in a scene before and after its edit, in a browser.

    Args:
        run: The run folder of v2edit scene, or a splat .ply.
        port: The local port to serve on.
    """
    from v2edit.scenes.viewer import serve

    serve(run, port)


def sample(
    out: Annotated[Path, arg(aliases=["-o"], metavar="FOLDER")],
    seed: int = 0,
    kind: Annotated[str | None, arg(metavar="KIND", help_behavior_hint="")] = None,
    scene: bool = False,
) -> None:
    """Make a clip or a scene of the built-in world, with its prompts, an edit to try and that edit's true result.

    Args:
        out: The folder to make.
        seed: Which clip.
        kind: Which kind of edit: recolour, reshape, resize, insert, remove, floor or sky (default: any).
        scene: Make posed images of a still scene instead of a clip.
    """
    with RunWriter(out) as run:
        if scene:
            from v2edit.scenes.world import write_task

            write_task(seed, run.folder, kind)
        else:
            from v2edit.world.sample import write_sample

            write_sample(seed, run.folder, kind)
    for path in sorted(run.out.iterdir()):
        print(path)
    facts, words = ("scene.json", ["scene", out]) if scene else ("clip.json", ["edit", out / "clip.mp4"])
    instruction = json.loads((run.out / facts).read_text(encoding="utf-8"))["instruction"]
    print(f'try: v2edit {shlex.join(map(str, words))} "{instruction}"')


def bench(words: Sequence[str], /, **options: Any) -> None:
    """Run `benchmark`, showing how far it is, and print its tables."""
    with count_display() as show:
        try:
            report = benchmark(**options | {"on_progress": show, "command": ["v2edit", *words]})
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command goes on from here") from None
    print(report.markdown)
    for path in report.files:
        print(path)


def parse(words: Sequence[str]) -> functools.partial[None]:
    """What a command line asks for, ready to be called.

    Raises `SystemExit` as every parser does, `UserError` for values that the dataclasses refuse.
    """

    def deferred(function: Callable[..., Any], call: Callable[..., None]) -> Callable[..., functools.partial[None]]:
        @functools.wraps(function)  # Options and help come from this one's signature and docstring.
        def bind(*args: Any, **options: Any) -> functools.partial[None]:
            return functools.partial(call, *args, **options)

        return bind

    app, world = SubcommandApp(), SubcommandApp()
    app.command(name="edit")(deferred(edit_video, functools.partial(edit, words)))
    app.command(name="prompts")(deferred(preview_edit, prompts))
    app.command(name="eval")(deferred(evaluate, measured))
    app.command(name="scene")(deferred(edit_scene, functools.partial(scene, words)))
    app.command(name="resume")(deferred(resume_run, functools.partial(resume, words)))
    app.command(name="runs")(deferred(list_runs, list_runs))
    app.command(name="view")(deferred(view, view))
    world.__doc__ = "The built-in world: little videos whose edits have a known true result."
    world.command(name="sample")(deferred(sample, sample))
    app.command(world, name="world")
    app.command(name="bench")(deferred(benchmark, functools.partial(bench, words)))

    read = functools.partial(app.cli, prog="v2edit", description="Edit a video with one sentence.", args=words)
    try:
        with redirect_stderr(io.StringIO()):
            return read()
    except SystemExit as stop:
        if not stop.code:
            raise
        # A dataclass's own refusal is one line already: it needs no box around it.
        cause: BaseException | None = stop
        while cause := cause.__context__:
            if isinstance(cause, UserError):
                raise cause from None
    return read()  # Once more, aloud.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (the process's own by default) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if words == ["--version"]:
        from v2edit import __version__

        print(f"v2edit {__version__}")
        return 0
    told = logging.getLogger("v2edit")
    notes = Notes()
    told.addHandler(notes)
    try:
        with termination_as_interrupt():
            parse(words)()
    except (UserError, OSError) as error:
        return fail(str(error))
    except KeyboardInterrupt as stop:
        print(f"v2edit: interrupted; {stop or 'nothing was written'}", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU; not worth loading torch to name it.
            return fail("out of memory; try --offload model, then --offload group, and --vae-tiling")
        if isinstance(error, MemoryError) or re.search("allocate memory|not enough memory", str(error)):
            return fail("out of memory; try a shorter video, and --vae-tiling")
        raise
    finally:
        told.removeHandler(notes)
    return 0


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
    """What the package logs, one line each on stderr (above the bar where there is one)."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"v2edit: note: {record.getMessage()}", file=sys.stderr)


def fail(message: str) -> int:
    print(f"v2edit: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


@contextmanager
def progress_display() -> Iterator[Callable[["Progress"], None]]:
    """A bar on a terminal's stderr; elsewhere a plain line now and then."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield PlainProgress()
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading and loading", total=None)

        def show(at: "Progress") -> None:
            done = (at.subtask - 1) * at.steps + at.step
            bar.update(task, description=_where(at), completed=done, total=at.subtasks * at.steps)

        yield show


@contextmanager
def count_display() -> Iterator[Callable[[int, int, str], None]]:
    """A bar for things that are done one after the other, or twenty plain lines."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:

        def say(done: int, total: int, what: str) -> None:
            if done * 20 // total != (done - 1) * 20 // total:
                print(f"{done} of {total}: {what}", file=sys.stderr, flush=True)

        yield say
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda done, total, what: bar.update(task, description=what, completed=done, total=total)


@contextmanager
def stage_display() -> Iterator[Callable[["Stage"], None]]:
    """The same for an edit that has several stages, one after the other."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_stage
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Bar(*columns, console=console, transient=True) as bar:
        tasks = {"": bar.add_task("reading and loading", total=None)}

        def show(at: "Stage") -> None:
            if at.what not in tasks:
                bar.update(list(tasks.values())[-1], visible=False)
                tasks[at.what] = bar.add_task(at.what)
            bar.update(tasks[at.what], description=_stage(at), completed=at.step, total=at.steps)

        yield show


def _plain_stage(at: "Stage") -> None:
    if at.step * 10 // at.steps > (at.step - 1) * 10 // at.steps:
        print(f"{_stage(at)}, step {at.step}/{at.steps}", file=sys.stderr, flush=True)


def _stage(at: "Stage") -> str:
    return at.what if at.psnr is None else f"{at.what}, PSNR {at.psnr:.1f} dB"


class PlainProgress:
    """Ten lines a subtask, for logs."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None

    def __call__(self, at: "Progress") -> None:
        now, done, total = time.monotonic(), (at.subtask - 1) * at.steps + at.step, at.subtasks * at.steps
        if self.first is None:
            self.first = now, done  # Timed from the end of the first step: what comes before it is loading.
        since, before = self.first
        if at.step * 10 // at.steps == (at.step - 1) * 10 // at.steps:
            return
        left = f", {(now - since) / (done - before) * (total - done):.0f} s left" if done > before else ""
        print(f"{_where(at)}{left}", file=sys.stderr, flush=True)


def _where(at: "Progress") -> str:
    return f"subtask {at.subtask}/{at.subtasks}, step {at.step}/{at.steps}"
