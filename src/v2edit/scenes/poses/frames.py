"""Choice of a video's frames for finding its cameras: evenly by how far the picture moves, the sharpest around each.

Letters: T frames, H and W their sides in pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from v2edit.video.stream import Frames

log = logging.getLogger(__name__)
MOTION_SIDE, SHARPNESS_SIDE = 256, 640  # pixels at which motion and sharpness are measured
STEP = 0.03  # of the picture's longer side that it moves between chosen frames, at least
FAR = 0.25  # the same, beyond which frames may overlap too little
STILL = 0.05  # of the longer side, over a whole video: the camera stands
LEAST = 24  # frames, where the video moves at all and has them
WINDOW = 0.8  # of the motion between chosen frames, in which the sharpest is taken; its neighbours in any case


def measure_frames(frames: Frames) -> tuple[np.ndarray, np.ndarray]:
    """Return of each frame, uint8 [T, H, W, 3], how far the picture has moved since the one before, in its longer
    side, float64 [T] (the median of its optical flow), and its sharpness, float64 [T] (the variance of its Laplacian).
    Reads them in one pass."""
    import cv2

    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    moved, sharpness, previous = [], [], None
    for frame in frames:
        grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
        sharpness.append(float(cv2.Laplacian(_reduced(grey, SHARPNESS_SIDE), cv2.CV_32F).var()))
        small = _reduced(grey, MOTION_SIDE)
        step = 0.0
        if previous is not None and min(small.shape) >= 16:
            offsets = flow.calc(previous, small, None)  # pyright: ignore[reportCallIssue, reportArgumentType]
            step = float(np.median(np.hypot(offsets[..., 0], offsets[..., 1]))) / max(small.shape)
        moved.append(step)
        previous = small
    return np.array(moved), np.array(sharpness)


def _reduced(grey: np.ndarray, side: int) -> np.ndarray:
    import cv2

    scale = side / max(grey.shape)
    size = max(1, round(scale * grey.shape[1])), max(1, round(scale * grey.shape[0]))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA) if scale < 1 else grey


def choose_frames(moved: np.ndarray, sharpness: np.ndarray, most: int, cuts: Sequence[int] = ()) -> list[int]:
    """Return the numbers of at most `most` frames, evenly spaced by the motion before them, `moved` [T], each the
    sharpest around its place. No motion is counted over `cuts`, the first frames of further shots."""
    moved = moved.copy()
    moved[[0, *cuts]] = 0
    total, count = float(moved.sum()), len(moved)
    wanted = int(np.clip(np.ceil(total / STEP), LEAST, most))
    if count <= wanted:
        return list(range(count))
    if total / wanted > FAR:
        log.warning("the video moves by %.0f %% of its width between two of the %d frames that are taken: --pictures "
                    "takes more", 100 * total / wanted, wanted)  # fmt: skip
    # A little is added for each frame, so that places are distinct where the camera stands.
    places = np.cumsum(moved + total / count * 0.05 + 1e-9)
    targets = places[0] + (np.arange(wanted) + 0.5) * (places[-1] - places[0]) / wanted
    half = 0.5 * WINDOW * (places[-1] - places[0]) / wanted
    chosen = []
    for target in targets:
        nearest = int(np.abs(places - target).argmin())
        near = np.arange(max(nearest - 1, 0), min(nearest + 2, count))
        around = np.union1d(np.nonzero(np.abs(places - target) <= half)[0], near)
        chosen.append(int(around[sharpness[around].argmax()]))
    return sorted(set(chosen))


def stands_still(moved: np.ndarray) -> bool:
    """Return whether the camera of a video hardly moves."""
    return float(moved[1:].sum()) < STILL
