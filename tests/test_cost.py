"""Counting: a model without data costs what the real one does, and smaller ways to run an edit are smaller."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.clips import PAIR
from support.families import FAMILIES
from support.models import fake_model_of, pipeline_of

from benchmarks.published import MODELS
from v2edit import backbones
from v2edit.attention import Replacement
from v2edit.backbones import LoadOptions, Size
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.backbones.fake import FakeModel, count
from v2edit.backbones.families import family_of
from v2edit.backbones.memory import MemoryMode
from v2edit.backbones.rowwise import RowwiseLayer
from v2edit.editing import EditConfig
from v2edit.editing.cost import CostModel, StepKind
from v2edit.editing.progression import aligned_text
from v2edit.prompts import PromptPair

MAPS = Replacement(5, (((0, 1.0),), ((1, 1.0),), ((2, 1.0),), ((2, 1.0),)))
CONFIG = EditConfig(steps=6)


@pytest.mark.parametrize(
    ("size", "loop", "row_by_row"),
    [(Size(9, 32, 32), False, False), (Size(25, 16, 48), False, True), (Size(16, 32, 32), True, True)],
)
def test_a_step_without_numbers_costs_what_a_real_one_does(
    tiny_model: Path, size: Size, loop: bool, row_by_row: bool
) -> None:
    """The same counter on real tensors, through all layers of the real model."""
    fake, real = fake_model_of(tiny_model), CogVideoX(pipeline_of("5b"))
    if row_by_row:
        real.shrink()
    frames = size.frames // 4 if loop else (size.frames - 1) // 4 + 1
    latents, text = torch.randn(4, frames, 4, size.height // 4, size.width // 4), [real.blank_text()] * 4
    counted = fake.forward(4, size, loop, MAPS, row_by_row)
    schedule = real.schedule(50)
    real.denoise(latents, 0, schedule, text, MAPS, loop)  # Tables of positions are made once.
    took = count(lambda: real.denoise(latents, 0, schedule, text, MAPS, loop))
    assert counted.flops == took.flops > 0
    assert counted.peak == pytest.approx(took.peak, rel=0.05)
    assert not any(isinstance(layer, RowwiseLayer) for layer in fake.backbone.networks[0].transformer_blocks)


def test_the_autoencoder_without_numbers_costs_what_the_real_one_does(tiny_model: Path) -> None:
    fake, real = fake_model_of(tiny_model), CogVideoX(pipeline_of("5b"))
    for frames in (1, 9, 33):
        size = Size(frames, 32, 32)
        latents = torch.randn(1, 4, (frames - 1) // 4 + 1, 8, 8)
        took = count(lambda latents=latents: real.vae.decode(latents))
        assert fake.decoding(size).flops == pytest.approx(took.flops, rel=0.01)
        clip = torch.randn(1, 3, frames, 32, 32)
        took = count(lambda clip=clip: real.vae.encode(clip))
        assert fake.encoding(size).flops == pytest.approx(took.flops, rel=0.01)


def test_its_weights_are_those_of_the_model(tiny_model: Path) -> None:
    real = pipeline_of("5b")
    for part, size in fake_model_of(tiny_model).weights.items():
        held = [*getattr(real, part).parameters(), *getattr(real, part).buffers()]
        assert size == sum(one.numel() * one.element_size() for one in held) > 0


@pytest.mark.heavy
def test_each_smaller_way_is_smaller(tiny_model: Path) -> None:
    fake = fake_model_of(tiny_model)
    cost_model = CostModel(fake, CONFIG.resolve(fake.backbone.defaults, fake.backbone.schedule(CONFIG.steps)))
    size = Size(33, 32, 32)
    rows = [
        cost_model.peaks(size, MemoryMode(max_rows=max_rows, row_by_row=row_by_row))["denoising"]
        for max_rows, row_by_row in ((None, False), (2, False), (1, True))
    ]
    assert rows == sorted(rows, reverse=True) and len(set(rows)) == 3
    ways = cost_model.memory_options(size, on_gpu=True)
    *peaks, tiled = [cost_model.edit(size, MemoryMode()).peak, *(way.peak for way in ways)]
    assert all(later <= earlier for earlier, later in pairwise(peaks)) and tiled < peaks[0]
    assert [way.options for way in ways] == ["", "", "--offload model", "--offload group",
                                             "--offload group --vae-tiling"]  # fmt: skip
    smallest = MemoryMode(max_rows=1, row_by_row=True)

    def held(frames: int) -> int:
        return max(cost_model.peaks(Size(frames, 32, 32), smallest).values())

    room = held(17)
    longest = cost_model.max_frames(size, room, smallest)
    assert longest is not None and longest >= 17 and held(longest) <= room
    assert longest == size.frames or held(longest + 8) > room
    assert cost_model.max_frames(size, 1000, smallest) is None


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("card", "options"),
    [
        (24, "--offload model"),
        (16, "--offload model --vae-tiling, 2 rows at a time"),
        (12, "--offload group --vae-tiling"),
        (8, "--offload group --vae-tiling"),
    ],
)
def test_the_published_model_fits_on_small_cards(card: int, options: str, published_5b: CostModel) -> None:
    """At 49 frames, as it is counted; half a GiB of the card is taken."""
    size = published_5b.fake.backbone.native_size
    mode = published_5b.fastest_mode(size, card * 2**30 - 2**29, ("none", "model", "group"))
    assert mode is not None and mode.text == options


@pytest.fixture(scope="module")
def published_5b(tmp_path_factory: pytest.TempPathFactory) -> CostModel:
    published = MODELS["CogVideoX-5b"]
    family = family_of(published.pipeline)
    assert family is not None
    fake = FakeModel(published.write(tmp_path_factory.mktemp("5b")), family, torch.bfloat16, family.defaults)
    return CostModel(fake, EditConfig().resolve(fake.backbone.defaults, fake.backbone.schedule(50)))


@pytest.mark.parametrize("name", ["HunyuanVideo", "HunyuanVideo 1.5", "LTX 0.9.7"])
def test_hidden_padding_is_not_counted_as_text(name: str, tmp_path: Path) -> None:
    """A step is counted as it is with prompts of a usual length, on a clip so small that text makes up most of it."""
    made = FAMILIES[name]()
    made.pipeline.save_pretrained(tmp_path)
    checkpoint = backbones.find(str(tmp_path))
    fake = backbones.load_fake_model(checkpoint, LoadOptions(device="cpu"))
    prompt = PAIR.source
    while len(made.encode_text([prompt])[0].ids) < 140:
        prompt += " on"
    text, schedule = aligned_text(made, PromptPair(prompt, prompt.replace("ball", "cube"))), made.schedule(50)
    size, maps = made.native_size, Replacement(text.shared, (((0, 1.0),), ((0, 1.0),)))
    v = torch.randn(2, *made.latent_shape(size))
    made.denoise(v, 0, schedule, [text.source, text.target], maps)  # Tables of positions are made once.
    took = count(lambda: made.denoise(v, 0, schedule, [text.source, text.target], maps))
    cost_model = CostModel(fake, CONFIG.resolve(made.defaults, made.schedule(CONFIG.steps)))
    assert cost_model.step(StepKind(2, (), amr=True), size).flops == pytest.approx(took.flops, rel=0.1)
