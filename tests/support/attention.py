"""Random queries, keys and values, and a record of the tensors that operations allocate."""

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from v2edit.attention import Replacement, replaced_attention_reference
from v2edit.attention.kernels import attention_logits

# How far apart two evaluations may be, by the type of the inputs.
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


dtypes = st.sampled_from(list(TOLERANCE))


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Draw numbers laid out as a projection gives them: [batch, tokens, heads, channels] in memory."""
    b, h, n, d = shape
    x = scale * torch.randn(b, n, h, d, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype).transpose(1, 2)


@st.composite
def weighted_sources(draw: st.DrawFn, rows: int) -> tuple[tuple[int, float], ...]:
    """Draw the (row, weight) pairs of a row of a `Replacement`."""
    sources = draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=3))
    shares = [draw(st.integers(1, 9)) for _ in sources]
    return tuple((row, share / sum(shares)) for row, share in zip(sources, shares, strict=True))


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, replacement: Replacement, text_tokens: int) -> Tensor:
    """Compute `replaced_attention` from explicit maps, also where the rows of a batch come one at a time."""
    if replacement.cache is None:
        return replaced_attention_reference(q, k, v, replacement, text_tokens)
    shared, logits, (sources,) = replacement.shared, attention_logits(q, k), replacement.sources
    replacement.cache.append((q[:, :, text_tokens:], k[:, :, :shared]))
    text, video = logits[:, :, :text_tokens].softmax(-1), torch.zeros_like(logits[:, :, text_tokens:])
    for source, weight in sources:
        taken = attention_logits(*replacement.cache[source])
        video += weight * torch.cat([taken, logits[:, :, text_tokens:, shared:]], -1).softmax(-1)
    return torch.cat([text, video], 2) @ v


# Sources of the rows by the editor's layouts: CFG batches of (original, current, edit).
LAYOUTS = [
    (((0, 1.0),), ((0, 1.0),)),
    (((0, 1.0),), ((1, 1.0),), ((2, 1.0),), ((2, 1.0),)),
    (((0, 1.0),), ((1, 1.0),), ((2, 1.0),), ((3, 1.0),), ((4, 1.0),), ((4, 1.0),)),
]


class Watch(TorchDispatchMode):
    """Records every tensor that operations allocate; views and results in place are none."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[torch.dtype, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in known]
        self.made += [(x.dtype, x.numel()) for x in made]
        return out

    @property
    def sizes(self) -> list[int]:
        return [size for _, size in self.made]

    @property
    def largest(self) -> int:
        return max(self.sizes)
