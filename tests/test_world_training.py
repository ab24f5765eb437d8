"""The training of the next built-in model: attention that is told where to look."""

import pytest
import torch
import torch.nn.functional as F

from recipes.world.text import TEXT_LENGTH
from recipes.world.transformer import PhraseAttention, new_transformer


def test_attention_to_the_words_about_an_object_is_what_the_loss_asks_for(monkeypatch):
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", plain)  # put back after the test
    torch.manual_seed(0)
    transformer = new_transformer(layers=4, heads=8)
    looking, seen = PhraseAttention(transformer), []

    def attend(query, key, value, **others):
        out = looking.attend(query, key, value, **others)
        torch.testing.assert_close(out, plain(query, key, value), rtol=1e-4, atol=1e-5)
        values = torch.eye(query.shape[2]).expand(*query.shape[:2], -1, -1)  # each token's own: shows the weights
        seen.append(plain(query, key, values)[:, : looking.HEADS, TEXT_LENGTH:, :TEXT_LENGTH])
        return out

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    latents, text = torch.randn(2, 1, 16, 16, 24), torch.randn(2, TEXT_LENGTH, 128)
    positions = (torch.ones(96, 32), torch.zeros(96, 32))
    transformer(latents, text, torch.tensor([500, 500]), image_rotary_emb=positions)
    words, owners = torch.full((2, TEXT_LENGTH), -1), torch.full((2, 1, 8, 12), -1)
    words[0, 3:5], words[1, 7] = 0, 1  # the second clip's phrase is about its second object
    owners[0, 0, 2, 3], owners[1, 0, 5, 1], owners[1, 0, 0, 0] = 0, 1, 2  # the last is not mentioned
    loss, share = looking.loss(words, owners)
    first, second = 2 * 12 + 3, 5 * 12 + 1
    expected = torch.stack(
        [torch.stack([w[0, :, first, 3:5].sum(-1), w[1, :, second, 7]]) for w in (seen[k] for k in looking.BLOCKS)]
    )
    torch.testing.assert_close(loss, -expected.log().mean(), rtol=1e-4, atol=1e-5)
    assert share == pytest.approx(float(expected.detach().mean()), rel=1e-4)
    assert looking.maps == []
