"""Clips of the built-in world at 30 and 60 frames a second: is it better to edit every n-th frame and carry the change?

    python benchmarks/rates.py --count 1 --steps 12

Each task is rendered, with its true edit, at the model's own rate of 8 and at each of --rates, a second long, and
edited in these ways: at the model's rate; all frames at once (--model-fps source); every n-th frame, whose change is
held (the nearest edited frame's) or carried along the source's flow (as --model-fps auto does). Figures: the edit's
success by the classifier, in nine frames; PSNR in dB inside of what changes against the true edit, outside against the
source; and the flicker of the change: how much edited minus source changes from a frame to the next along the source's
flow, as a multiple of that at the model's rate. Means over tasks, and the largest flicker.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np

from v2edit import backbones
from v2edit.bench.tasks import BenchTask, primitives_tasks
from v2edit.editing import EditConfig, Editor
from v2edit.editing.editor import EditResult
from v2edit.editing.local import EVERYWHERE, LocalEdit
from v2edit.editing.rates import edit_every, frames_apart
from v2edit.metrics.attributes import asked_answers, attributes
from v2edit.primitives.classifier import SceneClassifier
from v2edit.primitives.edits import CHANGE_THRESHOLD, KINDS
from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import FPS, Object, Scene
from v2edit.video.flow import estimate_flow, warp

VISIBLE = 12.0  # levels that a pixel and where the flow leads may differ: beyond, it is hidden in one of both frames
SEEN = 9  # frames that the classifier sees


class TimedObject(Object):
    """An object of a clip of another rate than the built-in world's."""

    rate: float = FPS

    def position(self, frame: int, frames: int) -> tuple[float, float, float]:
        slower: Any = FPS / self.rate
        return super().position(frame * slower, (frames - 1) * slower + 1)


def render(scene: Scene, rate: float, frames: int) -> np.ndarray:
    """Render a scene at a rate, uint8 [T, H, W, 3]."""
    kind: Any = type("Timed", (TimedObject,), {"rate": rate})
    objects = (kind(**{one.name: getattr(thing, one.name) for one in fields(Object)}) for thing in scene.objects)
    return render_clip(replace(scene, objects=tuple(objects)), frames).frames


def psnr(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    squares = np.square(one.astype(np.float64) - other)[where]
    return float(10 * np.log10(255**2 / max(squares.mean(), 1e-3))) if where.any() else float("nan")


def flicker(source: np.ndarray, edited: np.ndarray) -> float:
    """Return the mean change of the change from a frame to the next along the source's flow, in levels."""
    change, steps = edited.astype(np.float32) - source, []
    for k in range(len(source) - 1):
        flow = estimate_flow(source[k], source[k + 1])
        seen = np.abs(warp(source[k + 1], flow).astype(np.float32) - source[k]).mean(-1) < VISIBLE
        steps.append(np.sqrt(np.square(warp(change[k + 1], flow) - change[k]).mean(-1)[seen].mean()))
    return float(np.mean(steps))


def hold(edited: np.ndarray, source: np.ndarray, every: int) -> np.ndarray:
    """Return the source with the change of the nearest edited frame."""
    first, count = (len(source) - 1) % every // 2, len(edited)
    nearest = [min(range(count), key=lambda k: abs(first + k * every - frame)) for frame in range(len(source))]
    change = edited.astype(int) - source[first::every]
    return (source + change[nearest]).clip(0, 255).astype(np.uint8)


def ways_of(task: BenchTask, editor: Editor, steps: int, rate: float, count: int, whole: bool) -> dict[str, np.ndarray]:
    """Edit a task's clip of a rate in each way, `whole` included."""
    source = render(task.edit.source, rate, count)
    config, every = EditConfig(steps=steps, seed=task.seed), frames_apart(rate, FPS)
    edit = partial(editor.edit, prompts=task.prompts, config=config)
    if every == 1:
        return {"model's rate": np.asarray(edit(source, frame_rate=rate).frames)}
    some: list[np.ndarray] = []

    def edit_some(frames: Any, fps: float, local: LocalEdit) -> EditResult:
        result = edit(frames, frame_rate=fps, local=local)
        some.append(np.asarray(result.frames))
        return result

    carried = np.asarray(edit_every(edit_some, source, every, rate, EVERYWHERE).frames)
    return {
        "all frames": np.asarray(edit(source, frame_rate=rate).frames),
        "held": hold(some[0], source, every),
        "carried": carried,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1, help="tasks of each kind")
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--rates", type=float, nargs="+", default=[30.0, 60.0])
    parser.add_argument("--whole", type=float, default=30.0, help="the highest rate at which all frames are edited")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    editor, read = Editor(backbones.load()), SceneClassifier.load().read
    rows: dict[tuple[float, str], list[list[float]]] = {}
    for task in primitives_tasks("tuning", options.count, options.kinds):
        still = 1.0
        for rate in (FPS, *options.rates):
            count = round(rate * 8 / FPS) + 1
            source, true = (render(one, rate, count) for one in (task.edit.source, task.edit.target))
            inside = np.abs(source.astype(int) - true).max(-1) > CHANGE_THRESHOLD
            for way, edited in ways_of(task, editor, options.steps, rate, count, rate <= options.whole).items():
                answers = read(edited[np.linspace(0, count - 1, SEEN).round().astype(int)])
                still = flicker(source, edited) if rate == FPS else still
                success = attributes(asked_answers(task.edit, task.clips), answers)["success"]
                figures = [success, psnr(edited, true, inside), psnr(edited, source, ~inside)]
                rows.setdefault((rate, way), []).append([*figures, flicker(source, edited) / still])
        print(f"{task.name} done", flush=True)
    print("| fps | way | success | inside | outside | flicker | largest |\n|---:|---|---:|---:|---:|---:|---:|")
    for (rate, way), figures in rows.items():
        success, within, without, change = np.nanmean(figures, axis=0)
        most = max(one[-1] for one in figures)
        print(f"| {rate:g} | {way} | {success:.2f} | {within:.2f} | {without:.2f} | {change:.2f} | {most:.2f} |")


if __name__ == "__main__":
    main()
