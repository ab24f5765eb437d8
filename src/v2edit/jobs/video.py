"""One edit of a video, from file to run folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from v2edit.backbones.memory import MemoryMode
from v2edit.editing.config import ResolvedConfig
from v2edit.errors import UserError
from v2edit.jobs.clip import ClipOptions, FormatOptions, read_edited, record_clip
from v2edit.jobs.job import EditJob, Prepared
from v2edit.jobs.live_preview import keep_preview
from v2edit.jobs.masks import (
    MaskOptions,
    describe_share,
    load_local,
    log_found,
    log_share,
    save_share,
    share_facts,
    warn_of_no_change,
)
from v2edit.jobs.options import ModelOptions
from v2edit.jobs.plan import log_plan
from v2edit.jobs.prompts import GivenPrompts, source_prompt_beside_video
from v2edit.jobs.seeds import MOST_SEEDS, edit_seeds, request_seeds
from v2edit.jobs.shot_edits import Rate, edit_shots, given_frames, plan_shots, weigh_shots
from v2edit.jobs.shots import Shot, ShotOptions, read_shots, record_shots, settle_shots
from v2edit.prompts import PromptPair, read_prompts
from v2edit.runs import MANIFEST, Request, RunWriter, check_input, fingerprint_input, read_run_state
from v2edit.runs.layout import seed_folder

if TYPE_CHECKING:
    from v2edit.backbones import Backbone, LoadedModel, Size
    from v2edit.editing.editor import Editor, Progress
    from v2edit.editing.local import LocalEdit
    from v2edit.jobs.estimate import Estimate
    from v2edit.jobs.time_left import TimeLeft
    from v2edit.video import Video
    from v2edit.video.stream import Frames

log = logging.getLogger(__name__)
ProgressCallback = Callable[["Progress"], None]


@dataclass(frozen=True)
class EditRun:
    """A finished edit: its run folder, the edited video, and the prompts that were used. Of several `seeds`, whose
    `runs` are in that folder, the video is the first's."""

    folder: Path
    edited: Video
    prompts: PromptPair
    seeds: tuple[int, ...] = ()

    @property
    def runs(self) -> list[EditRun]:
        """The runs of several seeds, read from their folders."""
        return [read_edit_run(self.folder / seed_folder(seed)) for seed in self.seeds]

    def __repr__(self) -> str:
        frames, height, width = self.edited.frames.shape[:3]
        return f"EditRun({str(self.folder)!r}, {frames} frames of {width}x{height})"


@dataclass(frozen=True)
class PreparedVideo(Prepared):
    """All that an edit takes but the model's weights: the whole video, and which of its frames are edited."""

    source: Video
    part: slice
    local: LocalEdit  # of the part
    rate: Rate  # of the part
    shots: tuple[Shot, ...] = ()  # of the part, where there are several

    @property
    def clip(self) -> ClipEdit:
        """What is edited, and how."""
        return ClipEdit(self.source, self.part, self.local, self.prompts, self.config, self.rate, self.shots)


@dataclass(frozen=True)
class ClipEdit:
    """What an edit makes of a clip: the whole video `source`, the `part` of its frames that is edited, what the edit
    may change of that, and how: its `shots`, where there are several, and the rate at which the model sees them."""

    source: Video
    part: slice
    local: LocalEdit
    prompts: PromptPair
    config: ResolvedConfig
    rate: Rate
    shots: tuple[Shot, ...] = ()

    def given_to(self, backbone: Backbone) -> list[int]:
        """Return how many frames a model is given of each clip that it edits."""
        return given_frames(self.shots, self.part.stop - self.part.start, self.rate, backbone)

    @property
    def extent(self) -> tuple[int, int]:
        """How many frames there are, and shots of them that are edited."""
        return self.part.stop - self.part.start, max(1, sum(one.edited for one in self.shots))

    def carried_by(self, backbone: Backbone) -> list[int]:
        """Return how many frames of each clip that is edited take the change of those that a model is given."""
        clips = [one.frames for one in self.shots if one.edited] or [slice(0, self.part.stop - self.part.start)]
        return [one.stop - one.start if self.rate.every(one, backbone) > 1 else 0 for one in clips]

    def time_left(self, backbone: Backbone) -> TimeLeft:
        """Return what tells the time that an edit by a model still takes."""
        from v2edit.editing.cost import steps_per_subtask
        from v2edit.jobs.time_left import TimeLeft
        from v2edit.video.stream import FrameStream

        steps = steps_per_subtask(backbone.schedule(self.config.steps), self.config)
        passes = 0 if isinstance(self.frames, FrameStream) else self.config.subtasks + self.local.find
        # Of a stream the change is carried as it is written.
        carried = [passes * count for count in self.carried_by(backbone)]
        return TimeLeft(self.given_to(backbone), carried, steps, self.config.subtasks, len(self.source.frames))

    @property
    def frames(self) -> Frames:
        """The frames that are edited, uint8 [T, H, W, 3]."""
        return self.source.frames[self.part]

    def size_for(self, backbone: Backbone) -> Size:
        """Return the size of what the model is given: the frames, or a window of each around a small region; of several
        shots those of the longest."""
        from v2edit.editing.local import edited_size

        size = edited_size(self.local, self.frames, backbone.native_size)
        return replace(size, frames=max(self.given_to(backbone)))


@dataclass(frozen=True)
class VideoEdit(EditJob):
    """Edit a video so that it shows what an instruction or a target prompt says."""

    video: Annotated[Positional[Path], arg(metavar="VIDEO")]
    """The video to edit: a file, a folder of images, or an image."""
    instruction: Annotated[Positional[str | None], arg(metavar="INSTRUCTION", help_behavior_hint="")] = None  # pyright: ignore[reportIncompatibleMethodOverride]
    """What to change, in one sentence. A language model (--lvlm) turns it into prompts, or the grammar of the built-in
    world does."""
    save_frames: FlagCreatePairsOff[bool] = False
    """Also write the edited frames as PNG files into the folder `edited` (always done for a folder of images, under
    the same names, and for a single image as `edited.png`)."""
    seeds: int = 1
    """Make so many edits, 1 to 16, with --seed and the seeds after it: a run folder each, and a sheet of all of them.
    v2edit keep keeps those that you choose."""
    clip_options: Annotated[OmitArgPrefixes[ClipOptions], arg(name="clip")] = ClipOptions()
    mask_options: Annotated[OmitArgPrefixes[MaskOptions], arg(name="mask")] = MaskOptions()
    shot_options: Annotated[OmitArgPrefixes[ShotOptions], arg(name="shots")] = ShotOptions()
    format_options: Annotated[OmitArgPrefixes[FormatOptions], arg(name="format")] = FormatOptions()

    kind = "file"

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise UserError(f"--seeds is {self.seeds}, expected 1 to {MOST_SEEDS} edits (--seed is where they begin)")
        if self.config.loop and self.clip_options.is_part:
            raise UserError("--loop: a part of a loop is none, so leave out --start and --end, or --loop")

    @property
    def path(self) -> Path:
        return self.video

    def source_prompt_beside(self) -> str | None:
        return source_prompt_beside_video(self.video)

    def prepare(
        self, given: GivenPrompts | None = None, loaded: LoadedModel | None = None, ask: bool = True
    ) -> PreparedVideo:
        """Read the video, find the model and settle prompts and settings; loads no weights of the video model. `given`
        is the result of `given_prompts`, `loaded` the model, where they exist already; without `ask`, stand-ins are
        used where a language model would write the prompts. Raises `UserError`, in one line."""
        from v2edit import video as videos

        given = given or self.given_prompts()
        # A fault of the video or of the model's name is reported before the whole of either is read.
        videos.read(self.video, max_frames=1)
        checkpoint = loaded.checkpoint if loaded else self.model_options.find()
        source, part = self.clip_options.cut(videos.read(self.video))
        self.format_options.check(source)
        local = self.mask_options.build(source, part)
        shots = self.shot_options.find(source, part, local, self.config.loop)
        if ask or self.lvlm.model is None:
            looks = self.shot_options.looks
            given, shots = settle_shots(self, looks, given, checkpoint, shots, source.frames[part])
        try:
            settled = self.settle(given, checkpoint, lambda: source.frames[part], ask, loaded)
        except UserError as mistake:
            if given.pair is not None or self.lvlm.model is not None:
                raise
            raise self.shot_options.name_cuts(mistake, source, part) from mistake
        rate = Rate(source.frames[part], float(source.fps), str(self.shot_options.model_fps))
        return PreparedVideo(**vars(settled), source=source, part=part, local=local, rate=rate, shots=shots)

    def estimate(self, timed: bool = False) -> Estimate:
        """Estimate the time and memory of the edit (a dry run), counted or `timed`: nothing is written, no language
        model is asked. Raises `UserError` for what would stop the edit, in one line."""
        from v2edit.editing.coder import LONG
        from v2edit.jobs.estimate import Stopwatch, estimate_edit
        from v2edit.jobs.memory import load_fake_model
        from v2edit.jobs.time_beside import time_beside

        stopwatch, given = Stopwatch(), self.given_prompts()
        self.check_out()
        prepared = self.prepare(given, ask=False)
        source, frames = prepared.source, prepared.clip.frames
        with stopwatch.paused():
            fake = load_fake_model(prepared.checkpoint, self.model_options).backbone
            size, given_to = prepared.clip.size_for(fake), prepared.clip.given_to(fake)
            limits = describe_share(prepared.local, size)
            if (count := len(frames)) > size.frames:
                many = f"{len(given_to)} shots, " if len(given_to) > 1 else ""
                limits["frames"] = f"{many}{sum(given_to)} of {count} frames are given to the model"
        several = sum(given_to) / max(given_to)  # the time of all clips, in that of the longest
        reading, beside = stopwatch.seconds, {}
        with stopwatch.paused():
            if timed or len(source.frames) > LONG:  # of a short clip that is little, and is not counted
                beside = time_beside(prepared.clip, fake, size, self.format_options)
        some: Any = frames[: size.frames] if timed else None
        estimate = estimate_edit(stopwatch, prepared, size, self.model_options, some).scaled(several)
        if beside and not timed:
            beside = {"loading": reading} | beside
        if estimate.is_timed or not timed:
            estimate = replace(estimate, seconds=estimate.seconds | beside)
        count, shots = prepared.clip.extent
        return replace(estimate, limits=limits, clip_frames=count, shots=shots).times(self.seeds)

    def run(
        self,
        on_progress: ProgressCallback | None = None,
        loaded: LoadedModel | None = None,
        command: Sequence[str] | None = None,
    ) -> EditRun:
        """Edit the video and write the run folder; `on_progress` is called after every denoising step. `loaded` is a
        model in memory, which stays there for the next edit; `command` is the command line, for run.json. Raises
        `UserError` for what the user can mend, in one line."""
        given = self.given_prompts()
        with RunWriter(self.run_options.folder(self.video, given.title)) as run:
            prepared, identity = self.prepare(given, loaded), fingerprint_input(self.video)
            from v2edit.editing.cost import loop_steps

            def clip_of(model: Backbone) -> tuple[ResolvedConfig, Size]:
                size = prepared.clip.size_for(model)
                return prepared.for_clip(model, size).config, size

            backbone = self.load(prepared, clip_of, loaded)
            config, size = self.settle_long(prepared, backbone, clip_of)
            prepared = replace(prepared, config=config)
            log_plan(prepared.prompts, config, size, backbone, *prepared.clip.extent)
            log_share(prepared.local, size)
            record = self.record(prepared, backbone, size, identity) | {
                "save_frames": self.save_frames,
                "local": self.mask_options.facts,
                **record_clip(self.clip_options, self.format_options),
                **record_shots(self.shot_options, prepared.shots),
                "frames_apart": list(prepared.rate.known.items()),  # which the motion tells, here as on resuming
                "seed": config.seed,
                "guidance": config.guidance,
                "solver": backbone.solver if config.solver == "auto" else config.solver,
            }
            loops, given_to = loop_steps(backbone.schedule(config.steps), config), prepared.clip.given_to(backbone)
            steps, weights = plan_shots(prepared.shots, loops), weigh_shots(prepared.shots, loops, given_to)
            request = Request("edit", record, steps, self.run_options.save_every, command, weights=weights)
            request = request if self.seeds == 1 else request_seeds(request, self.seeds)
            run.begin(request, partial(save_share, prepared.local))
            result = _finish(run, self.video, prepared.clip, backbone, loaded is None, on_progress)
        return _settle_result(result)

    @staticmethod
    def resume(
        run: RunWriter, on_progress: ProgressCallback | None = None, loaded: LoadedModel | None = None
    ) -> EditRun:
        """Continue an edit that was stopped, from its last snapshot; the result is the same as if it had not been.
        Raises `UserError` where its video is gone or has changed, or its model or device is not available."""
        assert run.request is not None and run.request.kind in ("edit", "seeds")
        with run:
            from v2edit import video as videos

            record = run.request.facts
            path = Path(record["input"]["path"])
            check_input(path, record["input"]["sha256"])
            prompts, config = PromptPair(**record["prompts"]), ResolvedConfig(**record["config"])
            source, part = ClipOptions.from_record(record).cut(videos.read(path))
            local = load_local(record, run.snapshots.folder)
            options, known = ShotOptions.from_record(record), dict(record.get("frames_apart", []))
            rate = Rate(source.frames[part], float(source.fps), str(options.model_fps), known)
            clip = ClipEdit(source, part, local, prompts, config, rate, read_shots(record))
            backbone = load_recorded(record, loaded)
            log_plan(prompts, config, clip.size_for(backbone), backbone, *clip.extent)
            result = _finish(run, path, clip, backbone, loaded is None, on_progress)
        return _settle_result(result)


def load_recorded(record: dict[str, Any], loaded: LoadedModel | None = None) -> Backbone:
    """Load the model that a run was begun with, as its run.json describes it, or take the one in memory, in the run's
    memory mode."""
    options = ModelOptions.from_record(record)
    mode = MemoryMode.from_record(record.get("memory")) or options.memory_mode
    if loaded is None:
        options.check_weight_files(record)
        return options.load(options.find(), mode)
    loaded.backbone.place(loaded.backbone.device, mode)
    return loaded.backbone


def read_edit_run(folder: Path) -> EditRun:
    """Read a finished edit; its frames are those that were written, of several seeds the first's."""
    pair, _ = read_prompts(folder / MANIFEST)
    seeds = read_run_state(folder).seeds
    return EditRun(folder, read_edited(folder.joinpath(*map(seed_folder, seeds[:1]))), pair, seeds)


def _finish(
    run: RunWriter,
    path: Path,
    clip: ClipEdit,
    backbone: Backbone,
    single_use: bool,
    on_progress: ProgressCallback | None,
) -> EditRun:
    """Edit from where a run of one seed or of several stands, and write what it lacks; with `single_use` the model is
    not needed afterwards."""
    from v2edit.editing.cost import loop_steps
    from v2edit.editing.editor import Editor

    assert run.request is not None
    if run.request.kind == "edit":
        editor = Editor(backbone, single_use)
        return EditRun(run.out, _edit_and_write(run, path, clip, editor, on_progress), clip.prompts)
    editor = Editor(backbone)
    steps = plan_shots(clip.shots, loop_steps(backbone.schedule(clip.config.steps), clip.config))

    def edit(one: RunWriter, seed: int, report: ProgressCallback) -> Video:
        seeded = replace(clip, config=replace(clip.config, seed=seed))
        return _edit_and_write(one, path, seeded, editor, report)

    save = partial(save_share, clip.local)
    edit_seeds(run, clip.source.frames, clip.part, steps, edit, save, on_progress)
    seeds = tuple(run.request.facts["seeds"])
    return EditRun(run.out, read_edit_run(run.out / seed_folder(seeds[0])).edited, clip.prompts, seeds)


def _edit_and_write(
    run: RunWriter, path: Path, clip: ClipEdit, editor: Editor, on_progress: ProgressCallback | None
) -> Video:
    """Edit a part of a video from where the run's snapshots stand, write the results and return the edited video."""
    from v2edit.editing.editor import Progress
    from v2edit.jobs.results import write_results
    from v2edit.metrics.drift import measure_drift
    from v2edit.video.cut import splice

    assert run.request is not None
    record, source, part = run.request.facts, clip.source, clip.part
    if (whole := len(source.frames)) > part.stop - part.start:
        log.info("part: frames %d to %d of %d; the others stay as they are", part.start + 1, part.stop, whole)
    output, subtasks = FormatOptions.from_record(record), clip.config.subtasks
    frames: Any = clip.frames
    report = clip.time_left(editor.backbone).reporting(on_progress or (lambda progress: None))
    report = keep_preview(run.snapshots.folder, (part.stop - part.start) / float(source.fps), report)
    result = edit_shots(
        editor, frames, clip.prompts, clip.config, report, run.snapshots, clip.rate, clip.local, clip.shots
    )
    if clip.local.find:
        log_found(result.share)
    warn_of_no_change(result)
    title = record["instruction"] or clip.prompts.target
    save_frames = record["save_frames"] or path.is_dir()

    def on_frame(done: int, total: int) -> None:
        report(Progress(subtasks, subtasks, done, total, stage="writing"))

    is_image = bool(source.names) and not path.is_dir()
    has_mask = clip.local.share is not None or clip.local.find  # a choice of shots alone is none
    shown = result if has_mask else replace(result, share=None)
    write_results(run.folder, source, part, shown, title, output, save_frames, is_image, on_frame)
    drift = measure_drift(result.drift, result.joints)
    run.write_manifest({"memory": editor.backbone.memory_mode, "share": share_facts(result.share), "drift": drift})
    return replace(source, frames=splice(source.frames, part, result.frames))


def _settle_result(result: EditRun) -> EditRun:
    """Return a finished edit whose frames, where they are a stream, are those that were written: what they were made of
    goes with the run's state."""
    from v2edit.video.stream import FrameStream

    if result.seeds or not isinstance(result.edited.frames, FrameStream):
        return result
    return replace(result, edited=read_edited(result.folder))
