"""File names in a run folder."""

from collections.abc import Mapping
from typing import Literal

FormatName = Literal["mp4", "webm", "gif", "webp", "prores", "mov", "png"]
# What the name of the edited video ends in, and those of its subtasks; without a suffix it is a folder of frames.
FORMAT_SUFFIXES: Mapping[FormatName, str] = {
    "mp4": ".mp4", "webm": ".webm", "gif": ".gif", "webp": ".webp", "prores": ".mov", "mov": ".mov", "png": "",
}  # fmt: skip
EDITED = "edited"  # without its suffix; with none the folder of its frames
COMPARISON_VIDEO = "compare.mp4"  # before and after, side by side
BEFORE_VIDEO, AFTER_VIDEO = "before.mp4", "after.mp4"  # of a scene: its renders along the path
CONTACT_SHEET = "contact.png"
MASK_VIDEO = "mask.mp4"  # white where the edit is
MASK_SHEET = "mask.png"  # of a scene: what may change, along the path
SEEDS_SHEET = "seeds.png"  # of a run of several seeds, beside their run folders
SOURCE_SPLAT, EDITED_SPLAT = "scene.ply", "edited.ply"
CAMERA_PATH = "camera_path.json"
TRAINED = "trained"  # folder of the model that another program trained of an edited scene
SplatFormatName = Literal["ply", "compressed.ply", "splat", "spz", "sog"]  # what the edited scene's name ends in, too
SPLAT_SUFFIXES = (".ply", ".spz", ".splat", ".ksplat", ".sog")  # of splats that are read


def seed_folder(seed: int) -> str:
    """Return the name of a seed's run folder in a run of several seeds."""
    return f"seed-{seed}"


def subtask_name(number: int) -> str:
    """Return the name of a subtask's video, counted from 1, without its suffix."""
    return f"subtask-{number}"


def subtask_video(number: int) -> str:
    """Return the name of a subtask's video in a scene's run."""
    return f"{subtask_name(number)}.mp4"
