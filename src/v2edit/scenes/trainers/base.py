"""The protocol of trainers: what to call to fit a scene, render it and export it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

DATASET, MODEL, FRAMES, CAMERAS = "dataset", "model", "frames", "cameras"  # folders of a fit and of its renders


@dataclass(frozen=True)
class FitRequest:
    """A fit that is to be made in `folder`: of its `dataset`, into its `model`. `previous`: the folder of the fit that
    it starts from; None for the first, or where the trainer starts anew. `steps`: of this fit alone."""

    folder: Path
    previous: Path | None
    steps: int
    seed: int
    subtask: int


class Trainer(Protocol):
    """What another program is called with. Its commands run in a fit's folder, and have no shell."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        ...

    @property
    def programs(self) -> Sequence[str]:
        """The programs that it calls."""
        ...

    @property
    def starts_warm(self) -> bool:
        """Whether a later fit starts from the one before, and so takes fewer steps."""
        ...

    @property
    def continues(self) -> bool:
        """Whether its command goes on with what an earlier one left that was ended before it was done."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What of it decides a run's result, for run.json."""
        ...

    def fit_command(self, request: FitRequest) -> list[str]:
        """Return the command that fits a scene."""
        ...

    def find_fault(self, request: FitRequest) -> str | None:
        """Return what is missing of a fit whose command has ended, in a few words; None where all is there."""
        ...

    def read_share(self, request: FitRequest, text: str) -> float | None:
        """Return the share of a fit that is done by what its command prints; None where that does not say."""
        ...

    def render_command(self, folder: Path, cameras: Path, output: Path) -> list[str]:
        """Return the command that renders the fit in `folder` from the views of the dataset `cameras` into `output`."""
        ...

    def export_command(self, folder: Path, output: Path) -> list[str] | None:
        """Return the command that writes the fit as a splat (.ply) into `output`; None where there is none."""
        ...
