"""The commands: each calls one function of the package and prints its result.

A command's parameters are what its command line takes; `cli.app` adds the output options, and passes the context.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from v2edit.batch.command import EditBatch, batch_status
from v2edit.bench.command import BenchOptions, benchmark
from v2edit.cli.output import DryRun, Reporter, process_age
from v2edit.cli.printing import print_batch, print_comparison
from v2edit.editing.config import EditConfig
from v2edit.errors import UserError
from v2edit.host import launched_processes
from v2edit.jobs.calibrate import Calibrate
from v2edit.jobs.clip import ClipOptions
from v2edit.jobs.convert import Convert
from v2edit.jobs.doctor import Doctor
from v2edit.jobs.estimate import format_duration
from v2edit.jobs.evaluate import Evaluate
from v2edit.jobs.fly import Fly
from v2edit.jobs.inputs import is_scene
from v2edit.jobs.options import OUT, ModelOptions, PromptOptions, expect_folder, expect_new_file
from v2edit.jobs.plan import describe_steps, name_prompts
from v2edit.jobs.resume import resume as resume_run
from v2edit.jobs.resume import serve_run
from v2edit.jobs.scene import SceneEdit, SceneRun
from v2edit.jobs.seeds import keep_seeds
from v2edit.jobs.suggest import Suggest
from v2edit.jobs.video import EditRun, VideoEdit
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.runs import RunWriter, find_runs, read_run_state
from v2edit.runs.layout import SEEDS_SHEET, seed_folder
from v2edit.studio.command import ServeStudio, open_browser

if TYPE_CHECKING:
    from v2edit.studio.settings import Settings


@dataclass(frozen=True)
class Context:
    """What a command needs beside its own parameters: the whole command line is noted in manifests."""

    reporter: Reporter
    argv: Sequence[str]
    dry_run: DryRun | None = None


CONTINUES = "the same command continues from here"


def edit(context: Context, job: Annotated[VideoEdit, arg(name="")]) -> None:
    """Edit a video so that it shows what an instruction or a target prompt says."""
    run = _run_job(context, job, context.reporter.on_edit)
    if run is not None and job.seeds > 1:
        print(f"to keep the best of {SEEDS_SHEET}: v2edit keep {shlex.quote(str(run.folder))} SEED")


def scene(context: Context, job: Annotated[SceneEdit, arg(name="")]) -> None:
    """Edit a 3D scene so that it shows what an instruction or a target prompt says."""
    _print_viewer(_run_job(context, job, context.reporter.on_scene))


def _print_viewer(run: object) -> None:
    """Print how to look at a scene that has just been edited."""
    if isinstance(run, SceneRun) and run.edited is not None:
        print(f"to look at it in a browser: v2edit view {shlex.quote(str(run.folder))}")


def prompts(
    context: Context,
    video: Annotated[Path, Positional, arg(metavar="VIDEO")],
    instruction: Annotated[str | None, Positional, arg(metavar="INSTRUCTION", help_behavior_hint="")] = None,
    out: Annotated[Path | None, arg(aliases=OUT, metavar="FILE", help_behavior_hint="")] = None,
    prompt_options: Annotated[OmitArgPrefixes[PromptOptions], arg(name="prompt")] = PromptOptions(),
    lvlm: Annotated[OmitArgPrefixes[LVLMConfig], arg(name="language-model")] = LVLMConfig(),
    model_options: Annotated[OmitArgPrefixes[ModelOptions], arg(name="model")] = ModelOptions(),
    clip_options: Annotated[OmitArgPrefixes[ClipOptions], arg(name="clip")] = ClipOptions(),
    config: Annotated[OmitArgPrefixes[EditConfig], arg(name="edit")] = EditConfig(),
) -> None:
    """Show the prompts of an edit, word for word what they share, and what the edit costs. Loads no video model.

    Args:
        video: The video to edit: a file, a folder of images, or an image; or a scene.
        instruction: What to change, in one sentence.
        out: A JSON file to save the prompts in, to edit by hand and to give to v2edit edit as --prompts.
    """
    if out is not None:
        expect_new_file(out, "-o")
    options = {"prompt_options": prompt_options, "lvlm": lvlm, "model_options": model_options, "config": config}
    if is_scene(video):
        if clip_options != ClipOptions():
            raise UserError(f"{video} is a scene, which has no time: --start, --end and --fps are for videos")
        job = SceneEdit(video, instruction, **options)
    else:
        job = VideoEdit(video, instruction, **options, clip_options=clip_options)
    preview = job.preview()
    source, *others = preview.prompts.chain
    names = name_prompts(preview.prompts)[1:]
    print(f"source  {source}")
    for name, text, comparison in zip(names, others, preview.comparisons, strict=True):
        print(f"{name:6}  {text}\n  diff  ", end="")
        print_comparison(comparison)
        print(f"        {comparison.summary}")
    steps = describe_steps(preview.steps, preview.of_steps, preview.forwards)
    print(f"edit    {steps} (v2edit edit --dry-run estimates their time and memory)")
    if out is not None:
        preview.save(out)
        print(f"saved   {out}")
    context.reporter.result(
        prompts=asdict(preview.prompts),
        shared=[comparison.summary for comparison in preview.comparisons],
        steps=preview.steps,
        forwards=preview.forwards,
        files=[] if out is None else [out],
    )


def resume(context: Context, folder: Annotated[Path, Positional, arg(metavar="RUN")]) -> None:
    """Continue a run that was interrupted, killed or out of disk, from its last snapshot.

    On the same machine the result is the same, to the byte, as if nothing had happened. A run that is done stays as it
    is.

    Args:
        folder: The run folder.
    """
    on_progress = context.reporter.on_scene if read_run_state(folder).kind == "scene" else context.reporter.on_edit
    if launched_processes()[0] > 0:
        return serve_run(folder)
    with context.reporter.working():
        run = resume_run(folder, on_progress, command=context.argv)
    _print_run(run, context.reporter)
    _print_viewer(run)


def runs(context: Context, folder: Annotated[Path, Positional, arg(metavar="FOLDER")] = Path("runs")) -> None:
    """List the runs in a folder: their state, how many steps are done, and the time left.

    Args:
        folder: The folder that run folders are in, or one of them.
    """
    states = find_runs(folder)
    width = max((len(str(one.folder)) for one in states), default=0)
    for one in states:
        steps = f"{one.done}/{one.total} steps" if one.total else ""
        left = "" if one.seconds_left is None or one.state == "done" else f"{format_duration(one.seconds_left)} left"
        started = f"{datetime.fromisoformat(one.started).astimezone():%Y-%m-%d %H:%M}"
        line = f"{one.folder!s:{width}}  {one.state:7}  {started}  {steps:>16}  {left}"
        seeds = f"seeds {', '.join(map(str, one.seeds))}" if one.seeds else ""
        print("  ".join((line, *filter(None, (seeds, one.reason)))).rstrip())
    if not states:
        print(f"there are no runs in {folder}")
    context.reporter.result(runs=[asdict(one) for one in states])


def keep(
    context: Context,
    folder: Annotated[Path, Positional, arg(metavar="RUN")],
    seeds: Annotated[tuple[int, ...], Positional, arg(metavar="SEED [SEED ...]")],
) -> None:
    """Keep these seeds' runs of an edit with --seeds, and remove the others.

    Args:
        folder: The run folder, which has one for each seed.
        seeds: The seeds to keep, by the numbers on the sheet seeds.png.
    """
    removed = keep_seeds(folder, seeds)
    kept = [folder / seed_folder(seed) for seed in read_run_state(folder).seeds]
    print(*(f"kept     {path}" for path in kept), *(f"removed  {path}" for path in removed), sep="\n")
    context.reporter.result(folder=folder, kept=kept, removed=removed)


def view(
    context: Context,
    run: Annotated[Path, Positional, arg(metavar="RUN")],
    port: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None,
) -> None:
    """Look at a scene before and after its edit, in a browser.

    Args:
        run: The run folder of v2edit scene, or a splat (.ply, .spz, .splat, .ksplat or .sog).
        port: The local port to serve on (default: 8080, or the next one that is free).
    """
    from v2edit.scenes.viewer import serve

    serve(run, port)


def studio(context: Context, job: Annotated[ServeStudio, arg(name="")] = ServeStudio()) -> None:
    """Edit in a browser: a page with a queue of edits, their previews, and all runs of a folder."""

    def on_ready(address: str, settings: Settings) -> None:
        print(f"the studio of {settings.folder} is at {address}", "Ctrl-C ends it; edits go on with its next start",
              sep="\n", flush=True)  # fmt: skip
        context.reporter.note("the address has a token in it, which lets anybody in: pass it on with care") if (
            settings.token and not job.token_file
        ) else None
        if not job.no_open:
            open_browser(address)

    job.run(on_ready)


def convert(context: Context, job: Annotated[Convert, arg(name="")]) -> None:
    """Convert a splat to the format of OUT's name: .ply, .compressed.ply, .spz, .splat, .sog or meta.json."""
    converted = job.run()
    print(converted.text)
    facts = asdict(converted)
    context.reporter.result(files=[facts.pop("path")], **facts)


def fly(context: Context, job: Annotated[Fly, arg(name="")]) -> None:
    """Write a film of a scene: a flight along its camera path, or a turntable, of before, after or both."""
    with context.reporter.working():
        path = job.run(context.reporter.on_count)
    print(path)
    context.reporter.result(files=[path])


def sample(
    context: Context,
    out: Annotated[Path, arg(aliases=OUT, metavar="FOLDER")],
    seed: int = 0,
    kind: Annotated[str | None, arg(metavar="KIND", help_behavior_hint="")] = None,
    scene: bool = False,
) -> None:
    """Make a clip or a scene of the built-in world, with its prompts, an edit to try, and that edit's true result.

    Args:
        out: The folder to make.
        seed: Seed of the random clip.
        kind: The kind of edit: recolour, reshape, resize, insert, remove, floor, sky, reshape-and-recolour, outline,
            wear, air, behind, exchange, multiply, motion, material, style or uncover (default: any).
        scene: Make posed images of a still scene instead of a clip.
    """
    expect_folder(out)
    kind = kind and kind.replace("-", " ")
    with RunWriter(out) as run:
        if scene:
            from v2edit.scenes.primitives import write_task as write
        else:
            from v2edit.primitives.sample import write_sample as write
        write(seed, run.folder, kind)
    facts, words = ("scene.json", ["scene", out]) if scene else ("clip.json", ["edit", out / "clip.mp4"])
    instruction = json.loads((run.out / facts).read_text(encoding="utf-8"))["instruction"]
    command = f'v2edit {shlex.join(map(str, words))} "{instruction}"'
    files = sorted(run.out.iterdir())
    print(*files, f"try: {command}", sep="\n")
    context.reporter.result(folder=run.out, files=files, command=command)


def batch(context: Context, job: Annotated[EditBatch, arg(name="")]) -> None:
    """Edit many videos or scenes, on all devices of this machine or of a Ray cluster.

    Each line of TASKS.jsonl is a task: {"video": "a.mp4", "instruction": "make the ball blue"}, or "scene" instead of
    "video", and if need be "source_prompt", "target_prompt", "name" and settings such as "subtasks": 3. Stopped, the
    same command continues; what is done is never done again. v2edit batch-status shows how far it is.
    """
    if context.dry_run:
        estimate = job.estimate(context.dry_run == "timed", context.reporter.on_count)
        print(estimate.text)
        context.reporter.result(**estimate.figures)
        return
    try:
        with context.reporter.working():
            status = job.run(context.reporter.on_count, context.argv)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(CONTINUES) from None
    print_batch(status, context.reporter)
    if status.failed:
        again = "--retry-failed tries them again" if len(status.failed) > 1 else "--retry-failed tries it again"
        raise UserError(f"{len(status.failed)} of {len(status.tasks)} tasks failed, for the reasons above; {again}")


def show_batch_status(context: Context, folder: Annotated[Path, Positional, arg(metavar="FOLDER")]) -> None:
    """Show how far a batch is: what is done, running, waiting and failed, and why.

    Args:
        folder: The folder that v2edit batch was given as -o.
    """
    print_batch(batch_status(folder), context.reporter)


def bench(context: Context, options: Annotated[BenchOptions, arg(name="")] = BenchOptions()) -> None:
    """Compare V2Edit, its ablations and baselines where the true result is known, or on your own clips.

    Results are kept one by one: the same command continues where a stopped one stood, and a larger one uses what is
    there. Nothing is run twice.
    """
    try:
        with context.reporter.working():
            report = benchmark(options, on_progress=context.reporter.on_count, command=context.argv)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(CONTINUES) from None
    print(report.markdown, *report.files, sep="\n")
    context.reporter.result(folder=report.folder, files=report.files)


def evaluate(context: Context, job: Annotated[Evaluate, arg(name="")]) -> None:
    """Measure finished runs: CTIDS and CDC, the truth where it is known, and a language model's score.

    The truth is known of clips that v2edit sample made. Runs of one video and one instruction are shown to the language
    model side by side.
    """
    with context.reporter.working():
        evaluation = job.run(context.reporter.on_count)
    print(evaluation.markdown)
    rows = {run: {k: x if math.isfinite(x) else None for k, x in row.items()} for run, row in evaluation.rows.items()}
    context.reporter.result(rows=rows, files=[path for path in (job.csv, job.out) if path])


def suggest(context: Context, job: Annotated[Suggest, arg(name="")]) -> None:
    """Let a vision model suggest editing tasks for videos and scenes, and write them as a suite for v2edit bench."""
    with context.reporter.working():
        lines = job.run(context.reporter.on_count)
    for line in lines:
        print(f"{line['kind']:12} {line['difficulty']:7} {line['instruction']}")
    print(job.out)
    context.reporter.result(tasks=len(lines), files=[job.out])


def calibrate(context: Context, job: Annotated[Calibrate, arg(name="")]) -> None:
    """Measure a model once for step caching (--cache of v2edit edit): clips are generated, none is kept."""
    with context.reporter.working():
        path = job.run(lambda done, of: context.reporter.on_count(done, of, "steps"))
    print(path)
    context.reporter.result(files=[path])


def doctor(context: Context, job: Annotated[Doctor, arg(name="")] = Doctor()) -> None:
    """Look at this machine: versions known to be bad, devices, attention kernels, memory, and which models fit."""
    diagnosis = job.run()
    print(diagnosis.text)
    context.reporter.result(**diagnosis.figures)
    if diagnosis.is_bad:
        raise UserError("edits will not run here as it is: see the lines marked BAD")


def _run_job(
    context: Context, job: VideoEdit | SceneEdit, on_progress: Callable[[Any], None]
) -> EditRun | SceneRun | None:
    """Run a job and print its run, or, in a dry run, print its estimate and return None. Of several processes the first
    does; the others compute their share of its network calls."""
    if launched_processes()[0] > 0:
        return None if context.dry_run else job.model_options.serve()
    if context.dry_run:
        return _print_estimate(job, context)
    with context.reporter.working():
        run = job.run(on_progress, command=context.argv)
    _print_run(run, context.reporter)
    return run


def _print_run(run: EditRun | SceneRun, reporter: Reporter) -> None:
    files = sorted(run.folder.iterdir())
    print(*files, sep="\n")
    reporter.result(folder=run.folder, files=files, prompts=asdict(run.prompts))


def _print_estimate(job: VideoEdit | SceneEdit, context: Context) -> None:
    """Print the estimate of a job; where it is timed, with the start of this process, which the run's own will have."""
    starting = process_age()
    estimate = job.estimate(context.dry_run == "timed")
    if estimate.is_timed:
        estimate = replace(estimate, seconds={"starting": starting} | estimate.seconds)
    print(estimate.text)
    context.reporter.result(**estimate.figures)
