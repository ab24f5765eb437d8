"""A reader for runs whose figures are no matter, light enough for every worker process to import."""

import numpy as np

from v2edit.primitives.questions import QUESTIONS


def read(frames: np.ndarray) -> np.ndarray:
    """Sees the same in every clip."""
    return np.ones(len(QUESTIONS), np.int64)
