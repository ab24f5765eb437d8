"""Peak memory of a piece of work, on a GPU or (Linux) of the process."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch


def peak_bytes(run: Callable[[], object], device: str) -> tuple[int, int]:
    """Memory before a run and at its peak."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return before, torch.cuda.max_memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier runs freed goes back to the system
    Path("/proc/self/clear_refs").write_text("5")  # and the peak starts anew
    before = resident("VmRSS")
    run()
    return before, resident("VmHWM")


def resident(what: str) -> int:
    """A line of the process's status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what + ":"))
    return int(line.split()[1]) * 1024
