"""Versions of torch and cuDNN that are known to be bad for edits. Loads no torch until it is asked about this one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from v2edit.errors import UserError

log = logging.getLogger(__name__)
Version = tuple[int, ...]


@dataclass(frozen=True)
class KnownFault:
    """A fault of the versions [first, last) of torch together with those of cuDNN, on CUDA. No model is loaded beside a
    fatal one."""

    torch: tuple[Version, Version]
    cudnn: tuple[Version, Version]
    text: str
    fatal: bool = False


ANY: tuple[Version, Version] = (0,), (999,)
NEWER_CUDNN = "install torch 2.13.0, or nvidia-cudnn-cu12 9.15 or newer beside it (nvidia-cudnn-cu13 for CUDA 13)"
# 9.8 to 9.14 have broken 3D convolutions of 16-bit numbers (github.com/pytorch/pytorch/issues/163539). From 2.9 on
# torch goes around them by a way that takes many times the memory (issue 166643); 2.9.0 does so with any cuDNN.
KNOWN_FAULTS = (
    KnownFault(
        ((2, 9), (2, 10)), ANY, "torch 2.9 has cuDNN's 16-bit 3D convolutions switched off, and decoding a clip takes "
        "some 36 GiB; install another one, such as torch 2.13.0", fatal=True,
    ),
    KnownFault(
        ((2, 10), (999,)), ((9, 8), (9, 15)), "with this cuDNN torch has its 16-bit 3D convolutions switched off, and "
        f"decoding may run out of memory; {NEWER_CUDNN}",
    ),
    KnownFault(
        ((0,), (2, 9)), ((9, 8), (9, 11)), "16-bit 3D convolutions of this cuDNN may be wrong on some GPUs, and so may "
        f"decoded frames; {NEWER_CUDNN}",
    ),
)  # fmt: skip


def known_faults(torch_version: str, cudnn_version: int | None) -> list[KnownFault]:
    """Return the faults of a torch such as "2.9.1+cu128" with a cuDNN such as 91002 (9.10.2), on CUDA."""
    torch = tuple(int(part) for part in torch_version.split("+")[0].split(".")[:2])
    cudnn = (cudnn_version // 10000, cudnn_version // 100 % 100) if cudnn_version else (0,)
    return [
        fault
        for fault in KNOWN_FAULTS
        if fault.torch[0] <= torch < fault.torch[1] and fault.cudnn[0] <= cudnn < fault.cudnn[1]
    ]


def installed_faults(device: Any) -> list[KnownFault]:
    """Return the faults of the installed versions on a torch device."""
    import torch

    if device.type != "cuda" or torch.version.hip:  # a build for ROCm has a MIOpen under cuDNN's name
        return []
    return known_faults(torch.__version__, torch.backends.cudnn.version())


def check_versions(device: Any) -> None:
    """Log the faults of the installed versions on a torch device. Raises `UserError` for a fatal one."""
    import torch

    for fault in installed_faults(device):
        if fault.fatal:
            raise UserError(fault.text)
        log.warning("torch %s, cuDNN %s: %s", torch.__version__, torch.backends.cudnn.version(), fault.text)
