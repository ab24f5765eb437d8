"""A judge of videos that scores what it sees."""

import base64
import io
from itertools import pairwise

import numpy as np
from PIL import Image

from support.servers import Asked, Reply, says
from v2edit.metrics.lvlm_score import ASPECTS

SHADES = {"source": 10, "ours": 200, "theirs": 120, "nothing": 60}  # what tells the videos apart in the pictures


SOURCE = np.full((20, 16, 24, 3), SHADES["source"], np.uint8)


VIDEOS = {name: np.full_like(SOURCE, shade) for name, shade in SHADES.items() if name != "source"}


def shade_of(part: dict) -> str:
    data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    mean = np.asarray(Image.open(io.BytesIO(data))).mean()
    return min(SHADES, key=lambda name: abs(SHADES[name] - mean))


def shown(asked: Asked) -> list[dict[str, str]]:
    """For each frame: label -> video, as the model sees it."""
    frames: list[dict[str, str]] = []
    parts = asked.messages[-1]["content"]
    for label, part in pairwise(parts):
        if "text" in label and "image_url" in part:
            if label["text"].startswith("Frame"):
                frames.append({})
            frames[-1][label["text"].split()[-1].rstrip(":")] = shade_of(part)
    return frames


def fair(asked: Asked, jitter: int = 0) -> Reply:
    """A judge that scores what it sees: the shade, wherever it stands."""
    frame = shown(asked)[0]
    scores = {letter: SHADES[name] // 3 + jitter for letter, name in frame.items() if letter != "Original"}
    return says({letter: dict.fromkeys(ASPECTS, score) for letter, score in scores.items()})
