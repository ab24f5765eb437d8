"""Kernels of attention that are right, wrong or missing, and packages that hold them."""

import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from v2edit.attention import attention_with_lse_reference, kernels

Kernel = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def base_2(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A right kernel but for the base of its log-sum-exp, as on ROCm before aotriton 0.11."""
    out, lse = attention_with_lse_reference(q, k, v)
    return out, lse / math.log(2)


def without_mean(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A kernel that subtracts the mean of the keys, and forgets it in the log-sum-exp."""
    return attention_with_lse_reference(q, k - k.mean(2, keepdim=True), v)


def raising(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    raise RuntimeError("no kernel image is available for execution on the device\nhint")


FAULTY: dict[str, Kernel] = {
    "base 2": base_2,
    "wrong log-sum-exp": lambda q, k, v: (attention_with_lse_reference(q, k, v)[0], torch.randn(q.shape[:3])),
    "wrong attention": lambda q, k, v: (torch.randn_like(q), attention_with_lse_reference(q, k, v)[1]),
    "not a number": lambda q, k, v: (q * math.nan, q[..., 0] * math.nan),
    "another shape": lambda q, k, v: (q, q),
    "without the keys' mean": without_mean,
    "an error": raising,
}


def replace_cpu_kernel(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
    """Let torch's own kernel for CPUs be another one, which was never checked."""
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", kernel)
    forget_checks(monkeypatch)


def forget_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_checks", {})
    monkeypatch.setattr(kernels, "_chunked", set())


def install(monkeypatch: pytest.MonkeyPatch, package: str, **functions: Any) -> None:
    """Put a package with such functions where imports find it."""
    module = ModuleType(package)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, package, module)
    forget_checks(monkeypatch)
