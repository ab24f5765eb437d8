"""Several seeds at once: the same runs as one by one, through any end of the process, and the choice among them."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.survival import contents, start_process

from v2edit import backbones
from v2edit.backbones import LoadedModel
from v2edit.cli.app import main
from v2edit.editing import EditConfig
from v2edit.errors import UserError
from v2edit.jobs.functions import edit_video, estimate_edit, resume_run
from v2edit.jobs.seeds import keep_seeds
from v2edit.jobs.video import EditRun
from v2edit.primitives.sample import write_sample
from v2edit.runs import find_runs, read_run_state

SEEDS = (5, 6, 7)
NAMES = [f"seed-{seed}" for seed in SEEDS]


@pytest.fixture(scope="module")
def edit(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The options of an edit by a tiny model."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(7, folder, "recolour", frames=5, size=32)
    facts = json.loads((folder / "clip.json").read_text())
    config = EditConfig(steps=4, guidance=1.0, seed=SEEDS[0])
    options = {"instruction": facts["instruction"], "model": str(tiny_model), "config": config}
    return {"video": folder / "clip.mp4"} | options


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    return LoadedModel(backbones.find(str(tiny_model)), backbones.load(str(tiny_model)))


@pytest.fixture(scope="module")
def whole(edit: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> EditRun:
    """The edits of all seeds, undisturbed; copy the folder to change it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return edit_video(**edit, seeds=len(SEEDS), out=out, show_progress=False)


def without_manifests(folder: Path) -> dict[str, bytes]:
    """The files of a run of several seeds but for its manifests, which have times in them."""
    return {name: content for name, content in contents(folder).items() if Path(name).name != "run.json"}


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def test_each_seed_has_the_run_that_it_would_have_alone(edit, whole, loaded, tmp_path):
    assert sorted(path.name for path in whole.folder.iterdir()) == ["run.json", *NAMES, "seeds.png"]
    together = manifest(whole.folder)
    assert together["kind"] == "seeds" and together["seeds"] == [*SEEDS] and together["status"] == "done"
    edited = set()
    for seed, name in zip(SEEDS, NAMES, strict=True):
        alone = edit_video(**edit, seed=seed, out=tmp_path / name, loaded=loaded, show_progress=False).folder
        assert contents(whole.folder / name) == contents(alone)
        one, other = manifest(whole.folder / name), manifest(alone)
        differing = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
        assert differing <= {"started", "finished"} and one["seed"] == one["config"]["seed"] == seed
        edited.add((alone / "edited.mp4").read_bytes())
    assert len(edited) == len(SEEDS)  # or nothing of this would mean anything
    assert whole.seeds == SEEDS and [run.folder.name for run in whole.runs] == NAMES
    np.testing.assert_array_equal(whole.edited.frames, whole.runs[0].edited.frames)


def test_the_sheet_has_a_row_for_the_source_and_for_each_seed(whole):
    from PIL import Image

    sheet = Image.open(whole.folder / "seeds.png")
    one = Image.open(whole.folder / NAMES[0] / "contact.png")  # of the source and the edited video
    margin, row = 2 * 8, 24 + 128 + 8
    assert sheet.width == one.width and one.height == 2 * margin + 2 * row - 8
    assert sheet.height == one.height + (len(SEEDS) - 1) * row


def test_it_survives_being_killed(edit, whole, tmp_path):
    out = tmp_path / "run"
    process = start_process(edit_video, edit | {"seeds": len(SEEDS)}, out, tmp_path / "log")
    while not (out / NAMES[1] / ".state" / "request.json").exists() and process.is_alive():
        process.join(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    state = read_run_state(out)
    assert state.state == "stopped" and state.seeds == SEEDS and 3 <= state.done < state.total == 9
    first = (out / NAMES[0] / "run.json").read_bytes()
    with pytest.raises(UserError, match="v2edit resume"):
        keep_seeds(out, [SEEDS[0]])
    steps: list[Any] = []
    again = resume_run(out, show_progress=False, on_progress=steps.append)
    assert isinstance(again, EditRun) and again.seeds == SEEDS
    assert {(one.seed, one.seed_number, one.seeds) for one in steps} == {(6, 2, 3), (7, 3, 3)}
    assert without_manifests(out) == without_manifests(whole.folder)
    assert (out / NAMES[0] / "run.json").read_bytes() == first  # what was done is not done again
    assert not [*out.rglob(".state")] and {one.state for one in find_runs(out)} == {"done"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_end_names_the_command_that_goes_on(edit, whole, loaded, tmp_path, error):
    """Once, of the whole run, though the seed's run is unfinished, too."""

    def fail(progress: Any) -> None:
        if progress.seed == SEEDS[1] and progress.step == 2:
            raise error("the disk is full")

    options = edit | {"seeds": len(SEEDS), "out": tmp_path / "run", "loaded": loaded, "show_progress": False}
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else UserError) as caught:
        edit_video(**options, save_every=1, on_progress=fail)
    assert str(caught.value).count("v2edit resume") == 1
    assert str(caught.value).endswith(f"go on with: v2edit resume {tmp_path / 'run'}")
    assert read_run_state(tmp_path / "run").done >= 3
    resume_run(tmp_path / "run", show_progress=False, loaded=loaded)
    assert without_manifests(tmp_path / "run") == without_manifests(whole.folder)


def test_keeping_removes_the_others(whole, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole.folder, out)
    before = contents(out)
    for wrong, message in (([4], "seed 4 in"), ([6, 8, 9], "seeds 8, 9 in"), ([], "Name one")):
        with pytest.raises(UserError, match=message):
            keep_seeds(out, wrong)
    assert main(["keep", str(out), "5", "5", "7"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"kept     {out / 'seed-5'}", f"kept     {out / 'seed-7'}", f"removed  {out / 'seed-6'}",
    ]  # fmt: skip
    assert main(["keep", str(out), "7", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["kept"], result["removed"]) == ([str(out / "seed-7")], [str(out / "seed-5")])
    left = contents(out)
    assert {name for name in left if "/" in name} == {name for name in before if name.startswith("seed-7/")}
    assert all(content == before[name] for name, content in left.items())
    assert manifest(out) == manifest(whole.folder) | {"seeds": [7]}
    assert resume_run(out, show_progress=False).folder == out  # it is done
    assert main(["keep", str(out), "6"]) == 2 and "there are 7" in capsys.readouterr().err


def test_keeping_refuses_what_is_no_run_of_several_seeds(whole, tmp_path, capsys):
    for folder, message in ((whole.folder / NAMES[0], "a run of one seed"), (tmp_path, "is no run folder")):
        assert main(["keep", str(folder), "5"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert (whole.folder / NAMES[0] / "edited.mp4").exists()


def test_it_is_listed_with_its_seeds(whole, capsys):
    assert main(["runs", str(whole.folder)]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert "done" in first and "9/9 steps" in first and first.endswith("seeds 5, 6, 7")
    assert [line.split()[0] for line in others] == [str(whole.folder / name) for name in NAMES]


def test_an_estimate_is_of_all_seeds(edit):
    one, three = (estimate_edit(**edit, seeds=seeds) for seeds in (1, 3))
    assert three.flops == 3 * one.flops and three.forwards == one.forwards and three.peak <= 1.2 * one.peak
    assert three.figures["seeds"] == 3 and "each of 3 seeds" in three.text and "seeds" not in one.text
    timed = replace(one, seconds={"loading": 2.0, "denoising": 5.0}).times(3)
    assert timed.seconds == {"loading": 2.0, "denoising": 15.0}  # the model is loaded once


@pytest.mark.parametrize("seeds", [0, 17])
def test_too_few_and_too_many_are_refused(edit, tmp_path, seeds, capsys):
    with pytest.raises(UserError, match=f"--seeds is {seeds}, expected 1 to 16"):
        edit_video(**edit, seeds=seeds, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_scene_has_no_such_option(tmp_path, capsys):
    assert main(["scene", str(tmp_path), "make it red", "--seeds", "3"]) == 2
    assert "only v2edit edit makes several at once" in capsys.readouterr().err
