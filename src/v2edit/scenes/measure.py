"""How well an edited scene shows the true one, where that is known.

Letters: C views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from v2edit.primitives.edits import CHANGE_THRESHOLD
from v2edit.scenes.cameras import Cameras
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.rer import render_video

HIGHEST = 60.0  # dB that equal images are given


@dataclass(frozen=True)
class Fidelity:
    """PSNR in dB against the truth: over all pixels, inside what the edit should change, and outside it. Where a
    region is empty, None."""

    whole: float
    inside: float | None
    outside: float | None


def fidelity(gaussians: Gaussians, cameras: Cameras, source: np.ndarray, target: np.ndarray) -> Fidelity:
    """How a scene compares with its true edited self in views that it was not made from: uint8 [C, H, W, 3] of the
    true scene before (`source`) and after (`target`)."""
    return compare(render_video(gaussians, cameras), source, target)


def compare(shown: np.ndarray, source: np.ndarray, target: np.ndarray) -> Fidelity:
    """The same of images: `shown` against `target`, split by where `source` and `target` differ."""
    changed = np.abs(source.astype(np.int16) - target.astype(np.int16)).max(-1) > CHANGE_THRESHOLD
    everywhere = np.ones_like(changed)
    whole = _psnr(shown, target, everywhere)
    assert whole is not None
    return Fidelity(whole, _psnr(shown, target, changed), _psnr(shown, target, ~changed))


def against_photographs(shown: np.ndarray, views: Dataset) -> float | None:
    """PSNR in dB of what a scene shows, uint8 [C, H, W, 3], against the photographs of these views, where they can be
    believed; None where that is nowhere."""
    return _psnr(shown, views.images, np.ones(shown.shape[:3], bool) if views.masks is None else views.masks)


def _psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float | None:
    error = (a.astype(np.float64) - b.astype(np.float64))[where]
    if not error.size:
        return None
    return min(HIGHEST, 10 * math.log10(255**2 / max(float((error**2).mean()), 1e-9)))
