"""The protocol of what a scene is kept as between the subtasks of an edit: Gaussians, or a model of another trainer.

Letters: T frames of a path, H and W the scene's image size, h and w the model's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from torch import Tensor

from v2edit.scenes.cameras import Cameras

if TYPE_CHECKING:
    from v2edit.scenes.consistency import Correspondence
    from v2edit.scenes.optimise import FitProgress


@dataclass(frozen=True, eq=False)
class EditedViews:
    """What a scene is fitted to after a subtask: the path's `cameras` in the scene's image size, the edited video
    `frames`, uint8 [T, h, w, 3], and how much of each of its pixels is edited, `mask` [T, h, w]. `seed` is the fit's,
    `subtask` its number, counted from 1."""

    subtask: int
    cameras: Cameras
    frames: np.ndarray
    mask: Tensor
    seed: int


class Representation(Protocol):
    """A scene that can be fitted to edited views, rendered and saved. It is never changed: `fit` returns another."""

    def fit(self, views: EditedViews, on_progress: Callable[[FitProgress], None]) -> Self:
        """Return the scene that shows the edited views. What has been fitted and saved in an earlier process of the
        same run is not fitted again. Raises `UserError`, in one line, where another program fails at it."""
        ...

    def render(self, cameras: Cameras) -> np.ndarray:
        """Render the scene from each camera in turn, uint8 [T, H, W, 3] in the cameras' size."""
        ...

    def match_neighbours(self, cameras: Cameras) -> Correspondence | None:
        """Return where the points that each camera sees lie in the next one's image; None where depth is not known."""
        ...

    def save(self, folder: Path) -> None:
        """Write the scene into an existing folder, in its own format."""
        ...
