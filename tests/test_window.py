"""Windowed attention: slices and merges against explicit masked maps, and which frames a window has."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention import LAYOUTS, TOLERANCE, Watch, dtypes, randn, weighted_sources
from torch import Tensor

from v2edit.attention import (
    Replacement,
    Window,
    identity_sources,
    replaced_attention_reference,
    windowed_attention,
    windowed_attention_reference,
)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    frames = draw(st.integers(1, 12))
    return Window(frames, draw(st.integers(1, frames)), draw(st.booleans()))


@dataclass
class Case:
    """`q`, `k`, `v` [text | video] meet text; `video` has queries and keys of its own, as if rotated otherwise."""

    window: Window
    text_tokens: int
    replacement: Replacement | None
    q: Tensor = field(repr=False)
    k: Tensor = field(repr=False)
    v: Tensor = field(repr=False)
    video: tuple[Tensor, Tensor, Tensor] = field(repr=False)

    def fast(self) -> Tensor:
        return windowed_attention(self.q, self.k, self.v, self.video, self.window, self.text_tokens, self.replacement)

    def reference(self) -> Tensor:
        return windowed_attention_reference(
            self.q, self.k, self.v, self.video, self.window, self.text_tokens, self.replacement
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    window, tokens, text = draw(windows()), draw(st.integers(1, 6)), draw(st.integers(1, 9))
    rows, heads, dim = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 8, 24, 64]))
    seed, dtype, replacement = draw(st.integers(0, 2**20)), draw(dtypes), None
    if draw(st.booleans()):
        replacement = Replacement(draw(st.integers(0, text)), tuple(draw(weighted_sources(rows)) for _ in range(rows)))
    length = window.frames * tokens
    q, k, v = (randn(rows, heads, text + length, dim, seed=seed + i, dtype=dtype) for i in range(3))
    rotated = [randn(rows, heads, length, dim, seed=seed + 3 + i, dtype=dtype) for i in range(2)]
    video = rotated[0], window.with_halo(rotated[1]), window.with_halo(v[:, :, text:])
    return Case(window, text, replacement, q, k, v, video)


@given(cases())
@settings(max_examples=200)
def test_slices_and_merges_equal_masked_maps(case):
    got = case.fast()
    assert got.shape == case.q.shape and got.dtype == case.q.dtype
    torch.testing.assert_close(got, case.reference(), **TOLERANCE[case.q.dtype])


@given(cases())
def test_a_window_as_long_as_an_open_clip_is_full_attention(case):
    text = case.text_tokens
    case.window = Window(case.window.frames, case.window.frames)
    case.video = tuple(x[:, :, text:] for x in (case.q, case.k, case.v))  # one set of positions
    plain = F.scaled_dot_product_attention(case.q, case.k, case.v)
    if case.replacement is not None:
        plain = replaced_attention_reference(case.q, case.k, case.v, case.replacement, text)
    torch.testing.assert_close(case.fast(), plain, **TOLERANCE[case.q.dtype])


@given(windows())
def test_what_a_window_shows(window):
    """`span` different frames, the own one among them, neighbours in time; as many before it as after, where there
    are as many."""
    frames, half = window.frames, window.span // 2
    keys = window.with_halo(torch.arange(frames).view(1, 1, -1, 1)).flatten().tolist()
    for frame, position in enumerate(window.positions()):
        seen = keys[window.first_key(frame) :][: window.span]
        assert len(set(seen)) == window.span and seen[position] == frame
        steps = {(b - a) % frames if window.loop else b - a for a, b in pairwise(seen)}
        assert steps <= {1 % frames}
        if window.loop or half <= frame < frames - window.span + half:
            assert position == half
    if not window.loop:
        assert window.positions()[0] == 0 and window.positions()[-1] == window.span - 1


@given(cases(), st.integers(0, 11))
def test_a_loop_has_no_first_frame(case, shift):
    """Rolling the frames of all that comes in rolls what goes out; the text's own output stays."""
    window = Window(case.window.frames, case.window.span, loop=True)
    text, tokens = case.text_tokens, case.video[0].shape[2] // window.frames
    clip = [x[:, :, text:] for x in (case.q, case.k, case.v)]

    def rolled(x: Tensor, ahead: int = 0) -> Tensor:
        return torch.cat([x[:, :, :ahead], x[:, :, ahead:].roll(shift * tokens, dims=2)], dim=2)

    outs = []
    for move in (lambda x, ahead=0: x, rolled):
        q, k, v = (move(x, text) for x in (case.q, case.k, case.v))
        q_clip, k_clip, v_clip = (move(x) for x in clip)
        video = q_clip, window.with_halo(k_clip), window.with_halo(v_clip)
        outs.append(windowed_attention(q, k, v, video, window, text, case.replacement))
    torch.testing.assert_close(outs[1], rolled(outs[0], text), **TOLERANCE[case.q.dtype])


@pytest.mark.parametrize("layout", LAYOUTS, ids=len)
@given(
    window=windows(),
    dim=st.sampled_from([3, 16, 64]),
    tokens=st.integers(1, 90),
    shared=st.integers(0, 9),
    dtype=dtypes,
    seed=st.integers(0, 2**20),
)
@settings(max_examples=25)
def test_equal_rows_give_equal_bits(layout, window, dim, tokens, shared, dtype, seed):
    rows, text, length = len(layout), 9, window.frames * tokens
    q, k, v = (randn(rows, 2, text + length, dim, seed=seed + i, dtype=dtype) for i in range(3))
    source = layout[-1][0][0]
    for x in (q, k, v):
        x[-1] = x[source]
    video = q[:, :, text:], window.with_halo(k[:, :, text:]), window.with_halo(v[:, :, text:])
    for replacement in (None, Replacement(shared, layout)):
        out = windowed_attention(q, k, v, video, window, text, replacement)
        assert out[-1].equal(out[source])


def test_memory_grows_with_the_clip_and_not_with_its_square():
    def largest(frames: int) -> float:
        window, tokens, text = Window(frames, 3, loop=True), 50, 20
        q, k, v = (randn(2, 2, text + frames * tokens, 8, seed=i) for i in range(3))
        video = q[:, :, text:], window.with_halo(k[:, :, text:]), window.with_halo(v[:, :, text:])
        with Watch() as watch:
            windowed_attention(q, k, v, video, window, text, Replacement(10, identity_sources(2)))
        return watch.largest / q.numel()

    assert largest(6) == largest(24) == 1.0, "the output is the largest tensor"
