"""The training of the built-in model: what tokens are told, where attention looks, and what prompts obey."""

import re
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.primitives.classifier import compute_loss, mirrored
from recipes.primitives.clip import alternatives
from recipes.primitives.clip_probe import FIELDS as SAID
from recipes.primitives.clip_probe import PhraseProbe, last_tokens
from recipes.primitives.denoising import FreshClips
from recipes.primitives.diffusion import PhraseAttention, new_scheduler, sample_timesteps
from recipes.primitives.generation import MISSING, as_table, entropy, facts_of
from recipes.primitives.text import (
    FIELDS,
    new_tokenizer,
    phrase_labels,
    phrases_of,
    sample_caption,
    token_owners,
    tokenise,
)
from recipes.primitives.transformer import Latents, new_transformer
from v2edit.primitives.captions import PARTS, TEXT_LENGTH, Named, Wording, caption, count_words, describe
from v2edit.primitives.questions import QUESTIONS, scene_labels
from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import COLOURS, SHAPES, Balloon, Object, Scene, sample_scene

seeds = st.integers(0, 2**40)


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


@settings(max_examples=40)
@given(seeds)
def test_every_token_of_a_phrase_is_told_what_the_phrase_says(seed):
    rng, tokenizer = Random(seed), new_tokenizer()
    scene = sample_scene(rng)
    text, named, wording = sample_caption(rng, scene)
    ids, offsets = tokenise(tokenizer, [text])
    rows = phrase_labels(phrases := phrases_of(scene, named, wording, text), offsets[0])
    assert tokenizer.unk_token_id not in ids and len(rows) == TEXT_LENGTH
    told = [{field: values[k] for (field, values), k in zip(FIELDS.items(), row, strict=True)} for row in rows]
    parts = ["objects"] + [part for part in PARTS[1:] if part in named.scene]
    assert {values["part"] for values in told} == {"unnamed", *parts}
    for (a, b), values in zip(offsets[0], told, strict=True):
        word = text[a:b].strip()
        if word in SHAPES:
            assert values["part"] == "objects" and values["shape"] == word
        if word in COLOURS and not text[b:].startswith(" hat"):
            of_object = values["part"] in ("objects", "balloon")
            assert (values["colour"] if of_object else values[values["part"]]) == word
        if word in ("", ",", ".") or a == b:
            assert set(values.values()) == {"unnamed"}
        if values["part"] in ("floor", "sky", "light", "style", "camera"):
            assert {v for v in values.values() if v != "unnamed"} == {values["part"], getattr(scene, values["part"])}
    for owner, values in zip(token_owners(phrases, offsets[0]), told, strict=True):
        assert (values["part"] == "objects") == (0 <= owner < len(scene.objects))
        assert owner < 0 or values["part"] == "balloon" or values["shape"] == scene.objects[owner].shape
    mentioned = [obj for obj, names in zip(scene.objects, named.objects, strict=True) if names is not None]
    assert {values["shape"] for values in told} - {"unnamed"} == {obj.shape for obj in mentioned}


@settings(max_examples=40)
@given(seeds)
def test_the_last_word_of_a_phrase_is_told_all_that_it_says(seed):
    rng = Random(seed)
    scene = sample_scene(rng)
    text, named, wording = sample_caption(rng, scene)
    phrases, words = phrases_of(scene, named, wording, text), [one.span() for one in re.finditer(r"\w+", text)]
    last, labels = last_tokens(phrases, words)
    assert [words[k][1] for k in last] == [phrase.end for phrase in phrases]
    for phrase, row in zip(phrases, labels, strict=True):
        told = {field: values[label] for (field, values), label in zip(SAID.items(), row, strict=True)}
        assert told == {field: phrase.values.get(field, values[0]) for field, values in SAID.items()}


@torch.no_grad()
def test_the_loss_of_what_phrases_say_is_nothing_where_words_point_to_the_answers():
    probe, shape = PhraseProbe(32), list(SAID).index("shape")
    for field, head in probe.heads.items():
        head.copy_(torch.eye(32)[: len(SAID[field])])
    labels = torch.randint(0, 2, (3, 1)).expand(3, len(SAID)).clone()
    assert float(probe(torch.eye(32)[labels[:, 0]], labels)) < 1e-4
    labels[1, shape] = 5  # of one word one answer is another: e^16 times as likely is what it points to
    expected = 16 / 3 / len(SAID)
    assert float(probe(torch.eye(32)[labels[:, 0]], labels)) == pytest.approx(expected, rel=1e-3)


def test_a_ball_is_not_taken_for_a_balloon_that_is_named_before_it():
    scene = Scene((Object("ball", "red", "big", "left"),), "gray", "blue", balloon=Balloon("red", "right"))
    named, wording = Named((frozenset(),), frozenset({"balloon"})), Wording(("balloon", *PARTS[:1], *PARTS[2:]))
    text = caption(scene, named, wording)
    assert text == "a balloon in the air, a ball."
    phrases = {text[p.start : p.end]: p.owner for p in phrases_of(scene, named, wording, text)}
    assert phrases == {"a balloon in the air": 1, "a ball": 0}


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_a_scene_obeys_its_own_captions_and_another_is_counted_wrong_where_it_differs(seed):
    rng = Random(seed)
    scene = sample_scene(rng)
    _, named, _ = sample_caption(rng, scene)
    assert all(own == seen for _, says, own, seen in facts_of(scene, named, scene) if says)
    k = next(k for k, names in enumerate(named.objects) if names is not None)
    others = [o for j, o in enumerate(scene.objects) if j != k]
    alone = list(facts_of(scene, named, replace(scene, objects=tuple(others))))
    # What stands there instead may be taken for it only where the caption lets it stand.
    mentioned = sum(names is not None for names in named.objects)
    there = [seen for field, says, _, seen in alone if field == "there"]
    assert len(there) == mentioned
    if len(others) < mentioned:
        assert "no" in there and MISSING in {seen for *_, seen in alone}
    floor = next(f for f in ("red", "white", "gray", "green") if f != scene.floor)
    wrong = [
        (field, says) for field, says, own, seen in facts_of(scene, named, replace(scene, floor=floor)) if own != seen
    ]
    assert {field for field, says in wrong if says} <= {"floor"}
    assert scene.style == "pencil" or ("floor", "floor" in named.scene) in wrong


def test_entropy_is_that_of_equal_shares_and_of_one_value():
    assert entropy(["a", "b", "c", "d"] * 5) == pytest.approx(2)
    assert entropy(["a"] * 9) == 0


def test_a_field_counts_once_in_the_classifiers_loss_however_its_answers_are_spread_over_the_places():
    torch.manual_seed(0)
    logits = {question: torch.randn(4, len(values), requires_grad=True) for question, values in QUESTIONS.items()}
    answers = torch.full((4, len(QUESTIONS)), -1)
    asked = ("left", "front", "colour"), ("right", "back", "colour"), ("", "", "light from")
    left, right, light = (list(QUESTIONS).index(question) for question in asked)
    answers[0, left], answers[1:, right], answers[:, light] = 2, torch.tensor([1, 0, 3]), torch.tensor([0, 1, 1, 0])
    wrong = [-logits[list(QUESTIONS)[k]].log_softmax(1)[row, answers[row, k]]
             for k, rows in ((left, [0]), (right, [1, 2, 3])) for row in rows]  # fmt: skip
    asked_once = F.cross_entropy(logits["", "", "light from"], answers[:, light])
    torch.testing.assert_close(compute_loss(logits, answers), torch.stack(wrong).mean() + asked_once)


def test_timesteps_are_one_from_each_equal_part_of_all_or_of_the_upper_half():
    everywhere, above = sample_timesteps(50, upper=0.0), sample_timesteps(50, upper=1.0)
    assert sorted(everywhere.div(20, rounding_mode="floor").tolist()) == list(range(50))
    assert sorted((above - 500).div(10, rounding_mode="floor").tolist()) == list(range(50))


def test_a_crop_has_the_latents_the_owners_and_the_positions_of_one_window():
    latents = torch.arange(3 * 16 * 24.0).view(1, 3, 1, 16, 24).expand(40, 3, 2, 16, 24)
    data = Latents("clips")
    owners = torch.arange(3 * 8 * 12).view(1, 3, 8, 12).expand(40, 3, 8, 12)
    data.batch = lambda indices: (latents, torch.rand(40, 3, 1, 16, 24), owners, list(range(40)))  # pyright: ignore
    data.scenes = [None] * 40  # pyright: ignore
    positions = torch.arange(3 * 8 * 12.0)[:, None].expand(-1, 32)
    (x0, objects, own, scenes), (cos, sin) = data.crops(np.random.default_rng(0), 10, (positions, -positions))
    assert x0.shape == (10, 3, 2, 8, 12) and objects.shape == (10, 3, 1, 8, 12) and len(set(scenes)) == 10
    assert torch.equal(own.flatten(1), cos[:, 0].long().expand(10, -1)) and torch.equal(sin, -cos)
    # The first of the four latents of each token lies at twice the token's row and column.
    row, column = own // 12 % 8, own % 12
    assert torch.equal(x0[:, :, 0, ::2, ::2], (own // 96 * 384 + 48 * row + 2 * column).float())


def test_who_knows_the_clips_makes_no_error_and_who_answers_nothing_that_of_v():
    clips = FreshClips(4)
    power = float(clips.latents.square().mean())
    for timestep in (200, 999):
        alpha = float(new_scheduler().alphas_cumprod[timestep])
        a, s = alpha**0.5, (1 - alpha) ** 0.5

        def knows(noisy, text, t, a=a, s=s, **others):
            return ((a * noisy - clips.latents) / s,)

        def silent(noisy, text, t, **others):
            return (torch.zeros_like(noisy),)

        assert clips.errors(knows, timestep).max() < 1e-4
        assert clips.errors(silent, timestep).mean() == pytest.approx(alpha + (1 - alpha) * power, rel=0.03)
    assert clips.objects.shape == (4, 3, 1, 16, 24) and 0.05 < clips.objects.float().mean() < 0.6


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_a_description_is_read_whole_by_the_text_encoder(seed):
    text = describe(sample_scene(Random(seed)))
    ids, _ = tokenise(new_tokenizer(), [text])
    assert len(ids[0]) == TEXT_LENGTH and int((ids[0] != 0).sum()) == count_words(text) + 1 <= TEXT_LENGTH


@pytest.mark.parametrize("seed", [1, 5])
def test_a_mirrored_scene_is_what_a_mirror_shows(seed):
    """The classifier's augmentation: its labels are those of the mirrored frames."""
    scene = replace(sample_scene(Random(seed), style="photo"), light_azimuth=0.0, azimuth=0.0)
    scene = replace(scene, floor_pattern="plain", balloon=None, backdrop=replace(scene.backdrop, kind="open", items=()))
    plain = [replace(o, shape="ball", pattern=replace(o.pattern, kind="plain"), dx=0.0, yaw=0.0) for o in scene.objects]
    scene = replace(scene, objects=tuple(plain))
    turned = replace(mirrored(scene), objects=()).with_objects(list(mirrored(scene).objects))
    one, other = (render_clip(s, 3, 32, 48).frames.astype(int) for s in (scene, turned))
    assert np.abs(one[:, :, ::-1] - other).mean() < 0.5
    many = np.full(6, 1000)
    assert scene_labels(mirrored(mirrored(scene)), many) == scene_labels(scene, many)
    assert scene_labels(turned, many) != scene_labels(scene, many)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_wrong_captions_for_the_clip_differ_in_one_attribute_that_is_named(seed):
    rng = Random(seed)
    scene = sample_scene(rng)
    text, named, wording = sample_caption(rng, scene, 0.5)
    _, scenes = alternatives(scene, named, rng)
    texts = [caption(one, named, wording) for one in scenes]
    assert texts[0] == text and len(set(texts)) == len(texts) > 1


def test_what_is_obeyed_is_also_told_of_what_the_renders_show():
    def facts(*seen: str) -> list[tuple[str, bool, str, str]]:
        return [("shape", named, "cube", value) for named, value in zip((True,) * 4 + (False,), seen, strict=True)]

    shown = facts("cube", "cube", "ball", "ball", "ball")
    row = as_table(shown, facts("cube", "ball", "cube", "cube", "cube")).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")[1:6]] == ["shape", "4", "50 %", "75 %", "33 %"]
    nothing = as_table(shown, facts("ball", "ball", "ball", "ball", "ball")).splitlines()[-1]
    assert [cell.strip() for cell in nothing.split("|")[1:6]] == ["shape", "4", "50 %", "0 %", ""]
