"""Measures over time: whether an edited video moves as its source does, and how its colours have drifted.

Letters: T frames. Frames are uint8 [T, H, W, 3], masks bool [T, H, W].
"""

from __future__ import annotations

import math
from itertools import pairwise

import cv2
import numpy as np

from v2edit.video.flow import warp
from v2edit.video.stream import Frames

SMOOTHING = 0.01, 0.5  # of the test of occlusion (Sundaram et al. 2010): share of the flows' squares, and pixels²


def warp_error(edited: Frames, source: Frames) -> float:
    """Return the warping error (Lai et al. 2018, Eq. 11) in thousandths: the mean squared difference, of values 0 to 1,
    between each edited frame and the next one brought to it by the *source's* optical flow, where neither is occluded.
    The flow is OpenCV's DIS (Kroeger et al. 2016), which needs no weights; nan for a single frame."""
    values = []
    for (now, before), (following, after) in pairwise(zip(edited, source, strict=True)):
        forward, visible = flow_between(before, after)
        if visible.any():
            back = warp(following.astype(np.float32), forward)
            error = (now.astype(np.float64) - back) / 255
            values.append(float(np.square(error)[visible].mean()))
    return 1000 * float(np.mean(values)) if values else math.nan


def flow_between(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the optical flow from a frame uint8 [H, W, 3] to the next, float32 [H, W, 2] as (x, y), and where it
    holds, bool [H, W]: within the frame, and the way back leads back."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    there, back = finder.calc(grey[0], grey[1], None), finder.calc(grey[1], grey[0], None)
    height, width = there.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    inside = (x + there[..., 0] >= 0) & (x + there[..., 0] <= width - 1)
    inside &= (y + there[..., 1] >= 0) & (y + there[..., 1] <= height - 1)
    returned = warp(back, there)
    share, slack = SMOOTHING
    squares = np.square(there).sum(-1) + np.square(returned).sum(-1)
    return there, inside & (np.square(there + returned).sum(-1) < share * squares + slack)


def colour_drift(edited: Frames, source: Frames, outside: Frames) -> float:
    """Return how far the mean colour of each frame, over a mask, is from the source's: root mean square over frames and
    channels, in levels of 255; nan where the mask is empty."""
    means = [
        after[where].mean(0) - before[where].mean(0)
        for after, before, where in zip(edited, source, outside, strict=True)
        if where.any()
    ]
    return float(np.sqrt(np.square(means).mean())) if means else math.nan
