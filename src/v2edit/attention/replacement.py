"""Attention-map replacement (AMR, V2Edit Sec. 3.2 and B.2), exactly and without a map.

A video query's softmax over all keys, with the logits of the shared text columns taken from another row, is
the merge of two ordinary attentions by their log-sum-exps: own query and keys on the columns kept (A), the
source's query and keys on the columns replaced (B), the row's own values on both.

Shapes: q, k, v [batch rows B, heads H, tokens N, channels of a head D], log-sum-exps [B, H, N]. Keys begin with
the text. Inference only: no gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention

# Explicit logits, for devices without a kernel that returns its log-sum-exp, are made for so many at a time.
LOGITS_AT_ONCE = 2**26


@dataclass(frozen=True, eq=False)
class Replacement:
    """Which rows of a batch take which rows' maps, and on which key columns.

    `shared`: the text columns whose tokens the prompts share: the first so many, or a bool mask [text tokens] on
    the CPU. Text is a set, so its owner may lay the shared tokens first: that saves a copy of all keys and values.
    `sources`: for each row the (row, weight) pairs whose queries and keys give the shared columns' logits; several
    are mixed as probabilities, their weights sum to 1. A row that replaces nothing names itself.
    """

    shared: int | Tensor
    sources: tuple[tuple[tuple[int, float], ...], ...]

    def __post_init__(self) -> None:
        for row in self.sources:
            assert all(0 <= source < len(self.sources) and weight > 0 for source, weight in row), row
            assert math.isclose(sum(weight for _, weight in row), 1.0, abs_tol=1e-9), row


def replaced_attention(q: Tensor, k: Tensor, v: Tensor, replacement: Replacement, text_tokens: int) -> Tensor:
    """Joint attention over [text | video], [B, H, N, D] like q: text queries plain, video queries' maps replaced."""
    text = F.scaled_dot_product_attention(q[:, :, :text_tokens], k, v)
    return torch.cat([text, replace_maps(q[:, :, text_tokens:], k, v, replacement)], dim=2)


def replace_maps(q: Tensor, k: Tensor, v: Tensor, replacement: Replacement) -> Tensor:
    """Attention of video queries, [B, H, Nq, D] like q, with maps replaced; the keys may be text alone.

    Every row goes the same way, split and merged, and shares its calls of `attend` with the others, so that equal
    inputs give equal bits whether or not a row replaces anything.
    """
    assert len(replacement.sources) == len(q)
    k_own, k_shared = split_columns(k, replacement.shared)
    v_own, v_shared = split_columns(v, replacement.shared)
    a, a_lse = attend(q, k_own, v_own)
    out, total = torch.zeros_like(a), [0.0] * len(q)
    for slot in zip_longest(*replacement.sources):  # each row's first source, then those of the rows that have more
        rows = [row for row, pair in enumerate(slot) if pair is not None]
        sources = [pair[0] for pair in slot if pair is not None]
        b, b_lse = attend(take(q, sources), take(k_shared, sources), take(v_shared, rows))
        # Row by row: in one elementwise operation over all rows, a CPU's vectors end at other places in each of them,
        # and what is left over at an end is rounded otherwise.
        for index, row in enumerate(rows):
            weight = slot[row][1]
            total[row] += weight
            part = merge(a[row], a_lse[row], b[index], b_lse[index])
            out[row].lerp_(part, weight / total[row])  # the weighted mean so far; the first part itself
    return out


def split_columns(x: Tensor, shared: int | Tensor) -> tuple[Tensor, Tensor]:
    """Keys or values [B, H, Nk, D] into (kept, replaced): views for a prefix, copies for a mask."""
    if isinstance(shared, int):
        return x[:, :, shared:], x[:, :, :shared]
    columns = F.pad(shared, (0, x.shape[2] - len(shared)))  # what follows the text is kept
    kept, replaced = ((~columns).nonzero()[:, 0], columns.nonzero()[:, 0])
    return x.index_select(2, kept.to(x.device)), x.index_select(2, replaced.to(x.device))


def take(x: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of a batch: a view where they follow one another, a copy elsewhere; no index travels to the device."""
    if list(rows) == list(range(rows[0], rows[0] + len(rows))):
        return x[rows[0] : rows[0] + len(rows)]
    return torch.cat([x[row : row + 1] for row in rows])


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> Tensor:
    """Attention over two sets of keys, [..., N, D], from the attentions over each: e^(la-l) A + e^(lb-l) B.

    One of the sets may be empty (lse = -inf). The weight stays float32 beside 16-bit outputs, without copies of
    them in float32.
    """
    share_b = torch.sigmoid(lse_b - lse_a)[..., None]
    return torch.addcmul(out_a, share_b, out_b - out_a, out=torch.empty_like(out_a))


def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention [B, H, Nq, D] and the log-sum-exp [B, H, Nq] of its logits, float32 at least.

    By the device's kernel that returns both; over no keys at all, zeros and -inf.
    """
    aten = torch.ops.aten
    if k.shape[2] == 0:
        return torch.zeros_like(q), q.new_full(q.shape[:3], -math.inf, dtype=torch.float32)
    if q.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    if q.is_cuda and q.shape[3] % 8 == 0:  # The kernels' own limit: scaled_dot_product_attention pads, these do not.
        parameters = SDPAParams(q, k, v, None, 0.0, False, False)
        if can_use_flash_attention(parameters):
            out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v)
            return out, lse
        if can_use_efficient_attention(parameters):
            out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
            return out, lse[:, :, : q.shape[2]]  # It comes padded to a multiple of 32 queries.
    queries = max(1, LOGITS_AT_ONCE // (q.shape[0] * q.shape[1] * k.shape[2]))
    parts = [attend_reference(part, k, v) for part in q.split(queries, dim=2)]
    return torch.cat([out for out, _ in parts], dim=2), torch.cat([lse for _, lse in parts], dim=2)


def attend_reference(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attend`, written out."""
    logits = logits_of(q, k)
    return (logits.softmax(-1) @ v.to(logits)).to(q), logits.logsumexp(-1)


def replaced_attention_reference(q: Tensor, k: Tensor, v: Tensor, replacement: Replacement, text_tokens: int) -> Tensor:
    """`replaced_attention` with its maps in sight: memory of queries x keys."""
    logits = logits_of(q, k)
    columns = replacement.shared
    columns = slice(columns) if isinstance(columns, int) else columns.nonzero()[:, 0].to(q.device)
    maps = torch.zeros_like(logits)
    for row, sources in enumerate(replacement.sources):
        for source, weight in sources:
            replaced = logits[row].clone()
            replaced[:, text_tokens:, columns] = logits[source, :, text_tokens:, columns]
            maps[row] += weight * replaced.softmax(-1)
    return (maps @ v.to(maps)).to(q)


def logits_of(q: Tensor, k: Tensor) -> Tensor:
    """Q K^T / sqrt(d), [B, H, Nq, Nk] in float32 at least."""
    precise = torch.promote_types(q.dtype, torch.float32)
    return q.to(precise) @ k.to(precise).mT / math.sqrt(q.shape[3])
