"""Parts of a model come to a device when they work and leave it, and no number changes.

A CPU stands in for the device: what is on it is what the placement keeps count of."""

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.clips import PAIR, frames_of
from support.families import FAMILIES
from support.models import fake_model_of, pipeline_of
from torch import nn
from transformers import T5EncoderModel

from v2edit import host
from v2edit.backbones import Checkpoint, LoadedModel, Size, placement
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.backbones.core import PipelineBackbone
from v2edit.backbones.hub import find
from v2edit.backbones.memory import MemoryMode
from v2edit.backbones.rowwise import RowwiseLayer
from v2edit.editing import EditConfig, Editor, Progress
from v2edit.editing.cost import CostModel, with_margin, without_margin
from v2edit.errors import UserError
from v2edit.jobs import memory
from v2edit.jobs.options import ModelOptions
from v2edit.jobs.video import load_recorded
from v2edit.runs.snapshots import Snapshots

CPU = torch.device("cpu")
CONFIG = EditConfig(steps=4, subtasks=2, mixture=0.3, guidance=6.0)
MOVING = [MemoryMode("model"), MemoryMode("group"), MemoryMode("group", row_by_row=True, max_rows=1)]


@contextmanager
def watched(backbone: PipelineBackbone) -> Iterator[dict[str, list[set[str]]]]:
    """Record which parts are on the device while each part works."""
    seen: dict[str, list[set[str]]] = {name: [] for name in backbone.placement.parts}
    hooks = []
    for name, part in backbone.placement.parts.items():
        for module in part.children() if part is backbone.vae else [part]:

            def look(*_: object, name: str = name) -> None:
                seen[name].append(set(backbone.placement._resident))

            hooks.append(module.register_forward_pre_hook(look))
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", ["CogVideoX 5b", "Wan A14B", "HunyuanVideo", "LTX 0.9.7"])
@pytest.mark.parametrize("offload", ["model", "group"])
def test_one_part_at_a_time_is_on_the_device_and_the_edit_is_the_same(name, offload):
    plain, moving = FAMILIES[name](), FAMILIES[name]()
    moving.place(CPU, MemoryMode(offload))
    config, size = replace(CONFIG, guidance=2.0, guidance_2=3.0), plain.native_size
    clip = np.repeat(frames_of(0, 1), size.frames, axis=0)
    expected = Editor(plain).edit(clip, PAIR, config).frames
    with watched(moving) as seen:
        np.testing.assert_array_equal(Editor(moving).edit(clip, PAIR, config).frames, expected)
    streamed = {*moving.placement.networks, *moving.placement.texts} if offload == "group" else set()
    for part, residents in seen.items():
        assert residents and all(there == {part} - streamed for there in residents), part


def spied(monkeypatch: pytest.MonkeyPatch, free: int) -> tuple[placement.Placement, dict[str, torch.device]]:
    """Build a placement of single layers on a device that is not there; return it and where its parts are."""
    parts = {name: nn.Linear(2, 2) for name in ("text_encoder", "transformer", "vae")}
    names = {id(part): name for name, part in parts.items()}
    where = dict.fromkeys(parts, CPU)
    monkeypatch.setattr(placement, "move", lambda part, device: where.__setitem__(names[id(part)], device))
    monkeypatch.setattr(placement, "tensor_device", lambda part: where[names[id(part)]])
    monkeypatch.setattr(placement, "available_memory", lambda device: free)
    vae = nn.ModuleList([parts["vae"]])
    names[id(vae)] = "vae"
    return placement.Placement(parts | {"vae": vae}, [parts["transformer"]], vae), where


def vae_layer(placed: placement.Placement) -> nn.Module:
    """Return what an autoencoder's `encode` and `decode` call."""
    return next(placed.vae.children())


@pytest.mark.parametrize("free", [0, 2**30])
def test_text_encoders_leave_after_their_work_and_the_others_stay_where_there_is_room(monkeypatch, free):
    placed, where = spied(monkeypatch, free)
    gpu = torch.device("cuda:0")
    placed.apply(gpu, "none")
    assert set(where.values()) == {CPU}  # Nothing comes before it is needed: prompts are encoded on an empty device.
    x, seen = torch.zeros(1, 2), []
    placed.parts["text_encoder"].register_forward_hook(lambda *_: seen.append(dict(where)), always_call=True)
    for part in ("text_encoder", "vae", "transformer", "vae", "text_encoder"):
        (vae_layer(placed) if part == "vae" else placed.parts[part])(x)
        assert where["text_encoder"] == CPU
    assert where["vae"] == where["transformer"] == (gpu if free else CPU)


def test_a_part_that_does_not_fit_beside_others_comes_when_they_have_left(monkeypatch):
    placed, where = spied(monkeypatch, 2**30)
    gpu, recorded = torch.device("cuda:0"), placement.move

    def full(part: nn.Module, device: torch.device) -> None:
        recorded(part, device)
        if list(where.values()).count(gpu) > 1:
            recorded(part, CPU)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(placement, "move", full)
    placed.apply(gpu, "none")
    for part in (vae_layer(placed), placed.parts["transformer"], placed.parts["text_encoder"]):
        part(torch.zeros(1, 2))
    assert set(where.values()) == {CPU}


@pytest.mark.parametrize("mode", MOVING, ids=lambda mode: mode.text)
def test_the_peers_pipeline_shares_all_weights_whatever_moves(mode):
    """A copy of a network whose hooks refer to other parts, and to copies of its weights, would copy them all."""
    backbone = CogVideoX(pipeline_of("5b"))
    clip = frames_of(0)
    expected = backbone.video_to_video(clip, PAIR.source, 2, 0.8, 6.0, 0)
    backbone.place(CPU, mode)
    backbone.shrink()
    gc.collect()
    before = sum(isinstance(one, T5EncoderModel) for one in gc.get_objects())
    again = backbone.video_to_video(clip, PAIR.source, 2, 0.8, 6.0, 0)
    assert sum(isinstance(one, T5EncoderModel) for one in gc.get_objects()) == before
    np.testing.assert_array_equal(again, expected)
    peer = backbone._video_to_video
    assert peer.text_encoder is backbone.pipeline.text_encoder and peer.vae is backbone.vae
    shared = {id(one) for one in backbone.networks[0].parameters()}
    assert peer.transformer is not backbone.networks[0] and {id(one) for one in peer.transformer.parameters()} == shared
    assert not any(isinstance(layer, RowwiseLayer) for layer in peer.transformer.transformer_blocks)
    x0 = backbone.encode(clip)  # and the own network goes on
    assert backbone.denoise(x0, 1, backbone.schedule(4), [backbone.blank_text()]).isfinite().all()


def test_layers_that_are_offloaded_take_rows_in_turn_once_they_are_asked_to():
    """Hooks keep the method that a layer had when they came."""
    plain, backbone, rows = CogVideoX(pipeline_of("5b")), CogVideoX(pipeline_of("5b")), []
    backbone.place(CPU, MemoryMode("group"))
    backbone.networks[0].transformer_blocks[0].attn1.register_forward_pre_hook(
        lambda attn, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    latents, text, schedule = torch.randn(3, 3, 4, 8, 8), [plain.blank_text()] * 3, plain.schedule(4)
    expected = plain.denoise(latents, 1, schedule, text)
    for shrunk, calls in ((False, [3]), (True, [1, 1, 1])):
        if shrunk:
            assert backbone.shrink() == "the rows of a call one at a time in each layer"
        rows.clear()
        torch.testing.assert_close(backbone.denoise(latents, 1, schedule, text), expected, rtol=1e-5, atol=1e-5)
        assert rows == calls
    backbone.place(CPU, MemoryMode())
    rows.clear()
    backbone.denoise(latents, 1, schedule, text)
    assert rows == [3] and not any("forward" in vars(module) for module in backbone.networks[0].modules())


def test_text_encoders_that_nothing_needs_again_are_freed():
    plain, once = CogVideoX(pipeline_of("5b")), CogVideoX(pipeline_of("5b"))
    expected = Editor(plain).edit(frames_of(0), PAIR, CONFIG).frames
    editor = Editor(once, single_use=True)
    np.testing.assert_array_equal(editor.edit(frames_of(0), PAIR, CONFIG).frames, expected)
    assert all(weight.is_meta for weight in once.pipeline.text_encoder.parameters())
    assert not any(weight.is_meta for part in (once.vae, *once.networks) for weight in part.parameters())


def test_memory_that_runs_out_while_coding_ends_in_tiles():
    backbone = CogVideoX(pipeline_of("5b"))
    assert backbone.shrink_coding() is None  # On the CPU nothing changes by itself.
    backbone.place(CPU, MemoryMode())
    backbone.placement.device = SimpleNamespace(type="cuda")  # pyright: ignore[reportAttributeAccessIssue]
    backbone.placement.apply = lambda device, offload: None
    assert [backbone.shrink_coding() for _ in range(4)] == [
        "--offload model", "--offload group", "--vae-tiling, whose frames differ a little", None,
    ]  # fmt: skip
    assert backbone.vae.use_tiling and backbone.memory_mode == MemoryMode("group", vae_tiling=True)
    backbone.reset_memory_mode()
    assert not backbone.vae.use_tiling and backbone.memory_mode == MemoryMode()


def test_page_locked_memory_is_counted_as_it_is_given_and_not_taken_from_a_small_machine():
    module = nn.Linear(3, 5, bias=False)  # 60 bytes
    assert placement.pinned_bytes(module) == 64 and placement.tensor_bytes(module) == 60
    placed = CogVideoX(pipeline_of("5b")).placement
    pinned = placement.pinned_bytes(placed.parts["transformer"])
    total = placement.tensor_bytes(placed.parts["transformer"])
    assert placed.may_pin(2 * pinned - total) and not placed.may_pin(2 * pinned - total - 1)
    assert placed.main_memory("group", True) - placed.main_memory("model", True) == pinned - total


@pytest.fixture
def cost_model(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> CostModel:
    """Counts that take no time: each rung saves something in a phase."""

    def peak(self: CostModel, phase: str, size: Size, mode: MemoryMode) -> int:
        weights = {"none": 40, "model": 20, "group": 5}[mode.offload]
        rows = (mode.max_rows or 6) / (3 if mode.row_by_row else 1)
        return round(2**30 * (weights + (rows if phase == "denoising" else 1 if mode.vae_tiling else 12)))

    monkeypatch.setattr(CostModel, "peak", peak)
    fake = fake_model_of(tiny_model)
    return CostModel(fake, CONFIG.resolve(fake.backbone.defaults, fake.backbone.schedule(CONFIG.steps)))


def test_the_less_memory_the_further_down_the_ladder(cost_model):
    """The mode that is chosen fits, those before it do not, and tiles are the last choice."""
    size = cost_model.fake.backbone.native_size
    ladder = list(cost_model.ladder(("none", "model", "group"), False))
    assert len(set(ladder)) == len(ladder) and ladder[0] == MemoryMode()
    assert [mode.vae_tiling for mode in ladder] == sorted(mode.vae_tiling for mode in ladder)
    needs = [with_margin(max(cost_model.peaks(size, mode).values())) for mode in ladder]
    for available in sorted({*needs, *(need - 1 for need in needs)}):
        mode = cost_model.fastest_mode(size, available, ("none", "model", "group"))
        fitting = [one for one, need in zip(ladder, needs, strict=True) if need <= available]
        assert mode == (fitting[0] if fitting else None)
    assert abs(without_margin(with_margin(2**30)) - 2**30) <= 1


def test_each_offload_holds_less():
    placed = CogVideoX(pipeline_of("5b")).placement
    for more, less in pairwise(("none", "model", "group")):
        held, left = placed.weights(more), placed.weights(less)
        assert all(left[part] <= held[part] for part in held)
    assert placed.weights("model")["vae"] < placed.weights("none")["vae"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> SimpleNamespace:
    """A GPU with as many bytes free as `free` says, of which only the options are asked."""
    card = SimpleNamespace(free=2**40)
    monkeypatch.setattr(memory, "find_device", lambda name: torch.device("cuda:0"))
    monkeypatch.setattr(memory, "available_memory", lambda device: card.free)
    monkeypatch.setattr(memory, "load_fake_model", lambda checkpoint, options: fake_model_of(tiny_model))
    return card


def clip_of(backbone: PipelineBackbone) -> tuple:
    return CONFIG.resolve(backbone.defaults, backbone.schedule(CONFIG.steps)), backbone.native_size


def test_the_mode_is_chosen_before_the_model_is_loaded(gpu, cost_model, caplog):
    checkpoint, size = Checkpoint.__new__(Checkpoint), cost_model.fake.backbone.native_size

    def chosen(**options: object) -> MemoryMode:
        return memory.choose_memory_mode(ModelOptions(**options), checkpoint, clip_of)

    assert chosen() == MemoryMode() and not caplog.messages
    gpu.free = with_margin(max(cost_model.peaks(size, MemoryMode()).values())) - 1
    assert chosen() == MemoryMode("model") and "--offload model" in caplog.text
    assert chosen(offload="none") == MemoryMode()  # What is asked for is done.
    assert chosen(vae_tiling=True).vae_tiling
    gpu.free = 2**20
    with pytest.raises(UserError, match=r"GiB are free: try .*--resolution"):
        chosen()


def test_a_model_in_memory_is_chosen_for_anew_and_its_own_weights_are_free(gpu, cost_model):
    backbone, checkpoint = CogVideoX(pipeline_of("5b")), Checkpoint.__new__(Checkpoint)
    size = cost_model.fake.backbone.native_size
    backbone.load_options = ModelOptions()
    backbone.placement.device = torch.device("cuda:0")
    backbone.placement._resident = ["transformer", "vae"]
    gpu.free = with_margin(max(cost_model.peaks(size, MemoryMode()).values())) - backbone.resident_bytes
    loaded = LoadedModel(checkpoint, backbone)
    assert memory.choose_memory_mode(ModelOptions(offload="group"), checkpoint, clip_of, loaded) == MemoryMode()
    gpu.free -= 1
    assert memory.choose_memory_mode(ModelOptions(), checkpoint, clip_of, loaded) == MemoryMode("model")


def test_on_windows_memory_that_is_not_there_is_refused(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**30)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *args: calls.append(args))
    cuda = torch.device("cuda:0")
    host.cap_device_memory(cuda)
    assert calls == []  # Elsewhere the driver refuses by itself.
    monkeypatch.setattr(sys, "platform", "win32")
    host.cap_device_memory(CPU)
    host.cap_device_memory(cuda)
    ((fraction, device),) = calls
    assert device == cuda and 6 / 8 <= fraction < 7 / 8


def test_a_run_goes_on_as_it_was_made_to_and_the_next_edit_starts_afresh(tmp_path: Path, caplog):
    """What memory ran out of is in the snapshot, so that bytes do not depend on who resumes; no failure comes again."""
    config = replace(CONFIG, steps=6, subtasks=1)

    def edited(snapshots: Snapshots, refusals: int, stop: int | None = None) -> tuple[np.ndarray, CogVideoX]:
        backbone, calls = CogVideoX(pipeline_of("5b")), []

        def refuse(*_: object) -> None:
            calls.append(1)
            if 2 < len(calls) <= 2 + refusals:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        def report(at: Progress) -> None:
            if at.step == stop:
                raise KeyboardInterrupt

        backbone.networks[0].patch_embed.register_forward_hook(refuse)
        return np.asarray(Editor(backbone).edit(frames_of(0), PAIR, config, report, snapshots).frames), backbone

    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    expected, backbone = edited(Snapshots(tmp_path / "whole", every=1), 2)
    mode = backbone.memory_mode
    assert mode.max_rows and mode.row_by_row and len(caplog.messages) == 2
    with pytest.raises(KeyboardInterrupt):
        edited(Snapshots(tmp_path / "stopped", every=1), 2, stop=4)
    caplog.clear()
    again, backbone = edited(Snapshots(tmp_path / "stopped", every=1), 0)
    np.testing.assert_array_equal(again, expected)
    assert backbone.memory_mode == mode and not caplog.messages
    Editor(backbone).begin(PAIR, config)
    assert backbone.memory_mode == MemoryMode()
    assert not any(isinstance(layer, RowwiseLayer) for layer in backbone.networks[0].transformer_blocks)


def test_the_mode_of_a_run_is_in_its_record(tiny_model: Path):
    backbone, checkpoint = CogVideoX(pipeline_of("5b")), find(str(tiny_model))
    backbone.memory_mode = MemoryMode(max_rows=2)
    record = json.loads(json.dumps(ModelOptions().record(checkpoint, backbone), default=vars))
    assert load_recorded(record).memory_mode == MemoryMode(max_rows=2)
    del record["memory"]  # as of older runs
    assert load_recorded(record | {"vae_tiling": True}).memory_mode == MemoryMode(vae_tiling=True)


def test_a_part_that_does_not_fit_is_on_the_device_whole_or_not_at_all(monkeypatch):
    """Half of it would be taken for all by the next memory mode."""
    text, network, vae = nn.Linear(2, 2), nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))
    parts = placement.Placement({"text_encoder": text, "transformer": network, "vae": vae}, [network], vae)
    parts.device, moves = torch.device("cuda", 0), []

    def run_out(part: nn.Module, device: torch.device) -> None:
        moves.append((part, device.type))
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("v2edit.backbones.placement.move", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        parts.bring("transformer")
    assert moves == [(network, "cuda"), (network, "cpu")] and parts.resident_bytes == 0
