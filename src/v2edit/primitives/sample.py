"""Write an edit of primitives to disk: the clip, its prompts and the true result (`v2edit sample`)."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np

from v2edit import video
from v2edit.errors import UserError
from v2edit.primitives.edits import KINDS, render_truth, sample_edit
from v2edit.primitives.scene import FPS


def write_sample(seed: int, folder: Path, kind: str | None = None, frames: int = 9, size: int = 64) -> None:
    """Write the edit of a seed into an existing folder. `clip.mp4` is the source and `truth.mp4` the true result;
    `clip.json` holds the instruction, both prompts and the cameras (`intrinsics` [3, 3] in pixels, `camera_to_world`
    [T, 4, 4] as in OpenGL); `changed.mp4` is white where the two clips differ; `contact.png` shows all three. `size` is
    the height of the frames in pixels; they are half as much again wide. Raises `UserError` for an unknown kind of
    edit."""
    if kind is not None and kind not in KINDS:
        raise UserError(f"there is no kind of edit {kind!r}; known are {', '.join(KINDS)}")
    edit = sample_edit(Random(seed), kind)
    clips = render_truth(edit, frames, size, 3 * size // 2)
    changed = np.repeat(clips.changed[..., None], 3, axis=-1).astype(np.uint8) * 255
    rows = {"clip": clips.source.frames, "truth": clips.target.frames, "changed": changed}
    for name, clip in rows.items():
        video.write(clip, folder / f"{name}.mp4", fps=FPS)
    video.contact_sheet(rows, folder / "contact.png")
    facts = {
        "instruction": edit.instruction,
        "source_prompt": edit.source_prompt,
        "target_prompt": edit.target_prompt,
        "kind": edit.kind,
        "seed": seed,
        "intrinsics": clips.source.cameras.intrinsics.tolist(),
        "camera_to_world": clips.source.cameras.camera_to_world.tolist(),
    }
    (folder / "clip.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
