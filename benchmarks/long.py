"""Long clips and loops on the built-in world: the error of windows on a long clip, and the seam of a loop.

    python benchmarks/long.py                 (some minutes; --seeds 2 --frames 9 33 --loop-frames 40 for a look)

1. How well the model denoises clips longer than the nine frames it was trained on, with a true prompt:
   the mean squared error of x0 (latents have unit variance), over several noise levels, by full attention and
   by windows.
2. The seam of a camera's full turn: the step (root mean square over pixels) from the last frame to the first, against
   the median step between neighbours, in the source, and edited ("recolour") as an open clip and as a loop. The turn
   starts anywhere; a seam like any other step has a ratio of 1 on average.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch
from torch import Tensor

from v2edit import backbones
from v2edit.backbones import Text
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.editing import EditConfig, Editor
from v2edit.primitives.captions import caption
from v2edit.primitives.render import HEIGHT, orbit_cameras, render_clip
from v2edit.primitives.scene import COLOURS, Scene, sample_scene
from v2edit.prompts import PromptPair
from v2edit.sampling import Schedule

FIRST_SEED = 2_000_000_000  # no training or tuning uses what follows
SPEED = math.radians(4.5)  # a frame: the orbits that the model was trained on
STEPS = (2, 5, 8, 11, 14)  # of 20
ATTENTIONS = ("full", "windows", "windows, text at the clip's times")


@dataclass(frozen=True)
class Orbit(Scene):
    """A scene that the camera circles by so much a frame."""

    speed: float = 0.0

    def render(self, frames: int) -> np.ndarray:
        """Return a clip, uint8 [T, H, W, 3]."""
        places = [(self.azimuth + self.speed * frame, HEIGHT) for frame in range(frames)]
        return render_clip(self, frames, cameras=orbit_cameras(places, 64, 96)).frames


def sample_orbit(seed: int, speed: float, azimuth: float | None = None) -> Orbit:
    """Sample a scene at rest that the camera circles."""
    scene = sample_scene(Random(seed))
    objects = tuple(replace(thing, motion="stay") for thing in scene.objects)
    camera = "orbit right" if speed else "still"
    azimuth = scene.azimuth if azimuth is None else azimuth
    return replace(Orbit(**vars(scene)), objects=objects, camera=camera, azimuth=azimuth, speed=speed)


def denoise(backbone: CogVideoX, v: Tensor, step: int, schedule: Schedule, text: list[Text], attention: str) -> Tensor:
    """Predict x0 by one of the ATTENTIONS; the model's own is the second."""
    frames, _, height, width = v.shape[1:]
    make_windows = backbone._windows
    native_size = backbone.native_size
    try:
        if attention == "full":
            backbone.native_size = replace(native_size, frames=10**6)
        elif attention != "windows":
            own = make_windows(frames, height, width, False)
            backbone._windows = lambda *grid: replace(own, in_window=own.in_clip)
        return backbone.denoise(v, step, schedule, text)
    finally:
        backbone.native_size, backbone._windows = native_size, make_windows


def errors(backbone: CogVideoX, frames: int, speed: float, seeds: int) -> list[float]:
    """Return the mean squared error of x0 by each of the ATTENTIONS."""
    schedule, squares = backbone.schedule(20), np.zeros((seeds, len(STEPS), len(ATTENTIONS)))
    for number in range(seeds):
        scene = sample_orbit(FIRST_SEED + number, speed)
        x0 = backbone.encode(scene.render(frames))
        text = backbone.encode_text([caption(scene)])
        draw = torch.Generator().manual_seed(number)
        for i, step in enumerate(STEPS):
            v = schedule.add_noise(x0, torch.randn(x0.shape, generator=draw), step)
            for j, attention in enumerate(ATTENTIONS):
                squares[number, i, j] = (denoise(backbone, v, step, schedule, text, attention) - x0).square().mean()
    return squares.mean((0, 1)).tolist()


def seam(frames: np.ndarray) -> float:
    """Return the step from the last frame to the first over the median step between neighbours."""
    video = frames.astype(np.float64)
    steps = np.sqrt(np.square(np.roll(video, -1, axis=0) - video).mean((1, 2, 3)))
    return float(steps[-1] / np.median(steps[:-1]))


def seams(editor: Editor, frames: int, seed: int, steps: int) -> tuple[float, float, float]:
    """Return the seams of a full turn: of the source, of its edit as an open clip and of its edit as a loop."""
    rng = Random(seed)
    source = sample_orbit(seed, 2 * math.pi / frames, rng.uniform(0, 2 * math.pi))
    subject = rng.randrange(len(source.objects))
    colour = rng.choice([c for c in COLOURS if all(c != thing.colour for thing in source.objects)])
    pair = PromptPair(caption(source), caption(source.with_object(subject, colour=colour)))
    clip = source.render(frames)
    open_clip, loop = (
        editor.edit(clip, pair, EditConfig(steps=steps, seed=seed, loop=loop)).frames for loop in (False, True)
    )
    return seam(clip), seam(np.asarray(open_clip)), seam(np.asarray(loop))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[9, 17, 33, 65], help="lengths of the first table")
    parser.add_argument("--loop-frames", type=int, nargs="+", default=[80, 77], help="lengths of the second")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="of the edits")
    options = parser.parse_args()
    backbone = backbones.load()
    assert isinstance(backbone, CogVideoX)

    print(f"| camera | frames | {' | '.join(ATTENTIONS)} |\n|---|---:|{'---:|' * len(ATTENTIONS)}")
    for camera, speed in (("still", 0.0), ("turning", SPEED)):
        for frames in options.frames:
            mean_errors = errors(backbone, frames, speed, options.seeds)
            print(f"| {camera} | {frames} | {' | '.join(f'{error:.4f}' for error in mean_errors)} |", flush=True)

    print("\n| frames of a turn | seam of | mean | median | largest |\n|---:|---|---:|---:|---:|")
    for frames in options.loop_frames:
        ratios = [seams(Editor(backbone), frames, FIRST_SEED + n, options.steps) for n in range(options.seeds)]
        for name, values in zip(
            ("the source", "its edit, open", "its edit, `--loop`"), zip(*ratios, strict=True), strict=True
        ):
            row = f"{statistics.mean(values):.2f} | {statistics.median(values):.2f} | {max(values):.2f}"
            print(f"| {frames} | {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
