"""Layers that take the rows of a batch one at a time: a row's intermediate tensors are most of the memory of a call."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from v2edit.attention import AttentionCall
from v2edit.attention.replacement import Cache


class RowwiseLayer(nn.Module):
    """A layer of any transformer, its rows in turn. Rows whose maps others take leave their queries and shared keys in
    the layer's cache. The results take the place of the layer's first inputs: hidden states of video, and of text where
    it returns both."""

    attention_call: AttentionCall

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        rows = len(inputs[0])

        def pick(x: Any, row: int) -> Any:
            return x[row : row + 1] if isinstance(x, Tensor) and x.ndim and len(x) == rows else x

        replacement = self.attention_call.replacement
        cache: Cache = []
        outs: Any = ()
        for row in range(rows):
            with self.attention_call.for_row(row, cache):
                outs = super().forward(*(pick(x, row) for x in args), **{k: pick(x, row) for k, x in kwargs.items()})
            if replacement is not None and len(cache) > row:
                later = {source for sources in replacement.sources[row + 1 :] for source, _ in sources}
                if row not in later:
                    cache[row] = cache[row][0][:0].clone(), cache[row][1][:0].clone()  # empty: a view would hold it all
            for whole, own in zip(inputs, outs if isinstance(outs, tuple) else (outs,), strict=False):
                pick(whole, row).copy_(own)
        return tuple(inputs[: len(outs)]) if isinstance(outs, tuple) else inputs[0]


@lru_cache
def rowwise_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a class of layers like `kind` that take rows one at a time: a layer may change its class and back."""
    return kind if issubclass(kind, RowwiseLayer) else type(f"Rowwise{kind.__name__}", (RowwiseLayer, kind), {})


def plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that `rowwise_class` made `kind` of."""
    return kind.__bases__[1] if issubclass(kind, RowwiseLayer) else kind
