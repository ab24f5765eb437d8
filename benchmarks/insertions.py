"""What limits insertions into scenes of the built-in world: the edited video, before any reconstruction.

    taskset -c 0 python benchmarks/insertions.py

A row for each insertion of `v2edit bench --suite scenes`, along the path, in the model's size; PSNR in dB of all pixels
against the true edit. `video`: V2Edit's, from the true unedited video. `exact`: the true renderer's, with the object in
the middle of where the built-in world puts what a prompt calls left or right: place and turn vary, as no prompt says.
`autoencoder`: the true edit through the model's autoencoder. `offset`: of the object in the video, in pixels (down,
right) of the first frame and the last. Means: 25.51, 29.91, 33.77; another alpha, beta, number of subtasks or no AMR
changed the first task's video by 0.1 to 0.7 dB, and none for the better by more than 0.1.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from v2edit import backbones
from v2edit.bench.scenes import scene_tasks
from v2edit.editing import EditConfig, Editor
from v2edit.metrics.pixels import psnr
from v2edit.primitives import posed
from v2edit.primitives.edits import CHANGE_THRESHOLD
from v2edit.scenes.rer import autoencode

REACH = 5  # pixels
MIDDLE = {"dx": 0.0, "dy": 0.0, "yaw": 0.6}


def find_offset(frame: np.ndarray, source: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Return how far, down and right, what the truth inserts lies off in a frame, all uint8 [H, W, 3]."""
    rows, columns = np.nonzero(np.abs(truth.astype(int) - source).max(-1) > CHANGE_THRESHOLD)
    top, left = max(rows.min(), REACH), max(columns.min(), REACH)
    box = truth[top : min(rows.max() + 1, len(truth) - REACH), left : min(columns.max() + 1, truth.shape[1] - REACH)]
    shifts = [(down, right) for down in range(-REACH, REACH + 1) for right in range(-REACH, REACH + 1)]

    def error(shift: tuple[int, int]) -> float:
        y, x = top + shift[0], left + shift[1]
        return float(np.square(frame[y : y + len(box), x : x + box.shape[1]] - box.astype(float)).mean())

    return min(shifts, key=error)


def main() -> None:
    editor = Editor(backbones.load(device="cpu"))
    print("| task | video | exact | autoencoder | offset |\n|---|---:|---:|---:|---|")
    for task in scene_tasks("reporting", 3, ["insert"]):
        edit = task.edit
        cameras = posed.path_of(edit)
        clips = posed.posed_truth(edit, cameras)
        source, truth = clips.source.frames, clips.target.frames
        assert edit.subject is not None
        middle = replace(edit, target=edit.target.with_object(edit.subject, **MIDDLE))
        video = np.asarray(editor.edit(source, task.prompts, EditConfig(steps=25, seed=task.seed)).frames)
        shown = video, posed.posed_truth(middle, cameras).target.frames, autoencode(editor.backbone, truth)
        figures = " | ".join(f"{psnr(frames, truth):.2f}" for frames in shown)
        offsets = " … ".join(str(find_offset(video[k], source[k], truth[k])) for k in (0, -1))
        print(f"| {edit.instruction} | {figures} | {offsets} |", flush=True)


if __name__ == "__main__":
    main()
