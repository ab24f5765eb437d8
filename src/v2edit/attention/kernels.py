"""Kernels of attention that return its log-sum-exp, each run once against explicit logits before its first use.

Shapes: q, k, v [batch rows B, heads H, tokens N, channels of a head D], log-sum-exps [B, H, N], natural logarithms."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention import SDPBackend

from v2edit.errors import UserError, first_line
from v2edit.host import is_out_of_memory

log = logging.getLogger(__name__)

# Where no kernel returns its log-sum-exp, explicit logits are computed for so many at a time.
MAX_LOGITS = 2**26
# How far a kernel may be from explicit logits on values of size 1, by the dtype of its inputs.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
QUANTISED_TOLERANCE = 0.15  # of kernels that round queries and keys to 8 bits


@dataclass(frozen=True)
class Kernel:
    """A kernel of `attention_with_lse`. `package`: the optional one that it comes with. `tolerance`: in place of its
    dtype's."""

    name: str
    run: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    package: str | None = None
    tolerance: float | None = None


@dataclass(frozen=True)
class KernelCheck:
    """What running a kernel against explicit logits showed: `right`; `corrected`, whose log-sum-exp is multiplied by
    `factor` from then on; or unusable for a `reason`: `wrong`, `failed` where it raised an error, `missing` where its
    package is."""

    name: str
    result: Literal["right", "corrected", "wrong", "failed", "missing"]
    reason: str = ""
    factor: float | None = None

    @property
    def usable(self) -> bool:
        return self.result in ("right", "corrected")


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attention [B, H, Nq, D] and the log-sum-exp [B, H, Nq] of its logits, float32 at least, by the first
    kernel of `candidate_kernels` that is right. Over no keys at all the result is zeros and -inf."""
    if k.shape[2] == 0:
        return torch.zeros_like(q), q.new_full(q.shape[:3], -math.inf, dtype=torch.float32)
    for kernel in candidate_kernels(q, k, v):
        if isinstance(q, FakeTensor):  # no data to check
            return kernel.run(q, k, v)
        check = cached_check(kernel, q.device, q.dtype, q.shape[3], one_key=k.shape[2] == 1)
        if check.usable:
            out, lse = kernel.run(q, k, v)
            return out, lse if check.factor is None else lse * check.factor
    return chunked_attention(q, k, v)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the attention [B, H, Nq, D] alone: torch's own unless another kernel is preferred, or torch would hold all
    logits at once on a GPU."""
    if _preferred.get() == "torch" and not (q.is_cuda and torch_choice(q, k, v) == SDPBackend.MATH.value):
        return F.scaled_dot_product_attention(q, k, v)
    return attention_with_lse(q, k, v)[0]


def candidate_kernels(q: Tensor, k: Tensor, v: Tensor) -> Iterator[Kernel]:
    """Yield the kernels for such inputs: the preferred one, the one that torch takes for plain attention, and the
    others of the device."""
    if (name := _preferred.get()) != "torch":
        yield PACKAGED[name]
    if q.device.type == "cpu":
        yield CPU
    elif q.is_cuda and q.shape[3] % 8 == 0:  # the kernels' own limit: scaled_dot_product_attention pads, these do not
        choice = torch_choice(q, k, v)
        if choice in CUDA:  # else torch itself has none for these inputs, or is told to take none
            yield CUDA[choice]
            yield from (kernel for number, kernel in CUDA.items() if number != choice)


def torch_choice(q: Tensor, k: Tensor, v: Tensor) -> int:
    """Return the `SDPBackend` that torch takes for plain attention; for tensors without data the usual one."""
    if isinstance(q, FakeTensor):
        half = q.dtype in (torch.float16, torch.bfloat16)
        return (SDPBackend.FLASH_ATTENTION if half else SDPBackend.EFFICIENT_ATTENTION).value
    return torch._fused_sdp_choice(q, k, v)


_preferred: ContextVar[str] = ContextVar("preferred", default="torch")


@contextmanager
def prefer_kernel(name: str) -> Iterator[None]:
    """Take a kernel of a package first for all attention within, "torch" for none of them."""
    token = _preferred.set(name)
    try:
        yield
    finally:
        _preferred.reset(token)


_checks: dict[tuple[Kernel, torch.device, torch.dtype, int, bool], KernelCheck] = {}


def cached_check(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, head_size: int, one_key: bool
) -> KernelCheck:
    """Return the check of a kernel for such inputs, made at the first call; what is not right is logged then."""
    key = kernel, device, dtype, head_size, one_key
    if key not in _checks:
        _checks[key] = check = check_kernel(*key)
        if check.result != "right":
            end = "its log-sum-exp is corrected" if check.usable else "going on with the next kernel"
            log.warning("attention by %s in %s: %s; %s", kernel.name, _short(dtype), check.reason, end)
    return _checks[key]


def check_kernel(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, head_size: int, one_key: bool = False
) -> KernelCheck:
    """Compare a kernel with explicit logits on a small input, laid out as a network's."""
    if kernel.package is not None and (reason := missing_package(kernel.package)):
        return KernelCheck(kernel.name, "missing", reason)
    q, k, v = _check_inputs(head_size, 1 if one_key else 45)
    q, k, v = (x.to(device, dtype).transpose(1, 2) for x in (q, k, v))
    k, v = k[:, :, 3:], v[:, :, 3:]
    try:
        out, lse = kernel.run(q, k, v)
        expected, expected_lse = attention_with_lse_reference(q, k, v)
        if out.shape != expected.shape or lse.shape != expected_lse.shape:
            return KernelCheck(kernel.name, "wrong", f"results of shapes {list(out.shape)} and {list(lse.shape)}")
        error = (out.float() - expected.float()).abs().max().item()
        error_of_lse, in_base_2 = (
            (lse.float() * factor - expected_lse.float()).abs().max().item() for factor in (1, math.log(2))
        )
    except Exception as problem:  # whatever a package's own code raises
        if is_out_of_memory(problem):
            raise
        return KernelCheck(kernel.name, "failed", first_line(problem) or type(problem).__name__)
    tolerance = kernel.tolerance or TOLERANCE.get(dtype, QUANTISED_TOLERANCE)
    if error <= tolerance and error_of_lse <= tolerance:
        return KernelCheck(kernel.name, "right")
    if error <= tolerance and in_base_2 <= tolerance:
        return KernelCheck(kernel.name, "corrected", "a log-sum-exp in base 2", math.log(2))
    return KernelCheck(kernel.name, "wrong", f"attention off by {error:.2g}, its log-sum-exp by {error_of_lse:.2g}")


def _check_inputs(head_size: int, keys: int) -> list[Tensor]:
    """Draw queries [B, N, H, D], and keys and values with three more at their start. Keys have a mean of their own,
    which some kernels subtract: whoever forgets that in the log-sum-exp is found out."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, head_size, generator=generator) for n in (70, keys + 3, keys + 3))
    return [1.5 * q, k + 0.5 * torch.randn(head_size, generator=generator), v]


def missing_package(package: str) -> str | None:
    """Return why an optional package cannot be used, None where it can."""
    try:
        import_module(package)
    except ImportError:
        return f"there is no package {package}"
    except Exception as error:  # built for another torch
        return f"the package {package} cannot be loaded: {first_line(error)}"
    return None


def expect_kernel(name: str) -> None:
    """Raise `UserError` where a kernel's package cannot be used."""
    if name != "torch" and (package := PACKAGED[name].package) and (reason := missing_package(package)):
        raise UserError(f"--attention {name}: {reason}; install it, or leave --attention out")


def survey_kernels(device: torch.device, dtype: torch.dtype, head_size: int) -> list[KernelCheck]:
    """Check all kernels on a device, also those that no edit would take."""
    of_device = {"cpu": [CPU], "cuda": [*CUDA.values()]}.get(device.type, [])
    return [check_kernel(kernel, device, dtype, head_size) for kernel in (*of_device, *PACKAGED.values())]


def cpu_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_with_lse` by torch's kernel for CPUs."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)


def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_with_lse` by torch's FlashAttention kernel."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]


def efficient_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_with_lse` by torch's memory-efficient kernel."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
    return out, lse.narrow(2, 0, q.shape[2])  # It comes padded to a multiple of 32 queries.


def cudnn_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_with_lse` by cuDNN."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return out, lse.view(q.shape[:3])  # It comes with one more dimension, of size 1.


def flash2_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_with_lse` by the package flash-attn (FlashAttention-2)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse, *_ = import_module("flash_attn").flash_attn_func(q, k, v, return_attn_probs=True)
    return out.transpose(1, 2), lse


def flash3_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_with_lse` by FlashAttention-3, whose first releases return the log-sum-exp unasked."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    function = import_module("flash_attn_interface").flash_attn_func
    try:
        out, lse, *_ = function(q, k, v, return_attn_probs=True)
    except TypeError:
        out, lse, *_ = function(q, k, v)
    return out.transpose(1, 2), lse


def sage_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_with_lse` by SageAttention, which rounds queries and keys to 8 bits."""
    out, lse, *_ = import_module("sageattention").sageattn(q, k, v, tensor_layout="HND", return_lse=True)
    return out, lse


CPU = Kernel("cpu", cpu_attention)
CUDA = {
    SDPBackend.FLASH_ATTENTION.value: Kernel("flash", flash_attention),
    SDPBackend.EFFICIENT_ATTENTION.value: Kernel("efficient", efficient_attention),
    SDPBackend.CUDNN_ATTENTION.value: Kernel("cudnn", cudnn_attention),
}
PACKAGED = {
    "flash2": Kernel("flash2", flash2_attention, "flash_attn"),
    "flash3": Kernel("flash3", flash3_attention, "flash_attn_interface"),
    "sage": Kernel("sage", sage_attention, "sageattention", QUANTISED_TOLERANCE),
}

_chunked: set[tuple[torch.device, torch.dtype, int]] = set()  # what was logged


def chunked_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_with_lse` from explicit logits of a chunk of queries at a time, where no kernel returns them."""
    case = q.device, q.dtype, q.shape[3]
    if case not in _chunked and not isinstance(q, FakeTensor):
        _chunked.add(case)
        log.warning("no kernel of attention for %s in %s and %d channels: explicit logits, much slower", q.device,
                    _short(q.dtype), q.shape[3])  # fmt: skip
    queries = max(1, MAX_LOGITS // (q.shape[0] * q.shape[1] * k.shape[2]))
    parts = [attention_with_lse_reference(part, k, v) for part in q.split(queries, dim=2)]
    return torch.cat([out for out, _ in parts], dim=2), torch.cat([lse for _, lse in parts], dim=2)


def attention_with_lse_reference(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_with_lse` from explicit logits."""
    logits = attention_logits(q, k)
    return (logits.softmax(-1) @ v.to(logits)).to(q), logits.logsumexp(-1)


def attention_logits(q: Tensor, k: Tensor) -> Tensor:
    """Return Q K^T / sqrt(d) [B, H, Nq, Nk], in float32 at least."""
    precise = torch.promote_types(q.dtype, torch.float32)
    return q.to(precise) @ k.to(precise).mT / math.sqrt(q.shape[3])


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
