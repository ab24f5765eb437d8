"""Composite an edited video over its source, whose bytes stay where nothing may change."""

from __future__ import annotations

import numpy as np


def composite(source: np.ndarray, edited: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return m edited + (1 - m) source, uint8 [T, H, W, 3] like both, with m = `share`, float32 [T, H, W] of 0 to 1:
    where it is 0 the source's bytes, where it is 1 the edit's."""
    out = np.empty_like(source)
    for frame, before, after, m in zip(out, source, edited, share, strict=True):
        mixed = before + m[..., None] * (after.astype(np.float32) - before)
        np.rint(mixed, out=mixed)
        frame[...] = mixed
    return out
