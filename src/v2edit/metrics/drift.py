"""Measures of an edited video's colours against its source's: their drift, a flash in the first frame, jumps at joints.

Levels are those of 8 bits, 0 to 255. T frames."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from v2edit.video.colour_hold import ColourDrift

FOLLOWING = 8  # frames that the first is compared with
STILL = 0.05  # levels: steps below are those of a video at rest


def measure_drift(drift: ColourDrift | None, joints: Sequence[int] = ()) -> dict[str, float | None]:
    """Return the size of a drift, `colour` (levels, root mean square), and its `flash` and `joints` (see below), to
    three digits; None where too little is unchanged to tell, or where there is nothing to compare."""
    if drift is None:
        return {"colour": None, "flash": None, "joints": None}
    colour = float(np.sqrt(np.square(drift.size).mean()))
    figures = {"colour": colour, "flash": first_frame_flash(drift), "joints": joint_steps(drift, joints)}
    return {name: None if math.isnan(value) else round(value, 3) for name, value in figures.items()}


def first_frame_flash(drift: ColourDrift) -> float:
    """Return how far the first frame's drift is from the median of those that follow, in levels (root mean square over
    channels); nan for a single frame."""
    if len(drift.mean) < 2:
        return math.nan
    following = np.median(drift.mean[1 : 1 + FOLLOWING], axis=0)
    return float(np.sqrt(np.square(drift.mean[0] - following).mean()))


def joint_steps(drift: ColourDrift, joints: Sequence[int]) -> float:
    """Return the mean step from a frame to the next at the joints (frames that begin a chunk), over the median of all
    other steps but the first one: about 1 where no joint is seen, 0 where the video is at rest, nan without joints.

    A step is the root mean square change of edited minus source, so that the source's own motion does not count, in
    means over cells of some pixels, so that grain does not, where nothing was edited."""
    steps, count = drift.steps, len(drift.steps) + 1
    joints = [k for k in joints if 1 < k < count]
    others = [k for k in range(2, count) if k not in set(joints)]
    if not joints or not others:
        return math.nan
    return float(steps[[k - 1 for k in joints]].mean() / max(np.median(steps[[k - 1 for k in others]]), STILL))
