"""Smaller weights on diffusers' own classes at tiny size: a source is still given back, and bytes are those counted."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.clips import SAME
from torch import Tensor, nn

from v2edit import backbones
from v2edit.backbones import LoadOptions, quantisation
from v2edit.backbones.core import PipelineBackbone
from v2edit.editing import EditConfig, Editor
from v2edit.editing.progression import aligned_text
from v2edit.errors import UserError
from v2edit.jobs.options import ModelOptions


def load(model: Path, **options: object) -> PipelineBackbone:
    backbone = backbones.load(str(model), resolution="32x32", **options)
    assert isinstance(backbone, PipelineBackbone)
    return backbone


def x0_of(backbone: PipelineBackbone, rows: int = 1) -> Tensor:
    _, *rest = backbone.latent_shape(backbone.native_size)
    return torch.randn(1, 3, *rest, generator=torch.Generator().manual_seed(0)).expand(rows, -1, -1, -1, -1)


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def predict(backbone: PipelineBackbone, rows: int = 1) -> Tensor:
    return backbone.denoise(x0_of(backbone, rows), 4, backbone.schedule(10), backbone.encode_text([SAME.source]) * rows)


def check_edits(backbone: PipelineBackbone) -> None:
    """Equal rows give equal bits, and equal prompts give the source back."""
    rows = predict(backbone, 2)
    assert torch.equal(rows[0], rows[1])
    x0, config = x0_of(backbone), EditConfig(steps=4, beta=0.0, guidance=2.0)
    (back,) = Editor(backbone).subtasks(x0, aligned_text(backbone, SAME), config)
    assert far(back, x0) <= 1e-6


@pytest.fixture(scope="module")
def gguf_file(models) -> Path:
    """Wan's transformer as a .gguf file, its blocks' matrices in 8 bits."""
    gguf = pytest.importorskip("gguf")
    path = models["wan"].parent / "wan.gguf"
    writer, kind = gguf.GGUFWriter(path, "wan"), gguf.GGMLQuantizationType.Q8_0
    for name, weight in load_file(next((models["wan"] / "transformer").glob("*.safetensors"))).items():
        if weight.ndim == 2 and "blocks" in name:
            writer.add_tensor(name, gguf.quants.quantize(weight.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weight.numpy())
    for write in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, write)()
    return path


def test_a_gguf_file_is_edited_with(models, gguf_file) -> None:
    backbone, plain = load(models["wan"], transformer=str(gguf_file)), load(models["wan"])
    assert 1e-6 < far(predict(backbone), predict(plain)) < 1e-2
    check_edits(backbone)
    fake = backbones.load_fake_model(backbones.find(str(models["wan"])), LoadOptions(transformer=(str(gguf_file),)))
    assert fake.weights["transformer"] == gguf_file.stat().st_size


def test_a_lora_is_computed_beside_quantised_weights(models, gguf_file, tmp_path) -> None:
    layer, generator = "blocks.0.attn1.to_q", torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((2, 32), (32, 2)))
    lora = tmp_path / "x.safetensors"
    save_file({f"transformer.{layer}.lora_A.weight": a, f"transformer.{layer}.lora_B.weight": b}, lora)
    plain, beside = (load(models["wan"], transformer=str(gguf_file), lora=given) for given in ([], [f"{lora}:0.5"]))
    x = torch.randn(3, 32, generator=generator)
    before, after = (one.networks[0].get_submodule(layer)(x) for one in (plain, beside))
    assert torch.allclose(after - before, 0.5 * x @ a.T @ b.T, atol=1e-5)
    check_edits(beside)


def test_a_transformer_of_one_file_is_the_folders(models, tmp_path) -> None:
    """And it is recorded, and each of two transformers has its own."""
    (weights,) = (models["a14b"] / "transformer").glob("*.safetensors")
    alone = tmp_path / "high.safetensors"
    save_file({name: weight + 1 for name, weight in load_file(weights).items()}, alone)
    first, second = load(models["a14b"], transformer=[f"high={alone}"]).networks
    plain = load(models["a14b"])
    for own, given, offset in ((first, plain.networks[0], 1), (second, plain.networks[1], 0)):
        for name, weight in own.state_dict().items():
            assert torch.equal(weight, given.state_dict()[name] + offset), name
    options = ModelOptions(str(models["a14b"]), transformer=f"high={alone}")
    record = json.loads(json.dumps(options.record(options.find(), plain), default=asdict))
    assert ModelOptions.from_record(record).transformer == (f"high={alone}",)
    assert list(record["weight_files"]) == [f"high={alone}"]


def stored(part: nn.Module) -> int:
    """Return the bytes of a part's tensors as torchao keeps them."""

    def size(tensor: Tensor) -> int:
        inner = [getattr(tensor, name) for name in getattr(tensor, "tensor_data_names", ())]
        return sum(one.numel() * one.element_size() for one in inner or [tensor])

    return sum(map(size, [*part.parameters(), *part.buffers()]))


@pytest.mark.parametrize("name", ["tiny", "wan"])
@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_weights_of_a_byte(models, tmp_path, name, scheme) -> None:
    pytest.importorskip("torchao")
    backbone, plain = load(models[name], quantize=scheme), load(models[name])
    assert 1e-6 < far(predict(backbone), predict(plain)) < 0.1
    check_edits(backbone)
    fake = backbones.load_fake_model(backbones.find(str(models[name])), LoadOptions(quantize=scheme))
    for part in ("transformer", "text_encoder", "vae"):
        ours, theirs = fake.weights[part], stored(getattr(backbone.pipeline, part))
        assert ours == pytest.approx(theirs, rel=0.02), part
    folder = tmp_path / "saved"  # and as diffusers saves them
    shutil.copytree(models[name], folder, ignore=shutil.ignore_patterns("transformer"))
    backbone.pipeline.transformer.save_pretrained(folder / "transformer")
    again = load(folder)
    assert (
        torch.equal(predict(again), predict(load(models[name], quantize=scheme)))
        or far(predict(again), predict(backbone)) < 0.1
    )
    with pytest.raises(UserError, match="is quantised already"):
        load(folder, quantize=scheme)


def test_what_is_not_possible_is_refused_in_one_line(models, gguf_file, tmp_path, monkeypatch) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"blocks.0.attn1.to_q.weight": torch.zeros(32, 32)}, other)
    for model, options, why in (
        ("wan", {"transformer": f"{tmp_path}/none.gguf"}, "there is no file"),
        ("wan", {"transformer": f"{tmp_path}/x.bin"}, "is a pickle"),
        ("wan", {"transformer": f"low={gguf_file}"}, "has one transformer"),
        ("wan", {"transformer": str(other)}, "--transformer .* is of another model|cannot load"),
        ("a14b", {"transformer": str(gguf_file)}, "has two transformers"),
        ("tiny", {"transformer": str(gguf_file)}, "from one file; try --quantize"),
        ("wan", {"transformer": str(gguf_file), "device": "cpu,cpu"}, "stay on one device"),
        ("wan", {"quantize": "int3"}, "--quantize is 'int3', expected none or int8"),
    ):
        with pytest.raises(UserError, match=why) as refused:
            backbones.load(str(models[model]), **options)
        assert "\n" not in str(refused.value)
    monkeypatch.setattr(quantisation, "find_spec", lambda library: object())
    with pytest.raises(UserError, match="nf4 need a GPU"):
        backbones.load(str(models["wan"]), quantize="nf4")
    monkeypatch.setattr(quantisation, "find_spec", lambda library: None)
    for options, why in (
        ({"quantize": "int8"}, r"--quantize int8 needs torchao: pip install 'v2edit\[quantize\]'"),
        ({"quantize": "nf4"}, "needs bitsandbytes"),
        ({"transformer": str(gguf_file)}, "needs gguf"),
    ):
        with pytest.raises(UserError, match=why):
            backbones.load(str(models["wan"]), **options)


@pytest.mark.parametrize("method", ["torchao", "bitsandbytes"])
def test_a_saved_model_says_what_it_needs(models, tmp_path, monkeypatch, method) -> None:
    folder = shutil.copytree(models["wan"], tmp_path / "model")
    config = json.loads((folder / "transformer/config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "load_in_4bit": True}
    (folder / "transformer/config.json").write_text(json.dumps(config))
    monkeypatch.setattr(quantisation, "find_spec", lambda library: None)
    with pytest.raises(UserError, match=f"quantised, which needs {method}"):
        backbones.load(str(folder))
    monkeypatch.setattr(quantisation, "find_spec", lambda library: object())
    fake = backbones.load_fake_model  # four bits, counted
    checkpoint, plain = backbones.find(str(folder)), backbones.find(str(models["wan"]))
    with pytest.raises(UserError, match="nf4 need a GPU"):
        fake(checkpoint)
    monkeypatch.setattr(quantisation, "check_quantisation", lambda *_: None)
    four_bits, whole = fake(checkpoint), fake(plain)
    modules = whole.backbone.networks[0].named_modules()
    linear = sum(
        one.weight.numel() for name, one in modules if isinstance(one, nn.Linear) and "time_embedder" not in name
    )
    saved = whole.weights["transformer"] - four_bits.weights["transformer"]
    assert saved == pytest.approx(linear * (4 - 0.5 - 4 / 64))
