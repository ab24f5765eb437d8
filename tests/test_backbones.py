"""Models from folders and names: what loads, and what is refused in one line."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.utils import logging as of_diffusers
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from support.models import TEXT_LENGTH, pipeline_of
from transformers.utils import logging as of_transformers

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
    # Close, not equal: weights read from a file are aligned otherwise in memory, which some matrix libraries sum by.
    torch.testing.assert_close(backbone.encode(video), z)
    text = original.encode_text(["a red ball"])[0].embedding[None]
    torch.testing.assert_close(backbone.encode_text(["a red ball"])[0].embedding[None], text)
    schedule = original.schedule(10)
    torch.testing.assert_close(backbone.denoise(z, 3, schedule, text), original.denoise(z, 3, schedule, text))
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
    for text in ("[]", "{}"):
        (tmp_path / "model_index.json").write_text(text)
        refused(tmp_path, "no pipeline")


def test_an_installation_without_the_built_in_model(tmp_path, monkeypatch):
    monkeypatch.setattr("v2edit.backbones.hub.BUILT_IN_FOLDER", tmp_path / "nowhere")
    refused("primitives", "installation lacks the built-in model")


@pytest.mark.parametrize("part", ["vae", "transformer", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(copy, part):
    shutil.rmtree(copy / part)
    refused(copy, f"lacks its {part}")
    (copy / part).mkdir()
    refused(copy, f"lacks {part}/")
    shutil.rmtree(copy / part)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {part: [None, None]}))
    refused(copy, f"lacks its {part}")


def test_missing_weights_and_pickles_are_refused(copy):
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".kept"))
    refused(copy, r"lacks transformer/\*.safetensors")
    # Where only a pickle is left, it is not opened.
    (copy / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n.")
    refused(copy, r"weights of its transformer as pickles \(\.bin\)")
    (copy / "transformer" / "another.safetensors").write_bytes(bytes(10**6))
    refused(copy, "cannot load")


@pytest.mark.parametrize("part", ["text_encoder", "transformer"])  # transformers' and diffusers' way of reading
def test_weights_that_are_cut_off_are_refused(copy, part):
    (weights,) = (copy / part).glob("*.safetensors")
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[: size - 8])  # as many bytes as weights, and not those
    refused(copy, "cannot load the model")
    weights.write_bytes(weights.read_bytes()[:100])
    refused(copy, "hold 100 bytes: they were cut off")


def test_a_model_of_a_later_version_is_refused(copy):
    config = json.loads((copy / "transformer" / "config.json").read_text())
    later = CogVideoXTransformer3DModel.from_config(config | {"patch_size_t": 2})
    later.save_pretrained(copy / "transformer")
    refused(copy, r"CogVideoX 1\.5")


def test_another_scheduler_is_refused_before_anything_is_loaded(copy):
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "UniPCMultistepScheduler"]}))
    with pytest.raises(UserError, match="UniPCMultistepScheduler; known are CogVideoXDDIMScheduler"):
        backbones.find(str(copy))


def test_finding_a_model_loads_no_torch(folder):
    code = "import sys; from v2edit import backbones; print(backbones.find(sys.argv[1]), 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and ran.stdout.endswith(" False\n"), ran.stderr


Chatter = tuple[object, ...]


def chatter() -> Chatter:
    """What the libraries are set to say, and which bars to show."""
    loggers = of_diffusers, of_transformers
    each = tuple((one.get_verbosity(), one.is_progress_bar_enabled()) for one in loggers)
    return (*each, are_progress_bars_disabled(), logging.getLogger("huggingface_hub").level)


@pytest.fixture
def restored() -> Iterator[None]:
    before = chatter()
    yield
    for one in (of_diffusers, of_transformers):
        one.set_verbosity_warning()
        one.enable_progress_bar()
    enable_progress_bars()
    assert chatter() == before


@pytest.mark.parametrize("bars", ["all", "none", "downloads", "parts"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_libraries_say_what_they_said_before(folder, copy, restored, bars, fails):
    for one in (of_diffusers, of_transformers):
        one.set_verbosity_info()
        one.enable_progress_bar() if bars in ("all", "parts") else one.disable_progress_bar()
    enable_progress_bars() if bars in ("all", "downloads") else disable_progress_bars()
    before = chatter()
    if fails:
        (copy / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(10**6))
        refused(copy, "cannot load")
    else:
        backbones.load(str(folder))
    assert chatter() == before


def test_a_device_that_is_not_there_is_refused(folder):
    refused(folder, "device", device="cuda:99")
    refused(folder, "--offload", offload="model", device="cpu")
