"""Blocks of a step by two processes: the bytes of one, whichever of them dies."""

import json
import logging
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.clips import PAIR
from support.processes import ForkingPool, PreloadedPool
from support.survival import contents, start_process, wait_for_step

from v2edit import backbones
from v2edit.backbones import LoadOptions
from v2edit.batch.command import EditBatch
from v2edit.editing import EditConfig, Editor
from v2edit.editing.block_processes import BlockInputs
from v2edit.editing.blockwise import BlockLoop
from v2edit.editing.progression import aligned_text
from v2edit.errors import UserError
from v2edit.jobs.functions import edit_video, estimate_edit, resume_run
from v2edit.jobs.options import ModelOptions
from v2edit.primitives.sample import write_sample

POOL = "v2edit.editing.block_processes.ProcessPool"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """With more a copy of a process, as a test makes them, would wait for threads that it does not have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def edit(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The options of an edit by a tiny model, in four blocks at each step."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(7, folder, "recolour", frames=21, size=32)
    facts = json.loads((folder / "clip.json").read_text())
    config = EditConfig(steps=4, alpha=0.75, beta=0.5, guidance=1.0, long="blocks")
    options = {"instruction": facts["instruction"], "model": str(tiny_model), "mask": "auto", "config": config}
    return {"video": folder / "clip.mp4"} | options


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """The latents after each subtask, and the blocks that this process denoises itself."""
    made: dict[str, list[Any]] = {"latents": [], "own": []}
    run, denoise = BlockLoop.run, BlockInputs.denoise

    def run_loop(self: BlockLoop, *given: Any) -> torch.Tensor:
        result = run(self, *given)
        made["latents"].append(result.clone())
        return result

    def denoise_block(self: BlockInputs, subtask: Any) -> Any:
        made["own"].append(self.k)
        return denoise(self, subtask)

    monkeypatch.setattr(BlockLoop, "run", run_loop)
    monkeypatch.setattr(BlockInputs, "denoise", denoise_block)
    monkeypatch.setattr(POOL, PreloadedPool)
    return made


def run_edit(edit: dict[str, Any], out: Path, **options: Any) -> dict[str, bytes]:
    edit_video(**edit, out=out, show_progress=False, **options)
    return contents(out)


def forget(record: dict[str, list[Any]]) -> None:
    for made in record.values():
        made.clear()


def edit_by_two(**options: Any) -> Any:
    """Edit by two processes, in a process of the server's."""
    torch.set_num_threads(1)
    import v2edit.editing.block_processes as module

    module.ProcessPool = ForkingPool
    return edit_video(**options, block_processes=2)


def test_two_processes_give_the_bytes_of_one_through_any_end(edit, record, tmp_path, caplog):
    whole = run_edit(edit, tmp_path / "whole")
    (latents,), alone = record["latents"], Counter(record["own"])
    *before, last = alone
    forget(record)

    def kill_worker(at: Any) -> None:
        if at.stage == "editing" and at.step == 2:
            (worker,) = [one for one in multiprocessing.active_children() if "v2edit-worker" in one.name]
            os.kill(worker.pid or 0, signal.SIGKILL)

    with caplog.at_level(logging.WARNING, "v2edit"):
        assert run_edit(edit, tmp_path / "two", block_processes=2, on_progress=kill_worker) == whole
    (again,) = record["latents"]
    own = Counter(record["own"])
    assert torch.equal(again, latents) and all(own[k] < alone[k] for k in before) and own[last] == alone[last]
    (warning,) = [one.getMessage() for one in caplog.records if "cannot go on" in one.getMessage()]
    assert "SIGKILL" in warning and "1 of 2" in warning
    forget(record)

    out = tmp_path / "killed" / "run"
    process = start_process(edit_by_two, edit, out, tmp_path / "log")
    wait_for_step(process, tmp_path / "log", 0)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (out / "edited.mp4").exists()
    resume_run(out, show_progress=False)
    assert contents(out) == whole and torch.equal(record["latents"][0], latents)
    assert Counter(record["own"])[last] < alone[last]
    assert json.loads((out / "run.json").read_text())["block_processes"] == 2


def test_what_a_process_cannot_do_is_done_by_this_one(monkeypatch, caplog):
    """One that finds no model, as where memory is short, costs a line."""
    monkeypatch.setattr(POOL, PreloadedPool)
    backbone = backbones.load()
    x0 = torch.randn(1, 6, *backbone.latent_shape(backbone.native_size)[1:], generator=torch.Generator().manual_seed(0))
    config, text = EditConfig(steps=2, alpha=1.0, guidance=1.0, long="blocks"), aligned_text(backbone, PAIR)
    (whole,) = Editor(backbone).subtasks(x0, text, config)
    backbone.load_options = LoadOptions(block_processes=2, lora=("gone.safetensors",))
    with caplog.at_level(logging.WARNING, "v2edit"):
        (edited,) = Editor(backbone).subtasks(x0, text, config)
    assert torch.equal(edited, whole)
    (warning,) = [one.getMessage() for one in caplog.records if "cannot go on" in one.getMessage()]
    assert "gone.safetensors" in warning


def test_the_dry_run_says_what_several_processes_take(edit, tmp_path):
    remarks = " ".join(estimate_edit(**edit, block_processes=3).remarks)
    assert "3 processes" in remarks and "GiB" in remarks
    whole = edit | {"config": EditConfig(steps=4, long="windows")}
    assert "changes nothing" in " ".join(estimate_edit(**whole, block_processes=3).remarks)
    with pytest.raises(UserError, match="--workers"):
        EditBatch(tmp_path / "tasks.jsonl", tmp_path, model_options=ModelOptions(block_processes=2))
    for wrong in ({"device": "cuda:0,cuda:1"}, {"block_processes": 0}):
        with pytest.raises(UserError, match="block-processes"):
            LoadOptions(**{"block_processes": 2} | wrong)
