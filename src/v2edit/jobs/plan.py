"""The plan of an edit: its prompts, sizes and steps, and what speaks against a good result. Told before it begins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from v2edit.backbones.families import BUILT_IN, PUBLISHED
from v2edit.editing.config import EditConfig, ResolvedConfig
from v2edit.primitives.parsing import is_caption
from v2edit.primitives.scene import SHAPES
from v2edit.prompts import PromptPair

if TYPE_CHECKING:
    from v2edit.backbones import Backbone, Size
    from v2edit.sampling import Schedule

log = logging.getLogger(__name__)
# The least share of the source's pixels that an edit may have before its enlargement is worth a note.
LEAST_PIXELS = 0.25


def log_plan(
    prompts: PromptPair, config: ResolvedConfig, size: Size, backbone: Backbone, count: int = 0, shots: int = 1
) -> None:
    """Log the plan of an edit of `size`, and its limits as a warning: of a video of `count` frames (0: as many) in so
    many `shots` that are edited, of which that is what a model is given of the longest. Raises `UserError` for a clip
    that the model cannot edit."""
    from v2edit.editing.blocks import blocks_of
    from v2edit.editing.cost import count_forwards, steps_per_subtask

    schedule, fitted = clip_schedule(backbone, config, size), backbone.nearest_size(size, config.loop)
    for name, text in zip(name_prompts(prompts), prompts.chain, strict=True):
        log.info("%s prompt: %s", name, text)
    forwards = count_forwards(schedule, config, backbone.classifier_free)
    steps = describe_steps(steps_per_subtask(schedule, config), config.steps, forwards, shots)
    log.info(
        "plan: %s; %s; %s",
        describe_sizes(size, fitted, count, shots),
        steps,
        describe_noise(noise_window(schedule, config)),
    )
    if config.negative_prompt and not backbone.classifier_free:
        log.warning("--negative-prompt: %s takes none, its guidance being a number that it is told", backbone.name)
    if blocks := blocks_of(config, backbone, backbone.latent_shape(fitted, config.loop)[0]):
        processes = backbone.load_options.block_processes
        each = "one after the other" if processes == 1 else f"{processes} at a time"
        log.info(
            "blocks: %d latent frames in %d blocks of %d, %s at each step",
            blocks.frames, blocks.count(0), blocks.length, each,
        )  # fmt: skip
        if config.cache:
            log.warning("--cache: in blocks no steps are skipped, so it changes nothing")
    elif backbone.load_options.block_processes > 1:
        log.warning("--block-processes: the clip is not denoised in blocks (--long), so it changes nothing")
    log_limits(backbone.name, prompts, size, backbone, config.loop, config.long)


def clip_schedule(backbone: Backbone, config: EditConfig, size: Size) -> Schedule:
    """Return the noise levels of an edit of clips of `size`."""
    fitted = backbone.nearest_size(size, config.loop)
    return backbone.schedule(config.steps, backbone.latent_shape(fitted, config.loop))


def log_limits(
    model: str, prompts: PromptPair | None, size: Size, backbone: Backbone, loop: bool = False, long: str = "auto"
) -> None:
    """Log what speaks against a good result as one warning, if anything does; see `find_limits`."""
    if limits := find_limits(model, prompts, size, backbone, loop, long):
        log.warning("%s", "; ".join(limits))


def find_limits(
    model: str, prompts: PromptPair | None, size: Size, backbone: Backbone, loop: bool, long: str
) -> list[str]:
    """Return what speaks against a good result, one clause each: a built-in model and a world that is not its own, a
    clip much larger than the model's, a clip longer than a model of absolute positions was trained on. `prompts` are
    None where a language model has yet to write them; `size` is that of the video, or of a scene's renders."""
    limits, fitted = find_foreign(model, prompts), backbone.nearest_size(size, loop)
    if prompts and len(set(prompts.chain)) == 1:
        limits.append("the prompts are equal, so nothing is to change: say in the target prompt what is")
    if fitted.height * fitted.width < LEAST_PIXELS * size.height * size.width:
        limits.append(
            f"{size.width}x{size.height} is edited at {fitted.width}x{fitted.height}, the model's size, and enlarged "
            "afterwards: expect less detail than the source has"
        )
    if long == "windows" and size.frames > backbone.native_size.frames and not backbone.has_rotary_time:
        limits.append(
            f"{size.frames} frames, and the model, whose positions are absolute, was trained on "
            f"{backbone.native_size.frames}: it drifts; --long blocks, or a model with relative positions, such as "
            f"{PUBLISHED}, does not"
        )
    return limits


def find_foreign(model: str, prompts: PromptPair | None) -> list[str]:
    """Return a clause where a built-in model is to edit a world that, by the prompts, is not its own; else nothing."""
    if model != BUILT_IN or not prompts or (is_caption(prompts.source) and is_caption(prompts.target)):
        return []
    shapes = ", ".join(f"{shape}s" for shape in SHAPES)
    return [
        f"the built-in model knows only its own world of {shapes} on a floor under a sky: expect nonsense for other "
        f"videos and scenes, and use --model {PUBLISHED} for them"
    ]


def name_prompts(prompts: PromptPair) -> list[str]:
    """Return a name for each prompt of the chain: source, step 1, step 2 …, target."""
    return ["source", *(f"step {k}" for k, _ in enumerate(prompts.intermediate, start=1)), "target"]


def describe_sizes(size: Size, fitted: Size, count: int = 0, shots: int = 1) -> str:
    """Describe a clip's size and that of its edit: 9 frames of 96x64, edited as 9 of 96x64. Of a video of `count`
    frames, `shots` of which are edited: 960 frames of 96x64, 3 shots edited, the longest by 64 frames as 65 of 96x64"""
    video, edit = f"of {size.width}x{size.height}", f"as {fitted.frames} of {fitted.width}x{fitted.height}"
    if shots > 1:
        return f"{count} frames {video}, {shots} shots edited, the longest by {size.frames} frames {edit}"
    if count > size.frames:
        return f"{count} frames {video}, edited by {size.frames} of them {edit}"
    return f"{size.frames} frames {video}, edited {edit}"


def describe_noise(window: tuple[float, float]) -> str:
    """Describe an edit's noise: sigma from 0.948, controls down to 0.639."""
    return f"sigma from {window[0]:.3f}, controls down to {window[1]:.3f}"


def noise_window(schedule: Schedule, config: ResolvedConfig) -> tuple[float, float]:
    """Return the noise's share at the level where an edit starts, and at that where its controls end: what alpha and
    beta are in numbers that compare models."""
    from v2edit.editing.controls import first_step, is_controlled

    start = first_step(schedule, config.alpha, config.inc)
    end = next((k for k in range(start, schedule.steps) if not is_controlled(schedule, k, config)), schedule.steps)
    return schedule.noise(start), schedule.noise(end)


def describe_steps(steps: int, of_steps: int, forwards: Sequence[int], shots: int = 1) -> str:
    """Describe steps and forwards: 1 subtask of 45 denoising steps (of 50): 180 forwards, each of 3 shots."""
    each = f", each of {shots} shots" if shots > 1 else ""
    count = f"{len(forwards)} subtask{'s' if len(forwards) > 1 else ''}"
    return f"{count} of {steps} denoising steps (of {of_steps}): {' + '.join(map(str, forwards))} forwards{each}"
