"""What an edit takes, printed beforehand: counted on a model without numbers, or timed on the model itself."""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from support.models import pipeline_of

from v2edit import video
from v2edit.backbones import Size
from v2edit.cli.app import main
from v2edit.editing import EditConfig
from v2edit.errors import UserError
from v2edit.jobs.estimate import COUNTED, TIMED, format_duration
from v2edit.jobs.functions import estimate_edit, estimate_scene
from v2edit.jobs.video import VideoEdit

PROMPTS = {"source_prompt": "a red ball on the floor", "target_prompt": "a blue cube on the floor"}
GIVEN = EditConfig(steps=6, subtasks=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    pipeline_of("5b", seed=1).save_pretrained(folder / "model")
    video.write(np.zeros((12, 48, 32, 3), np.uint8), folder / "clip.mp4", fps=8)
    return folder


def test_an_edit_told_beforehand(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = estimate_edit(folder / "clip.mp4", **PROMPTS, model=str(folder / "model"), config=GIVEN, timed=True)
    assert (plan.frames, plan.height, plan.width) == (12, 48, 32) and plan.fitted == Size(17, 40, 24)
    assert plan.tokens == 5 * 5 * 3 and plan.method == TIMED and plan.fits
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
    assert main(["edit", clip, *words, "--model", str(tmp_path / "fake_model"), "--dry-run", "--timed"]) == 0
    printed = capsys.readouterr().out
    assert COUNTED in printed and "weights are not on this machine" in printed and "computing" in printed


def test_what_does_not_fit_is_shown_smaller(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("v2edit.jobs.estimate.available_memory", lambda device: 0)
    monkeypatch.setattr(VideoEdit, "estimate", cache(VideoEdit.estimate))  # counting takes seconds: once is enough
    words = [word for name, text in PROMPTS.items() for word in (f"--{name.replace('_', '-')}", text)]
    clip = video.write(np.zeros((5, 48, 32, 3), np.uint8), tmp_path / "clip.mp4", fps=8)
    edit = ["edit", str(clip), *words, "--model", str(folder / "model"), "--dry-run"]
    assert main([*edit, "--json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["event"] == "result" and last["fits"] is False and last["method"] == COUNTED
    assert last["fitted"] == {"frames": 9, "height": 40, "width": 24} and len(last["memory_options"]) == 3
    assert main(edit) == 0
    printed = capsys.readouterr().out
    assert (
        "only" in printed
        and "are free" in printed
        and "--vae-tiling" in printed
        and "by itself when it must" in printed
    )


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
    words = ["--dry-run", "--timed", "--json", "--steps", "10"]
    assert main(["scene", str(tmp_path / "scene"), facts["instruction"], *words]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["seconds"]["reconstructing"] > 0 and last["frames"] == 9 and sorted(tmp_path.rglob("*")) == before


def test_durations_as_people_say_them() -> None:
    assert [format_duration(s) for s in (0.44, 12.3, 99, 240, 9000)] == ["0.4 s", "12 s", "99 s", "4 min", "2.5 h"]
