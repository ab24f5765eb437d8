"""LTX-Video on its two pipelines: what each of them samples, and the times of frames in clips, windows and loops."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.clips import PAIR
from support.families import FAMILIES
from torch import Tensor

from v2edit import backbones
from v2edit.backbones.ltx import LTX
from v2edit.backbones.ltx_condition import LTXCondition
from v2edit.errors import UserError
from v2edit.sampling import SOLVERS, step_mean

NAMES = [name for name in FAMILIES if "LTX" in name]


def noise_of(shape, **_) -> Tensor:
    """Draw the same noise each time, as for what the decoder is given, and leave the generator after it."""
    torch.manual_seed(0)
    return torch.randn(shape)


@pytest.mark.parametrize("name", NAMES)
def test_it_samples_as_its_pipeline_does(name, monkeypatch):
    """The steps' levels, the text and its hidden padding, the frame rate, and noise in the decoder."""
    backbone, steps, prompt, (ddim, rate) = FAMILIES[name](), 4, PAIR.source, (SOLVERS["ddim"], 10)
    pipeline, native = backbone.pipeline, backbone.native_size
    frames, *image = backbone.latent_shape(native)
    v = noise_of((1, image[0], frames, *image[1:])).transpose(1, 2)
    backbone.set_frame_rate(rate)
    text, schedule = backbone.encode_text([prompt]), backbone.schedule(steps, v.shape[1:])
    for k in range(steps):
        v = step_mean(ddim.step(schedule, k, first=k == 0), v, backbone.denoise(v, k, schedule, text))
    video = backbone.decode(v)
    backbone.uninstall(pipeline.transformer)
    monkeypatch.setattr(sys.modules[type(pipeline).__module__], "randn_tensor", noise_of)
    options = {
        "prompt": prompt, "num_frames": native.frames, "height": native.height, "width": native.width,
        "frame_rate": rate, "num_inference_steps": steps, "guidance_scale": 1.0, "decode_timestep": 0.05,
        "decode_noise_scale": 0.025,
    }  # fmt: skip
    latents = pipeline(**options, output_type="latent").frames
    if latents.dim() == 3:  # as the transformer takes them
        latents = pipeline._unpack_latents(latents, frames, *image[1:])
    expected = pipeline(**options, output_type="np").frames[0]
    assert torch.equal(schedule.timesteps, pipeline.scheduler.timesteps)
    assert torch.equal(schedule.s, pipeline.scheduler.sigmas.double())
    assert np.abs(video / 255 - expected).max() <= 1 / 255
    assert (v.transpose(1, 2) - latents).norm() <= 1e-5 * latents.norm()


@pytest.mark.parametrize(("name", "loop", "first_is_nearer"), [
    ("LTX 0.9.0", False, False), ("LTX 0.9.7", False, True), ("LTX 0.9.7", True, False),
])  # fmt: skip
def test_frames_are_evenly_spaced_but_for_a_clip_s_first_one(name, loop, first_is_nearer):
    """By the products of a query and a key that are one latent frame apart, in a clip longer than the windows."""
    backbone, generator = FAMILIES[name](), torch.Generator().manual_seed(0)
    tables = backbone._windows(7, 1, 1, loop)
    query, key = (torch.randn(1, 2, 1, 16, generator=generator).expand(-1, -1, 7, -1) for _ in range(2))
    query, key = (backbone.rotate(x, tables.in_clip) for x in (query, key))
    first, *others = (query[:, :, :-1] * key[:, :, 1:]).sum((0, 1, 3)).tolist()
    assert others == pytest.approx([others[0]] * 5, abs=0.01)
    assert (abs(first - others[0]) > 0.05) == first_is_nearer


@pytest.mark.parametrize(("name", "kind", "slots"), [("LTX 0.9.0", LTX, 128), ("LTX 0.9.7", LTXCondition, 256)])
def test_a_folder_is_read_as_the_pipeline_that_its_index_names(name, kind, slots, tmp_path):
    made = FAMILIES[name]()
    made.pipeline.save_pretrained(tmp_path)
    checkpoint = backbones.find(str(tmp_path))
    loaded, info = backbones.load(checkpoint, device="cpu"), backbones.read_info(checkpoint)
    assert type(loaded) is kind and type(loaded.pipeline) is type(made.pipeline)
    assert loaded.text_length == info.tokenizer.max_length == slots and checkpoint.prompt_style == "ltxvideo"
    assert torch.equal(info.schedule(6).timesteps, made.schedule(6, made.latent_shape(loaded.native_size)).timesteps)


def test_a_scheduler_that_the_pipeline_cannot_step_by_is_refused(tmp_path: Path):
    FAMILIES["LTX 0.9.0"]().pipeline.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "LTXConditionPipeline"}))
    with pytest.raises(UserError, match=r"use_dynamic_shifting.*model_index\.json"):
        backbones.read_info(backbones.find(str(tmp_path))).schedule(4)
