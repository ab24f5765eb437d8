"""A stand-in for a judge: it scores a video by its shade of grey."""

import base64
import io
from itertools import pairwise

import numpy as np
from PIL import Image

from support.servers import Reply, Request, completion
from v2edit.metrics.lvlm_score import ASPECTS

# Grey value of every pixel of a video, by which its pictures are recognised.
SHADES = {"source": 10, "ours": 200, "theirs": 120, "nothing": 60}


SOURCE = np.full((20, 16, 24, 3), SHADES["source"], np.uint8)
VIDEOS = {name: np.full_like(SOURCE, shade) for name, shade in SHADES.items() if name != "source"}


def shade_of(part: dict) -> str:
    data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    mean = np.asarray(Image.open(io.BytesIO(data))).mean()
    return min(SHADES, key=lambda name: abs(SHADES[name] - mean))


def labelled_videos(request: Request) -> list[dict[str, str]]:
    """Return label -> video of each frame that a request shows."""
    frames: list[dict[str, str]] = []
    parts = request.messages[-1]["content"]
    for label, part in pairwise(parts):
        if "text" in label and "image_url" in part:
            if label["text"].startswith("Frame"):
                frames.append({})
            frames[-1][label["text"].split()[-1].rstrip(":")] = shade_of(part)
    return frames


def score_by_shade(request: Request, jitter: int = 0) -> Reply:
    """Score each video by its shade, wherever it stands."""
    frame = labelled_videos(request)[0]
    scores = {letter: SHADES[name] // 3 + jitter for letter, name in frame.items() if letter != "Original"}
    return completion({letter: dict.fromkeys(ASPECTS, score) for letter, score in scores.items()})
