"""Reads the scene of the built-in world off the frames of a clip: its captioner, and the judge of its attributes.

A small convolutional network: each frame and what changes until the next to a vector, the vectors of nine frames side
by side to the answers. A frame alone, all that a CLIP sees, shows no motion.

Letters: B clips, T frames (9 after sampling), K answers' logits.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import CAMERAS, COLOURS, FLOORS, MOTIONS, PLACES, SHAPES, SIZES, SKIES, Object, Scene

WEIGHTS = Path(__file__).parents[1] / "weights/classifier/classifier.safetensors"
FRAMES, SIDE = 9, 64
UNLIKE = (
    0.03  # mean squared error of values in -1..1: clips of this world have 0.007 at most, real videos 0.12 at least
)
NONE = "none"  # the shape at a place where nothing stands
OF_OBJECT = {"shape": (NONE, *SHAPES), "colour": tuple(COLOURS), "size": tuple(SIZES), "motion": MOTIONS}
OF_SCENE = {"floor": tuple(FLOORS), "sky": tuple(SKIES), "camera": CAMERAS}
# Every question asked of a clip, and its possible answers; the logits lie in this order.
QUESTIONS: dict[tuple[str, str], tuple[str, ...]] = {
    **{(place, field): answers for place in PLACES for field, answers in OF_OBJECT.items()},
    **{("scene", field): answers for field, answers in OF_SCENE.items()},
}


class SceneClassifier(nn.Module):
    """uint8 frames to a `Scene` of the built-in world."""

    def __init__(self) -> None:
        super().__init__()
        self.frame = nn.Sequential(
            *_convolution(6, 32, 5, 2), *_convolution(32, 64, 3, 2), *_convolution(64, 96, 3, 1),
            *_convolution(96, 128, 3, 2), nn.Conv2d(128, 32, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 8 * 8, 128),
        )  # fmt: skip
        self.clip = nn.Sequential(
            nn.ReLU(), nn.Linear(FRAMES * 128, 512), nn.ReLU(),
            nn.Linear(512, sum(len(answers) for answers in QUESTIONS.values())),
        )  # fmt: skip

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls) -> SceneClassifier:
        """The reader that ships with the package, ready to read."""
        reader = cls()
        reader.load_state_dict(load_file(WEIGHTS))
        return reader.eval().requires_grad_(False)

    def forward(self, clips: Tensor) -> dict[tuple[str, str], Tensor]:
        """float [B, T, 3, 64, 64] in -1..1 to the logits [B, K] of each question."""
        # The floor's soft pattern is all that tells some orbits from a still camera: its movement is a few levels.
        change = (F.pad(clips.diff(dim=1), (0, 0, 0, 0, 0, 0, 0, 1)) * 16).clamp(-1, 1)
        seen = torch.cat([clips, change], dim=2).flatten(0, 1)
        features = self.frame(seen.contiguous(memory_format=torch.channels_last))
        logits = self.clip(features.view(len(clips), -1))
        sizes = [len(answers) for answers in QUESTIONS.values()]
        return dict(zip(QUESTIONS, logits.split(sizes, dim=1), strict=True))

    @torch.no_grad()
    def classify(self, frames: np.ndarray) -> Scene:
        """The scene that uint8 frames [T, H, W, 3] of any length and size show, without the jitter that captions do
        not mention. Always some scene: whether the clip is of this world at all is for `matches_scene` to say."""
        logits = self(prepare(frames)[None])

        def answer(about: str, field: str) -> str:
            return QUESTIONS[about, field][int(logits[about, field][0].argmax())]

        def standing(place: str) -> Object:
            shape, colour, size, motion = (answer(place, field) for field in OF_OBJECT)
            return Object(shape, colour, size, place, motion)

        objects = tuple(standing(place) for place in PLACES if answer(place, "shape") != NONE)
        return Scene(objects, answer("scene", "floor"), answer("scene", "sky"), answer("scene", "camera"))


def prepare(frames: np.ndarray) -> Tensor:
    """Nine evenly spaced frames of uint8 [T, H, W, 3] as float [9, 3, 64, 64] in -1..1."""
    chosen = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
    video = torch.from_numpy(frames[chosen]).permute(0, 3, 1, 2).float() / 127.5 - 1
    return video if video.shape[2:] == (SIDE, SIDE) else F.interpolate(video, (SIDE, SIDE), mode="area")


def matches_scene(frames: np.ndarray, scene: Scene) -> bool:
    """Whether a clip may well show a scene of this world: whether its frames, seen coarsely, are like a render of it.

    The jitter that no caption mentions is lost, so that only a coarse likeness can be asked for.
    """
    clip, ideal = (F.avg_pool2d(prepare(one), 8) for one in (frames, render_clip(scene, FRAMES, SIDE, SIDE).frames))
    return bool((clip - ideal).square().mean() < UNLIKE)


def scene_labels(scene: Scene) -> list[int]:
    """The right answer to each question as its index, -1 where there is no object to ask about."""
    objects = {one.place: one for one in scene.objects}
    labels = []
    for (place, field), answers in QUESTIONS.items():
        if place == "scene":
            labels.append(answers.index(getattr(scene, field)))
        elif place in objects:
            labels.append(answers.index(getattr(objects[place], field)))
        else:
            labels.append(answers.index(NONE) if field == "shape" else -1)
    return labels


def _convolution(inside: int, outside: int, size: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inside, outside, size, stride, size // 2, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
