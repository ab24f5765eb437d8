"""The editor on CogVideoX's own classes: exactness, parity with diffusers, cost, and the effect of each switch."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXVideoToVideoPipeline
from diffusers.models.embeddings import apply_rotary_emb
from PIL import Image
from support.clips import PAIR, SAME, frames_of
from support.models import PUBLISHED, TEXT_LENGTH, pipeline_of
from torch import Tensor

from v2edit.backbones import Size, Text
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.editing import EditConfig, Editor, Progress
from v2edit.editing.controls import Source
from v2edit.editing.local import LatentBlend
from v2edit.editing.microbatch import MicroBatcher
from v2edit.editing.progression import AlignedText, WrittenText, aligned_text, encode_progression
from v2edit.editing.state import noise_stream
from v2edit.editing.subtask import Subtask, edit_whole
from v2edit.errors import UserError
from v2edit.prompts import PromptPair


@pytest.fixture(params=["2b", "5b"])
def backbone(request) -> CogVideoX:
    return CogVideoX(pipeline_of(request.param))


def edited(backbone: CogVideoX, config: EditConfig, pair: PromptPair = PAIR) -> tuple[torch.Tensor, torch.Tensor]:
    """Edit a clip; return its latents and those of the edit."""
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


def diffusers_draws(generator: torch.Generator, like: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the draws that CogVideoXDPMScheduler uses: from the second step on it draws twice and uses the second."""
    yield torch.randn(like.shape, generator=generator)
    yield torch.randn(like.shape, generator=generator)
    while True:
        torch.randn(like.shape, generator=generator)
        yield torch.randn(like.shape, generator=generator)


@pytest.fixture(params=["2b", "5b"])
def pair_of_pipelines(request) -> tuple[CogVideoX, CogVideoXPipeline]:
    """The same weights twice: a backbone, and a pipeline with diffusers' own attention processors."""
    return CogVideoX(pipeline_of(request.param)), pipeline_of(request.param)


def test_the_transformer_computes_what_diffusers_own_does(pair_of_pipelines):
    backbone, peer = pair_of_pipelines
    v = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.stack([t.embedding for t in backbone.encode_text([PAIR.source, PAIR.target])])
    rotary = backbone._rotary(3, 8, 8)
    inputs = {"encoder_hidden_states": text, "timestep": torch.tensor([499, 499])}
    expected = peer.transformer(v, **inputs, image_rotary_emb=rotary, return_dict=False)[0]
    with backbone.call.during(rotary, None, None, None):
        torch.testing.assert_close(backbone.networks[0](v, **inputs, return_dict=False)[0], expected, rtol=0, atol=1e-6)


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
    got = run_free(backbone, x0, diffusers_draws(generator, x0), EditConfig(steps=steps, guidance=guidance))
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
    draws = diffusers_draws(torch.Generator().manual_seed(5), x0 := torch.zeros_like(expected))
    got = run_free(backbone, x0, draws, EditConfig(steps=10, guidance=6.0, **start))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-4)


def run_free(backbone: CogVideoX, x0: torch.Tensor, draws: Iterator[torch.Tensor], config: EditConfig) -> torch.Tensor:
    text, config = aligned_text(backbone, PAIR).for_subtask(1, 1), replace(config, pnc=False, amr=False, ending="same")
    sources, batcher = [Source(x0, text.original)], MicroBatcher(backbone)
    return edit_whole(Subtask.of(batcher, sources, text, config, x0.shape[1:]), x0, draws, LatentBlend(x0))


class ExplicitMaps:
    """CogVideoX's attention with explicit maps; `sources`: row -> (row, weight) pairs of its shared columns."""

    def __init__(self, shared: int, sources: dict[int, list[tuple[int, float]]]) -> None:
        self.shared, self.sources = shared, sources

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, image_rotary_emb=None):
        text = encoder_hidden_states.shape[1]
        x = torch.cat([encoder_hidden_states, hidden_states], 1)
        q, k, v = (f(x).unflatten(2, (attn.heads, -1)).transpose(1, 2) for f in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        for part in (q, k):
            part[:, :, text:] = apply_rotary_emb(part[:, :, text:], image_rotary_emb)
        logits = q @ k.mT / q.shape[3] ** 0.5
        maps = logits.softmax(-1)
        for row, sources in self.sources.items():
            maps[row, :, text:] = 0
            for source, weight in sources:
                mixed = torch.cat([logits[source, :, text:, : self.shared], logits[row, :, text:, self.shared :]], -1)
                maps[row, :, text:] += weight * mixed.softmax(-1)
        out = attn.to_out[0]((maps @ v).transpose(1, 2).flatten(2))
        return out[:, text:], out[:, :text]


def written_out(text: AlignedText | WrittenText, subtask: int, subtasks: int) -> tuple[list[Tensor], int, Tensor]:
    """Return the encoded prompts of the original, the current and the edit branch, how many slots they share, and the
    negative prompt."""
    if isinstance(text, AlignedText):
        own, (p_0, p_1) = text, (text.source.embedding, text.target.embedding)
        prompts = [p_0 + (p_1 - p_0) * i / subtasks for i in (0, subtask - 1, subtask)]
    else:  # The prompts are written: each subtask has three of its own, on slots of its own.
        own = text.subtasks[subtask - 1]
        prompts = [one.embedding for one in (own.original, own.current, own.edit)]
    return prompts, own.shared, own.negative.embedding


def paper_edit(
    pipeline: CogVideoXPipeline, x0: torch.Tensor, text: AlignedText | WrittenText, config: EditConfig
) -> torch.Tensor:
    """V2Edit with DDIM as the paper has it: extract each source's noise, add it to the edit's step, replace maps."""
    schedule = CogVideoX(pipeline).schedule(config.steps)
    a, s, times = schedule.a.tolist(), schedule.s.tolist(), schedule.timesteps.tolist()
    rotary = pipeline._prepare_rotary_positional_embeddings(32, 32, 3, x0.device)
    beta, guidance = 0.5, config.guidance or 1.0  # beta and, below, alpha are CogVideoX's own
    source_guidance = config.source_guidance or guidance
    guided = guidance > 1 or source_guidance > 1

    @torch.no_grad()
    def denoise(rows, k, weights=(), shared=0):
        n, cfg_batches = len(rows), 1 + guided
        maps = {}
        for batch in range(cfg_batches):
            if weights and (batch == cfg_batches - 1 or config.amr_unconditional):
                maps[batch * n + n - 1] = [(batch * n + i, w) for i, w in enumerate(weights)]
        pipeline.transformer.set_attn_processor(ExplicitMaps(shared, maps))
        v = torch.cat([v for v, _ in rows] * cfg_batches)
        prompt_rows = torch.stack([negative] * (n * guided) + [p for _, p in rows])
        t = torch.full((len(v),), times[k])
        out = pipeline.transformer(v, prompt_rows, t, image_rotary_emb=rotary, return_dict=False)[0]
        if guided:
            scale = torch.tensor([source_guidance] * (n - 1) + [guidance])[:, None, None, None, None]
            out = out[:n] + scale * (out[n:] - out[:n])
        return [a[k] * v[i : i + 1] - s[k] * out[i : i + 1] for i in range(n)]

    def ddim(v, x, k):
        return a[k + 1] * x + s[k + 1] * (v - a[k] * x) / s[k]

    current = x0
    for subtask in range(1, config.subtasks + 1):
        prompts, shared, negative = written_out(text, subtask, config.subtasks)
        known = [(x0, prompts[0], 1.0)]
        if subtask > 1:
            known = [(x0, prompts[0], config.mixture), (current, prompts[1], 1 - config.mixture)]
        draw = noise_stream(config.seed, subtask, x0)
        start = next(k for k, t in enumerate(times) if t <= 900)
        eps = next(draw)
        noisy = [a[start] * x + s[start] * eps for x, _, _ in known]
        edit = a[start] * current + s[start] * eps
        for k in range(start, config.steps):
            if times[k] <= beta * 1000:
                edit = ddim(edit, denoise([(edit, prompts[2])], k)[0], k)
                continue
            rows = [(v, prompt) for v, (_, prompt, _) in zip(noisy, known, strict=True)] + [(edit, prompts[2])]
            *sources, x = denoise(rows, k, [w for _, _, w in known], shared)
            eps = next(draw)
            next_states = [a[k + 1] * x + s[k + 1] * eps for x, _, _ in known]
            states = zip(known, next_states, noisy, sources, strict=True)
            noise = sum(w * (v_next - ddim(v, source, k)) for (_, _, w), v_next, v, source in states)
            edit, noisy = ddim(edit, x, k) + noise, next_states
        current = edit
    return current


@pytest.mark.parametrize(
    ("subtasks", "guidance", "source_guidance", "unconditional"),
    [
        (1, 1.0, None, False),
        (1, 6.0, None, True),
        (3, 6.0, None, False),
        (3, 6.0, None, True),
        (3, 6.0, 1.0, False),
        (3, 6.0, 1.0, True),
        (1, 1.0, 4.0, True),
    ],
)
def test_it_is_the_method_written_out(subtasks, guidance, source_guidance, unconditional):
    """The editor against a slow one that extracts noise and builds maps explicitly."""
    config = EditConfig(
        steps=8, solver="ddim", subtasks=subtasks, mixture=0.3, guidance=guidance, source_guidance=source_guidance,
        amr_unconditional=unconditional,
    )  # fmt: skip
    backbone = CogVideoX(pipeline_of("5b"))
    x0, got = edited(backbone, config)
    expected = paper_edit(pipeline_of("5b"), x0, aligned_text(backbone, PAIR), config)
    assert (got - expected).norm() <= 1e-5 * expected.norm()


CHAIN = PromptPair(PAIR.source, PAIR.target, ("a blue ball on the floor", "the cube on the floor a blue"))


def test_it_is_the_method_written_out_with_written_prompts_too():
    config = EditConfig(steps=8, solver="ddim", subtasks=3, mixture=0.3, guidance=6.0)
    backbone = CogVideoX(pipeline_of("5b"))
    x0, text = backbone.encode(frames_of(0)), encode_progression(backbone, CHAIN)
    got = list(Editor(backbone).subtasks(x0, text, config))[-1]
    expected = paper_edit(pipeline_of("5b"), x0, text, config)
    assert (got - expected).norm() <= 1e-5 * expected.norm()


def test_written_prompts_are_those_of_the_model_on_slots_that_all_branches_share():
    """Each branch has all tokens of its own prompt, and the shared slots hold one token in all three."""
    backbone = CogVideoX(pipeline_of("5b"))
    text = encode_progression(backbone, CHAIN)
    encoded = backbone.encode_text(CHAIN.chain)

    def tokens(laid: Text, whole: Text) -> list[int]:
        """Return the ids in the laid-out text, each slot identified by its encoding."""
        slots = [int((whole.embedding == row).all(1).nonzero()[0]) for row in laid.embedding]
        assert sorted(slots) == list(range(TEXT_LENGTH))
        return [whole.ids[k] if k < len(whole.ids) else backbone.pad_id for k in slots]

    assert isinstance(text, WrittenText) and len(text.subtasks) == 3
    for s, branches in enumerate(text.subtasks, start=1):
        rows = [
            tokens(laid, encoded[k])
            for laid, k in ((branches.original, 0), (branches.current, s - 1), (branches.edit, s))
        ]
        common = [row[: branches.shared] for row in rows]
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
    ],
)
def test_the_number_of_forwards(changes, subtasks, forwards):
    backbone, rows = CogVideoX(pipeline_of("5b")), []
    backbone.networks[0].register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
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
        text = backbone.encode_text([PAIR.source])[0]
        schedule, v = (
            backbone.schedule(10),
            torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        )
        order = torch.randperm(TEXT_LENGTH, generator=torch.Generator().manual_seed(1))
        straight, shuffled = (backbone.denoise(v, 4, schedule, t) for t in ([text], [text.reordered(order.tolist())]))
        torch.testing.assert_close(shuffled, straight, rtol=1e-4, atol=1e-5)


def test_progress_counts_every_step_once():
    seen: list[Progress] = []
    Editor(CogVideoX(pipeline_of("5b"))).edit(frames_of(5), PAIR, EditConfig(steps=10, subtasks=2), seen.append)
    assert [(p.subtask, p.step) for p in seen] == [(s, k) for s in (1, 2) for k in range(1, 10)]
    assert {(p.subtasks, p.steps) for p in seen} == {(2, 9)}


@pytest.mark.heavy
@pytest.mark.parametrize("variant", ["2b", "5b"])
def test_the_published_configurations_run_through_the_same_editor(variant):
    """CogVideoX-2b's and 5b's own transformer configuration, two layers of it, random weights."""
    backbone = CogVideoX(pipeline_of(variant, num_layers=2, **PUBLISHED[variant]))
    assert backbone.native_size == Size(49, 240, 360) and backbone.text_length == 226  # a 4x autoencoder stands in
    x0 = torch.randn(1, 3, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    text: AlignedText = aligned_text(backbone, SAME)
    config = EditConfig(steps=3, alpha=0.9, beta=0.0)
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
