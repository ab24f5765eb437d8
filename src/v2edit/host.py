"""The machine: its memory and the policy when that runs out, its devices and cores, its libraries' messages.

Torch is imported only where it is needed."""

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

from v2edit.errors import UserError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
Result = TypeVar("Result")
GPUS = ("cuda", "xpu", "mps")  # kinds of torch devices, in the order in which one is chosen
# Messages of torch's allocators and of the libraries below: without memory CUDA's say that they could not start, or
# found no algorithm.
OUT_OF_MEMORY = re.compile(
    r"allocate memory|not enough memory|bad_alloc|out of (device )?memory|unable to allocate|Invalid buffer size"
    r"|CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)|CUDNN_STATUS_ALLOC_FAILED|unable to find an engine"
    r"|OUT_OF_(DEVICE_|HOST_)?(MEMORY|RESOURCES)|ErrorOutOfMemory",
    re.I,
)

CAP = 0.97  # of a device's free memory that a process may take on Windows


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that main memory or a device's memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error)))


def memory_advice(error: BaseException) -> str | None:
    """Return one line of advice for an error that means out of memory; None for any other."""
    if not is_out_of_memory(error):
        return None
    is_of_gpu = type(error).__name__ == "OutOfMemoryError"  # torch's; not worth loading torch to name it
    if is_of_gpu or re.search(r"CUBLAS|CUDNN|MPS|find an engine|OUT_OF_|ErrorOutOf", str(error)):
        return "out of memory; try --offload model, then --offload group, and --vae-tiling"
    return "out of memory; try a shorter video, and --vae-tiling"


def retry_smaller_on_oom(work: Callable[[], Result], shrink: Callable[[], str | None]) -> Result:
    """Return the result of `work`, repeated after running out of memory as long as `shrink` has an option left: it
    switches to one that needs less and describes it, or returns None, and then the error is raised."""
    while True:
        try:
            return work()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            # The traceback's frames hold what was allocated until then: without them there is more memory to go on.
            error.__traceback__ = None
            failure = error
        release_memory()
        if (option := shrink()) is None:
            raise failure
        log.warning("out of memory: going on with %s, which is slower", option)


def release_memory() -> None:
    """Collect garbage and return the cached memory of GPUs."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    for kind in GPUS[1:]:
        if count_devices(kind):
            getattr(torch, kind).empty_cache()


def cap_device_memory(device: torch.device) -> None:
    """Let allocations beyond a CUDA device's free memory fail on Windows, whose driver would move memory to the main
    memory instead, where work goes on many times slower."""
    if sys.platform != "win32" or device.type != "cuda":
        return
    import torch

    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (free + own) * CAP / total), device)


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that this process can still allocate, on a GPU or in main memory; None where unknown."""
    import torch

    if device.type in ("cuda", "xpu"):
        memory = getattr(torch, device.type)
        free, _ = memory.mem_get_info(device)
        return free + memory.memory_reserved(device) - memory.memory_allocated(device)
    limits = [limit for limit in (_machine_memory(), _container_memory(), _ulimit_memory()) if limit is not None]
    if device.type == "mps":  # main memory, of which macOS gives a GPU a part
        limits.append(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return max(0, min(limits)) if limits else None


def process_memory(field: str = "VmRSS") -> int:
    """Return the bytes of main memory that this process holds (VmRSS), or held at its peak (VmHWM)."""
    if size := _read_size("/proc/self/status", field):
        return size
    import resource  # Other systems have the peak alone.

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _machine_memory() -> int | None:
    """Return the bytes that are free in the machine."""
    if (available := _read_size("/proc/meminfo", "MemAvailable")) is not None:
        return available
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") - process_memory()
    except (ValueError, OSError, AttributeError):
        return None


def _container_memory() -> int | None:
    """Return the bytes that are left under the limit of a container (cgroup v2)."""
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        return None if limit == "max" else int(limit) - int(used)
    except (OSError, ValueError):
        return None


def _ulimit_memory() -> int | None:
    """Return the bytes that are left under `ulimit -v`."""
    try:
        import resource
    except ImportError:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _read_size("/proc/self/status", "VmSize")
    return None if limit == resource.RLIM_INFINITY or used is None else limit - used


def _read_size(path: str, field: str) -> int | None:
    """Read a field of one of the system's tables, in bytes."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith(field + ":")), None)
    return None if line is None else int(line.split()[1]) * 1024


def launched_processes() -> tuple[int, int]:
    """Return this process's number among those that torchrun launched for one edit, and how many they are."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def find_device(name: str) -> Any:
    """Return the named torch device, of whatever kind torch has (cuda, xpu, mps, cpu), or the first of several names;
    auto is a GPU where there is one. Raises `UserError` where it cannot be used."""
    import torch

    name, *_ = name.split(",")
    if name == "auto":
        return torch.device(next((kind for kind in GPUS if count_devices(kind)), "cpu"))
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        gpus = [f"{kind}:{k}" for kind in GPUS for k in range(count_devices(kind))]
        there = ", ".join(["cpu", *gpus])
        raise UserError(f"--device is {name!r}, which torch cannot use on this machine; it can use {there}") from error
    return device


def device_name(device: torch.device) -> str:
    """Return what a device is called: a card by its maker's name."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def count_devices(kind: str) -> int:
    """Return how many devices of a kind torch can use here."""
    import torch

    if kind == "mps" and not torch.backends.mps.is_available():  # older releases have no torch.mps.is_available
        return 0
    return getattr(torch, kind).device_count()


def wait_passively() -> None:
    """Let torch's idle threads sleep instead of spin, unless the user has chosen: on a machine that does a little else,
    spinning threads take the cores from the one that works (benchmarks/waiting.py). Call it before torch is loaded."""
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def use_expandable_segments() -> None:
    """Let torch's allocator grow its blocks of a GPU's memory, against fragments that nothing fits in, unless the user
    has configured it. Only Linux has such blocks. Call it before torch is loaded."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
    if sys.platform == "linux" and not any(name in os.environ for name in names):
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"  # the name that all releases know


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the libraries' messages and short progress bars, and restore both afterwards; download bars stay."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    loggers = diffusers_logging, transformers_logging
    before = [(logger, logger.get_verbosity(), logger.is_progress_bar_enabled()) for logger in loggers]
    downloads = not are_progress_bars_disabled()

    def keep_download_bars() -> None:  # transformers' switch changes this one, too
        if downloads == are_progress_bars_disabled():
            (enable_progress_bars if downloads else disable_progress_bars)()

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
    """Silence the warnings of a library's log."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
