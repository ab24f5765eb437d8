"""Memory modes: the ways to keep to the memory that a device has. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from v2edit.backbones.families import Offload

LESS: dict[Offload, Offload] = {"none": "model", "model": "group"}  # the next mode that holds less on the device


@dataclass(frozen=True)
class MemoryMode:
    """A way to keep to the memory there is: a rung of the ladder from the fastest way to the smallest."""

    offload: Offload = "none"
    """What of the model stays on the device: transformers and autoencoder, one part at a time, or single layers. Text
    encoders are there only while prompts are encoded."""
    vae_tiling: bool = False
    """Whether clips are encoded and decoded in tiles, whose blended edges are another result."""
    max_rows: int | None = None
    """The rows of a step that go through the network in one call, where maps allow; None: all."""
    row_by_row: bool = False
    """Whether each layer takes the rows of a call one at a time."""

    @property
    def text(self) -> str:
        """The mode in command-line options and words."""
        rows = {None: "", 1: ", one row of a step at a time"}.get(self.max_rows, f", {self.max_rows} rows at a time")
        layers = ", layers row by row" if self.row_by_row else ""
        return f"--offload {self.offload}{' --vae-tiling' if self.vae_tiling else ''}{rows}{layers}"

    @property
    def with_less_on_device(self) -> Self | None:
        """The mode that holds less of the model on the device; None where no less is possible."""
        return replace(self, offload=LESS[self.offload]) if self.offload in LESS else None

    @classmethod
    def from_record(cls, record: Mapping[str, Any] | None) -> Self | None:
        """Return the mode that a run's record or snapshot holds; None where it holds none, as those of older runs."""
        names = {one.name for one in fields(cls)}
        return None if record is None else cls(**{name: value for name, value in record.items() if name in names})
