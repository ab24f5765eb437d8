"""Wan on its own classes: parity with diffusers' video-to-video pipeline, its two experts, and folders of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler, WanVideoToVideoPipeline
from PIL import Image
from support.clips import PAIR, frames_of
from support.families import FAMILIES, SMALL, euler_of, wan_pipeline_of, with_size
from torch import Tensor

from v2edit import backbones
from v2edit.backbones import Size
from v2edit.backbones.wan import Wan
from v2edit.bench.baselines import FlowEdit, PromptToPrompt, VideoToVideo
from v2edit.editing import EditConfig, Editor
from v2edit.editing.controls import Source
from v2edit.editing.local import LatentBlend
from v2edit.editing.microbatch import MicroBatcher
from v2edit.editing.progression import aligned_text
from v2edit.editing.subtask import Subtask, edit_whole
from v2edit.errors import UserError
from v2edit.jobs.job import Prepared

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "Euler": euler_of(3.0),
    "DPM++": DPMSolverMultistepScheduler(**FLOW),
    # The corrector replaces the state that is known; without it UniP of second order is DPM-Solver++ 2M.
    "UniPC": UniPCMultistepScheduler(**FLOW, disable_corrector=list(range(100))),
}


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_without_the_controls_it_is_diffusers_video_to_video(scheduler, guidance):
    """PNC and AMR off, one subtask: SDEdit, as the pipeline of diffusers does it on the same weights."""
    backbone, other = Wan(wan_pipeline_of()), wan_pipeline_of()
    backbone.pipeline.scheduler = SCHEDULERS[scheduler]
    parts = {k: v for k, v in other.components.items() if k != "transformer_2"} | {"scheduler": SCHEDULERS[scheduler]}
    peer = WanVideoToVideoPipeline(**parts)
    peer.set_progress_bar_config(disable=True)
    frames, embedded = frames_of(1), [text.embedding[None] for text in backbone.encode_text([PAIR.target, ""])]
    expected = peer(
        video=[Image.fromarray(frame) for frame in frames], prompt_embeds=embedded[0],
        negative_prompt_embeds=embedded[1], height=32, width=32, num_inference_steps=10, strength=0.9,
        guidance_scale=guidance, output_type="latent", generator=torch.Generator().manual_seed(5),
    ).frames.transpose(1, 2)  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    x0 = backbone.encode(frames)
    noise = torch.randn(x0.transpose(1, 2).shape, generator=generator).transpose(1, 2)
    text = aligned_text(backbone, PAIR).for_subtask(1, 1)
    config = EditConfig(steps=10, alpha=0.9, beta=0.0, guidance=guidance, pnc=False, amr=False, ending="same")
    subtask = Subtask.of(MicroBatcher(backbone), [Source(x0, text.original)], text, config, x0.shape[1:])
    got = edit_whole(subtask, x0, iter([noise]), LatentBlend(x0))
    assert float((got - expected).norm() / expected.norm()) <= 1e-6


def test_two_experts_share_the_steps_by_their_noise():
    backbone = FAMILIES["Wan A14B"]()
    schedule = backbone.schedule(50)
    experts = [schedule.expert(k) for k in range(50)]
    assert experts == sorted(experts) and set(experts) == {0, 1}
    assert all((float(schedule.timesteps[k]) < 875) == bool(expert) for k, expert in enumerate(experts))
    config = EditConfig().resolve(backbone.defaults, schedule)
    assert (config.guidance_at(schedule, 0, True), config.guidance_at(schedule, 49, True)) == ((4.0, 4.0), (3.0, 3.0))
    config = EditConfig(guidance=6.0).resolve(backbone.defaults, schedule)
    assert config.guidance_at(schedule, 49, True) == (6.0, 6.0)
    config = EditConfig(source_guidance=4.0).resolve(backbone.defaults, schedule)
    assert config.guidance_at(schedule, 49, True) == (3.0, 4.0)  # given, and the same as the first expert's
    config = EditConfig(guidance_2=2.0, source_guidance=1.0).resolve(backbone.defaults, schedule)
    assert config.guidance_at(schedule, 0, True) == (4.0, 1.0) and config.guidance_at(schedule, 49, True) == (2.0, 1.0)


def test_each_expert_is_called_in_its_own_steps():
    backbone, called = FAMILIES["Wan A14B"](), []
    for expert, network in enumerate(backbone.networks):
        network.register_forward_pre_hook(lambda *_, expert=expert: called.append(expert))
    x0 = backbone.encode(frames_of(0))
    list(Editor(backbone).subtasks(x0, aligned_text(backbone, PAIR), EditConfig(steps=10)))
    schedule = backbone.schedule(10)
    start = next(k for k in range(10) if schedule.noise(k) <= 0.96)
    assert called == [schedule.expert(k) for k in range(start, 10)]


def test_a_boundary_without_a_second_network_is_one_expert():
    """Conversion writes the boundary into folders of Wan 2.1, too."""
    pipeline = wan_pipeline_of()
    pipeline.register_to_config(boundary_ratio=0.875)
    assert len(Wan(pipeline).networks) == 1 and Wan(pipeline).schedule(10).second_expert is None


PICTURE = "some/model wants a picture beside the video"
SETTINGS = "scheduler/scheduler_config.json"
REFUSED = {
    "the channels of a picture": ("transformer/config.json", {"in_channels": 12}, PICTURE),
    "the tokens of a picture": ("transformer/config.json", {"image_dim": 32}, PICTURE),
    "8 bits": ("text_encoder/config.json", {"quantization_config": {"quant_method": "fp8"}}, r"quantised \(fp8\)"),
    "noise": (SETTINGS, {"prediction_type": "epsilon"}, "is set to predict 'epsilon'; known are flow_prediction"),
    "no flow": (SETTINGS, {"use_flow_sigmas": False}, "use_flow_sigmas"),
    "a shift": (SETTINGS, {"use_dynamic_shifting": True}, "use_dynamic_shifting"),
}


@pytest.mark.parametrize(("file", "settings", "reason"), REFUSED.values(), ids=REFUSED)
def test_settings_that_no_edit_runs_on_are_refused_before_weights_are_downloaded(
    tmp_path: Path, monkeypatch, file, settings, reason
):
    wan_pipeline_of().save_pretrained(tmp_path)
    changed = json.loads((tmp_path / file).read_text()) | settings
    (tmp_path / file).write_text(json.dumps(changed))
    checkpoint = replace(backbones.find(str(tmp_path)), name="some/model", source="some/model", commit="0" * 40)
    for weights in tmp_path.glob("*/*.safetensors"):
        weights.unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **options: str(tmp_path))
    for load in (backbones.load, backbones.load_fake_model):
        with pytest.raises(UserError, match=reason) as error:
            load(checkpoint)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["", "config.json", "diffusion_pytorch_model.safetensors"])
def test_a_second_expert_that_the_index_names_must_be_there(tmp_path: Path, file):
    wan_pipeline_of(experts=2).save_pretrained(tmp_path)
    checkpoint = backbones.find(str(tmp_path))
    assert backbones.has_weights(checkpoint)
    if file:
        (tmp_path / "transformer_2" / file).unlink()
    else:
        (tmp_path / "transformer_2").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"lacks transformer_2/\*?" if file else "lacks its transformer_2"):
        backbones.find(str(tmp_path))
    assert backbones.has_weights(checkpoint) == (file == "config.json")


def test_too_few_steps_for_a_scheduler_are_refused():
    with pytest.raises(UserError, match=r"--steps 1 is too few: .*shift_terminal"):
        FAMILIES["LTX 0.9.0"]().schedule(1)


@pytest.mark.parametrize("shift", [3.0, 5.0, 12.0])
def test_alpha_and_beta_are_the_shares_of_cogvideox_levels_of_noise(shift):
    backbone = Wan(wan_pipeline_of(shift=shift))
    schedule = backbone.schedule(50)
    config = EditConfig().resolve(backbone.defaults, schedule)
    for share, noise in ((config.alpha, 0.96), (config.beta, 0.70)):
        k = round(50 * (1 - share))
        assert schedule.noise(k) <= noise < schedule.noise(k - 1)


@pytest.mark.parametrize("experts", [1, 2])
def test_a_folder_loads_as_the_pipeline_it_was_saved_from(tmp_path: Path, experts):
    wan_pipeline_of(experts).save_pretrained(tmp_path / "wan")
    loaded, original = backbones.load(str(tmp_path / "wan")), Wan(wan_pipeline_of(experts))
    checkpoint = backbones.find(str(tmp_path / "wan"))
    info = backbones.read_info(checkpoint)
    assert checkpoint.prompt_style == "wan" and info.defaults == loaded.defaults == original.defaults
    assert info.schedule(20).timesteps.equal(original.schedule(20).timesteps)
    assert info.schedule(20).second_expert == original.schedule(20).second_expert
    v = torch.randn(1, *original.latent_shape(SMALL), generator=torch.Generator().manual_seed(0))
    text, schedule = original.encode_text([PAIR.source]), original.schedule(10)
    assert torch.equal(loaded.encode_text([PAIR.source])[0].embedding, text[0].embedding)
    for step in (0, 9):
        a, b = loaded.denoise(v, step, schedule, text), original.denoise(v, step, schedule, text)
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "method", [VideoToVideo(steps=4), FlowEdit(steps=4), PromptToPrompt(steps=4)], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("experts", [1, 2])  # diffusers has no video-to-video pipeline for two
def test_the_baselines_run_on_the_same_weights(method, experts):
    backbone, frames = with_size(Wan(wan_pipeline_of(experts)), SMALL), frames_of(2)
    edited = method.build(backbone)(frames, PAIR, 0)
    assert edited.shape == frames.shape and edited.dtype == np.uint8 and not np.array_equal(edited, frames)


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_a_uniform_timestep_is_that_of_each_token():
    """Wan 2.2 TI2V's own pipeline tells the timestep token by token, all alike for text to video."""
    backbone = FAMILIES["Wan TI2V"]()
    v = torch.randn(1, *backbone.latent_shape(backbone.native_size), generator=torch.Generator().manual_seed(0))
    text, network = backbone.encode_text([PAIR.source])[0].embedding[None], backbone.networks[0]
    t = torch.tensor([500])
    tokens = v.shape[1] * v.shape[3] * v.shape[4] // 4
    rotary = backbone.make_rotary(*v.shape[1:2], *v.shape[3:])
    with torch.no_grad(), backbone.call.during(rotary, None, None, None):
        each = network(v.transpose(1, 2), t[:, None].expand(1, tokens), text, return_dict=False)[0]
        one = network(v.transpose(1, 2), t, text, return_dict=False)[0]
    assert far(one, each) <= 1e-6


def test_the_autoencoder_stays_in_float32(tmp_path: Path):
    wan_pipeline_of().save_pretrained(tmp_path / "wan")
    backbone = backbones.load(str(tmp_path / "wan"), dtype="bfloat16")
    assert backbone.dtype == torch.bfloat16 and backbone.pipeline.vae.dtype == torch.float32
    backbone.native_size = SMALL
    edited = Editor(backbone).edit(frames_of(0), PAIR, replace(EditConfig(), steps=4)).frames
    assert edited.shape == frames_of(0).shape


def test_an_edit_starts_at_the_noise_of_its_own_clip():
    """LTX's noise levels depend on the number of tokens, so that alpha is another share for another clip."""
    backbone = FAMILIES["LTX 0.9.0"]()
    config = EditConfig().resolve(backbone.defaults, backbone.schedule(50))  # of the published size
    prepared = Prepared(PAIR, None, backbones.find(), EditConfig(), config).for_clip(backbone, Size(17, 64, 64))
    own = backbone.schedule(50, backbone.latent_shape(Size(17, 64, 64)))
    assert prepared.config.alpha == own.largest_share(0.96) > config.alpha
