"""LoRAs: added to the weights of diffusers' own classes at tiny size, refused where they do not fit, and recorded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.clips import PAIR, SAME, frames_of
from support.families import FAMILIES
from torch import Tensor, nn

from v2edit import backbones, video
from v2edit.backbones import BUILT_IN, LoadOptions, adapters
from v2edit.backbones.weight_files import WeightFile
from v2edit.cli.app import main
from v2edit.editing import EditConfig, Editor
from v2edit.editing.progression import aligned_text
from v2edit.errors import UserError
from v2edit.jobs.video import load_recorded

LAYERS = {
    "tiny": "transformer_blocks.{}.attn1.to_q",
    "wan": "blocks.{}.attn2.to_v",
    "wan 2": "blocks.{}.attn1.to_out.0",
}


def factors(network: nn.Module, layer: str, rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Return a LoRA's factors A [rank, in] and B [out, rank] for a layer of every block, by diffusers' names."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for block in range(2):
        name = layer.format(block)
        out, into = network.get_parameter(f"{name}.weight").shape
        weights[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, into, generator=generator)
        weights[f"transformer.{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    return weights


def write_lora(path: Path, model: Path, layer: str, **options: int) -> Path:
    """Write a LoRA for a layer of every block of a folder's transformer."""
    network = backbones.load(str(model)).networks[0]
    save_file(factors(network, layer, **options), path)
    return path


@pytest.fixture(scope="module")
def loras(models, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("loras")
    return {
        "tiny": write_lora(folder / "tiny.safetensors", models["tiny"], LAYERS["tiny"]),
        "wan": write_lora(folder / "wan.safetensors", models["wan"], LAYERS["wan"]),
        "wan 2": write_lora(folder / "wan 2.safetensors", models["wan"], LAYERS["wan 2"], rank=4, seed=1),
    }


def product(weights: dict[str, Tensor], name: str) -> Tensor:
    return weights[f"transformer.{name}.lora_B.weight"] @ weights[f"transformer.{name}.lora_A.weight"]


def test_loras_are_the_sum_of_their_products(models, loras) -> None:
    """W + scale B A for each, in the weights themselves: the network is made of the same modules as without."""
    plain = backbones.load(str(models["wan"])).networks[0]
    given = [f"{loras['wan']}:0.5", str(loras["wan 2"])]
    changed = backbones.load(str(models["wan"]), lora=given).networks[0]
    assert [type(one) for one in changed.modules()] == [type(one) for one in plain.modules()]
    assert not any(parameter.requires_grad for parameter in changed.parameters())
    expected = dict(plain.state_dict())
    for block in range(2):
        for name, scale in (("wan", 0.5), ("wan 2", 1.0)):
            layer = LAYERS[name].format(block)
            expected[f"{layer}.weight"] = expected[f"{layer}.weight"] + scale * product(load_file(loras[name]), layer)
    for name, weight in changed.state_dict().items():
        assert torch.allclose(weight, expected[name], atol=1e-5), name


def test_each_of_two_transformers_has_its_own(models, loras) -> None:
    def weights(**options: object) -> list[Tensor]:
        layer = f"{LAYERS['wan'].format(0)}.weight"
        return [network.state_dict()[layer] for network in backbones.load(str(models["a14b"]), **options).networks]

    plain, low = weights(), weights(lora=[f"low={loras['wan']}"])
    both = weights(lora=[f"high={loras['wan']}:2", f"low={loras['wan']}"])
    assert torch.equal(low[0], plain[0]) and not torch.equal(low[1], plain[1])
    assert torch.allclose(both[0] - plain[0], 2 * (low[1] - plain[1]), atol=1e-5) and torch.equal(both[1], low[1])


def test_loras_as_users_of_other_programs_have_them(models, loras, tmp_path) -> None:
    """A file of ComfyUI's names for Wan, as the distilled ones are, is the same LoRA as that of diffusers' names."""

    def comfy(key: str) -> str:
        key = key.replace("transformer.", "diffusion_model.").replace("attn2.to_v", "cross_attn.v")
        return key.replace("lora_A", "lora_down").replace("lora_B", "lora_up")

    own = {comfy(key): weight for key, weight in load_file(loras["wan"]).items()}
    own |= {key.replace("lora_down.weight", "alpha"): torch.tensor(1.0) for key in own if "lora_down" in key}
    save_file(own, tmp_path / "comfy.safetensors")
    loaded = [
        backbones.load(str(models["wan"]), lora=[lora]).networks[0].state_dict()
        for lora in (f"{loras['wan']}:0.5", str(tmp_path / "comfy.safetensors"))  # alpha 1 of rank 2
    ]
    assert all(torch.allclose(loaded[0][name], weight, atol=1e-5) for name, weight in loaded[1].items())


@pytest.mark.parametrize("name", ["tiny", "wan"])
def test_the_source_prompt_gives_the_source_back_with_a_lora_at_four_steps(models, loras, name) -> None:
    backbone = backbones.load(str(models[name]), lora=[str(loras[name])], resolution="32x32")
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(1, 3, *backbone.latent_shape(backbone.native_size)[1:], generator=generator)
    config = EditConfig(steps=4, guidance=1.0, beta=0.0)
    (back,) = Editor(backbone).subtasks(x0, aligned_text(backbone, SAME), config)
    (edited,) = Editor(backbone).subtasks(x0, aligned_text(backbone, PAIR), config)
    assert float((back - x0).norm() / x0.norm()) <= 1e-6 < float((edited - x0).norm())


def test_what_is_no_lora_of_the_model_is_refused_in_one_line(models, loras, tmp_path, monkeypatch) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for lora, why in (
        (f"{tmp_path}/none.safetensors", "there is no file"),
        (f"{tmp_path}/evil.ckpt", "is a pickle"),
        (f"{tmp_path}/evil.pt:0.5", "is a pickle"),
        ("style", "expected a .safetensors file"),
        (f"{loras['wan']}:nan", "expected a number"),
        (f"{tmp_path}/broken.safetensors", "cannot read the LoRA"),
        (f"{tmp_path}/other.safetensors", "is of another model"),
        (str(loras["tiny"]), "is of another model: 2 of its 2 layers"),
        (f"high={loras['wan']}", "one transformer; leave out high="),
    ):
        with pytest.raises(UserError, match=why) as refused:
            backbones.load(str(models["wan"]), lora=[lora])
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="has two transformers: say high="):
        backbones.load(str(models["a14b"]), lora=[str(loras["wan"])])
    with pytest.raises(UserError, match="is of another model"):  # a dry run says so, too
        backbones.load_fake_model(backbones.find(str(models["wan"])), LoadOptions(lora=(str(loras["tiny"]),)))
    monkeypatch.setattr(adapters, "is_peft_available", lambda: False)
    with pytest.raises(UserError, match=r"needs peft: pip install 'v2edit\[lora\]'"):
        backbones.load(str(models["wan"]), lora=[str(loras["wan"])])
    folder = tmp_path / "hunyuan"
    FAMILIES["HunyuanVideo 1.5"]().pipeline.save_pretrained(folder)
    with pytest.raises(UserError, match="diffusers loads no LoRA into"):
        backbones.load(str(folder), lora=[str(loras["wan"])])


def test_names_of_files_keep_their_colons(tmp_path) -> None:
    for text, source, expert, scale in (
        ("C:\\loras\\x.safetensors", "C:\\loras\\x.safetensors", None, 1.0),
        ("C:\\x.safetensors:0.7", "C:\\x.safetensors", None, 0.7),
        ("low=owner/name/a/x.safetensors:-1", "owner/name/a/x.safetensors", "low", -1.0),
    ):
        file = WeightFile.parse("--lora", text, (".safetensors",), scaled=True)
        assert (file.source, file.expert, file.scale) == (source, expert, scale)
    assert WeightFile.parse("--lora", "owner/name/x.safetensors", (".safetensors",)).is_local is False


def test_an_edit_is_recorded_and_resumed_with_its_loras(tmp_path, monkeypatch) -> None:
    """Of the built-in model; and a LoRA that is another by then is refused."""
    lora = write_lora(tmp_path / "x.safetensors", Path(BUILT_IN), LAYERS["tiny"])
    clip, prompts = tmp_path / "clip.mp4", ["--source-prompt", PAIR.source, "--target-prompt", PAIR.target]
    video.write(frames_of(0, 9, 64, 64), clip, fps=8)

    options = ["--steps", "2", "--lora", f"{lora}:0.1", "-o", str(tmp_path / "run"), "-q"]
    assert main(["edit", str(clip), *prompts, *options]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["lora"] == [f"{lora}:0.1"] and len(record["weight_files"][f"{lora}:0.1"]) == 64
    monkeypatch.chdir(tmp_path)
    layer = f"{LAYERS['tiny'].format(1)}.weight"
    again, plain = (one.networks[0].state_dict()[layer] for one in (load_recorded(record), backbones.load()))
    name = layer.removesuffix(".weight")
    assert torch.allclose(again, plain + 0.1 * product(load_file(lora), name), atol=1e-5)
    write_lora(lora, Path(BUILT_IN), LAYERS["tiny"], seed=1)
    with pytest.raises(UserError, match="is not what it was when the run began"):
        load_recorded(record)
