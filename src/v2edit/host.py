"""The machine: its memory, and the policy when that runs out; its devices and cores; its libraries' chatter.

Torch is loaded where it is needed.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from v2edit.errors import UserError, first_line

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
Made = TypeVar("Made")
# What torch's allocator of main memory and the libraries under it say; a GPU's has an error type of its own.
REFUSALS = re.compile(r"allocate memory|not enough memory|bad_alloc|out of memory|unable to allocate", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out, in main memory or on a device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(REFUSALS.search(str(error)))


def memory_advice(error: BaseException) -> str | None:
    """What to try, in one line, where an error is for want of memory; None for any other."""
    if not is_out_of_memory(error):
        return None
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU; not worth loading torch to name it
        return "out of memory; try --offload model, then --offload group, and --vae-tiling"
    return "out of memory; try a shorter video, and --vae-tiling"


def retry_smaller_on_oom(work: Callable[[], Made], smaller: Callable[[], str | None]) -> Made:
    """What `work` makes, tried again after each failure for want of memory, as long as `smaller` knows how to need
    less: it changes that and says so in words, or gives None, and then the failure is raised."""
    while True:
        try:
            return work()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            # The failure's frames hold what was allocated until then: without them there is more room to go on.
            error.__traceback__ = None
            failure = error
        release_memory()
        if (how := smaller()) is None:
            raise failure
        log.warning("out of memory: going on with %s, which is slower", how)


def release_memory() -> None:
    """Gives back what is no longer used."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process may take besides what it has, on a GPU or of main memory; None where nobody says."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [room for room in (_in_the_machine(), _in_the_group(), _in_the_limit()) if room is not None]
    return max(0, min(found)) if found else None


def process_memory(what: str = "VmRSS") -> int:
    """Bytes of main memory that this process has (VmRSS), or had at most (VmHWM)."""
    if line := _line("/proc/self/status", what):
        return line
    import resource  # The peak is all that other systems tell.

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _in_the_machine() -> int | None:
    if (room := _line("/proc/meminfo", "MemAvailable")) is not None:
        return room
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") - process_memory()
    except (ValueError, OSError, AttributeError):
        return None


def _in_the_group() -> int | None:
    """Under the limit of a container."""
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{what}").read_text().strip() for what in ("max", "current"))
        return None if limit == "max" else int(limit) - int(used)
    except (OSError, ValueError):
        return None


def _in_the_limit() -> int | None:
    """Under `ulimit -v`."""
    try:
        import resource
    except ImportError:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    taken = _line("/proc/self/status", "VmSize")
    return None if limit == resource.RLIM_INFINITY or taken is None else limit - taken


def _line(file: str, what: str) -> int | None:
    """A line of one of the system's tables, in bytes."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(what + ":")), None)
    return None if found is None else int(found.split()[1]) * 1024


# --- devices and cores -----------------------------------------------------------------------------


def find_device(name: str) -> Any:
    """The torch device of a name; auto is a GPU where there is one. Raises `UserError` for one that is not here."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"the device {name!r} cannot be used here: {first_line(error)}") from error
    return device


def available_cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- libraries ------------------------------------------------------------------------------------


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the libraries' remarks, and without their bars for parts being read, which are many and short.
    Downloads keep theirs. Everything is as it was afterwards."""
    from diffusers.utils import logging as of_diffusers
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as of_transformers

    loggers = of_diffusers, of_transformers
    before = [(logger, logger.get_verbosity(), logger.is_progress_bar_enabled()) for logger in loggers]
    downloads = not are_progress_bars_disabled()

    def keep_download_bars() -> None:  # transformers' switch moves this one, too
        if downloads and are_progress_bars_disabled():
            enable_progress_bars()
        elif not downloads and not are_progress_bars_disabled():
            disable_progress_bars()

    for logger in loggers:
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    keep_download_bars()
    try:
        with quiet_log("huggingface_hub"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, verbosity, bars in before:
            logger.set_verbosity(verbosity)
            if bars:
                logger.enable_progress_bar()
        keep_download_bars()


@contextmanager
def quiet_log(name: str) -> Iterator[None]:
    """Without a library's warnings in its log."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
