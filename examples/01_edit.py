"""Edit a clip with one sentence.

    python examples/01_edit.py [FOLDER]

The clip shows the built-in model's world of balls, cubes, towers and stars, as `v2edit sample` makes it. For a
video of your own name a model for real videos, and say what the video shows and what it is to show:

    v2edit.edit_video(
        "surfer.mp4",
        source_prompt="A surfer rides a large wave under a clear sky.",
        target_prompt="A polar bear rides a large wave under a clear sky.",
        model="zai-org/CogVideoX-5b",
    )

Every option of `v2edit edit --help` is a keyword, with `_` for `-`. `preview_edit` and `estimate_edit` take the same
ones: the first shows the prompts, the second estimates time and memory, and neither edits anything.
"""

import os
import sys
import tempfile
from pathlib import Path

import v2edit
from v2edit.primitives.sample import write_sample

STEPS = int(os.environ.get("STEPS", "50"))  # fewer are faster and worse


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    (folder / "sample").mkdir(parents=True)
    write_sample(5, folder / "sample", "recolour")  # as `v2edit sample --seed 5 --kind recolour` does
    clip = folder / "sample" / "clip.mp4"

    preview = v2edit.preview_edit(clip, "turn the purple cube orange")
    print("from:", preview.prompts.source)
    print("to:  ", preview.prompts.target)

    run = v2edit.edit_video(clip, "turn the purple cube orange", steps=STEPS, out=folder / "edit")
    print(run.edited.frames.shape, "in", run.folder / "edited.mp4")  # uint8 [T, H, W, 3]


if __name__ == "__main__":
    main()
