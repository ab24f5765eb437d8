"""File names in a run folder."""

EDITED_VIDEO = "edited.mp4"
COMPARISON_VIDEO = "compare.mp4"  # before and after, side by side
BEFORE_VIDEO, AFTER_VIDEO = "before.mp4", "after.mp4"  # of a scene: its renders along the path
CONTACT_SHEET = "contact.png"
MASK_VIDEO = "mask.mp4"  # white where the edit is
SEEDS_SHEET = "seeds.png"  # of a run of several seeds, beside their run folders
SOURCE_SPLAT, EDITED_SPLAT = "scene.ply", "edited.ply"


def seed_folder(seed: int) -> str:
    """Return the name of a seed's run folder in a run of several seeds."""
    return f"seed-{seed}"


def subtask_video(number: int) -> str:
    """Return the name of a subtask's video, counted from 1."""
    return f"subtask-{number}.mp4"
