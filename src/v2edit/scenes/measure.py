"""Measures of a scene's renders: against the true edited scene, where that is known, and against photographs.

Letters: C views. Images are uint8 [C, H, W, 3]. A measure over no pixel is nan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from v2edit.metrics.pixels import psnr
from v2edit.primitives.edits import CHANGE_THRESHOLD
from v2edit.scenes.dataset import Dataset

MAX_PSNR = 60.0  # dB, that of equal images


@dataclass(frozen=True)
class RegionPSNR:
    """PSNR in dB over all pixels, inside the region that the edit should change, and outside it."""

    whole: float
    inside: float
    outside: float


def region_psnr(images: np.ndarray, source: np.ndarray, target: np.ndarray) -> RegionPSNR:
    """Measure images against the true edited scene, `target`; the edit's region is where it differs from `source`."""
    changed = np.abs(source.astype(np.int16) - target.astype(np.int16)).max(-1) > CHANGE_THRESHOLD
    regions = None, changed, ~changed
    return RegionPSNR(*(psnr(images, target, region, highest=MAX_PSNR) for region in regions))


def photograph_psnr(images: np.ndarray, views: Dataset) -> float:
    """Return the PSNR in dB of a scene's renders against the photographs of these views, where they are valid."""
    return psnr(images, views.images, views.masks, highest=MAX_PSNR)
