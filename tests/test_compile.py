"""Compiled layers: one graph for all layers, prompts, maps and steps, and the same edit."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.clips import PAIR, SAME, frames_of
from support.families import FAMILIES
from torch import Tensor
from torch._dynamo.utils import counters

from v2edit.attention import Replacement
from v2edit.backbones.compiled import CompiledLayer, expect_compiler
from v2edit.backbones.core import PipelineBackbone
from v2edit.editing import EditConfig, Editor
from v2edit.editing.progression import aligned_text
from v2edit.errors import UserError
from v2edit.prompts import PromptPair

CONFIG = EditConfig(steps=4, subtasks=2, mixture=0.3, guidance=6.0)
OTHER = PromptPair("a red ball on the floor", "a blue cube")  # shares other slots than PAIR does


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def edited(
    backbone: PipelineBackbone, prompts: PromptPair = PAIR, config: EditConfig = CONFIG, frames: int = 9
) -> Tensor:
    x0 = backbone.encode(frames_of(0, frames), loop=config.loop)
    return list(Editor(backbone).subtasks(x0, aligned_text(backbone, prompts), config))[-1]


def compiled(family: str, backend: str = "eager") -> PipelineBackbone:
    """Return a backbone whose layers are traced whole: whatever cannot be is an error."""
    backbone = FAMILIES[family]()
    backbone.compile_layers(backend)
    assert all(isinstance(layer, CompiledLayer) for network in backbone.networks for layer in backbone.layers(network))
    return backbone


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("family", ["CogVideoX 5b", "Wan A14B"])
def test_an_edit_makes_one_graph_and_one_more_for_all_other_batches(family):
    """The first is of a subtask of two branches; free steps and subtasks of three have other batches. Two experts, all
    layers, steps and prompts share them."""
    backbone = compiled(family, "aot_eager")
    assert edited(backbone).equal(edited(FAMILIES[family]()))
    assert graphs() == 2
    shared = {aligned_text(backbone, pair).for_subtask(1, 1).shared for pair in (PAIR, OTHER)}
    assert len(shared) == 2
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert edited(backbone, OTHER).equal(edited(FAMILIES[family](), OTHER))
        edited(backbone, config=replace(CONFIG, mixture=0.6, subtasks=3, amr_unconditional=True))
        edited(backbone, config=replace(CONFIG, amr=False))
        assert_equal_rows(backbone)
    assert graphs() == 2


def test_windows_and_rows_one_at_a_time_are_compiled_too():
    config, frames = replace(CONFIG, subtasks=1, loop=True), 16
    backbone = compiled("CogVideoX 5b")
    assert edited(backbone, config=config, frames=frames).equal(
        edited(FAMILIES["CogVideoX 5b"](), config=config, frames=frames)
    )
    before = graphs()
    other = FAMILIES["CogVideoX 5b"]()
    assert backbone.shrink() and other.shrink()
    assert edited(backbone, config=config, frames=frames).equal(edited(other, config=config, frames=frames))
    assert graphs() == before + 1, "of one row"


def assert_equal_rows(backbone: PipelineBackbone) -> None:
    """Expect that an edit's row which is equal to its source's, whose maps it takes, gives equal bits, so that the
    difference of the two is nothing."""
    latents = torch.randn(3, *backbone.latent_shape(backbone.native_size), generator=torch.Generator().manual_seed(1))
    latents[2], (one, other) = latents[0], backbone.encode_text([PAIR.source, PAIR.target])
    maps = Replacement(3, (((0, 1.0),), ((1, 1.0),), ((0, 1.0),)))
    x0 = backbone.denoise(latents, 0, backbone.schedule(4), [one, other, one], maps)
    assert x0[0].equal(x0[2]) and not x0[0].equal(x0[1])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_machine_without_a_compiler_is_told_so_in_a_line(device, monkeypatch):
    def none() -> str:
        raise RuntimeError("No working C++ compiler found in ...\nmore")

    expect_compiler(torch.device("cpu"))
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(UserError, match=r"--compile wants (Triton and a GPU|a C\+\+ compiler: No working)"):
        expect_compiler(torch.device(device))


@pytest.mark.heavy
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_compiled(family):
    backbone = FAMILIES[family]()
    size = backbone.native_size
    frames = np.zeros((size.frames, size.height, size.width, 3), np.uint8)
    expected = Editor(backbone).edit(frames, PAIR, CONFIG).frames
    assert (Editor(compiled(family)).edit(frames, PAIR, CONFIG).frames == expected).all()


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["CogVideoX 5b", "Wan 2.1"])
def test_inductor_gives_the_same_edit_and_equal_rows_equal_bits(family):
    backbone, plain = compiled(family, "inductor"), FAMILIES[family]()
    whole = edited(plain)
    assert (edited(backbone) - whole).norm() <= 1e-4 * whole.norm()
    x0, text = backbone.encode(frames_of(0)), aligned_text(backbone, SAME)
    (back,) = Editor(backbone).subtasks(x0, text, EditConfig(steps=4, beta=0.0))
    assert (back - x0).norm() <= 1e-5 * x0.norm()
    assert_equal_rows(backbone)
