"""Attention-map replacement (AMR, V2Edit Sec. 3.2 and B.2), exactly and without a map.

A video query's softmax over all keys, with the logits of the shared text columns taken from another row, is
the merge_states of two ordinary attentions by their log-sum-exps: own query and keys on the columns kept (A), the
source's query and keys on the columns replaced (B), the row's own values on both.

Shapes: q, k, v [batch rows B, heads H, tokens N, channels of a head D], log-sum-exps [B, H, N]. Keys begin with
the text. Inference only: no gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

# For each row of a batch, the (row, weight) pairs whose queries and keys give the shared columns' logits.
Sources = tuple[tuple[tuple[int, float], ...], ...]

# Explicit logits, for devices without a kernel that returns its log-sum-exp, are made for so many at a time.
LOGITS_AT_ONCE = 2**26


@dataclass(frozen=True, eq=False)
class Replacement:
    """Which rows of a batch take which rows' maps, and on which key columns.

    `shared`: the text columns whose tokens the prompts share: the first so many, or a bool mask [text tokens] on
    the CPU. Text is a set, so its owner may lay the shared tokens first: that saves a copy of all keys and values.
    `sources`: several of a row's are mixed as probabilities, their weights sum to 1. A row that replaces nothing
    names itself.
    `kept`: where the rows of a batch come one at a time, the queries and shared keys of those that came; each adds its
    own, and the sources are counted in all of them.
    """

    shared: int | Tensor
    sources: Sources
    kept: list[tuple[Tensor, Tensor]] | None = None

    def __post_init__(self) -> None:
        rows = len(self.sources) if self.kept is None else math.inf
        for row in self.sources:
            assert all(0 <= source < rows and weight > 0 for source, weight in row), row
            assert math.isclose(sum(weight for _, weight in row), 1.0, abs_tol=1e-9), row


def replaced_attention(q: Tensor, k: Tensor, v: Tensor, replacement: Replacement, text_tokens: int) -> Tensor:
    """Joint attention over [text | video], [B, H, N, D] like q: text queries plain, video queries' maps replaced."""
    (k_own, k_shared), (v_own, v_shared) = (split_columns(x, replacement.shared) for x in (k, v))
    out, lse = attention_with_lse(q, k_own, v_own)
    for queries, sources, kept in (
        (slice(text_tokens), own_maps(len(q)), None),
        (slice(text_tokens, None), replacement.sources, replacement.kept),
    ):
        take_maps(out[:, :, queries], lse[:, :, queries], q[:, :, queries], k_shared, v_shared, sources, kept)
    return out


def replace_maps(q: Tensor, k: Tensor, v: Tensor, replacement: Replacement) -> Tensor:
    """Attention of video queries, [B, H, Nq, D] like q, with maps replaced; the keys may be text alone."""
    (k_own, k_shared), (v_own, v_shared) = (split_columns(x, replacement.shared) for x in (k, v))
    out, lse = attention_with_lse(q, k_own, v_own)
    take_maps(out, lse, q, k_shared, v_shared, replacement.sources, replacement.kept)
    return out


def take_maps(
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sources: Sources,
    kept: list[tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Merges into each row's attention `out` over its own keys the one over the shared columns k, v, in place.

    Every row goes the same way, one at a time and by calls of one shape, so that equal inputs give equal bits whether
    or not a row replaces anything, and so that no query or key is copied for a row that takes another's.
    """
    assert len(sources) == len(out)
    if k.shape[2] == 0:
        return
    rows = [] if kept is None else kept
    rows += zip(q.split(1), k.split(1), strict=True)

    def part(row: int, source: int, into: Tensor | None = None) -> Tensor:
        b, b_lse = attention_with_lse(*rows[source], v[row : row + 1])
        return merge_states(out[row : row + 1], lse[row : row + 1], b, b_lse, into=b if into is None else into)

    for row, (*others, (last, _)) in enumerate(sources):
        mean, total = None, 0.0  # of the parts but the last: these are mixed in memory of their own
        for source, weight in others:
            total += weight
            mean = part(row, source) if mean is None else mean.lerp_(part(row, source), weight / total)
        here = part(row, last, into=out[row : row + 1])
        if mean is not None:
            here.lerp_(mean, total)


def own_maps(rows: int) -> Sources:
    """The sources of rows that replace nothing."""
    return tuple(((row, 1.0),) for row in range(rows))


def split_columns(x: Tensor, shared: int | Tensor) -> tuple[Tensor, Tensor]:
    """Keys or values [B, H, Nk, D] into (kept, replaced): views for a prefix, copies for a mask."""
    if isinstance(shared, int):
        return x[:, :, shared:], x[:, :, :shared]
    columns = F.pad(shared, (0, x.shape[2] - len(shared)))  # what follows the text is kept
    kept, replaced = ((~columns).nonzero()[:, 0], columns.nonzero()[:, 0])
    return x.index_select(2, kept.to(x.device)), x.index_select(2, replaced.to(x.device))


def merge_states(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, into: Tensor) -> Tensor:
    """Attention over two sets of keys, [..., N, D], from the attentions over each: e^(la-l) A + e^(lb-l) B.

    One of the sets may be empty (lse = -inf). Written into `into`, which may be A or B; B is spent. The weight stays
    float32 beside 16-bit outputs.
    """
    share_b = torch.sigmoid(lse_b - lse_a)[..., None]
    if out_a.dtype == share_b.dtype:
        return torch.lerp(out_a, out_b, share_b, out=into)
    return torch.addcmul(out_a, share_b, out_b.sub_(out_a), out=into)


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention [B, H, Nq, D] and the log-sum-exp [B, H, Nq] of its logits, float32 at least.

    By the operator that returns both of the kernel that torch takes for plain attention on this device and dtype;
    over no keys at all, zeros and -inf.
    """
    if k.shape[2] == 0:
        return torch.zeros_like(q), q.new_full(q.shape[:3], -math.inf, dtype=torch.float32)
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    if q.is_cuda and q.shape[3] % 8 == 0:  # The kernels' own limit: scaled_dot_product_attention pads, these do not.
        kernel = CUDA_KERNELS.get(torch._fused_sdp_choice(q, k, v), attend_in_parts)
        return kernel(q, k, v)
    return attend_in_parts(q, k, v)


def attend_flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]


def attend_efficient(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
    return out, lse[:, :, : q.shape[2]]  # It comes padded to a multiple of 32 queries.


def attend_cudnn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return out, lse.view(q.shape[:3])  # It comes with one more dimension, of size 1.


CUDA_KERNELS = {
    SDPBackend.FLASH_ATTENTION.value: attend_flash,
    SDPBackend.EFFICIENT_ATTENTION.value: attend_efficient,
    SDPBackend.CUDNN_ATTENTION.value: attend_cudnn,
}


def attend_in_parts(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_with_lse_reference`, so many queries at a time: where no kernel returns the log-sum-exp."""
    queries = max(1, LOGITS_AT_ONCE // (q.shape[0] * q.shape[1] * k.shape[2]))
    parts = [attention_with_lse_reference(part, k, v) for part in q.split(queries, dim=2)]
    return torch.cat([out for out, _ in parts], dim=2), torch.cat([lse for _, lse in parts], dim=2)


def attention_with_lse_reference(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_with_lse`, written out."""
    logits = logits_of(q, k)
    return (logits.softmax(-1) @ v.to(logits)).to(q), logits.logsumexp(-1)


def replaced_attention_reference(q: Tensor, k: Tensor, v: Tensor, replacement: Replacement, text_tokens: int) -> Tensor:
    """`replaced_attention` with its maps in sight: memory of queries x keys."""
    logits = logits_of(q, k)
    text, video = logits[:, :, :text_tokens].softmax(-1), logits[:, :, text_tokens:]
    maps = torch.cat([text, replaced_maps_reference(video, replacement)], dim=2)
    return (maps @ v.to(maps)).to(q)


def replaced_maps_reference(logits: Tensor, replacement: Replacement) -> Tensor:
    """The maps of video queries, [B, H, Nq, Nk], from their logits, which begin with the text's columns."""
    shared = replacement.shared
    columns = slice(shared) if isinstance(shared, int) else shared.nonzero()[:, 0].to(logits.device)
    maps = torch.zeros_like(logits)
    for row, sources in enumerate(replacement.sources):
        for source, weight in sources:
            replaced = logits[row].clone()
            replaced[:, :, columns] = logits[source, :, :, columns]
            maps[row] += weight * replaced.softmax(-1)
    return maps


def logits_of(q: Tensor, k: Tensor) -> Tensor:
    """Q K^T / sqrt(d), [B, H, Nq, Nk] in float32 at least."""
    precise = torch.promote_types(q.dtype, torch.float32)
    return q.to(precise) @ k.to(precise).mT / math.sqrt(q.shape[3])
