"""Layers with a compiled forward pass (torch.compile): those of a network are alike, so one is compiled for all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from v2edit.errors import UserError, first_line

# Graphs of one layer that are kept: batches of other rows, clips of other sizes, windows. Torch's own limit is 8.
MAX_GRAPHS = 64


class CompiledLayer(nn.Module):
    """A layer of any transformer with a compiled forward pass."""

    compiled_forward: Callable[..., Any]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        def laid_out(x: Any) -> Any:  # as between two layers, also before the first: a graph is of one layout
            return x.contiguous() if isinstance(x, Tensor) else x

        return self.compiled_forward(*map(laid_out, args), **{name: laid_out(x) for name, x in kwargs.items()})


@lru_cache
def compiled_class(kind: type[nn.Module], backend: str = "inductor") -> type[nn.Module]:
    """Return a class of layers like `kind` with a compiled forward pass: a layer may change its class and back."""
    if issubclass(kind, CompiledLayer):
        return kind
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # before torch 2.7
    setattr(config, limit, max(MAX_GRAPHS, getattr(config, limit)))
    forward = torch.compile(kind.forward, backend=backend, fullgraph=True)
    return type(f"Compiled{kind.__name__}", (CompiledLayer, kind), {"compiled_forward": forward})


def expect_compiler(device: torch.device) -> None:
    """Raise `UserError` where torch.compile finds no compiler for a device: Triton, or one of C++ for the CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch.utils._triton import has_triton

    if device.type in ("cuda", "xpu") and not has_triton():
        hint = "pip install triton-windows" if sys.platform == "win32" else "torch's own builds bring it"
        raise UserError(f"--compile wants Triton and a GPU that it knows: {hint}, or leave --compile out")
    if device.type == "cpu":
        try:
            get_cpp_compiler()
        except Exception as error:  # of several kinds, by release and system
            raise UserError(f"--compile wants a C++ compiler: {first_line(error)}; leave --compile out") from error
