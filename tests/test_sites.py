"""Attention where rows differ in the text slots that are keys, against maps written out."""

import pytest
import torch

from v2edit.attention import AttentionCall, Replacement, cross_attention, joint_attention

PRESENT = [(0, 1, 2, 4), (0, 1, 3)]  # of six slots; the first two hold the same token in both rows
SHARED = 2


@pytest.mark.parametrize("text_tokens", [0, 6], ids=["cross", "joint"])
def test_an_edit_takes_the_shared_columns_alone_and_hidden_slots_are_no_keys(text_tokens: int) -> None:
    draw = torch.Generator().manual_seed(0)
    keys = 6 + (5 if text_tokens else 0)
    q = torch.randn(2, 3, keys if text_tokens else 5, 8, generator=draw)
    k, v = (torch.randn(2, 3, keys, 8, generator=draw) for _ in range(2))
    call = AttentionCall(lambda x, table: x, None, None, Replacement(SHARED, (((0, 1.0),), ((0, 1.0),))), PRESENT)
    video = q[:, :, text_tokens:]
    for row, slots in enumerate(PRESENT):
        columns = [*slots, *range(6, keys)]
        logits = video[row] @ k[row, :, columns].mT / 8**0.5
        logits[..., :SHARED] = video[0] @ k[0, :, :SHARED].mT / 8**0.5
        expected = logits.softmax(-1) @ v[row, :, columns]
        if text_tokens:
            got = joint_attention(q.clone(), k.clone(), v.clone(), text_tokens, call)[row, :, text_tokens:]
        else:
            got = cross_attention(q, k, v, call)[row]
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
