"""What the model itself knows of where an edit happens: the difference of the branches, the attention to the words that
change, and the matte in pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.attention import randn
from support.clips import PAIR
from support.families import FAMILIES
from support.models import pipeline_of
from torch import Tensor

from v2edit.attention import AttentionCall, Replacement, Window, cross_attention, joint_attention, windowed_attention
from v2edit.attention.kernels import attention_logits
from v2edit.attention.words import WordShare
from v2edit.backbones import Size
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.editing.change import ChangeMap, connected, latent_change, on_latents
from v2edit.editing.local import LatentBlend
from v2edit.editing.matte import find_matte, guided_filter
from v2edit.editing.progression import aligned_text

TEXT, VIDEO, SHARED = 6, 8, 2
WORDS = ((3, 5), (), (2, 3, 4))
SOURCES = (((0, 1.0),), ((1, 1.0),), ((0, 0.3), (1, 0.7)))


def explicit_shares(logits: Tensor, shared: Tensor, words: list[int]) -> Tensor:
    """Return the share of the columns `words` in the mean over heads of the maps of `logits` [H, Nq, Nk], whose first
    columns are `shared`."""
    maps = torch.cat([shared, logits[..., shared.shape[-1] :]], -1).softmax(-1)
    return maps[..., words].sum(-1).mean(0)


def test_the_change_of_latents_is_that_of_the_cells_that_changed_most_at_any_scale():
    original = torch.randn(1, 5, 4, 10, 20, generator=torch.Generator().manual_seed(0))
    edited = original.clone()
    assert latent_change(original, edited) == 0
    edited[0, 2, :, 3, 7] += 2 * original.std()  # a cell of a thousand
    assert latent_change(original, edited) == pytest.approx(2, rel=1e-3)
    assert latent_change(7 * original, 7 * edited) == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("shared", [0, SHARED])
@pytest.mark.parametrize("site", ["joint", "cross", "windows"])
def test_the_share_of_words_is_that_of_explicit_maps(site, shared):
    queries, keys = (VIDEO, TEXT) if site == "cross" else (TEXT + VIDEO,) * 2
    q, k, v = randn(3, 2, queries, 8, seed=0), randn(3, 2, keys, 8, seed=1), randn(3, 2, keys, 8, seed=2)
    video = (q[:, :, -VIDEO:], k[:, :, TEXT:], v[:, :, TEXT:])
    logits = attention_logits(video[0], k)
    share = WordShare.of(WORDS)
    replacement = Replacement(shared, SOURCES, words=share)
    call = AttentionCall(lambda x, table: x, replacement=replacement)
    if site == "joint":
        joint_attention(q, k, v, TEXT, call)
    elif site == "cross":
        cross_attention(q, k, v, call)
    else:
        window = Window(4, 3)
        windowed_attention(q, k, v, video, window, TEXT, replacement)
        for frame in range(4):
            first = window.first_key(frame)
            hidden = [TEXT + n for n in range(VIDEO) if not first * 2 <= n < (first + 3) * 2]
            logits[:, :, frame * 2 : frame * 2 + 2, hidden] = -torch.inf
    assert sorted(share.sums) == [0, 2]
    for row in share.sums:
        parts = [w * explicit_shares(logits[row], logits[s, :, :, :shared], [*WORDS[row]]) for s, w in SOURCES[row]]
        total, layers = share.sums[row]
        assert layers == pytest.approx(1)
        torch.testing.assert_close(total, sum(parts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text_tokens", [0, TEXT], ids=["cross", "joint"])
def test_hidden_slots_have_no_share(text_tokens):
    present, words = [(0, 1, 2, 4), (0, 1, 3)], ((4, 5), (2, 3))
    keys = TEXT + (VIDEO if text_tokens else 0)
    q, k, v = (randn(2, 2, n, 8, seed=n + i) for i, n in enumerate((text_tokens + VIDEO, keys, keys)))
    share, attend = WordShare.of(words), joint_attention if text_tokens else cross_attention
    call = AttentionCall(lambda x, t: x, None, None, Replacement(2, SOURCES[:2], words=share), present)
    attend(q, k, v, *([TEXT] if text_tokens else []), call)
    for row, word in enumerate((4, 3)):
        logits = attention_logits(q[[row], :, -VIDEO:], k[[row]])[0]
        logits[..., [slot for slot in range(TEXT) if slot not in present[row]]] = -torch.inf
        torch.testing.assert_close(share.sums[row][0], explicit_shares(logits, logits[..., :0], [word]))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_tells_the_share_in_all_rows_or_one_at_a_time(name):
    backbone = FAMILIES[name]()
    text = aligned_text(backbone, PAIR)
    rows = [text.source, text.target]
    assert all(one.changed for one in rows)

    def measure() -> Tensor:
        share = WordShare.of([one.with_keys_first.changed for one in rows])
        shape = backbone.latent_shape(backbone.nearest_size(Size(9, 32, 32)))
        v = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        maps = Replacement(text.shared, (((0, 1.0),), ((0, 1.0),)), words=share)
        backbone.denoise(v, 4, backbone.schedule(10), rows, maps)
        assert share.mean is not None
        grid = on_latents(share.mean, v.shape[1:])
        assert grid is not None and grid.shape == (1, v.shape[1], 1, *v.shape[3:])
        return grid

    whole = measure()
    assert whole.min() > 0 and whole.max() < 2
    kinds = [(layer, type(layer)) for network in backbone.networks for layer in backbone.layers(network)]
    try:
        backbone.shrink()
        torch.testing.assert_close(measure(), whole)
    finally:
        for layer, kind in kinds:
            layer.__class__ = kind


def test_words_are_the_slots_that_prompts_do_not_share_and_padding_is_none():
    backbone = CogVideoX(pipeline_of("5b"))
    text = aligned_text(backbone, PAIR)
    for one in (text.source, text.target):
        assert min(one.changed) >= text.shared and len(one.changed) < len(one.ids)
    halfway = text.source.lerp(text.target, 0.5)
    assert {*halfway.changed} == {*text.source.changed, *text.target.changed}
    same = aligned_text(backbone, replace(PAIR, target=PAIR.source))
    assert same.source.changed == same.target.changed == ()


def noise(*shape: int, scale: float = 0.02) -> Tensor:
    return scale * (0.5 + torch.rand(1, shape[0], 1, *shape[1:], generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_the_region_has_an_objects_path_and_its_shadow_at_any_scale(scale):
    r = noise(5, 24, 24)
    for t in range(5):  # an object that moves, with a faint shadow beside it
        r[0, t, 0, 8:12, 3 * t : 3 * t + 4] = 1
        r[0, t, 0, 12:14, 3 * t : 3 * t + 4] = 0.3
    region = ChangeMap(3 * scale * r, 3).find_region()
    assert region[r >= 0.3].min() == 1 and set(region.unique().tolist()) == {0, 1}
    assert region[0, :, 0, 17:].sum() == 0 and region.mean() < 0.25


def test_what_no_changed_word_is_attended_from_is_no_part_of_the_region():
    r, attention = noise(1, 16, 32), torch.full((1, 1, 1, 16, 32), 0.1)
    r[..., 4:8, 4:8] = r[..., 4:8, 22:26] = 1
    attention[..., 6:8, 6:8] = 0.4
    region = ChangeMap(r, 1, attention, 1).find_region()
    assert region[..., 4:8, 4:8].min() == 1 and region[..., 16:].max() == 0
    assert ChangeMap(r, 1).find_region()[..., 22:26].max() == 1


def test_a_region_is_everywhere_where_all_changes_alike_and_nowhere_where_nothing_does():
    assert ChangeMap(noise(3, 16, 16), 1).find_region().min() == 1
    assert ChangeMap(torch.ones(1, 3, 1, 8, 8), 1).find_region().min() == 1
    assert ChangeMap(torch.zeros(1, 3, 1, 8, 8), 1).find_region().max() == 0


@pytest.mark.parametrize(("rows", "found"), [(4, 5), (10, 12), (14, 24)])
def test_a_large_region_grows_further_and_most_of_a_clip_is_all_of_it(rows, found):
    r = noise(2, 24, 16)
    r[..., :rows, :] = 1
    region = ChangeMap(r, 1).find_region()
    assert region[..., :found, :].min() == 1 and region[..., found:, :].sum() == 0


def test_connected_cells_are_those_reached_through_weak_ones():
    weak = torch.tensor([1, 1, 0, 1, 1, 1, 0, 1]).bool().view(1, 1, 1, 1, 8)
    strong = torch.zeros_like(weak)
    strong[..., 5] = True
    assert connected(weak, strong).flatten().tolist() == [False, False, False, True, True, True, False, False]


def test_later_subtasks_may_change_what_earlier_ones_did_and_what_they_find_themselves():
    blend = LatentBlend(torch.zeros(1, 1, 2, 8, 16), find=True)
    for left in (1, 11):
        r = noise(1, 8, 16)
        r[..., 3:5, left : left + 3] = 1
        blend.begin()
        assert blend.mask is None
        blend.narrow(ChangeMap(r, 1))
        blend.narrow(ChangeMap(r, 1))  # as a loop that resumes does
        assert blend.mask is not None and blend.mask[r == 1].min() == 1
    assert blend.mask[0, 0, 0, 3, 2] == 1 and blend.mask[0, 0, 0, 3, 7] == 0


def test_a_matte_ends_at_the_sources_own_edges_and_leaves_out_what_only_the_autoencoder_changed():
    """A recoloured square: the edit bleeds over its outline, where the source has the background or has no edge."""
    flat = np.full((1, 96, 96, 3), 60, np.uint8)
    source = flat.copy()
    source[:, 32:64, 32:64] = (200, 40, 40)
    autoencoded = source + np.uint8(9)  # which an edit keeps
    edited = autoencoded.copy()
    edited[:, 31:65, 31:65] = (90, 90, 130)
    edited[:, 32:64, 32:64] = (40, 40, 200)
    edited[:, 4:8, 4:8] += 90  # outside of the region
    region = torch.zeros(1, 96, 96)
    region[:, 20:76, 20:76] = 1
    ring = np.zeros((96, 96), bool)
    ring[31:65, 31:65] = True
    ring[32:64, 32:64] = False
    with_edge, without = (find_matte(edited, autoencoded, one, region, 4)[0].numpy() for one in (source, flat))
    assert without[31:65, 31:65].min() > 0.99 and with_edge[32:64, 32:64].min() > 0.9
    assert with_edge[ring].mean() < 0.9
    assert max(with_edge[:30].max(), without[:28].max()) == 0


def test_a_guided_filter_gives_a_mask_back_that_follows_the_guide_and_explains_none_that_does_not():
    guide = torch.zeros(3, 40, 40)
    guide[0, :, 20:] = 1
    fitted, explained = guided_filter(guide[0], guide, 5)
    torch.testing.assert_close(fitted, guide[0], atol=0.02, rtol=0)
    assert explained[:, 18:22].min() > 0.75
    assert guided_filter((torch.arange(40)[:, None] > 20).float().expand(40, 40), guide * 0, 5)[1].max() < 0.01
