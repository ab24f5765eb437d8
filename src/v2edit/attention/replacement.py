"""Attention-map replacement (AMR, V2Edit Sec. 3.2 and B.2), exactly and without a map.

A video query's softmax over all keys, with the logits of the shared text columns taken from another row, is the merge
of two ordinary attentions by their log-sum-exps: own query and keys on the other columns (A), the source's query and
keys on the shared columns (B), the row's own values on both.

Shapes: q, k, v [batch rows B, heads H, tokens N, channels of a head D], log-sum-exps [B, H, N]. Keys begin with the
text. Inference only: no gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from v2edit.attention.kernels import attention_logits, attention_with_lse
from v2edit.attention.words import LayerShare, WordShare

# For each row of a batch, the (row, weight) pairs whose queries and keys give the shared columns' logits.
Sources = tuple[tuple[tuple[int, float], ...], ...]
Cache = list[tuple[Tensor, Tensor]]  # queries and shared keys of a batch's rows so far


@dataclass(frozen=True, eq=False)
class Replacement:
    """Which rows of a batch take the maps of which rows, and on which key columns.

    `shared`: the first so many text columns hold tokens that the prompts share (text is a set: they can be laid first).
    `sources`: a row's sources are mixed as probabilities, their weights sum to 1; a row that replaces nothing is its
    own source.
    `cache`: where the rows of a batch come one at a time, the queries and shared keys of the earlier ones; each call
    appends its own, and `sources` counts rows of the cache.
    `words`: gathers the share of attention that goes to some words."""

    shared: int
    sources: Sources
    cache: Cache | None = None
    words: WordShare | None = None

    def __post_init__(self) -> None:
        rows = len(self.sources) if self.cache is None else math.inf
        for row in self.sources:
            assert all(0 <= source < rows and weight > 0 for source, weight in row), row
            assert math.isclose(sum(weight for _, weight in row), 1.0, abs_tol=1e-9), row

    def of_row(self, row: int, cache: Cache) -> Replacement:
        """Return that of a row alone, where the rows of a batch come one at a time."""
        return Replacement(self.shared, (self.sources[row],), cache, self.words and self.words.of_rows([row]))


def identity_sources(rows: int) -> Sources:
    """Return the sources of rows that replace nothing."""
    return tuple(((row, 1.0),) for row in range(rows))


def replaced_attention(q: Tensor, k: Tensor, v: Tensor, replacement: Replacement, text_tokens: int) -> Tensor:
    """AMR on joint attention over [text | video], [B, H, N, D] like q: plain for text queries, replaced for video ones.
    In cross-attention, where all queries are video and all keys text, `text_tokens` (of the queries) is 0."""
    shared = replacement.shared
    k_shared, v_shared = k[:, :, :shared], v[:, :, :shared]
    out, lse = attention_with_lse(q, k[:, :, shared:], v[:, :, shared:])
    text, video = slice(text_tokens), slice(text_tokens, None)
    if text_tokens:
        plain = identity_sources(len(q))
        merge_shared_columns(out[:, :, text], lse[:, :, text], q[:, :, text], k_shared, v_shared, plain)
    merge_replaced(out[:, :, video], lse[:, :, video], q[:, :, video], k, v, replacement)
    return out


def merge_replaced(out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, replacement: Replacement) -> None:
    """Merge into video queries' attention over the other columns, in place, the one over the shared columns of k and v
    by a replacement, which gathers its words' share."""
    k_shared, v_shared = k[:, :, : replacement.shared], v[:, :, : replacement.shared]
    words = replacement.words and replacement.words.in_layer(q, k)
    merge_shared_columns(out, lse, q, k_shared, v_shared, replacement.sources, replacement.cache, words)


def merge_shared_columns(
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sources: Sources,
    cache: Cache | None = None,
    words: LayerShare | None = None,
) -> None:
    """Merge into each row's attention `out` over the other columns, in place, the one over the shared columns k, v with
    its sources' maps. All rows take the same code path, one at a time and by calls of one shape: equal inputs give
    equal bits whether or not a row replaces anything, and no query or key is copied for a row that takes another's."""
    assert len(sources) == len(out)
    rows = [] if cache is None else cache
    rows += zip(q.split(1), k.split(1), strict=True)  # also where they share nothing: sources are counted by rows
    if k.shape[2] == 0:
        if words:
            for row in range(len(out)):
                words.add(row, lse[row : row + 1])
        return

    def merged(row: int, source: int, weight: float, into: Tensor | None = None) -> Tensor:
        b, b_lse = attention_with_lse(*rows[source], v[row : row + 1])
        if words:
            words.add(row, torch.logaddexp(lse[row : row + 1], b_lse), weight)
        return merge_states(out[row : row + 1], lse[row : row + 1], b, b_lse, into=b if into is None else into)

    for row, (*others, (last, rest)) in enumerate(sources):
        mean, total = None, 0.0  # over the sources but the last: mixed in memory of their own
        for source, weight in others:
            total += weight
            one = merged(row, source, weight)
            mean = one if mean is None else mean.lerp_(one, weight / total)
        result = merged(row, last, rest, into=out[row : row + 1])
        if mean is not None:
            result.lerp_(mean, total)


def merge_states(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, into: Tensor) -> Tensor:
    """Merge the attentions [..., N, D] over two sets of keys into the one over both, e^(la-l) A + e^(lb-l) B: the
    log-sum-exp merge by which AMR needs no map. One of the sets may be empty (lse = -inf). The result is written to
    `into`, which may be A or B; B is overwritten. The weight stays float32 beside 16-bit outputs."""
    share_b = torch.sigmoid(lse_b - lse_a)[..., None]
    if out_a.dtype == share_b.dtype:
        return torch.lerp(out_a, out_b, share_b, out=into)
    return torch.addcmul(out_a, share_b, out_b.sub_(out_a), out=into)


def replaced_attention_reference(q: Tensor, k: Tensor, v: Tensor, replacement: Replacement, text_tokens: int) -> Tensor:
    """`replaced_attention` from explicit maps: memory of queries x keys."""
    logits = attention_logits(q, k)
    text, video = logits[:, :, :text_tokens].softmax(-1), logits[:, :, text_tokens:]
    maps = torch.cat([text, replaced_maps_reference(video, replacement)], dim=2)
    return (maps @ v.to(maps)).to(q)


def replaced_maps_reference(logits: Tensor, replacement: Replacement) -> Tensor:
    """Return the maps [B, H, Nq, Nk] of video queries from their logits, which begin with the text's columns."""
    shared = replacement.shared
    maps = torch.zeros_like(logits)
    for row, sources in enumerate(replacement.sources):
        for source, weight in sources:
            mixed = torch.cat([logits[source, :, :, :shared], logits[row, :, :, shared:]], dim=-1)
            maps[row] += weight * mixed.softmax(-1)
    return maps
