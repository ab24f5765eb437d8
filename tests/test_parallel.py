"""One edit on several devices: the same result as on one. A CPU stands in for both devices."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.clips import PAIR, SAME, frames_of
from support.families import FAMILIES
from support.models import pipeline_of
from torch import Tensor, nn

from v2edit import backbones
from v2edit.backbones import Size
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.backbones.core import PipelineBackbone
from v2edit.backbones.replica import replicate
from v2edit.backbones.rowwise import RowwiseLayer
from v2edit.editing import EditConfig, Editor
from v2edit.editing.progression import aligned_text
from v2edit.errors import UserError
from v2edit.jobs.options import ModelOptions
from v2edit.prompts import PromptPair

CONFIG = EditConfig(steps=6, subtasks=2, mixture=0.3, guidance=4.0, beta=0.3)
MODELS: dict[str, Callable[[], PipelineBackbone]] = {
    "CogVideoX": lambda: CogVideoX(pipeline_of("5b")),
    "Wan": FAMILIES["Wan 2.1"],
    "Wan with two experts": FAMILIES["Wan A14B"],
}


def latents_of(backbone: PipelineBackbone) -> Tensor:
    shape = backbone.latent_shape(backbone.nearest_size(Size(9, 32, 32)))
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def edited(backbone: PipelineBackbone, config: EditConfig, pair: PromptPair = PAIR, max_rows: int = 99) -> Tensor:
    editor = Editor(backbone)
    editor.batcher.max_rows = max_rows
    return list(editor.subtasks(latents_of(backbone), aligned_text(backbone, pair), config))[-1]


def on_two_devices(backbone: PipelineBackbone) -> PipelineBackbone:
    backbone.replica = replicate(backbone, torch.device("cpu"))
    return backbone


def rows_of(backbone: PipelineBackbone) -> list[int]:
    """Return a list that the rows of each call of a network are added to."""
    rows: list[int] = []

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        rows.append(len(next(iter((*args, *kwargs.values())))))

    for network in backbone.networks:
        network.register_forward_pre_hook(note, with_kwargs=True)
    return rows


@pytest.mark.parametrize("changes", [{}, {"amr_unconditional": True, "source_guidance": 1.0}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_guidances_halves_on_two_devices_are_those_on_one(name, changes):
    """To the last bit those of one device that computes them one after the other."""
    config = replace(CONFIG, beta=0.0, **changes)
    expected = edited(MODELS[name](), config, max_rows=3)
    backbone = on_two_devices(MODELS[name]())
    assert backbone.replica is not None
    first, second = rows_of(backbone), rows_of(backbone.replica)
    assert torch.equal(edited(backbone, config), expected)
    assert set(first) == set(second) == {2, 3}


def test_the_source_comes_back_from_two_devices():
    backbone = on_two_devices(CogVideoX(pipeline_of("5b")))
    x0, back = latents_of(backbone), edited(backbone, replace(CONFIG, beta=0.0), SAME)
    assert (back - x0).norm() <= 1e-4 * x0.norm()


def test_both_devices_work_at_the_same_time():
    """Each waits in its network for the other."""
    backbone = on_two_devices(CogVideoX(pipeline_of("5b")))
    meeting = threading.Barrier(2, timeout=30)
    assert backbone.replica is not None

    def meet(*_: object) -> None:
        meeting.wait()

    for one in (backbone, backbone.replica):
        one.networks[0].register_forward_pre_hook(meet)
    assert edited(backbone, replace(CONFIG, steps=2)).isfinite().all()


@pytest.mark.parametrize("failing", ["first", "second"])
def test_when_one_device_is_out_of_memory_both_go_on_with_less(failing, caplog):
    expected, backbone = edited(CogVideoX(pipeline_of("5b")), CONFIG), on_two_devices(CogVideoX(pipeline_of("5b")))
    assert backbone.replica is not None
    chosen = backbone if failing == "first" else backbone.replica

    def fail(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if len(kwargs["hidden_states"]) > 1 and not isinstance(chosen.networks[0].transformer_blocks[0], RowwiseLayer):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    chosen.networks[0].transformer_blocks[1].register_forward_pre_hook(fail, with_kwargs=True)
    other = edited(backbone, CONFIG)
    assert (other - expected).norm() <= 1e-5 * expected.norm()
    assert "the rows of a call one at a time" in caplog.text
    assert all(isinstance(one.networks[0].transformer_blocks[0], RowwiseLayer) for one in (backbone, backbone.replica))


def test_two_devices_are_named_by_an_option_and_a_run_goes_on_with_both(tmp_path: Path):
    pipeline_of("5b").save_pretrained(tmp_path / "model")
    options = ModelOptions(model=str(tmp_path / "model"), device="cpu,cpu", dtype="float32")
    backbone = options.load(options.find())
    assert backbone.replica is not None and backbone.replica.device == torch.device("cpu")
    record = options.record(options.find(), backbone)
    assert ModelOptions.from_record(record).device == record["model"]["device"] == "cpu,cpu"
    expected = edited(CogVideoX(pipeline_of("5b")), CONFIG)
    other = list(Editor(backbone).subtasks(latents_of(backbone), aligned_text(backbone, PAIR), CONFIG))[-1]
    assert (other - expected).norm() <= 1e-5 * expected.norm()
    assert Editor(backbone).edit(frames_of(0), PAIR, replace(CONFIG, steps=2)).frames.shape == (9, 32, 32, 3)


def test_devices_that_cannot_share_an_edit_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="one or two"):
        ModelOptions(device="cpu,cpu,cpu")
    FAMILIES["HunyuanVideo"]().pipeline.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no halves"):
        backbones.load(str(tmp_path), device="cpu,cpu")
