"""What an edit takes, told beforehand: counted on a model without numbers, or timed on the model itself."""

import inspect
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import pipeline_of

from v2edit import video
from v2edit.attention import Replacement
from v2edit.backbones import Size
from v2edit.backbones.cogvideox import CogVideoX, RowByRow
from v2edit.backbones.fake import FakeModel, count
from v2edit.cli.app import main
from v2edit.editing import EditConfig
from v2edit.editing.cost import CostModel
from v2edit.errors import UserError
from v2edit.jobs.estimate import COUNTED, TIMED, duration, estimate_edit, estimate_scene
from v2edit.jobs.scene import edit_scene
from v2edit.jobs.video import edit_video

PROMPTS = {"source_prompt": "a red ball on the floor", "target_prompt": "a blue cube on the floor"}
MAPS = Replacement(5, (((0, 1.0),), ((1, 1.0),), ((2, 1.0),), ((2, 1.0),)))
GIVEN = EditConfig(steps=6, subtasks=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    pipeline_of("5b", seed=1).save_pretrained(folder / "model")
    video.write(np.zeros((12, 48, 32, 3), np.uint8), folder / "clip.mp4", fps=8)
    return folder


def fake_of(folder: Path) -> FakeModel:
    return FakeModel(folder / "model", torch.float32)


@pytest.mark.parametrize(
    ("size", "loop", "row_by_row"),
    [(Size(9, 32, 32), False, False), (Size(25, 16, 48), False, True), (Size(16, 32, 32), True, True)],
)
def test_a_step_without_numbers_costs_what_a_real_one_does(
    folder: Path, size: Size, loop: bool, row_by_row: bool
) -> None:
    """The same counter on real tensors, through all layers of the real model."""
    fake, real = fake_of(folder), CogVideoX(pipeline_of("5b", seed=1))
    if row_by_row:
        real.shrink()
    frames = size.frames // 4 if loop else (size.frames - 1) // 4 + 1
    latents, text = torch.randn(4, frames, 4, size.height // 4, size.width // 4), torch.randn(4, 16, 16)
    told = fake.forward(4, size, loop, MAPS, row_by_row)
    schedule = real.schedule(50)
    real.denoise(latents, 0, schedule, text, MAPS, loop)  # Tables of positions are made once.
    took = count(lambda: real.denoise(latents, 0, schedule, text, MAPS, loop))
    assert told.flops == took.flops > 0
    assert told.peak == pytest.approx(took.peak, rel=0.05)
    assert not any(isinstance(layer, RowByRow) for layer in fake.backbone.transformer.transformer_blocks)


def test_the_autoencoder_without_numbers_costs_what_the_real_one_does(folder: Path) -> None:
    fake, real = fake_of(folder), CogVideoX(pipeline_of("5b", seed=1))
    for frames in (1, 9, 33):
        size = Size(frames, 32, 32)
        latents = torch.randn(1, 4, (frames - 1) // 4 + 1, 8, 8)
        took = count(lambda latents=latents: real.vae.decode(latents))
        assert fake.decoding(size).flops == pytest.approx(took.flops, rel=0.01)
        clip = torch.randn(1, 3, frames, 32, 32)
        took = count(lambda clip=clip: real.vae.encode(clip))
        assert fake.encoding(size).flops == pytest.approx(took.flops, rel=0.01)


def test_its_weights_are_those_of_the_model(folder: Path) -> None:
    real = pipeline_of("5b", seed=1)
    for part, size in fake_of(folder).weights.items():
        held = [*getattr(real, part).parameters(), *getattr(real, part).buffers()]
        assert size == sum(one.numel() * one.element_size() for one in held) > 0


@pytest.mark.heavy
def test_each_smaller_way_is_smaller(folder: Path) -> None:
    fake = fake_of(folder)
    cost_model = CostModel(fake, replace(GIVEN, subtasks=1).resolve(fake.backbone.defaults))
    size = Size(33, 32, 32)
    rows = [
        cost_model.peaks(size, "none", False, split, row_by_row)["denoising"]
        for split, row_by_row in ((0, False), (1, False), (2, True))
    ]
    assert rows == sorted(rows, reverse=True) and len(set(rows)) == 3
    ways = cost_model.ways(size, on_gpu=True)
    *peaks, tiled = [cost_model.edit(size, "none", False).peak, *(way.peak for way in ways)]
    assert all(later <= earlier for earlier, later in pairwise(peaks)) and tiled < peaks[0]
    assert [way.options for way in ways] == ["", "", "--offload model", "--offload group",
                                             "--offload group --vae-tiling"]  # fmt: skip

    def held(frames: int) -> int:
        return max(cost_model.peaks(Size(frames, 32, 32), "none", False, 2, True).values())

    room = held(17)
    longest = cost_model.most_frames(size, room, "none", False)
    assert longest is not None and longest >= 17 and held(longest) <= room
    assert longest == size.frames or held(longest + 8) > room
    assert cost_model.most_frames(size, 1000, "none", False) is None


def test_an_edit_told_beforehand(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = estimate_edit(folder / "clip.mp4", **PROMPTS, model=str(folder / "model"), config=GIVEN, device="cpu")
    assert (plan.frames, plan.height, plan.width) == (12, 48, 32) and plan.fitted == Size(17, 40, 24)
    assert plan.tokens == 5 * 5 * 3 and plan.how == TIMED and plan.fits
    assert plan.forwards == [2 * 4 + 3 * 2, 2 * 6 + 3 * 2] and (plan.steps, plan.of_steps) == (5, 6)
    assert set(plan.seconds) == {"loading", "encoding", "denoising", "decoding", "writing"}
    assert all(seconds > 0 for seconds in plan.seconds.values())
    assert 100e6 < plan.peak < 20e9  # a process with torch in it
    assert list(tmp_path.iterdir()) == []


def test_without_weights_it_is_counted_and_said_so(folder: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(folder / "model", tmp_path / "fake_model")
    weights = tmp_path / "fake_model" / "transformer" / "diffusion_pytorch_model.safetensors"
    index = weights.with_name(f"{weights.name}.index.json")  # of a file that was not downloaded yet
    index.write_text(json.dumps({"weight_map": {"one": weights.name, "other": "the-rest.safetensors"}}))
    words = [word for name, text in PROMPTS.items() for word in (f"--{name.replace('_', '-')}", text)]
    clip = str(folder / "clip.mp4")
    assert main(["edit", clip, *words, "--model", str(tmp_path / "fake_model"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert COUNTED in told and "weights are not on this machine" in told and "loading" in told


def test_what_does_not_fit_is_shown_smaller(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("v2edit.jobs.estimate.available", lambda device: 0)
    words = [word for name, text in PROMPTS.items() for word in (f"--{name.replace('_', '-')}", text)]
    edit = ["edit", str(folder / "clip.mp4"), *words, "--model", str(folder / "model"), "--dry-run"]
    assert main([*edit, "--json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["event"] == "result" and last["fits"] is False and last["how"] == COUNTED
    assert last["fitted"] == {"frames": 17, "height": 40, "width": 24} and len(last["ways"]) == 3
    assert main(edit) == 0
    told = capsys.readouterr().out
    assert "there is only" in told and "--vae-tiling" in told and "by itself when it must" in told


def test_what_would_stop_the_edit_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    clip, model = folder / "clip.mp4", str(folder / "model")
    for path, options, says in (
        (tmp_path / "nowhere.mp4", {}, "no such file"),
        (clip, {"out": tmp_path / "taken"}, "exists"),
        (clip, {"model": "nothing-here"}, "no model"),
    ):
        with pytest.raises(UserError, match=says):
            estimate_edit(path, **PROMPTS, **{"model": model} | options)
    with pytest.raises(UserError, match="no such scene"):
        estimate_scene(tmp_path / "nowhere", **PROMPTS)


@pytest.mark.heavy
def test_a_scene_told_beforehand(tmp_path: Path, capsys) -> None:
    assert main(["sample", "--scene", "-o", str(tmp_path / "scene")]) == 0
    capsys.readouterr()
    facts = json.loads((tmp_path / "scene" / "scene.json").read_text())
    before = sorted(tmp_path.rglob("*"))
    assert main(["scene", str(tmp_path / "scene"), facts["instruction"], "--dry-run", "--json", "--steps", "10"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["seconds"]["reconstructing"] > 0 and last["frames"] == 9 and sorted(tmp_path.rglob("*")) == before


def test_durations_as_people_say_them() -> None:
    assert [duration(s) for s in (0.44, 12.3, 99, 240, 9000)] == ["0.4 s", "12 s", "99 s", "4 min", "2.5 h"]


@pytest.mark.parametrize(("does", "tells"), [(edit_video, estimate_edit), (edit_scene, estimate_scene)])
def test_an_option_that_changes_what_is_loaded_or_run_is_not_passed_over(does: Any, tells: Any) -> None:
    """What a plan does not name it takes and leaves aside: that is right for these alone."""
    told, taken = (set(inspect.signature(one).parameters) for one in (does, tells))
    assert told - taken <= {"frames", "save_every", "on_progress", "on_stage", "command", "loaded"}
