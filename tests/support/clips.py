"""Clips of noise and prompts that the tiny models know."""

import numpy as np

from v2edit.prompts import PromptPair

PAIR = PromptPair("a red ball on the floor", "a blue cube on the floor")


SAME = PromptPair(PAIR.source, PAIR.source)


def frames_of(seed: int, count: int = 9, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
