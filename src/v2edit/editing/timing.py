"""What an edit takes on this device, from one timed piece of each of its parts.

Letters: T frames, H and W their sides in pixels.
"""

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
from v2edit.editing.cost import Call, calls, maps_of
from v2edit.editing.editor import Branch, denoise_with_guidance, resize_clip
from v2edit.editing.microbatch import MicroBatcher
from v2edit.editing.progression import AlignedText, WrittenText
from v2edit.host import process_memory

FRAMES = 17  # that the autoencoder is timed on: its first group and another, which is like all that follow
ENOUGH, MOST = 1.5, 5  # seconds, and times, that a piece is timed, but
SLOW = 20.0  # seconds: what takes longer is timed once


@dataclass(frozen=True)
class Timing:
    """An edit's seconds by part, and its peak in bytes: of the whole process where the device is main memory, else of
    what torch holds on the device."""

    seconds: dict[str, float]
    peak: int


def time_edit(
    backbone: Backbone, frames: np.ndarray, text: AlignedText | WrittenText, config: ResolvedConfig
) -> Timing:
    """Times an edit of uint8 frames [T, H, W, 3]: a few of them to latents and back, and a step of each kind at the
    full size. Nothing comes of it."""
    device, loop = backbone.device, config.loop
    own = Size(*frames.shape[:3])
    whole = backbone.nearest_size(own, loop)
    few = backbone.nearest_size(Size(min(own.frames, FRAMES), own.height, own.width), loop)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    clip = resize_clip(frames[: few.frames], few, loop)
    more = whole.frames / few.frames - 1  # as much again, and so much more often
    encoding = timed(lambda: backbone.encode(clip, loop=loop), device, more)
    latents = backbone.encode(clip, loop=loop)
    decoding = timed(lambda: backbone.decode(latents, loop), device, more)

    # Latents of the full size: what they show is no matter.
    first = 0 if loop else 1  # the frame that has a latent frame of its own
    count = latents.shape[1]
    if whole.frames > few.frames:
        count += round((whole.frames - few.frames) * (count - first) / (few.frames - first))
    longer = latents.repeat(1, -(-count // latents.shape[1]), 1, 1, 1)[:, :count]
    rows = MicroBatcher(backbone)
    denoising = 0.0
    for one in calls(backbone.schedule(config.steps), config):
        for call, steps in one.items():
            denoising += timed(step_of(rows, longer, text, call, config), device, steps - 1)
    seconds = {"encoding": encoding, "denoising": denoising, "decoding": config.subtasks * decoding}
    if device.type == "cuda":
        return Timing(seconds, torch.cuda.max_memory_reserved(device))
    pixels, fitted = own.height * own.width * 3, whole.height * whole.width * 3
    # The frames that come of it: as the decoder gives them, twice while they are joined, or as they are given back.
    joined = 2 * (whole.frames - few.frames) * fitted + (config.subtasks - 1) * own.frames * pixels
    return Timing(
        seconds, max(process_memory("VmHWM") + joined, process_memory() + config.subtasks * own.frames * pixels)
    )


def step_of(
    rows: MicroBatcher, v: Tensor, text: AlignedText | WrittenText, call: Call, config: ResolvedConfig
) -> Callable[[], object]:
    """A step of this kind, at the noisy end, of latents [1, F, C, h, w]."""
    said = text.for_subtask(1, config.subtasks)
    branches = [Branch(v, said.edit, config.guidance if call.cfg_batches > 1 else 1.0)] * call.branches
    maps = maps_of(call, said.shared, config.amr_unconditional)
    schedule = rows.backbone.schedule(config.steps)
    start = first_step(schedule, config.alpha, config.inc)
    return lambda: denoise_with_guidance(rows, branches, said.negative, start, schedule, maps, config.loop)


def timed(work: Callable[[], object], device: torch.device, more: float) -> float:
    """Seconds of a piece of work and `more` times as much again: the first time, which sets things up, and the median
    of some others."""
    seconds = [_seconds(work, device)]
    if more <= 0 or seconds[0] > SLOW:
        return seconds[0] * (1 + more)
    while len(seconds) == 1 or (len(seconds) <= MOST and sum(seconds[1:]) < ENOUGH):
        seconds.append(_seconds(work, device))
    return seconds[0] + more * statistics.median(seconds[1:])


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second that a device does in products of large matrices: the nearest to a network
    where there is none to be timed."""
    side = 4096 if device.type == "cuda" else 768
    one = torch.randn(side, side).to(device, dtype)
    return 2 * side**3 / (timed(lambda: one @ one, device, 1e6) / 1e6)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
