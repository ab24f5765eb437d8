"""The progress of a job as ComfyUI shows it: one bar a node, a line of text, and a picture of the edit so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from v2edit.jobs.estimate import format_duration

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN, SIDE = 3, 160  # frames of a clip that a picture shows side by side, and pixels of their short side, at least
PARTS = 1000  # of the whole bar


def measure_progress(progress: Any) -> tuple[int, int]:
    """Return how much of a job is done, of how much: of an edit the share of all its steps, of other stages (coding a
    long clip, reconstructing a scene) that of the stage."""
    within = progress.step / max(1, progress.steps)
    if getattr(progress, "stage", None) == "editing":
        within = (progress.shot_number - 1 + (progress.subtask - 1 + within) / progress.subtasks) / progress.shots
    return round(PARTS * within), PARTS


def describe_progress(progress: Any) -> str:
    """Return the phase, the step and the time that is left, where that is known, in one line."""
    text = f"{progress.phase}, {progress.step} of {progress.steps}"
    left = getattr(progress, "seconds_left", None)
    return text if left is None else f"{text}, {format_duration(left)} left"


def draw_sketch(progress: Any) -> Image | None:
    """Return a picture of what the edit looks like so far: its first frame, its middle and its last, side by side. None
    where there is no sketch of it."""
    frames = getattr(progress, "sketch", None)
    if frames is None:
        return None
    from PIL import Image

    some = np.unique(np.linspace(0, len(frames) - 1, SHOWN).round().astype(int))
    row = np.concatenate([frames[number] for number in some], axis=1)
    scale = max(1, -(-SIDE // min(frames.shape[1:3])))
    return Image.fromarray(row).resize((row.shape[1] * scale, row.shape[0] * scale), Image.Resampling.BICUBIC)
