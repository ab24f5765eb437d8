"""Scene classifier: the scene of primitives that a clip shows, for captions and for scores by attribute.

A small convolutional network: each frame and its difference to the next become a vector, and nine vectors together the
answers. (A CLIP, which sees single frames, cannot see motion.)

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
from v2edit.video.stream import Frames

WEIGHTS = Path(__file__).parents[1] / "weights/classifier/classifier.safetensors"
FRAMES, SIDE = 9, 64
# Mean squared error, of values in -1..1, between a clip and a render of its scene, both pooled: at most 0.010 for clips
# of primitives, at least 0.12 for real videos.
MAX_RENDER_ERROR = 0.03
NONE = "none"  # the shape at an empty place
OF_OBJECT = {"shape": (NONE, *SHAPES), "colour": tuple(COLOURS), "size": tuple(SIZES), "motion": MOTIONS}
OF_SCENE = {"floor": tuple(FLOORS), "sky": tuple(SKIES), "camera": CAMERAS}
# Every question about a clip and its possible answers, in the order of the logits.
QUESTIONS: dict[tuple[str, str], tuple[str, ...]] = {
    **{(place, field): answers for place in PLACES for field, answers in OF_OBJECT.items()},
    **{("scene", field): answers for field, answers in OF_SCENE.items()},
}


class SceneClassifier(nn.Module):
    """A network from uint8 frames to a `Scene`."""

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
        """Load the weights that ship with the package."""
        classifier = cls()
        classifier.load_state_dict(load_file(WEIGHTS))
        return classifier.eval().requires_grad_(False)

    def forward(self, clips: Tensor) -> dict[tuple[str, str], Tensor]:
        """Map clips, float [B, T, 3, 64, 64] in -1..1, to the logits [B, K] of each question."""
        # In some orbits only the floor's soft pattern moves, by a few levels: hence differences, amplified.
        change = (F.pad(clips.diff(dim=1), (0, 0, 0, 0, 0, 0, 0, 1)) * 16).clamp(-1, 1)
        inputs = torch.cat([clips, change], dim=2).flatten(0, 1)
        features = self.frame(inputs.contiguous(memory_format=torch.channels_last))
        logits = self.clip(features.view(len(clips), -1))
        sizes = [len(answers) for answers in QUESTIONS.values()]
        return dict(zip(QUESTIONS, logits.split(sizes, dim=1), strict=True))

    @torch.no_grad()
    def classify(self, frames: Frames) -> Scene:
        """Return the scene that uint8 frames [T, H, W, 3] of any length and size show, without the jitter that
        captions do not mention. The result is always a scene; `matches_scene` checks that it resembles the clip."""
        logits = self(preprocess(frames)[None])

        def answer(about: str, field: str) -> str:
            return QUESTIONS[about, field][int(logits[about, field][0].argmax())]

        def object_at(place: str) -> Object:
            shape, colour, size, motion = (answer(place, field) for field in OF_OBJECT)
            return Object(shape, colour, size, place, motion)

        objects = tuple(object_at(place) for place in PLACES if answer(place, "shape") != NONE)
        return Scene(objects, answer("scene", "floor"), answer("scene", "sky"), answer("scene", "camera"))


def preprocess(frames: Frames) -> Tensor:
    """Return nine evenly spaced frames of uint8 [T, H, W, 3] as float [9, 3, 64, 64] in -1..1."""
    indices = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
    video = torch.from_numpy(frames[indices]).permute(0, 3, 1, 2).float() / 127.5 - 1
    return video if video.shape[2:] == (SIDE, SIDE) else F.interpolate(video, (SIDE, SIDE), mode="area")


def matches_scene(frames: Frames, scene: Scene) -> bool:
    """Return whether a clip resembles a render of a scene, i.e. whether it shows primitives at all. Both are pooled
    first: the scene lacks the jitter that no caption mentions."""
    render = render_clip(scene, FRAMES, SIDE, SIDE).frames
    clip, ideal = (F.avg_pool2d(preprocess(video), 8) for video in (frames, render))
    return bool((clip - ideal).square().mean() < MAX_RENDER_ERROR)


def scene_labels(scene: Scene) -> list[int]:
    """Return the index of the right answer to each question, -1 for attributes of an empty place."""
    parts = {"scene": scene, **{obj.place: obj for obj in scene.objects}}
    labels = []
    for (part, field), answers in QUESTIONS.items():
        if part in parts:
            labels.append(answers.index(getattr(parts[part], field)))
        else:
            labels.append(answers.index(NONE) if field == "shape" else -1)
    return labels


def _convolution(in_channels: int, out_channels: int, size: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, size, stride, size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]
