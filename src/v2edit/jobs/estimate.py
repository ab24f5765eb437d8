"""Dry run: estimate the time and memory of an edit before it runs, and what would make it fit.

Operations and bytes are counted on a fake model. On request, and where the weights are on this machine and fit, one
piece of each part is timed, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from v2edit.host import available_memory, find_device, is_out_of_memory, process_memory, release_memory
from v2edit.jobs.job import STAND_INS, Prepared
from v2edit.jobs.memory import load_fake_model, offloads_of, settle_long
from v2edit.jobs.options import ModelOptions
from v2edit.jobs.plan import (
    clip_schedule,
    describe_noise,
    describe_sizes,
    describe_steps,
    log_limits,
    name_prompts,
    noise_window,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from v2edit.backbones import FakeModel, Size
    from v2edit.backbones.memory import MemoryMode
    from v2edit.editing.config import ResolvedConfig
    from v2edit.editing.cost import CostModel, MemoryOption
    from v2edit.prompts import PromptPair
    from v2edit.scenes.camera_paths import CameraPath
    from v2edit.scenes.config import ResolvedFit
    from v2edit.scenes.reading import Scene
    from v2edit.video.stream import Frames

GIB = 2**30
TIMED_FIT_STEPS = 20  # of a reconstruction
TIMED = "timed: one piece of each part, with this model on this device"
COUNTED = "counted from the model's configuration, and rough; --timed times a piece of each part"
NOT_ASKED = "without the language model, which was not asked, and the subtasks that it may add"


@dataclass(frozen=True)
class Estimate:
    """What an edit would do and take. `peak` and `available` are bytes on the device: of the whole process where that
    is main memory, else what torch holds on the GPU; `available` is None where the system does not tell. `seconds` are
    those of the whole run, by part."""

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
    sigma: tuple[float, float]  # the noise's share where the edit starts, and where its controls end
    flops: float  # of the network and the autoencoder
    peak: int
    available: int | None
    seconds: dict[str, float]
    method: str
    memory_mode: MemoryMode
    memory_options: list[MemoryOption] = field(default_factory=list)  # where it does not fit
    most_frames: int | None = None  # of this size that fit with all memory options
    remarks: list[str] = field(default_factory=list)
    prompts: PromptPair | None = None  # None where a language model would write them
    limits: dict[str, str] = field(default_factory=dict)  # what may change, for people, by kind: mask, window, box …
    clip_frames: int = 0  # of the whole clip
    shots: int = 1  # that are edited; `frames` are those of the longest
    besides: str = ""  # what the time leaves out
    seeds: int = 1  # edits of which the time and operations are those of all, the rest those of each

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate of an edit of several clips, whose time and operations are those of the longest times a
        factor."""
        seconds = {name: n if name == "loading" else n * factor for name, n in self.seconds.items()}
        return replace(self, flops=self.flops * factor, seconds=seconds)

    def times(self, seeds: int) -> Estimate:
        """Return the estimate of as many edits, one after the other, with the model loaded once."""
        seconds = {name: n if name == "loading" else n * seeds for name, n in self.seconds.items()}
        return replace(self, seeds=seeds, flops=self.flops * seeds, seconds=seconds)

    @property
    def fits(self) -> bool:
        return self.available is None or self.peak <= self.available

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def is_timed(self) -> bool:
        return self.method == TIMED

    @property
    def figures(self) -> dict[str, Any]:
        """The estimate for programs, in bytes and seconds."""
        return asdict(self) | {"fits": self.fits, "total_seconds": round(self.total_seconds, 1)}

    @property
    def summary(self) -> str:
        """The estimate in one line, for a list of them."""
        clip = f"{self.frames} frames of {self.width}x{self.height}"
        memory = format_bytes(self.peak) + ("" if self.fits else ", does not fit")
        return f"{clip}, {sum(self.forwards)} forwards, {memory}, {format_duration(self.total_seconds)}"

    @property
    def text(self) -> str:
        """The estimate for people."""
        from v2edit.backbones import Size

        sizes = describe_sizes(Size(self.frames, self.height, self.width), self.fitted, self.clip_frames, self.shots)
        parts = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in self.seconds.items())
        only = "" if self.fits else "only "
        room = "" if self.available is None else f"; {only}{format_bytes(self.available)} are free"
        mode = "" if self.device == "cpu" else f" with {self.memory_mode.text}"
        besides = f", and {self.besides}" if self.besides else ""
        each = f", for each of {self.seeds} seeds" if self.seeds > 1 else ""
        names, texts = (name_prompts(self.prompts), self.prompts.chain) if self.prompts else ((), ())
        lines = [
            *(f"{name:7} {text}" for name, text in zip(names, texts, strict=True)),
            f"model   {self.model}, {self.dtype} on {self.device}",
            f"video   {sizes}: {self.tokens:,} tokens",
            *(f"{name:7} {text}" for name, text in self.limits.items()),
            f"edit    {describe_steps(self.steps, self.of_steps, self.forwards, self.shots)}{each}",
            f"noise   {describe_noise(self.sigma)}",
            f"compute {format_flops(self.flops)}",
            f"memory  about {format_bytes(self.peak)} at the peak{mode}{room}",
            f"time    about {format_duration(self.total_seconds)}{besides}: {parts}",
            f"        {self.method}",
            *(f"        {remark}" for remark in self.remarks),
        ]
        if not self.fits:
            lines += ["smaller", *map(self._option, self.memory_options)]
            if self.most_frames:
                lines.append(f"        a clip of {self.most_frames} frames at most fits, with all of these")
        return "\n".join(lines)

    def _option(self, option: MemoryOption) -> str:
        assert self.available is not None
        fits = ", fits" if option.peak <= self.available else ""
        automatic = "" if option.options else " (a run does this by itself when it must)"
        return f"        {option.name}: {format_bytes(option.peak)}{fits}{automatic}"


class Stopwatch:
    """The seconds that a dry run has taken so far, without those of work that only the dry run does."""

    def __init__(self) -> None:
        self._start, self._paused = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start - self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time within."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start


def estimate_edit(
    stopwatch: Stopwatch, prepared: Prepared, size: Size, options: ModelOptions, frames: Frames | None = None
) -> Estimate:
    """Estimate an edit of a clip of a size, up to the decoded frames; writing them is not in it. Counted, or with
    `frames`, uint8 [T, H, W, 3], timed where the weights are here and fit."""
    from v2edit import backbones
    from v2edit.editing.cost import SMALLEST, CostModel, with_margin

    checkpoint, device = prepared.checkpoint, find_device(options.device)
    prompts, remarks = (None, [NOT_ASKED]) if prepared.prompts is STAND_INS else (prepared.prompts, [])
    if frames is not None:
        backbones.read_info(checkpoint)  # imports what every edit has to import, which takes time
    free = available_memory(device)
    if free is not None and device.type == "cpu":
        free += process_memory()
    before = process_memory()
    with stopwatch.paused():
        fake = load_fake_model(checkpoint, options)
        prepared = prepared.for_clip(fake.backbone, size)
        log_limits(checkpoint.name, prompts, size, fake.backbone, prepared.config.loop, prepared.config.long)
        cost_model = CostModel(fake, prepared.config)
        fitted = fake.backbone.nearest_size(size, prepared.config.loop)
        mode = options.memory_mode
        if options.offload == "auto" and device.type != "cpu" and free is not None:
            offloads = offloads_of(device, fake)
            mode = cost_model.fastest_mode(fitted, free, offloads, options.vae_tiling)
            mode = mode or replace(SMALLEST, offload=offloads[-1])
        cost_model = replace(cost_model, config=settle_long(cost_model, fitted, mode, free))
        prepared = replace(prepared, config=cost_model.config)
        if (disk := cost_model.disk(fitted)) > GIB // 100:
            remarks.append(f"disk, until the run is done: about {format_bytes(disk)}")
        estimate = _count(cost_model, prepared, size, options, mode)
        release_memory()
    counting_bytes = max(0, process_memory() - before)  # held by the counting alone
    base = before if device.type == "cpu" else 0
    peak = base + estimate.peak if device.type == "cpu" else with_margin(estimate.peak)
    if options.block_processes > 1:
        remarks.append(describe_block_processes(options.block_processes, cost_model, fitted, peak))
    if device.type != "cpu":
        remarks.append(describe_main_memory(fake, mode))
    estimate = replace(estimate, device=str(device), peak=peak, available=free, remarks=remarks, prompts=prompts)
    if not backbones.has_weights(checkpoint):
        remarks.append("the weights are not on this machine yet: the time is without their download")
    elif estimate.fits and frames is not None:
        try:
            estimate = _timed(stopwatch, estimate, prepared, frames, options, counting_bytes)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            remarks.append("timing it ran out of memory: it does not fit, whatever was counted")
    if not estimate.is_timed:
        estimate = replace(estimate, seconds={"computing": estimate.flops / _flops_per_second(device, fake.dtype)})
    return estimate if estimate.fits else _with_memory_options(estimate, cost_model, estimate.fitted, base)


@lru_cache(maxsize=1)
def _flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Measure a device once for all tasks of a batch."""
    from v2edit.editing.timing import matmul_flops_per_second

    return matmul_flops_per_second(device, dtype)


def _count(cost_model: CostModel, prepared: Prepared, size: Size, options: ModelOptions, mode: MemoryMode) -> Estimate:
    """Count an edit on a model without data; the estimate's peak is that of tensors alone."""
    from v2edit.editing.cost import count_forwards, steps_per_subtask

    checkpoint, config, fake = prepared.checkpoint, prepared.config, cost_model.fake
    fitted, schedule = fake.backbone.nearest_size(size, config.loop), clip_schedule(fake.backbone, config, size)
    cost = cost_model.edit(fitted, mode)
    dtype = str(fake.dtype).removeprefix("torch.")
    forwards = count_forwards(schedule, config, fake.backbone.classifier_free)
    return Estimate(
        checkpoint.name, "", dtype, size.frames, size.height, size.width, fitted, fake.tokens(fitted, config.loop),
        steps_per_subtask(schedule, config), config.steps, forwards,
        noise_window(schedule, config), cost.flops, cost.peak, None, {}, COUNTED, mode,
    )  # fmt: skip


def describe_block_processes(count: int, cost_model: CostModel, fitted: Size, peak: int) -> str:
    """Describe what the processes take that denoise blocks of a clip of a valid size, each with its own `peak`."""
    if cost_model.blocks(fitted) is None:
        return "--block-processes changes nothing: the clip is not denoised in blocks (--long)"
    return f"blocks by {count} processes, each with the model: about {format_bytes(count * peak)} in all"


def describe_main_memory(fake: FakeModel, mode: MemoryMode) -> str:
    """Describe the main memory that the weights of an edit on a GPU take."""
    free = available_memory(find_device("cpu"))
    pin = fake.placement.may_pin(None if free is None else free - fake.placement.main_memory("none", False))
    taken = format_bytes(fake.placement.main_memory(mode.offload, pin))
    pinned = ", page-locked in part" if mode.offload == "group" and pin else ""
    room = "" if free is None else f"; {format_bytes(free)} are free"
    return f"main memory for its weights: {taken}{pinned}{room}"


def _timed(
    stopwatch: Stopwatch,
    estimate: Estimate,
    prepared: Prepared,
    frames: Frames,
    options: ModelOptions,
    counting_bytes: int,
) -> Estimate:
    """Replace counted figures by those of pieces timed on the model."""
    from v2edit.editing.progression import encode_progression
    from v2edit.editing.timing import time_edit

    config, backbone = prepared.config, options.load(prepared.checkpoint, estimate.memory_mode)
    text = encode_progression(backbone, prepared.prompts, config.negative_prompt, config.padding_shared)
    loading = stopwatch.seconds
    timed = time_edit(backbone, frames, text, config)  # pyright: ignore[reportArgumentType]
    peak = timed.peak - (counting_bytes if backbone.device.type == "cpu" else 0)
    return replace(estimate, peak=peak, seconds={"loading": loading} | timed.seconds, method=TIMED)


def _with_memory_options(estimate: Estimate, cost_model: CostModel, size: Size, base: int) -> Estimate:
    """Add the options that take less memory, and how many frames fit with all of them."""
    from v2edit.editing.cost import SMALLEST, with_margin, without_margin

    if estimate.available is None:
        return estimate
    on_gpu = not estimate.device.startswith("cpu")
    needed = with_margin if on_gpu else lambda peak: base + peak
    memory_options = [replace(one, peak=needed(one.peak)) for one in cost_model.memory_options(size, on_gpu)]
    most = None
    if memory_options[-1].peak > estimate.available:
        available = without_margin(estimate.available) if on_gpu else estimate.available - base
        most = cost_model.max_frames(size, available, SMALLEST if on_gpu else replace(SMALLEST, offload="none"))
    return replace(estimate, memory_options=memory_options, most_frames=most)


@dataclass(frozen=True)
class ReconstructionTiming:
    """The timed reconstructions of a scene edit: `seconds` of all of them, and the renders along the path in the
    model's size, uint8 [T, H, W, 3]."""

    seconds: float
    frames: np.ndarray


def time_reconstruction(
    scene: Scene, path: CameraPath, fit: ResolvedFit, fake: FakeModel, config: ResolvedConfig, device: torch.device
) -> ReconstructionTiming:
    """Time some steps of each reconstruction of a scene edit, and the rendering between them."""
    import torch

    from v2edit.scenes.optimise import optimise_gaussians, reconstruct
    from v2edit.scenes.rer import prepare_refit, render_video, video_cameras

    seconds = 0.0
    if (gaussians := scene.gaussians) is None:
        assert scene.dataset is not None
        start, times = time.perf_counter(), []
        reconstruct(scene.dataset, replace(fit, fit_steps=2), None, device, config.seed)  # compiles kernels
        seconds += time.perf_counter() - start
        few = replace(fit, fit_steps=TIMED_FIT_STEPS)
        tick = lambda at: times.append(time.perf_counter())  # noqa: E731
        gaussians = reconstruct(scene.dataset, few, tick, device, config.seed)
        seconds += fit.fit_steps * (times[-1] - times[0]) / (TIMED_FIT_STEPS - 1)
    gaussians = gaussians.to(device)
    start = time.perf_counter()
    frames = render_video(gaussians, video_cameras(fake.backbone, path))
    rendering = time.perf_counter() - start

    start, everything = time.perf_counter(), torch.ones(frames.shape[:3])
    initial, target, editable = prepare_refit(gaussians, path.cameras, frames, everything, config.seed)
    fitting = time.perf_counter()
    optimise_gaussians(initial, target, TIMED_FIT_STEPS, config.seed, editable)
    refit = fitting - start + (time.perf_counter() - fitting) * fit.refit_steps / TIMED_FIT_STEPS
    # The source is rendered once, and both scenes in the end.
    return ReconstructionTiming(seconds + config.subtasks * (refit + rendering) + 3 * rendering, frames)


def format_bytes(size: int) -> str:
    """Format a size in GiB: 0.62 GiB, 24.1 GiB."""
    return f"{size / GIB:.2f} GiB" if size < 10 * GIB else f"{size / GIB:.1f} GiB"


def format_flops(flops: float) -> str:
    """Format a number of operations: 0.52 TFLOP, 44 PFLOP."""
    scale, unit = (1e15, "PFLOP") if flops >= 1e15 else (1e12, "TFLOP")
    return f"{flops / scale:.2g} {unit}" if flops < 100 * scale else f"{flops / scale:.0f} {unit}"


def format_duration(seconds: float) -> str:
    """Format a duration for people: 0.4 s, 12 s, 3 min, 2.5 h."""
    for limit, unit, form in ((10, 1, "{:.1f} s"), (100, 1, "{:.0f} s"), (6000, 60, "{:.0f} min")):
        if seconds < limit:
            return form.format(seconds / unit)
    return f"{seconds / 3600:.1f} h"
