"""A CUDA device without CUDA: torch's fake tensors on `cuda:0`, and a record of what a real device would be asked for.

Within `fake_cuda()` tensors on `cuda` have a shape, a dtype and a device and no data; whatever mixes devices raises as
on a GPU. Real CPU tensors stay real. Streams, page-locked memory and torch.cuda's functions are stood in for, bytes are
added up by device and phase, and each event that makes a host wait for its device is recorded with its source line."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parent))

from device_ledger import (
    ASYNC,
    COPY,
    CUDA,
    FLOAT32,
    MIXED,
    STAGED,
    SYNC,
    TO_HOST,
    TORCH,
    FakeEvent,
    FakeStream,
    Ledger,
)  # fmt: skip

aten = torch.ops.aten
# What waits: numbers that a program reads, and shapes that depend on data.
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
DATA_DEPENDENT = {
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
}  # fmt: skip
# Kernels that want one dtype.
PRODUCTS = {
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default,
    aten._scaled_dot_product_flash_attention.default, aten._scaled_dot_product_efficient_attention.default,
}  # fmt: skip


class _Operations(TorchDispatchMode):
    """Runs operations on fake tensors, and those on real ones for real; counts and records both."""

    def __init__(self, ledger: Ledger, fake: FakeTensorMode) -> None:
        super().__init__()
        self.ledger, self.fake = ledger, fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        pinned = bool(kwargs.pop("pin_memory", False))
        target = kwargs.get("device")
        on_cuda = any(x.is_cuda for x in inputs)
        to_cuda = target is not None and target.type == "cuda"
        if (on_cuda or to_cuda) and (read := self._record(func, args, kwargs, inputs)) is not None:
            return read
        if to_cuda or any(isinstance(x, FakeTensor) for x in inputs):
            out = func(*args, **kwargs)
        else:
            with unset_fake_temporarily():
                out = func(*args, **kwargs)
        if func in (aten.all.default, aten.all.dim):
            out.of_all = True
        known = {x.untyped_storage()._cdata for x in inputs}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in known:
                self.ledger.add(x, pinned)
        return out

    def _record(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Any:
        """Record what an operation on the device is to a host; return what a program reads, a stand-in."""
        ledger = self.ledger
        if func in READS:
            ledger.record(SYNC)
            # All numbers are as they should be, any are not what they should not be.
            holds = func is aten.equal.default or getattr(args[0], "of_all", False)
            return holds if args[0].dtype == torch.bool else float(holds) if args[0].is_floating_point() else int(holds)
        if func in DATA_DEPENDENT:
            ledger.record(SYNC)
        elif func is aten._to_copy.default:
            self._record_copy(args[0], kwargs.get("device") or args[0].device, kwargs.get("non_blocking", False))
        elif func is aten.copy_.default:
            self._record_copy(args[1], args[0].device, (args[2:] or [kwargs.get("non_blocking", False)])[0])
        elif func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            for index in args[1]:
                if index is not None and not index.is_cuda:
                    ledger.record(COPY)
                elif index is not None and index.dtype == torch.bool and not (args[2:] and args[2].numel() == 1):
                    ledger.record(SYNC)
        elif func in PRODUCTS:
            dtypes = {x.dtype for x in inputs if x.is_floating_point()}
            if len(dtypes) > 1:
                ledger.record(MIXED)
            elif dtypes == {torch.float32}:
                ledger.record(FLOAT32)
        return None

    def _record_copy(self, source: Tensor, target: torch.device, non_blocking: bool) -> None:
        if source.device.type == target.type or source.device.type == "meta":
            return
        if target.type == "cpu":
            self.ledger.record(TO_HOST)
        else:
            self.ledger.record(COPY if not non_blocking else ASYNC if self.ledger.is_pinned(source) else STAGED)


def takes(*functions: Any) -> Callable[[Any], Any]:
    """Register a method of `_Functions` as the stand-in for functions of torch."""

    def register(method: Any) -> Any:
        method.functions = functions
        return method

    return register


class _Functions(TorchFunctionMode):
    """Stands in for functions of torch that know nothing of fake tensors, or of a device that is not there."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        methods = [getattr(self, name) for name in dir(type(self)) if hasattr(getattr(type(self), name), "functions")]
        self._methods = {function: method for method in methods for function in method.functions}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        method = self._methods.get(func)
        if method is not None and args and isinstance(args[0], Tensor):
            return method(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    @takes(Tensor.to, Tensor.cuda)
    def move(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Give a device its index, which torch asks a real one for."""
        args = tuple(with_index(one) for one in args)
        return func(x, *args, **{name: with_index(one) for name, one in kwargs.items()})

    @takes(Tensor.data.__set__)
    def set_data(self, func: Any, x: Tensor, value: Tensor) -> None:
        func(x, value)
        if isinstance(x, FakeTensor) and isinstance(value, FakeTensor):
            x.fake_device = value.fake_device

    @takes(Tensor.pin_memory)
    def pin_memory(self, func: Any, x: Tensor, *_: Any) -> Tensor:
        assert x.device.type == "cpu", x.device
        if self.ledger.is_pinned(x):
            return x
        locked = torch.empty_like(x, pin_memory=True)
        return locked if isinstance(x, FakeTensor) else locked.copy_(x)

    @takes(Tensor.is_pinned)
    def is_pinned(self, func: Any, x: Tensor, *_: Any) -> bool:
        return self.ledger.is_pinned(x)

    @takes(Tensor.numpy, Tensor.__array__)
    def numpy(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Stand in for numbers with zeros."""
        if not isinstance(x, FakeTensor):
            return func(x, *args, **kwargs)
        assert not x.is_cuda, "numpy takes main memory alone"
        return np.zeros(x.shape, str(x.dtype).removeprefix("torch."))

    @takes(torch._fused_sdp_choice)
    def choice(self, func: Any, q: Tensor, *args: Any, **kwargs: Any) -> int:
        return sdp_choice(q, kwargs.get("attn_mask")) if q.is_cuda else func(q, *args, **kwargs)

    @takes(torch.nn.functional.scaled_dot_product_attention)
    def attention(
        self,
        func: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """As torch does on a recent GPU: heads padded to a multiple of 8, fused kernels, a mask in the dtype of q."""
        if not q.is_cuda:
            return func(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa, **kwargs)
        if enable_gqa:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        if pad := -q.shape[3] % 8:
            q, k, v = (torch.nn.functional.pad(x, (0, pad)) for x in (q, k, v))
        if sdp_choice(q, attn_mask) == SDPBackend.FLASH_ATTENTION.value:
            out = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal, False, scale=scale)[0]
        else:
            if attn_mask is not None:
                if attn_mask.dtype == torch.bool:
                    attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(~attn_mask, -torch.inf)
                attn_mask = attn_mask.expand(*q.shape[:3], k.shape[2])
            kernel = aten._scaled_dot_product_efficient_attention
            out = kernel(q, k, v, attn_mask, False, 0.0, is_causal, scale=scale)[0]
        return out[..., : q.shape[3] - pad]


def sdp_choice(q: Tensor, mask: Tensor | None) -> int:
    """Return torch's choice of a kernel on a recent GPU."""
    flash = mask is None and q.dtype in (torch.float16, torch.bfloat16) and q.shape[3] <= 256
    return (SDPBackend.FLASH_ATTENTION if flash else SDPBackend.EFFICIENT_ATTENTION).value


def with_index(device: Any) -> Any:
    """Return the device with its index, where `device` is the one."""
    if isinstance(device, str) and device == "cuda":
        return CUDA
    return CUDA if isinstance(device, torch.device) and device == torch.device("cuda") else device


def apply_to_module(module: torch.nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """Stand in for `Module._apply`, which swaps fake tensors, by what it does to others: parameters get new data."""
    for child in module.children() if recurse else ():
        child._apply(function)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            data = function(parameter.data)
            if isinstance(data, FakeTensor) and not isinstance(parameter, FakeTensor):
                module._parameters[name] = torch.nn.Parameter(data, requires_grad=False)
            else:
                parameter.data = data
    module._buffers.update({name: x if x is None else function(x) for name, x in module._buffers.items()})
    return module


@contextmanager
def device_guard() -> Iterator[None]:
    """Give a build without CUDA torch's own guard that does nothing. `_ensureCUDADeviceGuardSet` sets it in builds with
    CUDA on machines without: where a guard is registered that counts 0 devices. One whose methods all return 0 is."""
    library = ctypes.CDLL(str(Path(TORCH) / "lib" / "libc10.so"))
    registry = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    if registry[1] is not None:  # by device types: 1 is CUDA
        yield
        return
    zero = ctypes.CFUNCTYPE(ctypes.c_long)(lambda: 0)
    methods = (ctypes.c_void_p * 64)(*[ctypes.cast(zero, ctypes.c_void_p).value] * 64)
    guard = ctypes.c_void_p(ctypes.addressof(methods))
    registry[1] = ctypes.addressof(guard)
    try:
        torch._C._ensureCUDADeviceGuardSet()
        assert registry[1] != ctypes.addressof(guard)
        yield
    finally:
        registry[1] = None


@contextmanager
def fake_cuda(fake: FakeTensorMode | None = None, memory: int | None = None) -> Iterator[Ledger]:
    """Provide the device within, and yield the ledger. `fake`: the mode of fake tensors that are used within; `memory`:
    the device's bytes (default: as many as it takes)."""
    ledger = Ledger(memory)
    total = 2**47 if memory is None else memory
    default = FakeStream(ledger, is_default=True)
    current = [default]

    @contextmanager
    def on_stream(stream: FakeStream | None) -> Iterator[None]:
        current.append(stream or current[-1])
        yield
        current.pop()

    def nothing(*_: Any, **__: Any) -> None:
        pass

    def held(*_: Any) -> int:
        return ledger.now["cuda"]

    def peak(*_: Any) -> int:
        return max((peaks["cuda"] for peaks in ledger.peaks.values()), default=0)

    def give(value: Any) -> Callable[..., Any]:
        return lambda *_, **__: value

    def record_stream(x: Tensor, stream: Any) -> None:
        assert x.is_cuda, x.device

    functions = {
        "is_available": give(True), "is_initialized": give(True), "device_count": give(1), "current_device": give(0),
        "is_bf16_supported": give(True), "get_device_capability": give((9, 0)), "get_device_name": give("fake"),
        "mem_get_info": lambda *_: (total - held(), total), "memory_allocated": held, "memory_reserved": held,
        "max_memory_allocated": peak, "max_memory_reserved": peak, "reset_peak_memory_stats": nothing,
        "empty_cache": nothing, "manual_seed": nothing, "manual_seed_all": nothing, "_lazy_init": nothing,
        "synchronize": lambda *_: ledger.record(SYNC), "set_device": nothing, "device": lambda *_: nullcontext(),
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8), "set_rng_state": nothing,
        "Stream": lambda *_, **__: FakeStream(ledger), "Event": lambda *_, **options: FakeEvent(ledger, **options),
        "stream": on_stream, "current_stream": lambda *_: current[-1], "default_stream": give(default),
    }  # fmt: skip
    fake = fake or FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        stack.enter_context(device_guard())
        stack.enter_context(torch.no_grad())  # autograd asks for a real device
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", nothing))
        stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(mock.patch.object(torch.nn.Module, "_apply", apply_to_module))
        # Its arguments are checked before a function mode sees them.
        stack.enter_context(mock.patch.object(Tensor, "record_stream", record_stream, create=True))
        for name, function in functions.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        for mode in (fake, _Operations(ledger, fake), _Functions(ledger)):
            stack.enter_context(mode)
        yield ledger
