"""One edit on several devices or by several processes: the same result as on one. A CPU stands in for all devices."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.clips import PAIR, SAME, frames_of
from support.families import FAMILIES
from support.models import pipeline_of
from support.shared_edits import EDITS, edit
from torch import Tensor, nn

from v2edit import backbones, video
from v2edit.attention import AttentionCall, Replacement, RotaryTable, Window, joint_attention, self_attention
from v2edit.attention.head_parallel import HeadParallel
from v2edit.attention.sites import WindowTables, rotate_pairs
from v2edit.backbones import Size
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.backbones.core import PipelineBackbone
from v2edit.backbones.processes import split
from v2edit.backbones.replica import replicate
from v2edit.backbones.rowwise import RowwiseLayer
from v2edit.cli.app import main
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


@pytest.mark.parametrize("name", ["CogVideoX 5b", "Wan 2.1", "LTX 0.9.7"])
def test_all_that_the_second_device_needs_is_there(name):
    """torch's device without data, on which nothing can be computed with tensors that are elsewhere, is the second."""
    backbone, nowhere = FAMILIES[name](), torch.device("meta")
    backbone.replica = replica = replicate(backbone, nowhere)
    denoise, rows = replica.denoise, []

    def without_data(latents: Tensor, *rest: Any) -> Tensor:
        x0 = denoise(latents, *rest)
        assert latents.device == x0.device == nowhere
        rows.append(len(x0))
        return torch.zeros(x0.shape)

    replica.denoise = without_data
    assert edited(backbone, replace(CONFIG, amr_unconditional=True)).isfinite().all()
    assert set(rows) == {1, 2, 3}


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


# --- heads over processes -------------------------------------------------------------------------


class ThreadHeads(HeadParallel):
    """Exchanges among threads of this process, which stand in for processes."""

    def __init__(self, rank: int, processes: int, sent: list[Any], meeting: threading.Barrier) -> None:
        super().__init__(rank, processes)
        self.sent, self.meeting = sent, meeting

    def _exchange(self, by_process: Tensor) -> Tensor:
        self.sent[self.rank] = by_process
        self.meeting.wait()
        received = torch.stack([sent[self.rank] for sent in self.sent])
        self.meeting.wait()
        return received


def in_threads(processes: int, work: Callable[[ThreadHeads], Tensor]) -> list[Tensor]:
    """Return what the work of each process gives."""
    sent, results, meeting = [None] * processes, [torch.empty(0)] * processes, threading.Barrier(processes, timeout=30)

    def run(rank: int) -> None:
        results[rank] = work(ThreadHeads(rank, processes, sent, meeting))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


FRAMES, ROWS, HEADS, CHANNELS = 5, 3, 12, 8
MAPS = Replacement(3, (((0, 1.0),), ((1, 1.0),), ((0, 0.3), (1, 0.7))))


def rotation(frames: int, tokens: int) -> RotaryTable:
    angles = torch.arange(frames * tokens)[:, None] * torch.linspace(0.1, 1, CHANNELS // 2)
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("attention", ["joint", "self"])
@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize(("processes", "tokens"), [(2, 4), (3, 4), (4, 3), (6, 1)])  # of a frame
def test_heads_over_processes_are_heads_of_one(processes, tokens, windows, attention):
    """AMR, windows and rotary positions included, also where processes have fewer tokens than others, or none."""
    text, video = (5 if attention == "joint" else 0), FRAMES * tokens
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, text + video, HEADS * CHANNELS, generator=generator)
    to = torch.randn(3, HEADS * CHANNELS, HEADS * CHANNELS, generator=generator) / 10
    tables = None
    if windows:
        window = Window(FRAMES, 3, loop=True)
        with_halo = rotation(FRAMES + 2, tokens)
        in_clip = with_halo[0][tokens:-tokens], with_halo[1][tokens:-tokens]
        tables = WindowTables(window, rotation(FRAMES, tokens), in_clip, with_halo)
    table = tables.in_window if tables else rotation(FRAMES, tokens)

    def attend(x: Tensor, heads: HeadParallel | None = None) -> Tensor:
        call = AttentionCall(lambda x, table: rotate_pairs(x, *table), heads=heads)
        q, k, v = ((x @ one).unflatten(2, (HEADS, -1)).transpose(1, 2) for one in to)
        with call.during(table, tables, MAPS, None):
            out = joint_attention(q, k, v, text, call) if text else self_attention(q, k, v, call)
        return out.transpose(1, 2).flatten(2)

    def share(heads: HeadParallel) -> Tensor:
        out = attend(torch.cat([x[:, :text], heads.split_tokens(x[:, text:])], dim=1), heads)
        return torch.cat([out[:, :text], heads.join_tokens(out[:, text:])], dim=1)

    for result in in_threads(processes, share):
        torch.testing.assert_close(result, attend(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "processes", "why"), [("CogVideoX 5b", 3, "2 heads"), ("Mochi", 2, "cannot be")])
def test_models_that_processes_cannot_share_are_refused(name, processes, why):
    with pytest.raises(UserError, match=why):
        split(FAMILIES[name](), HeadParallel(0, processes))


def test_torchrun_is_for_single_edits(monkeypatch, capsys):
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert main(["runs"]) == 2
    assert "torchrun shares one edit" in capsys.readouterr().err


def launch(*words: str) -> None:
    """Run a script or a module (-m) by two processes."""
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}:{root / 'tests'}", "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, *words], check=True, env=environment, timeout=300)


@pytest.mark.heavy
def test_edits_by_two_processes_are_those_of_one(tmp_path: Path):
    models, script = ["CogVideoX 5b", "Wan 2.1"], Path(__file__).parent / "support" / "shared_edits.py"
    launch(str(script), str(tmp_path / "results.pt"), *models)
    results = torch.load(tmp_path / "results.pt")
    assert len(results) == len(models) * len(EDITS)
    for model in models:
        for name in EDITS:
            x0, expected = edit(FAMILIES[model](), name)
            got = results[f"{model}: {name}"]
            assert (got - expected).norm() <= 1e-5 * expected.norm(), (model, name)
            if name == "the same prompt":
                assert (got - x0).norm() <= 1e-6 * x0.norm()


@pytest.mark.heavy
def test_the_command_line_by_two_processes(tmp_path: Path):
    """The first writes, and writes what one process does up to rounding."""
    pipeline_of("5b").save_pretrained(tmp_path / "model")
    video.write(frames_of(0), tmp_path / "clip.mp4", fps=8)
    words = ["edit", str(tmp_path / "clip.mp4"), "--source-prompt", PAIR.source, "--target-prompt", PAIR.target,
             "--model", str(tmp_path / "model"), "--steps", "4"]  # fmt: skip
    launch("-m", "v2edit", *words, "-o", str(tmp_path / "two"))
    assert main([*words, "-o", str(tmp_path / "one")]) == 0
    one, two = (video.read(tmp_path / name / "edited.mp4").frames.astype(int) for name in ("one", "two"))
    assert abs(one - two).max() <= 2
