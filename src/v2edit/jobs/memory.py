"""Choose how an edit keeps to the memory there is, before its model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from v2edit.backbones.memory import MemoryMode
from v2edit.errors import UserError
from v2edit.host import available_memory, find_device, launched_processes

if TYPE_CHECKING:
    import torch

    from v2edit.backbones import Backbone, Checkpoint, FakeModel, LoadedModel, Size
    from v2edit.backbones.families import Offload
    from v2edit.backbones.options import LoadOptions
    from v2edit.editing.config import ResolvedConfig
    from v2edit.editing.cost import CostModel

    ClipOf = Callable[[Backbone], tuple[ResolvedConfig, Size]]  # an edit's settings, and its clip's size

log = logging.getLogger(__name__)
GIB = 2**30


def choose_memory_mode(
    options: LoadOptions, checkpoint: Checkpoint, clip_of: ClipOf, loaded: LoadedModel | None = None
) -> MemoryMode:
    """Return the memory mode of an edit: what the options say, those of a `loaded` model where there is one, or with
    `--offload auto` on a GPU the fastest whose counted peak fits into its free memory. Raises `UserError` where none
    does, and says what would."""
    options = loaded.backbone.load_options if loaded else options
    device = loaded.backbone.device if loaded else find_device(options.device)
    if options.offload != "auto" or device.type == "cpu" or launched_processes()[1] > 1:
        return options.memory_mode
    free = available_memory(device)
    if free is None:
        return options.memory_mode
    if loaded is not None:
        free += loaded.backbone.resident_bytes
    fake = load_fake_model(checkpoint, options)
    cost_model, size = cost_model_of(fake, clip_of)
    mode = cost_model.fastest_mode(size, free, offloads_of(device, fake), options.vae_tiling)
    if mode is None and is_open(cost_model.config, size, fake.backbone):
        in_blocks = replace(cost_model, config=replace(cost_model.config, long="blocks"))
        mode = in_blocks.fastest_mode(size, free, offloads_of(device, fake), options.vae_tiling)
    if mode is None:
        raise UserError(describe_misfit(cost_model, size, free, device))
    if mode != options.memory_mode:
        log.warning("%.1f GiB are free on %s: going on with %s", free / GIB, device, mode.text)
    return mode


def settle_long(cost_model: CostModel, size: Size, mode: MemoryMode, free: int | None) -> ResolvedConfig:
    """Return an edit's settings with the way to denoise a clip of a valid size that is longer than the model was
    trained on: all of it at once where its counted peak in a memory mode is within `free` bytes of the device (None:
    unknown), else in blocks."""
    from v2edit.editing.cost import without_margin

    config, backbone = cost_model.config, cost_model.fake.backbone
    if not is_open(config, size, backbone) or free is None:
        return config
    whole = cost_model.peak("denoising", size, mode)
    if whole <= without_margin(free):
        return config
    log.warning(
        "the whole clip takes %.1f GiB while it is denoised, and %.1f GiB are free: going on in blocks of %d frames "
        "(--long windows tries it all the same)", whole / GIB, free / GIB, backbone.native_size.frames,
    )  # fmt: skip
    return replace(config, long="blocks")


def is_open(config: ResolvedConfig, size: Size, backbone: Backbone) -> bool:
    """Whether it is for the memory to say how a clip is denoised."""
    return config.long == "auto" and backbone.has_rotary_time and size.frames > backbone.native_size.frames


@lru_cache(maxsize=1)
def load_fake_model(checkpoint: Checkpoint, options: LoadOptions) -> FakeModel:
    """Load a fake model; once for all tasks of a batch."""
    from v2edit import backbones

    return backbones.load_fake_model(checkpoint, options)


def cost_model_of(fake: FakeModel, clip_of: ClipOf) -> tuple[CostModel, Size]:
    """Return what counts the costs of an edit, and the size that its clips are edited at."""
    from v2edit.editing.cost import CostModel

    config, size = clip_of(fake.backbone)
    return CostModel(fake, config), fake.backbone.nearest_size(size, config.loop)


def offloads_of(device: torch.device, fake: FakeModel) -> tuple[Offload, ...]:
    """Return the offload modes that save memory on a device, none where its memory is the main memory, and that a model
    can take: layers in nf4 do not move."""
    if device.type not in ("cuda", "xpu"):
        return ("none",)
    return ("none", "model") if "nf4" in fake.schemes.values() else ("none", "model", "group")


def describe_misfit(cost_model: CostModel, size: Size, free: int, device: torch.device) -> str:
    """Describe an edit that does not fit in the smallest mode, and what would: fewer frames, or a smaller size."""
    from v2edit.editing.cost import SMALLEST, with_margin, without_margin

    smallest = replace(SMALLEST, offload=offloads_of(device, cost_model.fake)[-1])
    peaks = cost_model.peaks(size, smallest)
    phase = max(peaks, key=lambda name: peaks[name])
    frames = cost_model.max_frames(size, without_margin(free), smallest)
    fewer = f"a clip of {frames} frames, or " if frames else ""
    clip, needed = f"{size.frames} frames of {size.width}x{size.height}", with_margin(peaks[phase])
    return (
        f"{clip} take {needed / GIB:.1f} GiB of {device} while {phase}, with layers offloaded and in tiles, and "
        f"{free / GIB:.1f} GiB are free: try {fewer}a smaller --resolution; --offload group tries it all the same"
    )
