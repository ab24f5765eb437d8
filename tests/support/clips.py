"""Clips of noise and prompts that the tiny models know."""

import numpy as np
import torch

from v2edit.prompts import PromptPair

PAIR = PromptPair("a red ball on the floor", "a blue cube on the floor")


SAME = PromptPair(PAIR.source, PAIR.source)


def frames_of(seed: int, count: int = 9, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def images_of(frames: np.ndarray) -> torch.Tensor:
    """Return frames as ComfyUI's nodes hand them on, float32 [T, H, W, 3] of 0..1."""
    return torch.from_numpy(frames) / 255.0
