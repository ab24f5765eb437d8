"""The benchmark of scenes: its tasks, its figures on what is known, and whole runs by real processes at tiny size."""

import csv
import json
import re
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio
from support.bench import Page, compare, results_in
from support.processes import InlinePool
from support.world import perfect_reader

from v2edit import video
from v2edit.bench.command import BenchOptions, BenchReport
from v2edit.bench.methods import REFERENCES, Unedited
from v2edit.bench.scenes import KINDS, SceneTask, SceneV2Edit, scene_tasks
from v2edit.bench.suites import make_suite
from v2edit.bench.tasks import primitives_tasks
from v2edit.bench.tool_results import scene_files
from v2edit.bench.trials import load_result
from v2edit.cli.app import main
from v2edit.errors import UserError
from v2edit.metrics.clip_score import ClipEncoder
from v2edit.metrics.registry import Measures
from v2edit.scenes.config import FitConfig
from v2edit.scenes.formats.splats import write_splat
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.primitives import sample_task, write_task

SMALL = ("fit.gaussians=400", "fit.fit_steps=30", "fit.refit_steps=10")


def test_tasks_are_those_of_the_kinds_seeds():
    found = scene_tasks("reporting", 2)
    assert [task.kind for task in found[::2]] == [kind for kind in primitives_kinds() if kind in KINDS]
    assert {task.seed for task in found} < {task.seed for task in primitives_tasks("reporting", 2)}
    assert [task.kind for task in scene_tasks("tuning", 1, ["resize"])] == ["resize"]  # not of the suite, but named
    with pytest.raises(UserError, match="there is no kind of edit 'levitate'"):
        scene_tasks("reporting", 1, ["levitate"])


def primitives_kinds() -> list[str]:
    return list(dict.fromkeys(task.kind for task in primitives_tasks("reporting", 1)))


def test_a_task_is_the_sample_of_its_seed_and_kind(tmp_path, capsys):
    task = scene_tasks("tuning", 1, ["insert"])[0]
    words = ["sample", "--scene", "--seed", str(task.seed), "--kind", task.kind, "-o", str(tmp_path / "scene")]
    assert main(words) == 0
    assert "try: v2edit scene" in capsys.readouterr().out
    facts = json.loads((tmp_path / "scene" / "scene.json").read_text())
    assert facts["instruction"] == task.edit.instruction and facts["target_prompt"] == task.prompts.target


def test_methods_are_table_c_and_the_loop_and_baselines():
    known = make_suite("scenes", 9).methods
    full = known["V2Edit"]
    assert isinstance(full, SceneV2Edit) and full.subtasks > 1 and full.between and full.steps == 9
    changed = {
        name: {k: v for k, v in asdict(one).items() if v != asdict(full)[k]}
        for name, one in known.items()
        if isinstance(one, SceneV2Edit)
    }
    assert changed == {
        "V2Edit": {},
        "w/o progression": {"subtasks": 1},
        "w/o INC": {"inc": False},
        "w/o PNC": {"pnc": False},
        "w/o AMR": {"amr": False},
        "w/o PNC, AMR": {"pnc": False, "amr": False},
        "w/o reconstruction": {"between": False},
    }
    assert list(known)[7:] == ["V2V", "FlowEdit", "DDIM + P2P"]


def test_settings_reach_the_reconstruction_of_every_task():
    suite = make_suite("scenes", 9, ["fit.refit_steps=7", "mixture=0.2"])
    tasks = suite.tasks("tuning", 1, ["sky", "floor"])
    assert {task.fit for task in tasks if isinstance(task, SceneTask)} == {FitConfig(refit_steps=7)}
    assert {one.mixture for one in suite.methods.values() if isinstance(one, SceneV2Edit)} == {0.2}
    assert tasks[0].identity != make_suite("scenes", 9).tasks("tuning", 1, ["sky"])[0].identity
    with pytest.raises(UserError, match="there is no setting 'depth'"):
        make_suite("scenes", 9, ["fit.depth=7"])


def test_the_truth_is_perfect_and_the_source_is_not(monkeypatch):
    monkeypatch.setattr("v2edit.bench.scenes.sample_task", partial(sample_task, views=16))
    task = SceneTask("recolour", 1_900_000_001, FitConfig())
    source = {"frames": task.clips.source.frames, "held_out": task.posed.dataset.held_out.images}
    truth = {"frames": task.clips.target.frames, "held_out": task.posed.truth.held_out.images}
    measures = Measures(perfect_reader(task.edit, task.clips), ClipEncoder.load())
    measured = partial(task.measure, start=source, measures=measures)
    best, none = measured(truth), measured(source)
    assert best["psnr_held_out"] == best["held_out_inside"] == best["held_out_outside"] == 60
    assert best["success"] == best["kept"] == best["unsaid"] == best["clip_preference"] == 1 and best["ctids"] > 0.3
    assert none["held_out_outside"] == 60 and none["held_out_inside"] < 25
    assert none["success"] == none["clip_preference"] == none["ctids"] == 0 and none["kept"] == 1
    assert none["cdc"] == pytest.approx(1, abs=1e-4)


def test_clip_preference_counts_frames():
    task = SceneTask("recolour", 1_900_000_001, FitConfig())
    clips, pair = task.clips, task.prompts
    mixed = np.concatenate([clips.source.frames[:3], clips.target.frames[:6]])
    assert ClipEncoder.load().preference(pair, mixed) == pytest.approx(6 / 9)


# --- whole runs -----------------------------------------------------------------------------------

OPTIONS = BenchOptions("scenes", kinds=("recolour",), count=2, steps=4, settings=tuple(SMALL))


@pytest.fixture(scope="module")
def first(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[BenchReport, dict]:
    """A run of one method in two processes, and its results."""
    folder = tmp_path_factory.mktemp("bench") / "run"
    report = compare(replace(OPTIONS, methods=("v2edit",)), processes=2, model=str(tiny_model), out=folder)
    return report, results_in(folder)


@pytest.mark.heavy
def test_a_task_is_reconstructed_once_and_its_results_depend_on_nothing_else(first, tiny_model):
    """What is missing, and what is new, is made from the reconstruction that is there: in one process or two, to the
    same bits."""
    report, before = first
    assert len(before) == 2 * 3
    lost = next(name for name in before if "SceneV2Edit" in name)
    (report.folder / "results" / lost).unlink()
    more = replace(OPTIONS, methods=("v2edit", "wo-reconstruction", "v2v"))
    again = compare(more, processes=1, model=str(tiny_model), out=report.folder)
    after = results_in(report.folder)
    assert len(after) == 2 * 5 and after[lost][1] == before[lost][1]
    assert all(after[name] == before[name] for name in before if name != lost)
    lines = list(csv.DictReader((report.folder / "report.csv").read_text().splitlines()))
    assert {line["method"] for line in lines} == {*REFERENCES, "V2Edit", "w/o reconstruction", "V2V"}
    assert "| w/o reconstruction | " in again.markdown
    for line in lines:
        assert 0 < float(line["psnr_held_out"]) < 60 and float(line["seconds"]) > 0


@pytest.mark.heavy
def test_what_a_result_holds_and_the_page_shows(first):
    report, _ = first
    task = SceneTask("recolour", 2_000_000_000, FitConfig(400, 30, 10))
    for path in sorted((report.folder / "results" / task.name).iterdir()):
        with np.load(path) as result:
            assert result["frames"].shape == task.clips.source.frames.shape
            assert result["held_out"].shape == task.posed.dataset.held_out.images.shape
            if path.name.startswith(Unedited.__name__):
                assert result["means"].shape == (400, 3) and "edit_transfer" not in result
            else:
                assert result["video"].shape == (9, 32, 32, 3) and np.isfinite(result["edit_transfer"])
    page = Page((report.folder / "report.html").read_text())
    data = json.loads(page.data)
    assert data["columns"][:4] == ["unedited", "truth", "autoencoder of the truth", "V2Edit"]
    assert data["measures"][0]["name"] == "psnr_held_out" and "in views that were held out" in data["notes"]
    assert (data["height"], data["width"]) == task.clips.source.frames.shape[1:3]


def test_a_scene_from_files_stands_beside_clips_in_a_suite(tiny_model: Path, tmp_path: Path, monkeypatch):
    """A dataset of photographs and a clip; of the scene both its edited video and its renders are measured."""
    monkeypatch.setattr("v2edit.bench.trials.ProcessPool", InlinePool)
    (tmp_path / "scene").mkdir()
    write_task(1_900_000_001, tmp_path / "scene", "recolour", views=8, side=32)
    video.write(np.zeros((5, 32, 32, 3), np.uint8), tmp_path / "clip.mp4", fps=8)
    pair = {"source_prompt": "a red ball", "target_prompt": "a blue ball"}
    lines = [{"scene": "scene", "kind": "scene", **pair}, {"video": "clip.mp4", "kind": "clip", **pair}]
    (tmp_path / "suite.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tiny = ("fit.gaussians=100", "fit.fit_steps=5", "fit.refit_steps=2")
    options = BenchOptions(str(tmp_path / "suite.jsonl"), methods=("v2edit", "wo-reconstruction", "v2v"), steps=2,
                           frames=3, settings=(*tiny, "subtasks=2"))  # fmt: skip
    report = compare(options, processes=1, model=str(tiny_model), out=tmp_path / "out", clip="primitives")
    rows = {(row["method"], row["kind"]): row for row in csv.DictReader((tmp_path / "out" / "report.csv").open())}
    assert len(rows) == 2 * 5 and float(rows["unedited", "scene"]["psnr_source"]) == pytest.approx(60, abs=0.2)
    for method in ("V2Edit", "V2V"):
        assert rows[method, "scene"]["ctids_video"] and rows[method, "scene"]["edit_transfer"]
        assert all(float(rows[method, "scene"][name]) > 0 for name in ("view_error_video", "view_error"))
        assert rows[method, "scene"]["ctids"] and not rows[method, "clip"]["ctids_video"]
    ablated = [rows[method, "scene"]["psnr_source"] for method in ("V2Edit", "w/o reconstruction")]
    assert ablated[0] != ablated[1] and rows["V2Edit", "clip"]["psnr_source"]
    assert "w/o reconstruction" in report.markdown.partition("Table C")[2]
    assert "Table B" in report.markdown and "Rendered Edited Scenes" in report.markdown
    check_other_tools(options, report, tiny_model, tmp_path)


def check_other_tools(options: BenchOptions, report: BenchReport, model: Path, folder: Path) -> None:
    """Results of other tools: the unedited scene as a splat, with a grey video of another length; and grey renders."""
    (start,) = report.folder.glob("results/scene-scene/Unedited-*.npz")
    unedited = load_result(start)
    gaussians = Gaussians.from_arrays(unedited)
    (folder / "same" / "scene-scene").mkdir(parents=True)
    write_splat(folder / "same" / "scene-scene" / "point_cloud.ply", gaussians)
    grey = np.full_like(np.asarray(unedited["frames"]), 100)
    video.write(grey[:2], folder / "same" / "scene-scene" / "edited_video.mp4", fps=8)
    for k, frame in enumerate(grey):
        (folder / "grey" / "scene").mkdir(parents=True, exist_ok=True)
        video.write_still(frame, folder / "grey" / "scene" / f"{k}.png")
    results = tuple(f"{name.title()}={folder / name}" for name in ("same", "grey"))
    again = compare(options, processes=1, model=str(model), out=report.folder, clip="primitives", results=results)
    rows = {(row["method"], row["kind"]): row for row in csv.DictReader((report.folder / "report.csv").open())}
    assert len(rows) == 2 * 5 + 2 and float(rows["Same", "scene"]["psnr_source"]) > 55  # its file rounds
    assert rows["Same", "scene"]["ctids_video"] and not rows["Grey", "scene"]["ctids_video"]
    expected = peak_signal_noise_ratio(np.asarray(unedited["frames"]), grey)
    assert float(rows["Grey", "scene"]["psnr_source"]) == pytest.approx(expected)
    assert "Same: its video has 2 frames for 3: its last frame repeated" in again.markdown
    assert "Same has results of 1 of 2 tasks" in again.markdown
    edited = again.markdown.partition("*Edited Video*")[2]
    assert re.search(r"\| Same \| [-\d]", edited) and re.search(r"\| Grey \| –", edited)
    run = folder / "grey" / "scene"
    (run / "edited.ply").write_bytes((folder / "same" / "scene-scene" / "point_cloud.ply").read_bytes())
    for name in ("subtask-1.mp4", "subtask-2.mp4", "compare.mp4"):
        (run / name).write_bytes(b"")
    assert scene_files(run) == (run / "edited.ply", run / "subtask-2.mp4")  # a run folder of this project
