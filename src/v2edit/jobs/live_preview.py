"""The live preview of a run: what the edit looks like so far, a little video in the folder of its state."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from v2edit.files import atomic_path

if TYPE_CHECKING:
    import numpy as np

    from v2edit.editing.editor import Progress

PREVIEW_FILE = "preview.webp"  # in the state folder
EVERY, SHARE = 2.0, 0.02  # seconds between two previews at least, and the share of time that they may take
SIDE = 128  # pixels that the short side is brought to at least, each pixel to a square


def keep_preview(folder: Path, seconds: float, on_progress: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Return a callback that calls `on_progress`, but where there is a new sketch alone, and keeps the preview of a
    clip of so many seconds in a run's state folder. A preview that cannot be written is left out: a full disk shows
    with what matters."""
    from v2edit.editing.sketch import SKETCHING

    due = 0.0

    def report(progress: Progress) -> None:
        nonlocal due
        if progress.sketch is not None and (began := time.monotonic()) >= due:
            with suppress(OSError), atomic_path(folder / PREVIEW_FILE) as part:
                write_preview(progress.sketch, seconds, part)
            taken = time.monotonic() - began
            due = began + max(EVERY, taken / SHARE)
        if progress.stage != SKETCHING:
            on_progress(progress)

    return report


def write_preview(frames: np.ndarray, seconds: float, path: Path) -> None:
    """Write frames, uint8 [S, h, w, 3], as an animated WebP that takes so many seconds and repeats."""
    from PIL import Image

    _, height, width, _ = frames.shape
    scale = max(1, -(-SIDE // min(height, width)))
    pictures = [
        Image.fromarray(one).resize((width * scale, height * scale), Image.Resampling.BICUBIC) for one in frames
    ]
    duration = max(20, round(1000 * seconds / len(frames)))
    pictures[0].save(
        path, "WEBP", save_all=True, append_images=pictures[1:], duration=duration, loop=0, quality=75, method=0
    )
