"""Models from folders and names: what loads, and what is refused in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TEXT_LENGTH, pipeline_of

from v2edit import backbones
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pipeline_of("5b").save_pretrained(folder)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_folder_loads_as_the_pipeline_it_was_saved_from(folder):
    backbone, original = backbones.load(str(folder)), CogVideoX(pipeline_of("5b"))
    video = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    z = original.encode(video)
    assert torch.equal(backbone.encode(video), z)
    text = original.encode_text(["a red ball"])[0].embedding[None]
    assert torch.equal(backbone.encode_text(["a red ball"])[0].embedding[None], text)
    schedule = original.schedule(10)
    assert torch.equal(backbone.denoise(z, 3, schedule, text), original.denoise(z, 3, schedule, text))
    assert backbone.solver == "dpm-sde" and backbone.text_length == TEXT_LENGTH


def test_bfloat16_keeps_latents_in_float32(folder):
    backbone = backbones.load(str(folder), dtype="bfloat16")
    z = backbone.encode(np.zeros((9, 32, 32, 3), np.uint8))
    x0 = backbone.denoise(z, 3, backbone.schedule(10), backbone.encode_text(["a"])[0].embedding[None])
    assert z.dtype == x0.dtype == torch.float32 and torch.isfinite(x0).all()


def test_a_prompt_that_is_too_long_is_cut_and_said(folder, caplog):
    backbone = backbones.load(str(folder))
    text = backbone.encode_text(["a red ball", "a " * 3 * TEXT_LENGTH])
    assert [len(t.ids) for t in text] == [4, TEXT_LENGTH] and text[1].embedding.shape[0] == TEXT_LENGTH
    assert len(caplog.records) == 1 and "cut" in caplog.text


def refused(model: object, says: str, **options: str) -> None:
    with pytest.raises(UserError, match=says) as told:
        backbones.load(str(model), **options)
    assert "\n" not in str(told.value)


def test_what_is_no_model_is_refused(tmp_path):
    refused("nothing-here", "no model")
    refused(tmp_path, "model_index.json")
    (tmp_path / "model_index.json").write_text("{")
    refused(tmp_path, "not JSON")
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    refused(tmp_path, "FluxPipeline")


@pytest.mark.parametrize("part", ["vae", "transformer", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(copy, part):
    shutil.rmtree(copy / part)
    refused(copy, part)


def test_missing_weights_and_pickles_are_refused(copy):
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".kept"))
    refused(copy, "cannot load")
    # Where only a pickle is left, it is not opened.
    (copy / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n.")
    refused(copy, "cannot load")


def test_a_model_of_a_later_version_is_refused(copy):
    path = copy / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patch_size_t": 2, "sample_frames": 81}))
    refused(copy, "cannot load|1.5")


def test_a_device_that_is_not_there_is_refused(folder):
    refused(folder, "device", device="cuda:99")
    refused(folder, "--offload", offload="model", device="cpu")
