"""Scene classifier: the scene of primitives that a clip shows, for captions and for scores by attribute.

In each frame queries read cells of 8 x 8 pixels by attention; what they read in all frames together answers the
questions (`questions.py`). (A CLIP, which sees single frames, cannot see motion.)

Letters: B clips, T frames (9 after sampling), Q questions, K answers' logits.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from v2edit.primitives.questions import OF_OBJECT, OF_SCENE, QUESTIONS, SLOTS, scene_of
from v2edit.primitives.render import PAPER, render_clip
from v2edit.primitives.scene import Scene
from v2edit.video.stream import Frames

WEIGHTS = Path(__file__).parents[1] / "weights/classifier/classifier.safetensors"
FRAMES, HEIGHT, WIDTH = 9, 64, 96
# The squared error of values in -1..1 that a clip of primitives is to have at most: in the best tenth of its pixels to
# a render of the scene that is read off it, which takes part of the floor or the sky for what it is; a pencil drawing,
# in four fifths of its pixels to its paper's colour. Of 240 clips, 80 of them as MP4, too, all but one (0.0012, its sky
# misread) had at most 0.0002, of 14 decoded by the autoencoder all had at most 0.0008; 40 real videos at least 0.004
# (those read as pencil 0.0019). Of those made gray, 0.0033; but a film without colour may pass for a drawing (0.0008).
MAX_ERROR = 0.0012
BEST_SHARE, PAPER_SHARE = 0.1, 0.8


class Reader(nn.Module):
    """A block in which queries read a picture: attention to its cells, then a network of each query."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.network = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, queries: Tensor, cells: Tensor) -> Tensor:
        queries = queries + self.attention(self.before(queries), cells, cells, need_weights=False)[0]
        return queries + self.network(self.between(queries))


class SceneClassifier(nn.Module):
    """A network from frames to the logits of each question. In each frame (with its difference to the next) a query of
    each slot and four of the scene read cells of 8 x 8 pixels; what they read in all frames answers the questions. All
    slots have the same answering network, so that a shape is learnt wherever it stands; it also hears what the scene's
    queries read, as a motion is one against the camera's. Where the light comes from is the slots' mean: each object's
    shading and shadow tell it, and the scene's queries alone had not begun to learn it."""

    OF_SCENE = 4  # queries
    WIDTH = 128  # of a query
    LIGHT_FROM = "", "", "light from"  # the last of the questions

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls) -> SceneClassifier:
        """Load the weights that ship with the package."""
        classifier = cls()
        classifier.load_state_dict(load_file(WEIGHTS))
        return classifier.float().eval().requires_grad_(False)

    def __init__(self, width: int = 48, depth: int = 2) -> None:
        super().__init__()
        sizes, layers = [6, width, 2 * width, 4 * width], []
        for before, after in pairwise(sizes):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.frame = nn.Sequential(*layers, nn.Conv2d(sizes[-1], self.WIDTH, 1))
        self.places = nn.Parameter(0.5 * torch.randn(HEIGHT // 8 * (WIDTH // 8), self.WIDTH))
        self.queries = nn.Parameter(0.5 * torch.randn(len(SLOTS) + self.OF_SCENE, self.WIDTH))
        self.readers = nn.ModuleList(Reader(self.WIDTH) for _ in range(depth))
        self.about_scene = nn.Linear(self.WIDTH * self.OF_SCENE, self.WIDTH)
        of_slot = sum(len(answers) for answers, _ in OF_OBJECT.values())
        of_light = len(QUESTIONS[self.LIGHT_FROM])
        of_scene = sum(len(answers) for answers, _ in OF_SCENE.values()) - of_light
        self.slot, self.light = (self._answering(FRAMES * 2 * self.WIDTH, outputs) for outputs in (of_slot, of_light))
        self.scene = self._answering(FRAMES * self.WIDTH * self.OF_SCENE, of_scene)

    @staticmethod
    def _answering(inputs: int, outputs: int) -> nn.Module:
        # What 384 units hear of so many inputs, 128 can say: a third of the weights, to the same answers.
        first = nn.Linear(inputs, 128, bias=False), nn.Linear(128, 384)
        return nn.Sequential(nn.LayerNorm(inputs), *first, nn.GELU(), nn.Linear(384, outputs))

    def forward(self, clips: Tensor) -> dict[tuple[str, str, str], Tensor]:
        """Map clips, float [B, T, 3, H, W] in -1..1, or stills (T = 1), to the logits [B, K] of each question."""
        seen = self.look(clips).expand(-1, FRAMES, -1, -1).transpose(1, 2)  # [B, queries, T, WIDTH]
        slots, scene = seen[:, : len(SLOTS)], seen[:, len(SLOTS) :]
        heard = self.about_scene(scene.transpose(1, 2).flatten(2))[:, None].expand_as(slots)
        slots = torch.cat([slots, heard], dim=-1).flatten(2)
        parts = self.slot(slots).flatten(1), self.scene(scene.flatten(1)), self.light(slots).mean(1)
        sizes = [len(answers) for answers in QUESTIONS.values()]
        return dict(zip(QUESTIONS, torch.cat(parts, dim=1).float().split(sizes, dim=1), strict=True))

    def look(self, clips: Tensor) -> Tensor:
        """Return what the queries read in each frame of clips, float [B, T, 3, H, W] in -1..1: [B, T, queries, WIDTH],
        those of the slots first."""
        change = (F.pad(clips.diff(dim=1), (0, 0, 0, 0, 0, 0, 0, 1)) * 8).clamp(-1, 1)
        inputs = torch.cat([clips, change], dim=2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        cells = self.frame(inputs).flatten(2).transpose(1, 2) + self.places
        queries = self.queries.expand(len(cells), -1, -1)
        for reader in self.readers:
            queries = reader(queries, cells)
        return queries.unflatten(0, clips.shape[:2])

    @torch.no_grad()
    def read(self, frames: Frames) -> np.ndarray:
        """Return the answer to each question, int64 [Q], on uint8 frames [T, H, W, 3] of any length and size."""
        logits = self(preprocess(frames)[None])
        return np.array([int(logits[question][0].argmax()) for question in QUESTIONS])

    def classify(self, frames: Frames) -> Scene:
        """Return the scene that uint8 frames [T, H, W, 3] of any length and size show, without the jitter that nobody
        asks for. The result is always a scene; `matches_scene` checks that it resembles the clip."""
        return scene_of(self.read(frames))


def preprocess(frames: Frames) -> Tensor:
    """Return nine evenly spaced frames of uint8 [T, H, W, 3] as float [9, 3, 64, 96] in -1..1: of another shape, as
    square photographs of a scene, the middle, as all things would look wider or taller than they are."""
    indices = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
    rows, columns = frames.shape[1:3]
    height, width = min(rows, round(columns * HEIGHT / WIDTH)), min(columns, round(rows * WIDTH / HEIGHT))
    top, left = (rows - height) // 2, (columns - width) // 2
    middle = np.asarray(frames[indices])[:, top : top + height, left : left + width]
    video = torch.from_numpy(middle).permute(0, 3, 1, 2).float() / 127.5 - 1
    return video if video.shape[2:] == (HEIGHT, WIDTH) else F.interpolate(video, (HEIGHT, WIDTH), mode="area")


def matches_scene(frames: Frames, scene: Scene) -> bool:
    """Return whether a clip resembles the scene that is read off it, i.e. whether it shows primitives at all. Much of a
    scene may be misread or never asked for; what is left of the floor or the sky is as it is rendered."""
    clip = preprocess(frames)
    if scene.style == "pencil":  # whose gray tones show what is misread everywhere, but no colour
        paper = torch.tensor(PAPER)[:, None, None]
        tone = ((clip + 1) * paper).sum(1, keepdim=True) / paper.square().sum()
        errors, share = (clip + 1 - tone * paper).square(), PAPER_SHARE
    else:
        errors, share = (clip - preprocess(render_clip(scene, FRAMES, HEIGHT, WIDTH).frames)).square(), BEST_SHARE
    return float(errors.mean(1).quantile(share)) < MAX_ERROR
