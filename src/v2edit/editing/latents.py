"""What an edit keeps of whole clips: in main memory while it is small, else in files that are mapped into it."""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from v2edit.errors import UserError
from v2edit.files import fsync_path
from v2edit.video.stream import FrameStream, in_chunks

SOME = 16  # frames of a file that are in memory at a time
LARGE = 2**28  # bytes of a tensor that goes to a file even where nothing is to be resumed


@dataclass(eq=False)
class LatentStore:
    """Latents and frames by name. With a `folder`, that of a run's snapshots, they are files there, which outlive the
    process; else latents are in main memory while they are small, and the rest in temporary files."""

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
                path = self.path(name)
                allocate(path, 4 * size)
                tensor = torch.from_file(str(path), shared=True, size=size, dtype=torch.float32)
                self.tensors[name] = tensor.view(*shape)
        return self.tensors[name]

    def open_frames(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return the uint8 frames [T, H, W, 3] of a name, in a file, as they were left."""
        path = self.path(name)
        allocate(path, math.prod(shape))
        return np.memmap(path, np.uint8, "r+", shape=shape)

    def path(self, name: str) -> Path:
        """Return the path of a name's file."""
        if (folder := self.folder) is None:
            if self._temporary is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="v2edit-", ignore_cleanup_errors=True)
            folder = Path(self._temporary.name)
        return folder / f"{name}.raw"

    def flush(self, names: Sequence[str]) -> None:
        """Write what is new of some tensors to the disk itself, where a run may be resumed."""
        if self.folder is not None:
            for path in map(self.path, names):
                if path.exists():
                    fsync_path(path)

    def remove(self, name: str) -> None:
        """Forget a tensor, and remove its file."""
        if self.tensors.pop(name, None) is not None or self.folder is not None:
            self.path(name).unlink(missing_ok=True)


def stream_file(frames: np.ndarray) -> FrameStream:
    """Return the frames of `LatentStore.open_frames` as a stream, which keeps few of them in memory."""

    def read(first: int, stop: int) -> Iterator[np.ndarray]:
        for _, some in in_chunks(frames[first:stop], SOME):
            yield from np.array(some)
            release_pages(frames)

    return FrameStream(read, frames.shape, frames.dtype)


def release_pages(frames: np.ndarray) -> None:
    """Let what is in memory of a mapped file go, which stays in the file: it would count as the process's."""
    pages = getattr(frames, "_mmap", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def allocate(path: Path, size: int) -> None:
    """Give a file so many bytes on the disk, those that it lacks 0. Raises `UserError` where there is no room: where a
    mapped file turned out to have none, writing to it would end the process."""
    try:
        with path.open("ab") as file:
            if size > os.fstat(file.fileno()).st_size:
                file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that knows no such thing
            return
        raise UserError(f"cannot write {path}, which takes {size / 2**20:,.1f} MiB: {error.strerror}") from error
