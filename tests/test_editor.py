"""The editor on real CogVideoX classes: exactness, parity with diffusers, cost, and what each switch does."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXVideoToVideoPipeline
from diffusers.models.embeddings import apply_rotary_emb
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.clips import PAIR, SAME, frames_of
from support.models import PUBLISHED, TEXT_LENGTH, pipeline_of

from v2edit.backbones import Size, Text
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.editing import EditConfig, Editor, Progress
from v2edit.editing.controls import Source
from v2edit.editing.editor import resize_clip
from v2edit.editing.progression import AlignedText, WrittenText, aligned_text, encode_progression
from v2edit.editing.state import noise_stream
from v2edit.errors import UserError
from v2edit.prompts import PromptPair


@pytest.fixture(params=["2b", "5b"])
def backbone(request) -> CogVideoX:
    return CogVideoX(pipeline_of(request.param))


def edited(backbone: CogVideoX, config: EditConfig, pair: PromptPair = PAIR) -> tuple[torch.Tensor, torch.Tensor]:
    """The source's latents and the edit's."""
    x0 = backbone.encode(frames_of(0))
    text = aligned_text(backbone, pair, padding_shared=config.padding_shared)
    return x0, list(Editor(backbone).subtasks(x0, text, config))[-1]


def test_the_source_comes_back_through_a_last_timestep_of_zero():
    backbone = CogVideoX(pipeline_of("5b"))
    config = {**backbone.pipeline.scheduler.config, "timestep_spacing": "leading"}
    backbone.pipeline.scheduler = type(backbone.pipeline.scheduler).from_config(config)
    x0, back = edited(backbone, EditConfig(steps=10, beta=0.0), SAME)
    assert (back - x0).norm() <= 1e-4 * x0.norm()


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm-ode", "dpm-sde"])
@pytest.mark.parametrize("subtasks", [1, 3])
@pytest.mark.parametrize("mixture", [0.0, 0.7, 1.0])
def test_the_source_prompt_gives_the_source_back(backbone, solver, subtasks, mixture):
    """With the target prompt equal to the source's and the controls on throughout, nothing may change."""
    config = EditConfig(steps=10, beta=0.0, solver=solver, subtasks=subtasks, mixture=mixture)
    x0, back = edited(backbone, config, SAME)
    assert (back - x0).norm() <= 1e-4 * x0.norm()


def test_the_source_comes_back_when_its_guidance_is_named_and_not_when_it_is_lower(backbone):
    config = EditConfig(steps=10, beta=0.0, guidance=6.0)
    x0, back = edited(backbone, replace(config, source_guidance=6.0), SAME)
    assert torch.equal(back, edited(backbone, config, SAME)[1])
    _, pulled = edited(backbone, replace(config, source_guidance=2.0), SAME)
    assert (back - x0).norm() <= 1e-4 * x0.norm() < (pulled - x0).norm()


def pillow(frames: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in frames]


def draws_of_diffusers(generator: torch.Generator, like: torch.Tensor) -> Iterator[torch.Tensor]:
    """The stream that CogVideoXDPMScheduler uses: from the second step on it draws twice and uses the second."""
    yield torch.randn(like.shape, generator=generator)
    yield torch.randn(like.shape, generator=generator)
    while True:
        torch.randn(like.shape, generator=generator)
        yield torch.randn(like.shape, generator=generator)


@pytest.fixture(params=["2b", "5b"])
def pair_of_pipelines(request) -> tuple[CogVideoX, CogVideoXPipeline]:
    """The same weights twice: ours, and diffusers' with its own attention processors."""
    return CogVideoX(pipeline_of(request.param)), pipeline_of(request.param)


def test_the_transformer_computes_what_diffusers_own_does(pair_of_pipelines):
    backbone, peer = pair_of_pipelines
    v = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.stack([t.embedding for t in backbone.encode_text([PAIR.source, PAIR.target])])
    rotary = backbone._rotary(3, 8, 8)
    inputs = {"encoder_hidden_states": text, "timestep": torch.tensor([499, 499]), "image_rotary_emb": rotary}
    expected = peer.transformer(v, **inputs, return_dict=False)[0]
    torch.testing.assert_close(backbone.transformer(v, **inputs, return_dict=False)[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_without_the_controls_it_is_diffusers_video_to_video(pair_of_pipelines, guidance):
    """PNC and AMR off, one subtask: SDEdit, as the pipeline of diffusers does it on the same weights."""
    backbone, other = pair_of_pipelines
    frames, steps = frames_of(1), 10
    peer = CogVideoXVideoToVideoPipeline(**other.components)
    peer.set_progress_bar_config(disable=True)
    expected = peer(
        video=pillow(frames), prompt=PAIR.target, height=32, width=32, num_inference_steps=steps, strength=0.9,
        guidance_scale=guidance, max_sequence_length=TEXT_LENGTH, output_type="latent",
        generator=torch.Generator().manual_seed(5),
    ).frames  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    x0 = backbone.encode(frames, generator)
    got = run_free(backbone, x0, draws_of_diffusers(generator, x0), EditConfig(steps=steps, guidance=guidance))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("start", [{"inc": False}, {"alpha": 1.0}], ids=str)
def test_from_pure_noise_it_is_diffusers_text_to_video(pair_of_pipelines, start):
    """alpha = 1 and no source: generation."""
    backbone, peer = pair_of_pipelines
    peer.set_progress_bar_config(disable=True)
    expected = peer(
        prompt=PAIR.target, height=32, width=32, num_frames=9, num_inference_steps=10, guidance_scale=6.0,
        max_sequence_length=TEXT_LENGTH, output_type="latent", generator=torch.Generator().manual_seed(5),
    ).frames  # fmt: skip
    x0 = torch.zeros_like(expected)
    draws = draws_of_diffusers(torch.Generator().manual_seed(5), x0)
    got = run_free(backbone, x0, draws, EditConfig(steps=10, guidance=6.0, **start))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-4)


def run_free(backbone: CogVideoX, x0: torch.Tensor, draws: Iterator[torch.Tensor], config: EditConfig) -> torch.Tensor:
    text = aligned_text(backbone, PAIR).for_subtask(1, 1)
    config = replace(config, pnc=False, amr=False, ending="same")
    return Editor(backbone).subtask(x0, [Source(x0, text.original)], text, config, draws)


class ExplicitMaps:
    """CogVideoX's attention with its maps in sight; `taken`: row -> (row, weight) pairs of its shared columns."""

    def __init__(self, shared: int, taken: dict[int, list[tuple[int, float]]]) -> None:
        self.shared, self.taken = shared, taken

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, image_rotary_emb=None):
        text = encoder_hidden_states.shape[1]
        x = torch.cat([encoder_hidden_states, hidden_states], 1)
        q, k, v = (f(x).unflatten(2, (attn.heads, -1)).transpose(1, 2) for f in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        for part in (q, k):
            part[:, :, text:] = apply_rotary_emb(part[:, :, text:], image_rotary_emb)
        logits = q @ k.mT / q.shape[3] ** 0.5
        maps = logits.softmax(-1)
        for row, sources in self.taken.items():
            maps[row, :, text:] = 0
            for source, weight in sources:
                mixed = torch.cat([logits[source, :, text:, : self.shared], logits[row, :, text:, self.shared :]], -1)
                maps[row, :, text:] += weight * mixed.softmax(-1)
        out = attn.to_out[0]((maps @ v).transpose(1, 2).flatten(2))
        return out[:, text:], out[:, :text]


def written_out(
    pipeline: CogVideoXPipeline, x0: torch.Tensor, text: AlignedText | WrittenText, config: EditConfig
) -> torch.Tensor:
    """V2Edit with DDIM, as the paper says it: extract each source's noise, add it to the edit's step, replace maps."""
    schedule = CogVideoX(pipeline).schedule(config.steps)
    a, s, times = schedule.a.tolist(), schedule.s.tolist(), schedule.timesteps.tolist()
    rotary = pipeline._prepare_rotary_positional_embeddings(32, 32, 3, x0.device)
    beta, guidance = 0.5, config.guidance or 1.0
    of_sources = config.source_guidance or guidance
    guided = guidance > 1 or of_sources > 1

    @torch.no_grad()
    def clean(rows, k, weights=(), shared=0):
        n, cfg_batches = len(rows), 1 + guided
        taken = {}
        for half in range(cfg_batches):
            if weights and (half == cfg_batches - 1 or config.amr_unconditional):
                taken[half * n + n - 1] = [(half * n + i, w) for i, w in enumerate(weights)]
        pipeline.transformer.set_attn_processor(ExplicitMaps(shared, taken))
        v = torch.cat([v for v, _ in rows] * cfg_batches)
        prompts = [negative] * (n * guided) + [p for _, p in rows]
        t = torch.full((len(v),), times[k])
        out = pipeline.transformer(v, torch.stack(prompts), t, image_rotary_emb=rotary, return_dict=False)[0]
        if guided:
            pull = torch.tensor([of_sources] * (n - 1) + [guidance])[:, None, None, None, None]
            out = out[:n] + pull * (out[n:] - out[:n])
        return [a[k] * v[i : i + 1] - s[k] * out[i : i + 1] for i in range(n)]

    def ddim(v, x, k):
        return a[k + 1] * x + s[k + 1] * (v - a[k] * x) / s[k]

    current = x0
    for subtask in range(1, config.subtasks + 1):
        if isinstance(text, AlignedText):
            p = [text.source + (text.target - text.source) * i / config.subtasks for i in range(config.subtasks + 1)]
            said, shared, negative = (p[0], p[subtask - 1], p[subtask]), text.shared, text.negative
        else:  # The prompts are written: each subtask has three of its own, on slots of its own.
            own = text.subtasks[subtask - 1]
            said, shared, negative = (own.original, own.current, own.edit), own.shared, own.negative
        known = [(x0, said[0], 1.0)]
        if subtask > 1:
            known = [(x0, said[0], config.mixture), (current, said[1], 1 - config.mixture)]
        draw = noise_stream(config.seed, subtask, x0)
        start = next(k for k, t in enumerate(times) if t <= config.alpha * 1000)
        eps = next(draw)
        noisy = [a[start] * x + s[start] * eps for x, _, _ in known]
        edit = a[start] * current + s[start] * eps
        for k in range(start, config.steps):
            if times[k] <= beta * 1000:
                edit = ddim(edit, clean([(edit, said[2])], k)[0], k)
                continue
            rows = [(v, prompt) for v, (_, prompt, _) in zip(noisy, known, strict=True)] + [(edit, said[2])]
            *sources, x = clean(rows, k, [w for _, _, w in known], shared)
            eps = next(draw)
            follow = [a[k + 1] * x + s[k + 1] * eps for x, _, _ in known]
            noise = sum(
                w * (f - ddim(v, c, k)) for (_, _, w), f, v, c in zip(known, follow, noisy, sources, strict=True)
            )
            edit, noisy = ddim(edit, x, k) + noise, follow
        current = edit
    return current


@pytest.mark.parametrize(
    ("subtasks", "guidance", "of_sources", "unconditional"),
    [
        (1, 1.0, None, False),
        (1, 6.0, None, True),
        (3, 6.0, None, False),
        (3, 6.0, None, True),
        (3, 6.0, 1.0, False),
        (1, 1.0, 4.0, True),
    ],
)
def test_it_is_the_method_written_out(subtasks, guidance, of_sources, unconditional):
    """The editor against a slow one that extracts noise, builds maps and lays out rows in plain sight."""
    config = EditConfig(
        steps=8, solver="ddim", subtasks=subtasks, mixture=0.3, guidance=guidance, source_guidance=of_sources,
        amr_unconditional=unconditional,
    )  # fmt: skip
    backbone = CogVideoX(pipeline_of("5b"))
    x0, got = edited(backbone, config)
    expected = written_out(pipeline_of("5b"), x0, aligned_text(backbone, PAIR), config)
    assert (got - expected).norm() <= 1e-5 * expected.norm()


CHAIN = PromptPair(PAIR.source, PAIR.target, ("a blue ball on the floor", "the cube on the floor a blue"))


def test_it_is_the_method_written_out_with_written_prompts_too():
    config = EditConfig(steps=8, solver="ddim", subtasks=3, mixture=0.3, guidance=6.0)
    backbone = CogVideoX(pipeline_of("5b"))
    x0, text = backbone.encode(frames_of(0)), encode_progression(backbone, CHAIN)
    got = list(Editor(backbone).subtasks(x0, text, config))[-1]
    expected = written_out(pipeline_of("5b"), x0, text, config)
    assert (got - expected).norm() <= 1e-5 * expected.norm()


def test_written_prompts_are_those_of_the_model_on_slots_that_all_branches_share():
    """Each branch has all tokens of its own prompt, and the shared slots hold one token in all three."""
    backbone = CogVideoX(pipeline_of("5b"))
    text = encode_progression(backbone, CHAIN)
    encoded = backbone.encode_text(CHAIN.chain)

    def tokens(laid: torch.Tensor, whole: Text) -> list[int]:
        """The ids in the laid-out text, each slot found again by its encoding."""
        found = [int((whole.embedding == row).all(1).nonzero()[0]) for row in laid]
        assert sorted(found) == list(range(TEXT_LENGTH))
        return [whole.ids[k] if k < len(whole.ids) else backbone.pad_id for k in found]

    assert isinstance(text, WrittenText) and len(text.subtasks) == 3
    for s, said in enumerate(text.subtasks, start=1):
        rows = [tokens(laid, encoded[k]) for laid, k in ((said.original, 0), (said.current, s - 1), (said.edit, s))]
        common = [row[: said.shared] for row in rows]
        assert common[0] == common[1] == common[2] and len(set(common[0])) > 3
    assert [len(set(encoded[k].ids)) for k in range(4)] == [7, 7, 7, 7]  # no token twice: the search is exact


def test_prompts_written_alike_give_the_source_back(backbone):
    alike = PromptPair(PAIR.source, PAIR.source, (PAIR.source, PAIR.source))
    config = EditConfig(steps=10, beta=0.0, subtasks=3)
    x0 = backbone.encode(frames_of(0))
    back = list(Editor(backbone).subtasks(x0, encode_progression(backbone, alike), config))[-1]
    assert (back - x0).norm() <= 1e-4 * x0.norm()


def test_as_many_subtasks_as_prompts_are_written():
    result = Editor(CogVideoX(pipeline_of("5b"))).edit(frames_of(2), CHAIN, EditConfig(steps=2))
    assert len(result.subtasks) == 3
    with pytest.raises(UserError, match="--subtasks is 2"):
        EditConfig(subtasks=2).for_prompts(CHAIN)


@pytest.mark.parametrize(
    ("changes", "subtasks", "forwards"),
    [
        ({}, 1, 130),  # 20 guided steps x 4 rows + 25 free steps x 2
        ({}, 2, 130 + 170),  # later subtasks have a third branch
        ({"mixture": 0.0}, 2, 130 + 130),  # unless the original has no weight
        ({"pnc": False, "amr": False}, 1, 90),
        ({"inc": False}, 1, 25 * 4 + 25 * 2),
        ({"guidance": 1.0}, 1, 65),
        ({"guidance": 1.0, "source_guidance": 4.0}, 1, 20 * 4 + 25),
    ],
)
def test_the_number_of_forwards(changes, subtasks, forwards):
    backbone, rows = CogVideoX(pipeline_of("5b")), []
    backbone.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    edited(backbone, replace(EditConfig(subtasks=subtasks), **changes))
    assert sum(rows) == forwards


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(backbone):
    config = EditConfig(steps=8, subtasks=2)
    one, two = (Editor(backbone).edit(frames_of(2), PAIR, config).subtasks for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    other = Editor(backbone).edit(frames_of(2), PAIR, replace(config, seed=1)).frames
    assert not np.array_equal(other, one[-1])


@pytest.mark.parametrize(
    "change",
    [
        {"inc": False},
        {"pnc": False},
        {"amr": False},
        {"amr_unconditional": True},
        {"padding_shared": False},
        {"ending": "same"},
        {"solver": "ddpm"},
        {"beta": 0.8},
        {"subtasks": 2},
        {"guidance": 3.0},
        {"source_guidance": 3.0},
    ],
    ids=str,
)
def test_each_switch_does_something(change):
    backbone = CogVideoX(pipeline_of("5b"))
    config = EditConfig(steps=8)
    _, with_default = edited(backbone, config)
    _, with_change = edited(backbone, replace(config, **change))
    assert torch.isfinite(with_change).all() and not torch.equal(with_change, with_default)


def test_text_is_a_set():
    """Reordering encoded tokens changes nothing: what lets both prompts be laid on common slots."""
    for variant in ("2b", "5b"):
        backbone = CogVideoX(pipeline_of(variant))
        text = backbone.encode_text([PAIR.source])[0].embedding[None]
        schedule, v = (
            backbone.schedule(10),
            torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        )
        order = torch.randperm(TEXT_LENGTH, generator=torch.Generator().manual_seed(1))
        straight, shuffled = (backbone.denoise(v, 4, schedule, t) for t in (text, text[:, order]))
        torch.testing.assert_close(shuffled, straight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("count", "height", "width"), [(1, 32, 32), (7, 45, 31), (10, 20, 60)])
def test_any_clip_comes_back_with_its_own_length_and_size(count, height, width):
    backbone = CogVideoX(pipeline_of("5b"))
    frames = frames_of(3, count, height, width)
    assert Editor(backbone).edit(frames, PAIR, EditConfig(steps=2)).frames.shape == frames.shape


def test_fitting_keeps_the_area_and_the_aspect():
    backbone = CogVideoX(pipeline_of("5b"))
    assert backbone.nearest_size(Size(9, 32, 32)) == Size(9, 32, 32)
    assert backbone.nearest_size(Size(10, 100, 100)) == Size(17, 32, 32)
    tall = backbone.nearest_size(Size(1, 1280, 320))
    assert tall.frames == 1 and tall.height == 64 and tall.width == 16


@settings(max_examples=40)
@given(height=st.integers(1, 700), width=st.integers(1, 700))
@example(1, 1)
@example(700, 1)
@example(592, 336)
def test_any_size_is_mapped_onto_all_of_the_models_and_back(height, width):
    """Nothing is cut off or put around: a plain picture stays plain to its edges, a ramp runs from end to end."""
    backbone, own = fifth(), Size(1, height, width)
    fitted, shape = backbone.nearest_size(own), (1, height, width, 3)
    side = backbone.spatial * backbone.transformer.config.patch_size
    assert fitted.height % side == fitted.width % side == 0
    if max(height, width) <= 4 * min(height, width):  # a narrower one has but a few patches on its short side
        trained = backbone.native_size.height * backbone.native_size.width
        assert 0.5 < fitted.height * fitted.width / trained < 2
        assert 0.5 < (fitted.height / fitted.width) / (height / width) < 2
    plain = np.full(shape, 200, np.uint8)
    assert (resize_clip(plain, fitted) == 200).all() and np.array_equal(
        resize_clip(resize_clip(plain, fitted), own), plain
    )
    for many, few, place in ((height, fitted.height, np.s_[:, None, None]), (width, fitted.width, np.s_[:, None])):
        ramp = np.broadcast_to(((np.arange(many) + 0.5) / many * 255).round().astype(np.uint8)[place], shape).copy()
        back = resize_clip(resize_clip(ramp, fitted), own)
        assert np.abs(back.astype(int) - ramp).max() <= 255 / min(few, many) + 2


@cache
def fifth() -> CogVideoX:
    return CogVideoX(pipeline_of("5b"))


def test_frames_at_their_own_size_are_left_alone():
    frames = frames_of(4)
    assert np.array_equal(resize_clip(frames, Size(9, 32, 32)), frames)
    longer = resize_clip(frames, Size(12, 32, 32))
    assert np.array_equal(longer[:9], frames) and (longer[9:] == frames[-1]).all()
    assert np.array_equal(resize_clip(longer, Size(9, 32, 32)), frames)


def test_progress_counts_every_step_once():
    seen: list[Progress] = []
    Editor(CogVideoX(pipeline_of("5b"))).edit(frames_of(5), PAIR, EditConfig(steps=10, subtasks=2), seen.append)
    assert [(p.subtask, p.step) for p in seen] == [(s, k) for s in (1, 2) for k in range(1, 10)]
    assert {(p.subtasks, p.steps) for p in seen} == {(2, 9)}


@pytest.mark.parametrize("variant", ["2b", pytest.param("5b", marks=pytest.mark.heavy)])
def test_the_published_configurations_run_through_the_same_editor(variant):
    """CogVideoX-2b's and 5b's own transformer configuration, two layers of it, random weights."""
    backbone = CogVideoX(pipeline_of(variant, num_layers=2, **PUBLISHED[variant]))
    assert backbone.native_size == Size(49, 240, 360) and backbone.text_length == 226  # a 4x autoencoder stands in
    x0 = torch.randn(1, 3, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    text: AlignedText = aligned_text(backbone, SAME)
    config = EditConfig(steps=4, alpha=0.9, beta=0.0)
    (back,) = Editor(backbone).subtasks(x0, text, config)
    assert (back - x0).norm() <= 1e-4 * x0.norm()
    text = aligned_text(backbone, PAIR)
    (other,) = Editor(backbone).subtasks(x0, text, config)
    assert torch.isfinite(other).all() and (other - x0).norm() > 1e-3 * x0.norm()


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 1.5}, {"alpha": 0.0}, {"subtasks": 7}, {"steps": 0}, {"guidance": 0.5}, {"source_guidance": 0.5},
        {"mixture": -0.1},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(UserError, match=f"--{next(iter(wrong)).replace('_', '-')}"):
        EditConfig(**wrong)
