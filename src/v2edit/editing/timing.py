"""The time and memory of an edit on this device, from one timed piece of each of its parts.

Letters: T frames, H and W their sides in pixels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from v2edit.backbones import Backbone, Size
from v2edit.editing.config import ResolvedConfig
from v2edit.editing.controls import first_step
from v2edit.editing.cost import StepKind, count_steps
from v2edit.editing.guidance import Branch, denoise_with_guidance
from v2edit.editing.microbatch import MicroBatcher
from v2edit.editing.progression import AlignedText, WrittenText
from v2edit.editing.resize import resize_clip
from v2edit.host import process_memory

SAMPLE_FRAMES = 17  # that the autoencoder is timed on: its first group and another, which is like all that follow
MIN_SECONDS, MAX_REPEATS = 1.5, 5  # a piece is repeated until either is reached,
SLOW = 20.0  # seconds: but a piece that takes longer than this is timed once


@dataclass(frozen=True)
class Timing:
    """Seconds of an edit by part, and its peak in bytes: of the process (main memory), or of what torch holds (GPU)."""

    seconds: dict[str, float]
    peak: int


def time_edit(
    backbone: Backbone, frames: np.ndarray, text: AlignedText | WrittenText, config: ResolvedConfig
) -> Timing:
    """Time an edit of uint8 frames [T, H, W, 3]: some frames to latents and back, and a full-size step of each kind."""
    device, loop = backbone.device, config.loop
    own = Size(*frames.shape[:3])
    whole = backbone.nearest_size(own, loop)
    sample = backbone.nearest_size(Size(min(own.frames, SAMPLE_FRAMES), own.height, own.width), loop)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    clip = resize_clip(frames[: sample.frames], sample, loop)
    repeats = whole.frames / sample.frames - 1  # the rest of the clip, in samples
    encoding = extrapolate_seconds(lambda: backbone.encode(clip, loop=loop), device, repeats)
    latents = backbone.encode(clip, loop=loop)
    decoding = extrapolate_seconds(lambda: backbone.decode(latents, loop), device, repeats)

    # Latents of the full size; their content does not matter.
    first = 0 if loop else 1  # the frame that has a latent frame of its own
    count = latents.shape[1]
    if whole.frames > sample.frames:
        count += round((whole.frames - sample.frames) * (count - first) / (sample.frames - first))
    full_latents = latents.repeat(1, -(-count // latents.shape[1]), 1, 1, 1)[:, :count]
    batcher = MicroBatcher(backbone)
    denoising = 0.0
    for counts in count_steps(backbone.schedule(config.steps), config, backbone.classifier_free):
        for kind, steps in counts.items():
            if kind.skipped:
                continue  # next to nothing beside the others
            denoise = denoise_call(batcher, full_latents, text, kind, config)
            denoising += extrapolate_seconds(denoise, device, steps - 1)
    seconds = {"encoding": encoding, "denoising": denoising, "decoding": config.subtasks * decoding}
    if device.type == "cuda":
        return Timing(seconds, torch.cuda.max_memory_reserved(device))
    own_bytes, whole_bytes = own.height * own.width * 3, whole.height * whole.width * 3  # of a frame
    # The decoded frames: as the decoder gives them, twice while they are joined, or at the source's size.
    joined = 2 * (whole.frames - sample.frames) * whole_bytes + (config.subtasks - 1) * own.frames * own_bytes
    peak = max(process_memory("VmHWM") + joined, process_memory() + config.subtasks * own.frames * own_bytes)
    return Timing(seconds, peak)


def denoise_call(
    batcher: MicroBatcher, v: Tensor, text: AlignedText | WrittenText, kind: StepKind, config: ResolvedConfig
) -> Callable[[], object]:
    """Return a function that runs a step of a kind, at the noisy end, on latents [1, F, C, h, w]."""
    branch_text = text.for_subtask(1, config.subtasks)
    scales = [2.0 if k in kind.unconditional else 1.0 for k in range(kind.branches)]  # the cost does not depend on it
    branches = [Branch(v, branch_text.edit, scale) for scale in scales]
    maps = kind.replacement(branch_text.shared, config.amr_unconditional)
    schedule = batcher.backbone.schedule(config.steps, v.shape[1:])
    start = first_step(schedule, config.alpha, config.inc)
    return lambda: denoise_with_guidance(batcher, branches, branch_text.negative, start, schedule, maps, config.loop)


def extrapolate_seconds(work: Callable[[], object], device: torch.device, repeats: float) -> float:
    """Estimate the seconds of work and `repeats` more, from the first run (with its set-up) and the median of a few."""
    seconds = [_seconds(work, device)]
    if repeats <= 0 or seconds[0] > SLOW:
        return seconds[0] * (1 + repeats)
    while len(seconds) == 1 or (len(seconds) <= MAX_REPEATS and sum(seconds[1:]) < MIN_SECONDS):
        seconds.append(_seconds(work, device))
    return seconds[0] + repeats * statistics.median(seconds[1:])


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Measure a device's speed in products of large matrices: the best guess where there is no network to time."""
    side = 4096 if device.type == "cuda" else 768
    matrix = torch.randn(side, side).to(device, dtype)
    return 2 * side**3 / (extrapolate_seconds(lambda: matrix @ matrix, device, 1e6) / 1e6)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
