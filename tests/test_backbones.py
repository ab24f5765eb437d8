"""Loading models from folders and names: parity with the original, and refusals in one line."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from support.models import TEXT_LENGTH, pipeline_of
from transformers.utils import logging as transformers_logging

from v2edit import backbones
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.errors import UserError
from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import sample_scene


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def test_a_folder_loads_as_the_pipeline_it_was_saved_from(tiny_model):
    backbone, original = backbones.load(str(tiny_model)), CogVideoX(pipeline_of("5b"))
    video = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    z = original.encode(video)
    # Close, not equal: weights read from a file are aligned otherwise in memory, which some matrix libraries sum by.
    torch.testing.assert_close(backbone.encode(video), z)
    text = original.encode_text(["a red ball"])
    torch.testing.assert_close(backbone.encode_text(["a red ball"])[0].embedding, text[0].embedding)
    schedule = original.schedule(10)
    torch.testing.assert_close(backbone.denoise(z, 3, schedule, text), original.denoise(z, 3, schedule, text))
    assert backbone.solver == "dpm-sde" and backbone.text_length == TEXT_LENGTH


def test_bfloat16_keeps_latents_in_float32(tiny_model):
    backbone = backbones.load(str(tiny_model), dtype="bfloat16")
    z = backbone.encode(np.zeros((9, 32, 32, 3), np.uint8))
    x0 = backbone.denoise(z, 3, backbone.schedule(10), backbone.encode_text(["a"]))
    assert z.dtype == x0.dtype == torch.float32 and torch.isfinite(x0).all()


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(tiny_model, caplog):
    backbone = backbones.load(str(tiny_model))
    text = backbone.encode_text(["a red ball", "a " * 3 * TEXT_LENGTH])
    assert [len(t.ids) for t in text] == [4, TEXT_LENGTH] and text[1].embedding.shape[0] == TEXT_LENGTH
    assert len(caplog.records) == 1 and "cut" in caplog.text


def assert_refused(model: object, message: str, **options: str) -> None:
    """Assert that loading a model is refused with one line that matches `message`."""
    with pytest.raises(UserError, match=message) as error:
        backbones.load(str(model), **options)
    assert "\n" not in str(error.value)


def test_what_is_no_model_is_refused(tmp_path):
    assert_refused("nothing-here", "no model")
    assert_refused(tmp_path, "model_index.json")
    (tmp_path / "model_index.json").write_text("{")
    assert_refused(tmp_path, "not JSON")
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert_refused(tmp_path, "FluxPipeline")
    for text in ("[]", "{}"):
        (tmp_path / "model_index.json").write_text(text)
        assert_refused(tmp_path, "no pipeline")


def test_an_installation_without_the_built_in_model(tmp_path, monkeypatch):
    monkeypatch.setattr("v2edit.backbones.hub.BUILT_IN_FOLDER", tmp_path / "nowhere")
    assert_refused("primitives", "installation lacks the built-in model")


@pytest.mark.parametrize("part", ["vae", "transformer", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(copy, part):
    shutil.rmtree(copy / part)
    assert_refused(copy, f"lacks its {part}")
    (copy / part).mkdir()
    assert_refused(copy, f"lacks {part}/")
    shutil.rmtree(copy / part)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {part: [None, None]}))
    assert_refused(copy, f"lacks its {part}")


def test_missing_weights_and_pickles_are_refused(copy):
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".moved"))
    assert_refused(copy, r"lacks transformer/\*.safetensors")
    # Where only a pickle is left, it is not opened.
    (copy / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n.")
    assert_refused(copy, r"weights of its transformer as pickles \(\.bin\)")
    (copy / "transformer" / "another.safetensors").write_bytes(bytes(10**6))
    assert_refused(copy, "cannot load")


@pytest.mark.parametrize("part", ["text_encoder", "transformer"])  # transformers' and diffusers' way of reading
def test_weights_that_are_cut_off_are_refused(copy, part):
    (weights,) = (copy / part).glob("*.safetensors")
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[: size - 8])  # as many bytes as weights, and not those
    assert_refused(copy, "cannot load the model")
    weights.write_bytes(weights.read_bytes()[:100])
    assert_refused(copy, "hold 100 bytes: they were cut off")


def test_another_scheduler_is_refused_before_anything_is_loaded(copy):
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "UniPCMultistepScheduler"]}))
    with pytest.raises(UserError, match="UniPCMultistepScheduler; known are CogVideoXDDIMScheduler"):
        backbones.find(str(copy))


def test_a_network_that_wants_a_picture_is_refused(copy):
    path = copy / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 8}))
    assert_refused(copy, "wants a picture beside the video")


def test_finding_a_model_loads_no_torch(tiny_model):
    code = "import sys; from v2edit import backbones; print(backbones.find(sys.argv[1]), 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code, str(tiny_model)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and ran.stdout.endswith(" False\n"), ran.stderr


LOGGERS = (diffusers_logging, transformers_logging)


def verbosity() -> tuple[object, ...]:
    """Return the libraries' log levels and which progress bars they show."""
    each = tuple((logger.get_verbosity(), logger.is_progress_bar_enabled()) for logger in LOGGERS)
    return (*each, are_progress_bars_disabled(), logging.getLogger("huggingface_hub").level)


@pytest.fixture
def restored() -> Iterator[None]:
    before = verbosity()
    yield
    for logger in LOGGERS:
        logger.set_verbosity_warning()
        logger.enable_progress_bar()
    enable_progress_bars()
    assert verbosity() == before


@pytest.mark.parametrize("bars", ["all", "none", "downloads", "parts"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_libraries_verbosity_is_restored(tiny_model, copy, restored, bars, fails):
    for logger in LOGGERS:
        logger.set_verbosity_info()
        logger.enable_progress_bar() if bars in ("all", "parts") else logger.disable_progress_bar()
    enable_progress_bars() if bars in ("all", "downloads") else disable_progress_bars()
    before = verbosity()
    if fails:
        (copy / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(10**6))
        assert_refused(copy, "cannot load")
    else:
        backbones.load(str(tiny_model))
    assert verbosity() == before


def test_a_device_that_is_not_there_is_refused(tiny_model):
    assert_refused(tiny_model, "device", device="cuda:99")
    assert_refused(tiny_model, "--offload", offload="model", device="cpu")


def test_tiles_of_a_small_autoencoder_join():
    """Whose tiles of pixels and of latents would not, by diffusers' own overlaps."""
    plain, tiled = backbones.load(device="cpu"), backbones.load(device="cpu", vae_tiling=True)
    scene = sample_scene(Random(5))
    clip = render_clip(scene, 9, 64, 64).frames
    latents = tiled.encode(clip)
    assert latents.shape == plain.encode(clip).shape
    decoded = tiled.decode(plain.encode(clip)).astype(int)
    assert abs(decoded - plain.decode(plain.encode(clip))).mean() < 4  # of 255
