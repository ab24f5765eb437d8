"""Peak memory of a piece of work: on a GPU or, on Linux, of the process."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

from v2edit.host import process_memory


def peak_bytes(run: Callable[[], object], device: str) -> tuple[int, int]:
    """Return the bytes of memory before a run and at its peak."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return before, torch.cuda.max_memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier runs freed goes back to the system
    Path("/proc/self/clear_refs").write_text("5")  # and the peak starts anew
    before = process_memory("VmRSS")
    run()
    return before, process_memory("VmHWM")
