"""The baselines on real CogVideoX classes: diffusers' own pipeline untouched, and what FlowEdit and DDIM promise."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import CogVideoXVideoToVideoPipeline
from PIL import Image
from support.models import TEXT_LENGTH, pipeline_of

from v2edit.backbones import Text
from v2edit.backbones.cogvideox import CogVideoX, JointAttention
from v2edit.bench.baselines import FlowEdit, PromptToPrompt, VideoToVideo, ddim_inversion, flow_edit, prompt_to_prompt
from v2edit.bench.methods import V2Edit
from v2edit.editing.progression import AlignedText, aligned_text
from v2edit.editing.state import noise_stream
from v2edit.errors import UserError
from v2edit.prompts import PromptPair
from v2edit.sampling import SOLVERS, step_mean

PAIR = PromptPair("a red ball on the floor", "a blue cube on the floor")
SAME = PromptPair(PAIR.source, PAIR.source)


@pytest.fixture(params=["2b", "5b"])
def backbone(request) -> CogVideoX:
    return CogVideoX(pipeline_of(request.param))


def frames_of(seed: int, count: int = 9, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def latents(backbone: CogVideoX, pair: PromptPair) -> tuple[torch.Tensor, AlignedText]:
    return backbone.encode(frames_of(0)), aligned_text(backbone, pair)


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("variant", ["2b", "5b"])
def test_video_to_video_is_diffusers_own(variant):
    """The class called as its documentation does, on a pipeline of its own; ours has edited in the meantime."""
    frames, seed = frames_of(1), 7
    peer = CogVideoXVideoToVideoPipeline(**pipeline_of(variant).components)
    peer.set_progress_bar_config(disable=True)
    expected = peer(
        video=[Image.fromarray(frame) for frame in frames], prompt=PAIR.target, height=32, width=32,
        num_inference_steps=10, strength=0.6, guidance_scale=5.0, max_sequence_length=TEXT_LENGTH,
        generator=torch.Generator().manual_seed(seed),
    ).frames[0]  # fmt: skip
    backbone = CogVideoX(pipeline_of(variant))
    method = VideoToVideo(steps=10, strength=0.6, guidance=5.0).build(backbone)
    V2Edit(steps=2).build(backbone)(frames, PAIR, seed)
    assert np.array_equal(method(frames, PAIR, seed), np.stack([np.asarray(frame) for frame in expected]))
    V2Edit(steps=2).build(backbone)(frames, PAIR, seed)
    assert np.array_equal(method(frames, PAIR, seed), np.stack([np.asarray(frame) for frame in expected]))
    assert not np.array_equal(method(frames, PAIR, seed + 1), method(frames, PAIR, seed))


def test_video_to_video_shares_the_weights_and_nothing_else(backbone):
    VideoToVideo(steps=2).build(backbone)(frames_of(1), PAIR, 0)
    own, peer = backbone.networks[0], backbone._video_to_video.transformer
    assert type(backbone._video_to_video) is CogVideoXVideoToVideoPipeline and type(peer) is type(own)
    for a, b in zip(own.parameters(), peer.parameters(), strict=True):
        assert a.data_ptr() == b.data_ptr()
    assert {type(p).__module__.split(".")[0] for p in peer.attn_processors.values()} == {"diffusers"}
    assert all(isinstance(p, JointAttention) for p in own.attn_processors.values())
    assert backbone._video_to_video.scheduler is not backbone.pipeline.scheduler


@pytest.mark.parametrize("guidance", [1.0, 6.0])
@pytest.mark.parametrize("more", [{}, {"n_avg": 2}, {"n_max": 1.0}], ids=str)
def test_flow_edit_with_equal_prompts_gives_the_source_back_to_the_last_bit(backbone, guidance, more):
    x0, text = latents(backbone, SAME)
    settings = FlowEdit(steps=8, source_guidance=guidance, guidance=guidance, **more)
    assert torch.equal(flow_edit(backbone, x0, text, settings, noise_stream(0, 1, x0)), x0)
    other = aligned_text(backbone, PAIR)
    assert far(flow_edit(backbone, x0, other, settings, noise_stream(0, 1, x0)), x0) > 1e-3


def test_flow_edit_is_its_algorithm_written_out():
    """Algorithm 1 of the paper, with the velocity eps - x0 read off what the network itself puts out."""
    backbone = CogVideoX(pipeline_of("5b"))
    x0, text = latents(backbone, PAIR)
    settings = FlowEdit(steps=10, n_max=0.7, n_min=0.2, n_avg=2, source_guidance=2.0, guidance=5.0)
    schedule, draw = backbone.schedule(10), noise_stream(0, 1, x0)
    a, s = schedule.a.tolist(), schedule.s.tolist()
    t = [s / (a + s) for a, s in zip(a, s, strict=True)]

    @torch.no_grad()
    def velocity(z: torch.Tensor, k: int, prompt: Text, guidance: float) -> torch.Tensor:
        v = (a[k] + s[k]) * z
        with backbone.call.during(backbone._rotary(3, 8, 8), None, None, None):
            without, within = (
                backbone.networks[0](v, one.embedding[None], schedule.timesteps[k : k + 1], return_dict=False)[0]
                for one in (text.negative, prompt)
            )
        out = without + guidance * (within - without)
        return (a[k] * out + s[k] * v) - (a[k] * v - s[k] * out)

    edit = x0
    for k in range(3, 8):
        change = []
        for _ in range(2):
            source = (1 - t[k]) * x0 + t[k] * next(draw)
            target = edit + source - x0
            change.append(velocity(target, k, text.target, 5.0) - velocity(source, k, text.source, 2.0))
        edit = edit + (t[k + 1] - t[k]) * (change[0] + change[1]) / 2
    target = edit + (1 - t[8]) * x0 + t[8] * next(draw) - x0
    for k in (8, 9):
        target = target + (t[k + 1] - t[k]) * velocity(target, k, text.target, 5.0)
    assert far(flow_edit(backbone, x0, text, settings, noise_stream(0, 1, x0)), target) <= 1e-5


def test_flow_edit_without_its_difference_is_ddim(backbone):
    """All steps ordinary: Euler in the flow's coordinates is DDIM in the diffusion's."""
    x0, text = latents(backbone, PAIR)
    settings = FlowEdit(steps=10, n_max=0.6, n_min=0.6, guidance=1.0)
    schedule = backbone.schedule(10)
    v = schedule.add_noise(x0, next(noise_stream(0, 1, x0)), 4)
    for k in range(4, 10):
        clean = backbone.denoise(v, k, schedule, [text.target])
        v = step_mean(SOLVERS["ddim"].step(schedule, k, first=True), v, clean)
    assert far(flow_edit(backbone, x0, text, settings, noise_stream(0, 1, x0)), v) <= 1e-5


def test_ddim_inversion_comes_back_to_the_source_the_better_the_more_steps(backbone):
    x0, text = latents(backbone, SAME)
    settings = PromptToPrompt(guidance=1.0)
    gaps = [far(prompt_to_prompt(backbone, x0, text, replace(settings, steps=steps)), x0) for steps in (25, 50, 100)]
    assert all(after < 0.6 * before for before, after in pairwise(gaps))  # of first order


def test_inversion_finds_noise_that_another_prompt_would_not(backbone):
    x0, text = latents(backbone, PAIR)
    schedule = backbone.schedule(50)
    one, other = (ddim_inversion(backbone, x0, prompt, schedule, 5) for prompt in (text.source, text.target))
    assert torch.isfinite(one).all() and far(one, other) > 1e-4


@pytest.mark.parametrize("change", [{"replaced": 0.0}, {"replaced": 1.0}, {"guidance": 2.0}, {"source_guidance": 6.0},
                                    {"alpha": 0.6}], ids=str)  # fmt: skip
def test_each_setting_of_prompt_to_prompt_does_something(change):
    backbone = CogVideoX(pipeline_of("5b"))
    x0, text = latents(backbone, PAIR)
    settings = PromptToPrompt(steps=8, replaced=0.5, guidance=6.0)
    one, other = (prompt_to_prompt(backbone, x0, text, s) for s in (settings, replace(settings, **change)))
    assert torch.isfinite(other).all() and not torch.equal(one, other)


def test_prompt_to_prompt_with_equal_prompts_and_guidances_is_the_sources_replay(backbone):
    """Both rows take the same path through the replaced attention, so whether maps are replaced is no matter."""
    x0, text = latents(backbone, SAME)
    settings = PromptToPrompt(steps=8, guidance=4.0, source_guidance=4.0)
    all_replaced, none = (prompt_to_prompt(backbone, x0, text, replace(settings, replaced=r)) for r in (1.0, 0.0))
    assert far(all_replaced, none) <= 1e-4


@pytest.mark.parametrize(
    ("settings", "forwards"),
    [
        (VideoToVideo(steps=10, strength=0.6), 6 * 2),
        (FlowEdit(steps=10, n_max=0.6, n_min=0.2), 4 * 4 + 2 * 2),
        (
            PromptToPrompt(steps=10, replaced=0.5),
            10 + 5 * 3 + 5 * 2,
        ),  # there, back both (the source unguided), the edit alone
    ],
    ids=str,
)
def test_the_number_of_forwards(settings, forwards):
    backbone, rows = CogVideoX(pipeline_of("5b")), []
    for transformer in (backbone.networks[0], backbone._video_to_video.transformer):
        transformer.register_forward_pre_hook(
            lambda module, args, kwargs: rows.append(len(next(iter((*args, *kwargs.values()))))), with_kwargs=True
        )
    settings.build(backbone)(frames_of(3), PAIR, 0)
    assert sum(rows) == forwards


@pytest.mark.parametrize("settings", [VideoToVideo(steps=2), FlowEdit(steps=2), PromptToPrompt(steps=2)], ids=str)
def test_any_clip_comes_back_with_its_own_length_and_size(settings):
    frames = frames_of(2, 7, 45, 31)
    edited = settings.build(CogVideoX(pipeline_of("5b")))(frames, PAIR, 0)
    assert edited.shape == frames.shape and edited.dtype == np.uint8


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: VideoToVideo(strength=1.1),
        lambda: VideoToVideo(steps=2, strength=0.4),
        lambda: FlowEdit(n_max=-0.1),
        lambda: FlowEdit(n_avg=0),
        lambda: PromptToPrompt(replaced=2.0),
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="expected"):
        wrong()
