"""Measure edits by a metric of your own, beside those that are there.

    python examples/06_own_metric.py [FOLDER]

A metric is a function of frames, uint8 [T, H, W, 3]. Here: how much an edited clip flickers where nothing moves, for
two settings of one edit, beside CTIDS, the CLIP score of the paper. Finished runs are also measured by `v2edit eval
RUN...`, and `docs/extending.md` says how a metric gets into that table and into `v2edit bench`.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import v2edit
from v2edit import video
from v2edit.metrics.clip_score import ClipEncoder, ctids
from v2edit.primitives.sample import write_sample

STEPS = int(os.environ.get("STEPS", "50"))


def added_flicker(source: np.ndarray, edited: np.ndarray) -> float:
    """Return the mean change between neighbouring frames at the pixels that rest in the source, of 255."""
    resting = np.abs(np.diff(source.astype(float), axis=0)).max(axis=-1) < 3
    changes = np.abs(np.diff(edited.astype(float), axis=0)).mean(axis=-1)
    return float(changes[resting].mean())


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    (folder / "sample").mkdir(parents=True)
    write_sample(5, folder / "sample", "recolour")  # as `v2edit sample --seed 5 --kind recolour` does
    clip = folder / "sample" / "clip.mp4"
    source, judge = np.asarray(video.read(clip).frames), ClipEncoder.load("primitives")

    for name, pnc in (("with-pnc", True), ("without-pnc", False)):
        run = v2edit.edit_video(clip, "turn the purple cube orange", steps=STEPS, pnc=pnc, out=folder / name)
        edited = np.asarray(run.edited.frames)
        figures = {
            "added flicker": added_flicker(source, edited),
            "CTIDS": ctids(judge, source, edited, run.prompts.source, run.prompts.target),
        }
        print(f"{name:12}", "  ".join(f"{what} {value:.3f}" for what, value in figures.items()))


if __name__ == "__main__":
    main()
