"""Change more or less of a video: subtasks, alpha and beta.

    python examples/02_subtasks_and_strength.py [FOLDER]

What the options do, each printed here as how much of the picture an edit changed:

- `subtasks`: a hard edit in several easier steps, each a video in the run folder. They cost as many times as much.
- `alpha`: the edit starts at this share of the model's noise schedule. Lower keeps more of the source; too low, and
  nothing changes.
- `beta`: the source's noise and attention maps hold the edit down to this share of the schedule. Lower keeps more.
- `guidance`: how strongly the prompts pull.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import v2edit
from v2edit import video
from v2edit.primitives.sample import write_sample

STEPS = int(os.environ.get("STEPS", "50"))
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "three-subtasks": {"subtasks": 3},
    "alpha-0.5": {"alpha": 0.5},
    "beta-0.5": {"beta": 0.5},
}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    (folder / "sample").mkdir(parents=True)
    write_sample(4, folder / "sample", "recolour")  # as `v2edit sample --seed 4 --kind recolour` does
    clip = folder / "sample" / "clip.mp4"
    source = np.asarray(video.read(clip).frames, float)

    for name, options in SETTINGS.items():
        run = v2edit.edit_video(clip, "make the yellow ball purple", steps=STEPS, out=folder / name, **options)
        changed = np.abs(run.edited.frames - source).mean()
        print(f"{name:15} changed the pixels by {changed:5.2f} of 255 on average: {run.folder / 'contact.png'}")


if __name__ == "__main__":
    main()
