"""Latents of whole clips: in main memory while they are small, else in files that are mapped into it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from v2edit.files import fsync_path

LARGE = 2**28  # bytes of a tensor that goes to a file even where nothing is to be resumed
SUFFIX = ".latents"


@dataclass(eq=False)
class LatentStore:
    """Tensors by name. With a `folder`, that of a run's snapshots, they are files there, which outlive the process;
    else they are in main memory, and large ones in temporary files."""

    folder: Path | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    _temporary: tempfile.TemporaryDirectory[str] | None = None

    def open(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return the float32 tensor of a name, as it was left; a new one is of zeros."""
        if name not in self.tensors:
            size = math.prod(shape)
            if self.folder is None and 4 * size <= LARGE:
                self.tensors[name] = torch.zeros(*shape)
            else:
                path = str(self.path(name))
                self.tensors[name] = torch.from_file(path, shared=True, size=size, dtype=torch.float32).view(*shape)
        return self.tensors[name]

    def path(self, name: str) -> Path:
        """Return the path of a name's file."""
        if self.folder is not None:
            return self.folder / f"{name}{SUFFIX}"
        self._temporary = self._temporary or tempfile.TemporaryDirectory(prefix="v2edit-", ignore_cleanup_errors=True)
        return Path(self._temporary.name) / f"{name}{SUFFIX}"

    def flush(self, names: Sequence[str]) -> None:
        """Write what is new of some tensors to the disk itself, where a run may be resumed."""
        if self.folder is not None:
            for name in set(names) & set(self.tensors):
                fsync_path(self.path(name))

    def remove(self, name: str) -> None:
        """Forget a tensor, and remove its file."""
        if self.tensors.pop(name, None) is not None or self.folder is not None:
            self.path(name).unlink(missing_ok=True)
