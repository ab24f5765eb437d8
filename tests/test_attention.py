"""Attention-map replacement: the merge of two attentions against explicit maps, and bits where inputs are equal."""

import math
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention import LAYOUTS, TOLERANCE, Watch, dtypes, randn, weighted_sources
from torch import Tensor

from v2edit.attention import (
    Replacement,
    attention_with_lse,
    attention_with_lse_reference,
    identity_sources,
    merge_states,
    replaced_attention,
    replaced_attention_reference,
)
from v2edit.attention import kernels as module


@dataclass
class Case:
    """Inputs of `replaced_attention`."""

    q: Tensor = field(repr=False)
    k: Tensor = field(repr=False)
    v: Tensor = field(repr=False)
    text_tokens: int
    replacement: Replacement

    def fast(self) -> Tensor:
        return replaced_attention(self.q, self.k, self.v, self.replacement, self.text_tokens)

    def reference(self) -> Tensor:
        return replaced_attention_reference(self.q, self.k, self.v, self.replacement, self.text_tokens)

    @property
    def tolerance(self) -> dict[str, float]:
        return TOLERANCE[self.q.dtype]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows, heads, dim = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 4, 8, 24, 64]))
    text, video = draw(st.integers(1, 12)), draw(st.integers(1, 40))
    shared = draw(st.integers(0, text))
    seed, scale, dtype = draw(st.integers(0, 2**20)), draw(st.sampled_from([1.0, 3.0])), draw(dtypes)
    q, k, v = (
        randn(rows, heads, text + video, dim, seed=seed + i, dtype=dtype, scale=(scale, scale, 1.0)[i])
        for i in range(3)
    )
    sources = tuple(draw(weighted_sources(rows)) for _ in range(rows))
    return Case(q, k, v, text, Replacement(shared, sources))


@given(cases())
@settings(max_examples=200)
def test_the_merge_equals_explicit_maps(case):
    got = case.fast()
    assert got.shape == case.q.shape and got.dtype == case.q.dtype
    torch.testing.assert_close(got, case.reference(), **case.tolerance)


@given(cases())
def test_no_shared_columns_is_plain_attention(case):
    case.replacement = Replacement(0, case.replacement.sources)
    plain = F.scaled_dot_product_attention(case.q, case.k, case.v)
    torch.testing.assert_close(case.fast(), plain, **case.tolerance)


@given(cases())
def test_rows_that_are_their_own_sources_get_plain_attention(case):
    case.replacement = Replacement(case.replacement.shared, identity_sources(len(case.q)))
    plain = F.scaled_dot_product_attention(case.q, case.k, case.v)
    torch.testing.assert_close(case.fast(), plain, **case.tolerance)


@given(cases())
def test_text_queries_are_left_alone(case):
    plain = F.scaled_dot_product_attention(case.q, case.k, case.v)
    torch.testing.assert_close(case.fast()[:, :, : case.text_tokens], plain[:, :, : case.text_tokens], **case.tolerance)


@given(cases(), st.data())
def test_the_order_of_the_shared_and_of_the_other_columns_means_nothing(case, data):
    """Text is a set: which is why the shared tokens can be laid first."""
    shared = case.replacement.shared
    order = [*data.draw(st.permutations(range(shared))), *data.draw(st.permutations(range(shared, case.text_tokens)))]
    index = torch.tensor([*order, *range(case.text_tokens, case.k.shape[2])])
    straight = case.fast()[:, :, case.text_tokens :]
    case.k, case.v = case.k[:, :, index], case.v[:, :, index]
    torch.testing.assert_close(case.fast()[:, :, case.text_tokens :], straight, **case.tolerance)


@given(cases())
def test_keys_may_be_text_alone(case):
    """Cross-attention: no text queries, no video keys; all columns may be replaced."""
    text = case.text_tokens
    q, k, v = case.q[:, :, text:], case.k[:, :, :text], case.v[:, :, :text]
    got = replaced_attention(q, k, v, case.replacement, text_tokens=0)
    expected = replaced_attention_reference(q, k, v, case.replacement, text_tokens=0)
    torch.testing.assert_close(got, expected, **case.tolerance)


@given(st.floats(0.01, 0.99), st.integers(0, 2**20))
def test_two_sources_mix_as_probabilities(mu, seed):
    q, k, v = (randn(3, 2, 30, 8, seed=seed + i, dtype=torch.float64) for i in range(3))
    one, two, both = (
        replaced_attention(q, k, v, Replacement(6, (*identity_sources(2), sources)), 9)[2]
        for sources in (((0, 1.0),), ((1, 1.0),), ((0, mu), (1, 1 - mu)))
    )
    torch.testing.assert_close(both, mu * one + (1 - mu) * two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS, ids=len)
@given(
    heads=st.integers(1, 3),
    dim=st.sampled_from([1, 3, 16, 64]),
    text=st.integers(1, 20),
    video=st.integers(1, 900),
    share=st.floats(0, 1),
    dtype=dtypes,
    seed=st.integers(0, 2**20),
)
@settings(max_examples=25)
def test_equal_rows_give_equal_bits(layout, heads, dim, text, video, share, dtype, seed):
    """A row that takes a source's maps and has its query, key and value gets the source's output, bit for bit."""
    rows = len(layout)
    q, k, v = (randn(rows, heads, text + video, dim, seed=seed + i, dtype=dtype) for i in range(3))
    for x in (q, k, v):
        x[-1] = x[layout[-1][0][0]]
    out = replaced_attention(q, k, v, Replacement(round(share * text), layout), text)
    assert out[-1].equal(out[layout[-1][0][0]])


@given(cases())
def test_attention_with_lse_gives_the_output_and_its_log_sum_exp(case):
    (out, lse), (expected, expected_lse) = (
        attention_with_lse(case.q, case.k, case.v),
        attention_with_lse_reference(case.q, case.k, case.v),
    )
    assert lse.shape == case.q.shape[:3] and lse.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(out, expected, **case.tolerance)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("function", [attention_with_lse, attention_with_lse_reference])
def test_attention_over_no_keys_weighs_nothing(function):
    q, k, v = (randn(2, 2, 5, 4, seed=i) for i in range(3))
    out, lse = function(q, k[:, :, :0], v[:, :, :0])
    assert out.equal(torch.zeros_like(q)) and lse.eq(-math.inf).all()
    whole, whole_lse = attention_with_lse(q, k, v)
    for a, b in (((whole, whole_lse), (out, lse)), ((out, lse), (whole, whole_lse))):
        assert merge_states(*a, *b, into=torch.empty_like(q)).equal(whole)


@given(cases(), st.data())
def test_merging_the_attentions_over_any_split_of_the_keys_is_the_whole(case, data):
    cut = data.draw(st.integers(0, case.k.shape[2]))
    left, right = (
        attention_with_lse(case.q, case.k[:, :, part], case.v[:, :, part]) for part in (slice(cut), slice(cut, None))
    )
    whole = F.scaled_dot_product_attention(case.q, case.k, case.v)
    copies = [x.clone() for x in (*left, *right)]
    assert merge_states(*copies, into=copies[2]).equal(merge_states(*left, *right, into=left[0])), (
        "into either, the same bits"
    )
    torch.testing.assert_close(left[0], whole, **case.tolerance)


@given(st.floats(-0.05, 0.05), st.sampled_from([torch.float16, torch.bfloat16]))
def test_the_weight_of_a_merge_is_not_rounded_to_16_bits(lse, dtype):
    """Opposite outputs of nearly equal weight cancel: what is left shows the weight's own digits."""
    one, zero = torch.ones(1, 1, dtype=dtype), torch.zeros(1)
    exact = torch.tensor([[-math.tanh(lse / 2)]], dtype=dtype)
    merged = merge_states(one, zero, -one, torch.tensor([lse]), into=torch.empty_like(one))
    torch.testing.assert_close(merged, exact, rtol=2**-7, atol=1e-6)


def test_devices_without_a_kernel_take_queries_in_chunks(monkeypatch):
    """Such a device is neither "cpu" nor "cuda": here a tensor on the CPU that claims another one."""
    q, k, v = (randn(2, 2, 50, 8, seed=i) for i in range(3))

    class Elsewhere(Tensor):
        device = torch.device("meta")  # pyright: ignore

    monkeypatch.setattr(module, "MAX_LOGITS", 2 * 2 * 50 * 7)
    with Watch() as watch:
        out, lse = attention_with_lse(q.as_subclass(Elsewhere), k, v)
    expected, expected_lse = attention_with_lse(q, k, v)
    torch.testing.assert_close(out.as_subclass(Tensor), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.as_subclass(Tensor), expected_lse, rtol=1e-5, atol=1e-5)
    assert watch.largest == 2 * 2 * 50 * 8, "chunks of 7 queries x 50 keys are smaller than the output"


def test_no_map_is_ever_built():
    rows, heads, text, video, dim = 3, 2, 40, 600, 8
    q, k, v = (randn(rows, heads, text + video, dim, seed=i) for i in range(3))
    replacement = Replacement(20, (*identity_sources(2), ((0, 0.4), (1, 0.6))))
    with Watch() as watch:
        replaced_attention(q, k, v, replacement, text)
    assert watch.largest == q.numel(), "the output itself is the largest tensor"
    with Watch() as watch:
        replaced_attention_reference(q, k, v, replacement, text)
    assert watch.largest >= rows * heads * (text + video) ** 2, "the watch sees maps where there are some"


@pytest.mark.parametrize("layout", LAYOUTS, ids=len)
def test_a_prefix_of_shared_columns_copies_no_query_key_or_value(layout):
    """Beside the output there are parts of it one row at a time, and what is as small as the log-sum-exps."""
    q, k, v = (randn(len(layout), 2, 340, 64, seed=i) for i in range(3))
    with Watch() as watch:
        replaced_attention(q, k, v, Replacement(20, layout), 40)
    made = [size for size in watch.sizes if size > q[0].numel()]
    assert made == [q.numel()], "the output, made once"
    rows = [size for size in watch.sizes if q[0].numel() // 2 < size <= q[0].numel()]
    assert len(rows) == len(layout), "a row's part over the replaced columns, and no copy of anything beside it"


@pytest.mark.parametrize("sources", [(((1, 1.0),),), (((0, 0.5),),), (((0, 0.0), (0, 1.0)),)], ids=str)
def test_sources_that_make_no_sense_are_a_bug_of_the_caller(sources):
    with pytest.raises(AssertionError):
        Replacement(3, sources)
