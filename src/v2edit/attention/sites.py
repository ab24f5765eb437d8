"""The places where a video transformer attends, with AMR and windows: joint attention over text and video, or self- and
cross-attention where a model keeps them apart.

Shapes as in `replacement`: queries, keys and values [B, H, N, D] before rotary positions. Keys begin with the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from v2edit.attention.head_parallel import HeadParallel
from v2edit.attention.kernels import attention, prefer_kernel
from v2edit.attention.replacement import Cache, Replacement, Sources, identity_sources, replaced_attention
from v2edit.attention.window import Window, attention_by_window, windowed_attention
from v2edit.attention.words import Slots, runs, take

RotaryTable = tuple[Tensor, ...]  # each [..., video tokens, channels], as the model's `rotate` takes them
Rotate = Callable[[Tensor, RotaryTable], Tensor]  # queries or keys [B, H, video tokens, D] to the same, at positions


@dataclass(frozen=True, eq=False)
class WindowTables:
    """A window and its rotary tables: frames at their positions in their windows, for meeting text, and at those in the
    clip, for meeting each other, without and with halo (see `windowed_attention`)."""

    window: Window
    in_window: RotaryTable
    in_clip: RotaryTable
    with_halo: RotaryTable


@dataclass(eq=False)
class AttentionCall:
    """What attention does in one call of a network; the network's processors read it, and its layers where they take
    rows one at a time.

    `present`: for each row the text slots that are keys, where padding is hidden; None where all slots are. `kernel`:
    the kernel of attention to take, if it is right ("torch" for torch's own choice). `rotates_whole`: whether positions
    are rotary and those of the whole clip, for all rows alike.
    `heads`: the processes that share the heads, where there are several."""

    rotate: Rotate
    rotary: RotaryTable | None = None
    windows: WindowTables | None = None
    replacement: Replacement | None = None
    present: Sequence[Slots] | None = None
    kernel: str = "torch"
    rotates_whole: bool = False
    heads: HeadParallel | None = None

    @contextmanager
    def during(
        self,
        rotary: RotaryTable | None,
        windows: WindowTables | None,
        replacement: Replacement | None,
        present: Sequence[Slots] | None,
    ) -> Iterator[None]:
        """Hold these for the call within, and nothing after it."""
        if replacement is not None and self.heads is not None:  # a process has not all heads of a query
            replacement = Replacement(replacement.shared, replacement.sources, replacement.cache)
        self.rotary, self.windows, self.replacement, self.present = rotary, windows, replacement, present
        self.rotates_whole = rotary is not None and windows is present is self.heads is None
        token = _current.set(self)
        try:
            with prefer_kernel(self.kernel):
                yield
        finally:
            _current.reset(token)
            self.rotary = self.windows = self.replacement = self.present = None

    @contextmanager
    def for_row(self, row: int, cache: Cache) -> Iterator[None]:
        """Hold what belongs to a row of the batch alone; the queries and shared keys of rows before it are cached."""
        replacement, present = self.replacement, self.present
        self.replacement = replacement and replacement.of_row(row, cache)
        self.present = present and present[row : row + 1]
        try:
            yield
        finally:
            self.replacement, self.present = replacement, present


_current: ContextVar[AttentionCall] = ContextVar("current")


@torch.library.custom_op(
    "v2edit::attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, SymInt text_tokens, str site) -> Tensor",
)
def attention_operator(q: Tensor, k: Tensor, v: Tensor, text_tokens: int, site: str) -> Tensor:
    """Compute the attention of a site, [B, N, H, D], as one operator that torch.compile does not look into: maps,
    windows and hidden slots, which differ between steps and prompts, are those of the current call when it runs. So one
    graph serves them all, and the kernels are those of an edit that is not compiled."""
    return SITES[site](q, k, v, text_tokens, _current.get()).transpose(1, 2).contiguous()


@attention_operator.register_fake
def _attention_shape(q: Tensor, k: Tensor, v: Tensor, text_tokens: int, site: str) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3])


def _compiled(q: Tensor, k: Tensor, v: Tensor, text_tokens: int, site: str) -> Tensor:
    return attention_operator(q, k, v, text_tokens, site).transpose(1, 2)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring channels of queries or keys [..., N, D], two by two, by angles: cos and sin [..., N, D / 2]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(x)


def joint_attention(q: Tensor, k: Tensor, v: Tensor, text_tokens: int, call: AttentionCall) -> Tensor:
    """Joint attention over [text | video], [B, H, N, D] like q. Rotary positions are written into q and k. Text slots
    that are no keys come back as zeros."""
    if torch.compiler.is_compiling():
        if call.rotates_whole and call.rotary is not None:
            _rotate_video(q, k, text_tokens, call.rotate, call.rotary)
            return _compiled(q, k, v, text_tokens, "rotated")
        return _compiled(q, k, v, text_tokens, "joint")
    if call.heads is not None:
        q, k, v = call.heads.split_heads(q, k, v, text_tokens)
        return call.heads.join_heads(_joint_attention_of_rows(q, k, v, text_tokens, call), text_tokens)
    return _joint_attention_of_rows(q, k, v, text_tokens, call)


def _joint_attention_of_rows(q: Tensor, k: Tensor, v: Tensor, text_tokens: int, call: AttentionCall) -> Tensor:
    if call.present is None:
        return _joint_attention(q, k, v, text_tokens, call, call.replacement)
    out = torch.zeros_like(q)
    for row, slots, replacement in _rows(call, call.present):
        parts = [*runs(slots), slice(text_tokens, q.shape[2])]
        own_q, own_k, own_v = (take(x[row], parts) for x in (q, k, v))
        attended = _joint_attention(own_q, own_k, own_v, len(slots), call, replacement)[0]
        lengths = [part.stop - part.start for part in parts]
        for part, own in zip(parts, attended.split(lengths, dim=1), strict=True):
            out[row, :, part] = own
    return out


def _joint_attention(
    q: Tensor, k: Tensor, v: Tensor, text_tokens: int, call: AttentionCall, replacement: Replacement | None
) -> Tensor:
    attend = attention
    if call.windows is not None:
        of_video = (x[:, :, text_tokens:] for x in (q, k, v))
        video = _rotate_windows(*of_video, tables=call.windows, rotate=call.rotate)
        window = call.windows.window
        attend = partial(
            windowed_attention, video=video, window=window, text_tokens=text_tokens, replacement=replacement
        )
    elif replacement is not None:
        attend = partial(replaced_attention, text_tokens=text_tokens, replacement=replacement)
    if call.rotary is not None:
        _rotate_video(q, k, text_tokens, call.rotate, call.rotary)
    return attend(q, k, v)


def _rotate_video(q: Tensor, k: Tensor, text_tokens: int, rotate: Rotate, rotary: RotaryTable) -> None:
    for x in (q, k):
        x[:, :, text_tokens:] = rotate(x[:, :, text_tokens:], rotary)


def _joint_unchanged(q: Tensor, k: Tensor, v: Tensor, text_tokens: int, call: AttentionCall) -> Tensor:
    """`joint_attention` that leaves q and k as they are."""
    if call.rotary is not None and call.present is None:
        q, k = q.clone(), k.clone()
    return joint_attention(q, k, v, text_tokens, call)


def _rotated_attention(q: Tensor, k: Tensor, v: Tensor, text_tokens: int, call: AttentionCall) -> Tensor:
    """`joint_attention` without windows or hidden slots, of rotated q and k."""
    if call.replacement is None:
        return attention(q, k, v)
    return replaced_attention(q, k, v, call.replacement, text_tokens)


def cross_attention(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """Attention of video queries over text keys alone, [B, H, N, D] like q; windows do not change it."""
    if torch.compiler.is_compiling():
        return _compiled(q, k, v, 0, "cross")
    if call.present is None:
        return _cross_attention(q, k, v, call.replacement)
    out = torch.empty_like(q)
    for row, slots, replacement in _rows(call, call.present):
        parts = runs(slots) or (slice(0),)
        out[row] = _cross_attention(q[row][None], take(k[row], parts), take(v[row], parts), replacement)[0]
    return out


def _cross_attention(q: Tensor, k: Tensor, v: Tensor, replacement: Replacement | None) -> Tensor:
    if replacement is None:
        return attention(q, k, v)
    return replaced_attention(q, k, v, replacement, text_tokens=0)


def self_attention(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """Attention of video tokens among each other, [B, H, N, D] like q, by windows where the call has them."""
    if torch.compiler.is_compiling() and not call.rotates_whole:
        return _compiled(q, k, v, 0, "self")
    if call.heads is not None:
        q, k, v = call.heads.split_heads(q, k, v, text_tokens=0)
        return call.heads.join_heads(_self_attention(q, k, v, call), text_tokens=0)
    return _self_attention(q, k, v, call)


def _self_attention(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    if call.windows is not None:
        video = _rotate_windows(q, k, v, call.windows, call.rotate)
        outs = (out.transpose(1, 2) for out, _ in attention_by_window(*video, call.windows.window))
        return torch.cat(list(outs), dim=1).transpose(1, 2)
    if call.rotary is not None:
        q, k = call.rotate(q, call.rotary), call.rotate(k, call.rotary)
    return _compiled(q, k, v, 0, "plain") if torch.compiler.is_compiling() else attention(q, k, v)


def _rotate_windows(
    q: Tensor, k: Tensor, v: Tensor, tables: WindowTables, rotate: Rotate
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queries, and keys and values with halo, from those of the clip before rotation."""
    k, v = tables.window.with_halo(k), tables.window.with_halo(v)
    return rotate(q, tables.in_clip), rotate(k, tables.with_halo), v


def _rows(call: AttentionCall, present: Sequence[Slots]) -> Iterator[tuple[int, Slots, Replacement | None]]:
    """Yield each row, its text slots that are keys, and what it takes of the rows before it. The shared slots of rows
    that exchange maps are keys in all of them."""
    replacement = call.replacement
    sources: Sources = identity_sources(len(present)) if replacement is None else replacement.sources
    cache: Cache = [] if replacement is None or replacement.cache is None else replacement.cache
    for row, slots in enumerate(present):
        if replacement is None:
            yield row, slots, None
        else:
            shared = sum(slot < replacement.shared for slot in slots)
            words = replacement.words and replacement.words.of_rows([row]).among(slots)
            yield row, slots, Replacement(shared, (sources[row],), cache, words)


# What `attention_operator` computes.
SITES: dict[str, Callable[[Tensor, Tensor, Tensor, int, AttentionCall], Tensor]] = {
    "joint": _joint_unchanged,
    "rotated": _rotated_attention,
    "cross": lambda q, k, v, _, call: cross_attention(q, k, v, call),
    "self": lambda q, k, v, _, call: self_attention(q, k, v, call),
    "plain": lambda q, k, v, *_: attention(q, k, v),
}
