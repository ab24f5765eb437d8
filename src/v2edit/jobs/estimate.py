"""An edit told beforehand: what `v2edit edit --dry-run` and `v2edit scene --dry-run` say."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2edit.backbones.families import BUILT_IN, DType, Offload
from v2edit.backbones.hub import Checkpoint
from v2edit.editing.config import EditConfig
from v2edit.errors import UserError
from v2edit.host import available_memory, is_out_of_memory, process_memory, release_memory
from v2edit.jobs.scene import FPS, SIDE, given_scene, seen
from v2edit.jobs.video import given_prompts, written_prompts
from v2edit.prompts import PromptPair
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.runs import RunWriter
from v2edit.scenes.config import FitConfig
from v2edit.scenes.prompt import find_prompt

if TYPE_CHECKING:
    from fractions import Fraction

    import numpy as np

    from v2edit.backbones import Size
    from v2edit.editing.config import ResolvedConfig
    from v2edit.editing.cost import MemoryOption

GIB = 2**30
FITTED = 20  # steps of a reconstruction that are timed
TIMED = "timed: one piece of each part, with this model on this device"
COUNTED = "counted from the model's configuration; the time, from this device's speed with matrices, is rough"


@dataclass(frozen=True)
class Estimate:
    """What an edit would do and take. Memory is that of the device: the peak of the whole process where that is main
    memory, else what is held on the GPU; `room` is what there is of it, None where nobody knows. Seconds are those of
    the whole run, by part."""

    model: str
    device: str
    dtype: str
    frames: int
    height: int
    width: int
    fitted: Size
    tokens: int  # of the video, in each row
    steps: int
    of_steps: int
    forwards: list[int]  # rows through the network, one number a subtask
    peak: int
    room: int | None
    seconds: dict[str, float]
    how: str
    ways: list[MemoryOption] = field(default_factory=list)  # smaller ones, where it does not fit
    most_frames: int | None = None  # of this size that fit, in the smallest of these ways
    remarks: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        return self.room is None or self.peak <= self.room

    @property
    def figures(self) -> dict[str, Any]:
        """For programs: bytes and seconds."""
        given = asdict(self)
        return given | {"fits": self.fits, "seconds_in_all": round(sum(self.seconds.values()), 1)}

    @property
    def text(self) -> str:
        """For people."""
        fitted, each = self.fitted, " + ".join(map(str, self.forwards))
        subtasks = f"{len(self.forwards)} subtask{'s' if len(self.forwards) > 1 else ''}"
        own = f"{self.frames} frames of {self.width}x{self.height}"
        ours = f"{fitted.frames} of {fitted.width}x{fitted.height}"
        parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self.seconds.items())
        room = "" if self.room is None else f"; there {'is' if self.fits else 'is only'} {gib(self.room)}"
        lines = [
            f"model   {self.model}, {self.dtype} on {self.device}",
            f"video   {own}, edited as {ours}: {self.tokens:,} tokens",
            f"plan    {subtasks} of {self.steps} denoising steps (of {self.of_steps}): {each} forwards",
            f"memory  about {gib(self.peak)} at the peak{room}",
            f"time    about {duration(sum(self.seconds.values()))}: {parts}",
            f"        {self.how}",
            *(f"        {remark}" for remark in self.remarks),
        ]
        if not self.fits:
            lines += ["smaller", *(self._way(way) for way in self.ways)]
            if self.most_frames:
                lines.append(f"        a clip of {self.most_frames} frames at most, with all of these, fits")
        return "\n".join(lines)

    def _way(self, way: MemoryOption) -> str:
        assert self.room is not None
        by = "" if way.options else ", which a run does by itself when it must"
        return f"        {way.name}: {gib(way.peak)}{', fits' if way.peak <= self.room else ''}{by}"


def estimate_edit(
    video: str | Path,
    instruction: str | None = None,
    *,
    source_prompt: str | None = None,
    target_prompt: str | None = None,
    prompts: str | Path | None = None,
    lvlm: LVLMConfig = LVLMConfig(),  # noqa: B008 (frozen)
    model: str = BUILT_IN,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: DType = "auto",
    offload: Offload = "none",
    vae_tiling: bool = False,
    revision: str | None = None,
    allow_pickle: bool = False,
    config: EditConfig = EditConfig(),  # noqa: B008 (frozen)
    **rest: Any,
) -> Estimate:
    """What `edit_video` would do with the same options (those not named here make no difference), how long it would
    take and how much memory. Nothing is written, no language model is asked, no weights are downloaded.

    Where the weights are on this machine and fit, an edit's parts are each run once or a few times, in small.

    Raises:
        UserError: for what would stop the edit, in one line.
    """
    watch = Watch()
    path = Path(video)
    if not path.exists():
        raise UserError(f"no such file: {path}")
    if out is not None:
        RunWriter(Path(out))  # whether it is taken
    pair, instruction = given_prompts(path, instruction, source_prompt, target_prompt, prompts, lvlm, model)

    from v2edit import backbones
    from v2edit import video as videos

    videos.read(path, max_frames=1)
    checkpoint = backbones.find(model, revision, allow_pickle)
    source = videos.read(path)
    pair, remarks = pair_or(
        pair, lvlm, lambda: written_prompts(path, source.frames, instruction or "", checkpoint, lvlm, config, device)
    )
    config = config.for_prompts(pair)
    with watch.part("writing"):
        writing = _written(source.frames, source.fps, config.subtasks)
    plan = _plan(watch, checkpoint, source.frames, pair, config, device, dtype, offload, vae_tiling)
    seconds = plan.seconds | {"writing": writing}
    return replace(plan, seconds=seconds, remarks=[*remarks, *plan.remarks])


def pair_or(pair: PromptPair | None, lvlm: LVLMConfig, read: Callable[[], PromptPair]) -> tuple[PromptPair, list[str]]:
    """The prompts to plan with, and remarks on them: a language model is not asked."""
    if pair is not None:
        return pair, []
    if lvlm.model is None:
        return read(), []
    remark = "without the language model, which was not asked, and the subtasks that it may add"
    return PromptPair("a video", "an edited video"), [remark]


def estimate_scene(
    scene: str | Path,
    instruction: str | None = None,
    *,
    path: str = "auto",
    frames: int | None = None,
    side: int | None = None,
    source_prompt: str | None = None,
    target_prompt: str | None = None,
    prompts: str | Path | None = None,
    lvlm: LVLMConfig = LVLMConfig(),  # noqa: B008 (frozen)
    model: str = BUILT_IN,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: DType = "auto",
    offload: Offload = "none",
    vae_tiling: bool = False,
    revision: str | None = None,
    allow_pickle: bool = False,
    config: EditConfig = EditConfig(),  # noqa: B008 (frozen)
    fit: FitConfig = FitConfig(),  # noqa: B008 (frozen)
    **rest: Any,
) -> Estimate:
    """As `estimate_edit`, of what `edit_scene` would do: some steps of the reconstructions are timed, too.

    Raises:
        UserError: for what would stop the edit, in one line.
    """
    watch = Watch()
    where = given_scene(scene, frames, side)
    pair, instruction = given_prompts(
        where, instruction, source_prompt, target_prompt, prompts, lvlm, model, find_prompt
    )
    if out is not None:
        RunWriter(Path(out))

    import torch

    from v2edit import backbones
    from v2edit.backbones.base import Size
    from v2edit.scenes.optimise import fit as refit
    from v2edit.scenes.optimise import reconstruct
    from v2edit.scenes.rasterise import rasteriser_device
    from v2edit.scenes.reading import choose_path, read_scene
    from v2edit.scenes.rer import refit_start, render_video

    on = rasteriser_device(device)
    side = side or SIDE[on.type]
    found, checkpoint = read_scene(where, side), backbones.find(model, revision, allow_pickle)

    def read() -> PromptPair:
        return written_prompts(where, seen(found, path, side, on), instruction or "", checkpoint, lvlm, config, device)

    pair, remarks = pair_or(pair, lvlm, read)
    config = config.for_prompts(pair)
    model_alone = backbones.load_fake_model(checkpoint, dtype, device).backbone
    filmed = choose_path(path, found, frames or model_alone.native_size.frames, side)
    cameras = filmed.cameras
    size = model_alone.nearest_size(Size(len(cameras), cameras.height, cameras.width))
    cameras = cameras.resized(size.height, size.width)
    config = replace(config, loop=config.loop or (filmed.closed and model_alone.has_rotary_time))
    with watch.part("reconstructing"):
        fitting = 0.0
        if (gaussians := found.gaussians) is None:
            assert found.dataset is not None
            for steps in (2, FITTED):  # The first time sets things up.
                begin, some = time.perf_counter(), replace(fit, fit_steps=steps)
                gaussians = reconstruct(found.dataset, some, None, on, config.seed)
                took = time.perf_counter() - begin
                fitting += took * (1 if steps < FITTED else fit.fit_steps / steps)
        gaussians = gaussians.to(on)
        begin = time.perf_counter()
        shown = render_video(gaussians, cameras)
        filming = time.perf_counter() - begin
        begin, everything = time.perf_counter(), torch.ones(shown.shape[:3])
        start, target, free = refit_start(gaussians, filmed.cameras, shown, everything, config.seed)
        once = time.perf_counter()
        refit(start, target, FITTED, False, None, config.seed, free)
        again = once - begin + (time.perf_counter() - once) * fit.refit_steps / FITTED
        fitting += config.subtasks * (again + filming) + 3 * filming  # the source, and before and after in the end
        writing = _written(shown, FPS, config.subtasks)
    plan = _plan(watch, checkpoint, shown, pair, config, device, dtype, offload, vae_tiling)
    seconds = plan.seconds | {"reconstructing": fitting, "writing": writing}
    if "encoding" in seconds:  # What the scene shows before each is encoded anew, and decoded to compare with.
        seconds["encoding"] *= 2 * config.subtasks
        seconds["decoding"] *= 2
    return replace(plan, seconds=seconds, remarks=[*remarks, *plan.remarks])


class Watch:
    """How long the run has taken, without what is only done to tell of it."""

    def __init__(self) -> None:
        self._begun, self._aside = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begun - self._aside

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Something that the run itself would do later, or not at all."""
        begin = time.perf_counter()
        yield
        self._aside += time.perf_counter() - begin


def _plan(
    watch: Watch,
    checkpoint: Checkpoint,
    frames: np.ndarray,
    pair: PromptPair,
    config: EditConfig,
    device: str,
    dtype: DType,
    offload: Offload,
    vae_tiling: bool,
) -> Estimate:
    """The plan of an edit of uint8 frames [T, H, W, 3], up to what is written in the end."""
    from v2edit import backbones
    from v2edit.backbones.base import Size
    from v2edit.backbones.loading import resolve_dtype
    from v2edit.editing.cost import CostModel, count_forwards, steps_per_subtask
    from v2edit.editing.timing import matmul_flops_per_second
    from v2edit.host import find_device

    on = find_device(device)
    info = backbones.read_info(checkpoint)  # With it comes what every edit has to import, which takes its time.
    room = available_memory(on)
    if room is not None and on.type == "cpu":
        room += process_memory()
    before = process_memory()
    with watch.part("counting"):
        fake = backbones.load_fake_model(checkpoint, dtype, device)
        resolved = config.resolve(checkpoint.defaults)
        own = Size(*frames.shape[:3])
        fitted = fake.backbone.nearest_size(own, config.loop)
        cost_model = CostModel(fake, resolved)
        count = cost_model.edit(fitted, offload, vae_tiling)
        release_memory()
    schedule = info.schedule(config.steps)
    aside = max(0, process_memory() - before)  # bytes that the counting brought along, which an edit does without
    base = before if on.type == "cpu" else 0
    plan = Estimate(
        checkpoint.name, str(on), resolve_dtype(checkpoint, dtype, on), own.frames, own.height, own.width, fitted,
        fake.tokens(fitted, config.loop), steps_per_subtask(schedule, resolved), config.steps,
        count_forwards(schedule, resolved), base + count.peak, room, {}, COUNTED,
    )  # fmt: skip
    if not backbones.has_weights(checkpoint):
        plan = replace(plan, remarks=["the weights are not on this machine yet: the time is without their download"])
    elif plan.fits:
        try:
            plan = _timed(watch, plan, checkpoint, frames, pair, resolved, device, dtype, offload, vae_tiling, aside)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            plan = replace(plan, remarks=["timing it ran out of memory: it does not fit, whatever was counted"])
    if plan.how == COUNTED:
        plan = replace(
            plan, seconds={"loading": watch.seconds, "computing": count.flops / matmul_flops_per_second(on, fake.dtype)}
        )
    if not plan.fits and room is not None:
        smallest = cost_model.memory_options(fitted, on.type == "cuda")
        ways = [replace(way, peak=base + way.peak) for way in smallest]
        offload, tiling = ("group" if on.type == "cuda" else "none"), True
        most = None if ways[-1].peak <= room else cost_model.max_frames(fitted, room - base, offload, tiling)
        plan = replace(plan, ways=ways, most_frames=most)
    return plan


def _timed(
    watch: Watch,
    plan: Estimate,
    checkpoint: Checkpoint,
    frames: np.ndarray,
    pair: PromptPair,
    config: ResolvedConfig,
    device: str,
    dtype: DType,
    offload: Offload,
    vae_tiling: bool,
    aside: int,
) -> Estimate:
    """The same plan, its pieces timed on the model."""
    from v2edit import backbones
    from v2edit.editing.progression import encode_progression
    from v2edit.editing.timing import time_edit

    backbone = backbones.load(checkpoint, device, dtype, offload, vae_tiling)
    text = encode_progression(backbone, pair, config.negative_prompt, config.padding_shared)
    loading = watch.seconds
    found = time_edit(backbone, frames, text, config)
    peak = found.peak - (aside if backbone.device.type == "cpu" else 0)
    return replace(plan, peak=peak, seconds={"loading": loading} | found.seconds, how=TIMED)


def _written(frames: np.ndarray, fps: Fraction | int, subtasks: int) -> float:
    """Seconds to write what comes of an edit, by the time that a part of the source takes."""
    from v2edit import video as videos

    some = frames[:24]
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        videos.write(some, Path(folder) / "edited.mp4", fps=fps)
        once = time.perf_counter()
        videos.write_compare(some, some, Path(folder) / "compare.mp4", fps)
        both = time.perf_counter()
        videos.contact_sheet({"source": frames, "edited": frames}, Path(folder) / "contact.png")
        sheet = time.perf_counter() - both
    more = len(frames) / len(some)
    return sheet + more * (subtasks * (once - begin) + (both - once))


def gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size < 10 * GIB else f"{size / GIB:.1f} GiB"


def duration(seconds: float) -> str:
    """In words: 0.4 s, 12 s, 3 min, 2.5 h."""
    for limit, unit, words in ((10, 1, "{:.1f} s"), (100, 1, "{:.0f} s"), (6000, 60, "{:.0f} min")):
        if seconds < limit:
            return words.format(seconds / unit)
    return f"{seconds / 3600:.1f} h"
