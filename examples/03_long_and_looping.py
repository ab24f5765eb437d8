"""Edit a clip longer than the model was trained on, and one that loops.

    python examples/03_long_and_looping.py [FOLDER]

Nothing has to be set for a long clip: each frame then attends to a window of as many frames as the model was trained
on, and the cost grows with the length, not with its square. `loop=True` tells that the first frame follows the last;
the edited video closes as the source does. Both need a model with rotary positions, such as CogVideoX-5b (not 2b).
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import v2edit
from v2edit import video
from v2edit.primitives.sample import write_sample

STEPS = int(os.environ.get("STEPS", "50"))


def seam(frames: np.ndarray) -> float:
    """Return the change from the last frame to the first, over the median change between neighbours."""
    changes = np.abs(np.diff(frames.astype(float), axis=0)).mean(axis=(1, 2, 3))
    return float(np.abs(frames[0].astype(float) - frames[-1]).mean() / np.median(changes))


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    (folder / "sample").mkdir(parents=True)
    write_sample(5, folder / "sample", "recolour", frames=17)  # the built-in model was trained on 9
    clip = folder / "sample" / "clip.mp4"
    run = v2edit.edit_video(clip, "turn the purple cube orange", steps=STEPS, out=folder / "long")
    print(len(run.edited.frames), "frames in", run.folder)

    frames = np.asarray(video.read(clip).frames)
    there_and_back = np.concatenate([frames, frames[-2:0:-1]])
    loop = video.write(there_and_back, folder / "loop.mp4", fps=8)
    run = v2edit.edit_video(
        loop, source_prompt=run.prompts.source, target_prompt=run.prompts.target, loop=True, steps=STEPS,
        out=folder / "looped",
    )  # fmt: skip
    print(f"the seam: {seam(there_and_back):.2f} of the source, {seam(np.asarray(run.edited.frames)):.2f} of its edit")


if __name__ == "__main__":
    main()
