"""A family of models from outside the package: diffusion-forcing SkyReels-V2, each frame told the same noise level."""

import sys
import textwrap
from pathlib import Path

import pytest
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline
from support.clips import PAIR, SAME, frames_of
from support.families import SMALL, skyreels_pipeline_of

from v2edit import backbones, video
from v2edit.backbones.families import FAMILIES, family_of, register
from v2edit.cli.app import main
from v2edit.editing import EditConfig, Editor
from v2edit.editing.progression import aligned_text

PACKAGE = """
import torch
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2AttnProcessor

from v2edit.backbones.base import Size, Text
from v2edit.backbones.families import Defaults, Family
from v2edit.backbones.separate import SeparateBackbone

FAMILY = Family(
    "SkyReels-V2 DF", "skyreels_df:Forcing", ("SkyReelsV2DiffusionForcingPipeline",), ("UniPCMultistepScheduler",),
    "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers", Defaults(guidance=6.0, alpha=None, beta=None),
)


class Forcing(SeparateBackbone):
    float32_parts = ("vae",)
    stock_processor = SkyReelsV2AttnProcessor

    def configure(self, pipeline):
        vae = pipeline.vae.config
        self.temporal = self.group = vae.scale_factor_temporal
        self.spatial, self.side = vae.scale_factor_spatial, 2 * vae.scale_factor_spatial
        return Size(97, 544, 960)

    @staticmethod
    def text_length_of(config):
        return 512

    @property
    def text_width(self):
        return self.networks[0].config.text_dim

    def stacks(self, network):
        return [network.blocks]

    @torch.no_grad()
    def encode_text(self, prompts):
        tokens, lengths = self.tokenizer.pad(prompts)
        embedding = self.pipeline.text_encoder(tokens.input_ids, tokens.attention_mask)[0]
        embedding = (embedding * tokens.attention_mask[..., None]).to(self.dtype)
        ids = tokens.input_ids.tolist()
        return [Text(e, tuple(row[:n])) for e, row, n in zip(embedding, ids, lengths)]

    def predict(self, network, latents, timestep, text, guidance):
        embedding = torch.stack([one.embedding for one in text])
        each_frame = timestep[:, None].expand(-1, latents.shape[1])
        options = {"enable_diffusion_forcing": True, "return_dict": False}
        return network(latents.transpose(1, 2), each_frame, embedding, **options)[0].transpose(1, 2)

    def make_rotary(self, frames, height, width):
        cos, sin = self.networks[0].rope(torch.empty(1, 1, frames, height, width))
        return cos[0, :, 0], sin[0, :, 0]
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that is installed beside this one, with an entry point that names its family."""
    (tmp_path / "site/skyreels_df-1.dist-info").mkdir(parents=True)
    (tmp_path / "site/skyreels_df.py").write_text(textwrap.dedent(PACKAGE))
    (tmp_path / "site/skyreels_df-1.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: skyreels_df\nVersion: 1\n"
    )
    entry = "[v2edit.families]\nskyreels-df = skyreels_df:FAMILY\n"
    (tmp_path / "site/skyreels_df-1.dist-info/entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "skyreels_df", raising=False)
    parts = skyreels_pipeline_of().components
    SkyReelsV2DiffusionForcingPipeline(**parts).save_pretrained(tmp_path / "model")
    return tmp_path


def test_a_family_of_another_package_is_edited_with(package: Path) -> None:
    model, prompts = package / "model", ["--source-prompt", PAIR.source, "--target-prompt", PAIR.target]
    assert len(PACKAGE.strip().splitlines()) < 120
    assert backbones.find(str(model)).family.name == "SkyReels-V2 DF"
    video.write(frames_of(0), package / "clip.mp4", fps=8)
    options = ["--model", str(model), "--resolution", "32x32", "--steps", "3"]
    assert main(["edit", str(package / "clip.mp4"), *prompts, *options, "-o", str(package / "run")]) == 0
    assert (package / "run/edited.mp4").is_file()


def test_it_is_exact_and_parity_holds_for_it_as_for_the_others(package: Path) -> None:
    backbone = backbones.load(str(package / "model"))
    backbone.native_size = SMALL
    x0 = torch.randn(1, *backbone.latent_shape(SMALL), generator=torch.Generator().manual_seed(0))
    (back,) = Editor(backbone).subtasks(x0, aligned_text(backbone, SAME), EditConfig(steps=6, beta=0.0))
    assert (back - x0).norm() <= 1e-5 * x0.norm()
    text, schedule = backbone.encode_text([PAIR.source]), backbone.schedule(10)
    got, network = backbone.denoise(x0, 4, schedule, text), backbone.networks[0]
    backbone.uninstall(network)
    expected = backbone.denoise(x0, 4, schedule, text)
    assert (got - expected).norm() <= 1e-6 * expected.norm()


def test_a_family_can_be_registered_by_a_call(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from skyreels_df import FAMILY  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr("v2edit.backbones.families.FAMILIES", [*FAMILIES])
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())
    assert family_of("SkyReelsV2DiffusionForcingPipeline") is None
    register(FAMILY)
    assert family_of("SkyReelsV2DiffusionForcingPipeline") is FAMILY
