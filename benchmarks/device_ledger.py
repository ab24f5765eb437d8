"""A record of what a device is asked for: bytes by device and phase, and each event that makes its host wait, with the
source line that causes it."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CUDA = torch.device("cuda:0")
SYNC = "the host waits for the device"
COPY, STAGED, ASYNC = "blocking copy to the device", "copy of pageable memory", "asynchronous copy to the device"
TO_HOST, COPY_WAIT, MIXED = "copy to the host", "the host waits for copies", "mixed dtypes"
FLOAT32 = "a product in float32"
WAITS = {SYNC, COPY, STAGED, TO_HOST}  # so that the device runs out of work
TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class Event:
    """An event, in which phase and step (0: the first of a loop; -1: none), the line that caused it, and the line of
    v2edit that called for it."""

    kind: str
    phase: str
    step: int
    line: str
    caller: str

    def __str__(self) -> str:
        via = "" if self.caller == self.line else f", for {self.caller}"
        return f"{self.kind} at {self.line}{via}"


@dataclass
class Ledger:
    """The bytes that are held and were held at most by device ("cuda", "cpu"), the peaks of each phase, and events."""

    memory: int | None = None  # of the device; what would not fit raises OutOfMemoryError
    phase: str = "loading"
    step: int = -1
    now: Counter[str] = field(default_factory=Counter)
    peaks: dict[str, Counter[str]] = field(default_factory=dict)
    events: Counter[Event] = field(default_factory=Counter)
    pinned: dict[int, int] = field(default_factory=dict)  # bytes by storage
    _known: set[int] = field(default_factory=set)

    def record(self, kind: str) -> None:
        """Record an event of a kind."""
        self.events[Event(kind, self.phase, self.step, *source_lines())] += 1

    def enter(self, phase: str, step: int = -1) -> None:
        """Begin a phase or a step."""
        self.phase, self.step = phase, step
        self._raise_peaks()

    def add(self, tensor: Tensor, pinned: bool = False) -> None:
        """Count a tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        key, size, device = storage._cdata, storage.nbytes(), tensor.device.type
        if key in self._known or device == "meta":
            return
        if device == "cuda" and self.memory is not None and self.now["cuda"] + size > self.memory:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size / 2**20:.0f} MiB.")
        if pinned:
            size = self.pinned[key] = pinned_size(size)
        self._known.add(key)
        self.now[device] += size

        def freed() -> None:
            self._known.discard(key)
            self.pinned.pop(key, None)
            self.now[device] -= size

        weakref.finalize(storage, freed).atexit = False
        self._raise_peaks()

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in page-locked memory."""
        return tensor.untyped_storage()._cdata in self.pinned

    def _raise_peaks(self) -> None:
        peaks = self.peaks.setdefault(self.phase, Counter())
        held = self.now | Counter(pinned=sum(self.pinned.values()))
        for device, size in held.items():
            peaks[device] = max(peaks[device], size)


def pinned_size(size: int) -> int:
    """Return the bytes that torch locks for a tensor: the next power of two."""
    return 1 << (size - 1).bit_length() if size else 0


def source_lines() -> tuple[str, str]:
    """Return the innermost line outside torch and this file, and the innermost one of v2edit."""
    frame, line = sys._getframe(1), None
    while frame is not None:
        name = frame.f_code.co_filename
        if Path(name).parent != Path(__file__).parent and not name.startswith(TORCH) and not name.startswith("<"):
            here = f"{'/'.join(Path(name).parts[-2:])}:{frame.f_lineno}"
            line = line or here
            if "v2edit" in Path(name).parts:
                return line, here
        frame = frame.f_back
    return line or "?", line or "?"


class FakeStream:
    """A stand-in for torch.cuda.Stream."""

    device = CUDA

    def __init__(self, ledger: Ledger, is_default: bool = False) -> None:
        self.ledger, self.is_default = ledger, is_default

    def synchronize(self) -> None:
        self.ledger.record(SYNC if self.is_default else COPY_WAIT)

    def wait_stream(self, stream: FakeStream) -> None:
        """The device orders streams by itself; no host waits."""

    wait_event = wait_stream

    def record_event(self, event: Any = None) -> FakeEvent:
        return event or FakeEvent(self.ledger)

    def query(self) -> bool:
        return True


class FakeEvent:
    """A stand-in for torch.cuda.Event."""

    def __init__(self, ledger: Ledger, **options: Any) -> None:
        self.ledger = ledger

    def synchronize(self) -> None:
        self.ledger.record(SYNC)

    def record(self, stream: Any = None) -> None:
        """Nothing is timed."""

    wait = record

    def query(self) -> bool:
        return True
