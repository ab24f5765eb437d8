"""Render-edit-reconstruct: the steps of an edit, what each subtask changed, and the whole command."""

import json
import shutil
import urllib.request
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.clips import PAIR, SAME, frames_of
from support.models import pipeline_of
from support.scenes import dataset_of, gaussians_of, ring
from support.servers import completion, serve

from v2edit import video
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.cli.app import main
from v2edit.editing import EditConfig, Editor
from v2edit.errors import UserError
from v2edit.jobs.functions import edit_scene
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.scenes.camera_paths import CameraPath, along_views
from v2edit.scenes.config import FitConfig
from v2edit.scenes.formats.nerfstudio import write_transforms
from v2edit.scenes.formats.rows import Splat
from v2edit.scenes.formats.splats import read_splat, read_splat_file, write_splat_file
from v2edit.scenes.masks import editable_mask
from v2edit.scenes.primitives import write_task
from v2edit.scenes.rasterise import rasteriser_device
from v2edit.scenes.reading import Scene, choose_path, read_scene
from v2edit.scenes.rer import (
    MAX_TRANSFER,
    MIN_TRANSFER,
    Change,
    GaussianScene,
    SceneProgress,
    autoencode,
    edit_gaussians,
    measure_change,
    prepare_refit,
    render_edit_reconstruct,
    render_video,
    resolve_fit,
    warn_of_weak_edit,
)


def test_a_subtask_starts_from_the_video_that_it_is_given():
    editor, config = Editor(CogVideoX(pipeline_of("5b"))), EditConfig(steps=10, subtasks=3, mixture=0.0)
    plain = editor.edit(frames_of(0), PAIR, config)
    edit = editor.begin(PAIR, config)
    result = [edit.next_subtask(frames_of(0)), *(edit.next_subtask(np.full_like(frames_of(0), 40 * k)) for k in (1, 2))]
    np.testing.assert_array_equal(result[0], plain.subtasks[0])
    assert (result[1] != plain.subtasks[1]).any() and (result[2] != plain.subtasks[2]).any()


def test_replacing_the_video_by_itself_changes_nothing_but_the_round_trip():
    """With equal prompts and full control each subtask gives back what it got: the autoencoder's loss is all."""
    editor = Editor(CogVideoX(pipeline_of("5b")))
    edit = editor.begin(SAME, EditConfig(steps=10, subtasks=2, beta=0.0, mixture=0.0))
    edit.next_subtask(frames_of(0))
    result = edit.next_subtask(frames_of(7))
    wanted = editor.backbone.decode(editor.backbone.encode(frames_of(7)))
    assert np.abs(result.astype(int) - wanted).max() <= 1


def test_the_loop_edits_reconstructs_and_reports(caplog):
    editor = Editor(CogVideoX(pipeline_of("5b")))
    path = along_views(ring(9, turn=1.0, height=32, width=32))
    reports: list[SceneProgress] = []
    scene, config = gaussians_of(0, 80, 0), EditConfig(steps=4, subtasks=2)
    result = edit_gaussians(editor, scene, path, PAIR, config, FitConfig(refit_steps=6), reports.append)
    assert len(result.videos) == len(result.renders) == len(result.changes) == 2
    shape = (9, *result.source.shape[1:])
    assert {video.shape for video in [result.source, *result.videos, *result.renders]} == {shape}
    # So few steps transfer a fifth of the second subtask's edit at most: that one is warned of.
    weak = [k for k, change in enumerate(result.changes, 1) if not MIN_TRANSFER <= change.edit_transfer <= MAX_TRANSFER]
    warned = [[k for k in (1, 2) if f"subtask {k}" in line] for line in caplog.messages]
    assert 2 in weak and warned == [[k] for k in weak]
    assert len(result.scene.gaussians) >= 80 and not torch.equal(result.scene.gaussians.sh[:80], scene.sh)
    phases = list(dict.fromkeys(report.phase for report in reports))
    assert phases == [f"subtask {k}/2, {verb}" for k in (1, 2) for verb in ("editing", "reconstructing")]
    assert all((report.psnr is not None) == report.phase.endswith("reconstructing") for report in reports)


def test_without_reconstruction_between_the_video_is_edited_in_one_go():
    editor = Editor(CogVideoX(pipeline_of("5b")))
    path = along_views(ring(9, turn=1.0, height=32, width=32))
    scene, config, fit = gaussians_of(0, 80, 0), EditConfig(steps=4, subtasks=2), FitConfig(refit_steps=2)
    result = edit_gaussians(editor, scene, path, PAIR, config, fit, between=False)
    (video,) = result.videos
    assert len(result.renders) == len(result.changes) == 1
    np.testing.assert_array_equal(video, editor.edit(result.source, PAIR, config).frames)


def test_a_scene_that_did_not_take_an_edit_on_is_warned_of(caplog):
    before = frames_of(0, 3, 32, 32)
    edited = np.clip(before.astype(int) // 2 + 100, 0, 255).astype(np.uint8)
    full, none, half = (
        measure_change(before, edited, before, after) for after in (edited, before, before // 2 + edited // 2)
    )
    assert full.edit_transfer == pytest.approx(1) and none.edit_transfer == pytest.approx(0)
    assert 0.4 < half.edit_transfer < 0.6
    warn_of_weak_edit(full, 1)
    assert not caplog.records
    warn_of_weak_edit(none, 2)
    warn_of_weak_edit(measure_change(before, before, before, before), 3)
    assert [("subtask 2" in line, "subtask 3" in line) for line in caplog.messages] == [(True, False), (False, True)]


@pytest.mark.parametrize(
    ("share", "says"),
    [(-0.23, "opposite way"), (-3.0, "opposite way"), (-0.01, "next to nothing"), (0.0, "next to nothing"),
     (0.23, "only 23% of what subtask 1 changed"), (0.5, ""), (1.2, ""), (2.31, "2.3 times as much")],
)  # fmt: skip
def test_a_share_is_told_as_people_would(share, says, caplog):
    warn_of_weak_edit(Change(10.0, share), 1)
    assert len(caplog.messages) == bool(says)
    for line in caplog.messages:
        assert says in line and "-" not in line.split(":")[0] and "subtask 1" in line


def test_what_the_autoencoder_changes_is_no_edit(caplog):
    backbone = CogVideoX(pipeline_of("5b"))
    path = along_views(ring(9, turn=1.0, height=32, width=32))
    gaussians = gaussians_of(0, 80, 0)
    scene = GaussianScene(gaussians, resolve_fit(FitConfig(refit_steps=2), gaussians, path))
    result = render_edit_reconstruct(partial(autoencode, backbone), backbone, scene, path)
    assert result.changes[0].edited < 0.01
    assert ["subtask 1" in line for line in caplog.messages] == [True]


def test_a_scene_is_reconstructed_from_changed_pixels_alone():
    cameras, scene = ring(3, turn=0.2).resized(32, 32), gaussians_of(0, 80, 0)
    unedited, edited, mask = render_video(scene, cameras), frames_of(0, 3, 32, 32), torch.zeros(3, 32, 32)
    mask[:, :, :8] = 1
    start, target, editable = prepare_refit(scene, cameras, edited, mask, 0)
    np.testing.assert_array_equal(target.images[:, :, :8], edited[:, :, :8])
    np.testing.assert_array_equal(target.images[:, :, 8:], unedited[:, :, 8:])
    assert torch.equal(editable[:80], editable_mask(scene, cameras, mask)) and 0 < editable[:80].sum() < 80
    assert editable[80:].all() and len(editable) == len(start)


def test_what_an_edit_leaves_alone_stays_to_the_bit():
    """The mask is that of the edit, without what the autoencoder, which is very lossy here, does to all pixels."""
    backbone, scene = CogVideoX(pipeline_of("5b")), gaussians_of(0, 80, 0)
    scene = replace(
        scene,
        means=scene.means + torch.tensor([1, 2, 0.5]),  # before the ring's cameras
        log_scales=torch.full((80, 3), -2.5),
        logit_opacities=torch.full((80,), 4.0),
    )

    def edit(frames: np.ndarray) -> np.ndarray:
        edited = autoencode(backbone, frames).copy()
        edited[:, :, : edited.shape[2] // 4] ^= 128
        return edited

    path = along_views(ring(9, turn=0.2).resized(32, 32))
    fit = resolve_fit(FitConfig(refit_steps=2), scene, path)
    result = render_edit_reconstruct(edit, backbone, GaussianScene(scene, fit), path)
    moved = (result.scene.gaussians.sh[:80] != scene.sh).flatten(1).any(1)
    assert 0 < moved.sum() < 40  # 20; without the mask 57


def test_a_language_model_that_sees_the_photographs_writes_a_scenes_prompts(sample, tiny_model, tmp_path, capsys):
    known = json.loads((sample / "scene.json").read_text())["source_prompt"]
    pair = {"source": known, "target": f"{known} at night"}
    quick = {
        "config": EditConfig(steps=2),
        "fit": FitConfig(gaussians=100, fit_steps=4, refit_steps=2),
        "side": 32,
        "frames": 5,
    }
    with serve(completion(pair), endless=True) as server:
        asking = ["--lvlm", "m", "--lvlm-url", server.url]
        words = ["--steps", "2", "--side", "32", "--frames", "5", "--model", str(tiny_model)]
        assert main(["scene", str(sample), "make it green", *words, *asking, "--dry-run"]) == 0
        assert "without the language model" in capsys.readouterr().out
        lvlm = LVLMConfig("m", url=server.url)
        with pytest.raises(UserError, match="--path is 'spiral'"):
            edit_scene(sample, "make it green", path="spiral", lvlm=lvlm, out=tmp_path / "no")
        assert not server.requests
        edit_scene(sample, "make it green", lvlm=lvlm, out=tmp_path / "run", **quick)
        (request,) = server.requests
    assert "make it green" in request.text and request.text.count("data:image/jpeg") == 8
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["prompts"] == pair | {"intermediate": []} and facts["lvlm"]["model"] == "m"


def test_the_built_in_model_sees_what_a_scene_of_its_world_shows(sample, tmp_path, caplog):
    shutil.copytree(sample, tmp_path / "scene")
    (tmp_path / "scene" / "scene.json").unlink()

    def stop(stage: SceneProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit_scene(tmp_path / "scene", "turn the sky dark", out=tmp_path / "run", on_progress=stop)
    (line,) = caplog.messages
    assert "taken to show: three green" in line
    assert not any(word in line for word in ("camera", "still", "slides", "hops"))  # of what only a clip shows


def test_which_path_is_meant(tmp_path):
    dataset = dataset_of(ring(20))
    write_transforms(tmp_path, dataset)
    scene = read_scene(tmp_path)
    assert len(choose_path("auto", scene, 5, 64).cameras) == 5  # no saved path: the views
    np.testing.assert_array_equal(
        choose_path("views", scene, 99, 64).cameras.camera_to_world, dataset.training.cameras.camera_to_world
    )
    assert choose_path("orbit", scene, 12, 64).closed
    (tmp_path / "camera_paths").mkdir()
    from v2edit.scenes.camera_paths import write_path

    saved = CameraPath(replace(ring(7, 1.0, 100, 200)), False)
    write_path(tmp_path / "camera_paths" / "one.json", saved, 8, dataset.applied)
    found = choose_path("auto", scene, 99, 64)
    np.testing.assert_allclose(found.cameras.camera_to_world, saved.cameras.camera_to_world, atol=1e-6)
    assert (found.cameras.height, found.cameras.width) == (32, 64)
    for path in ("nowhere.json", "spiral"):
        with pytest.raises(UserError, match="expected auto, views, orbit"):
            choose_path(path, scene, 9, 64)
    splat = Scene(tmp_path / "a.ply", splat=Splat(gaussians_of(0)))
    with pytest.raises(UserError, match="has no views of its own"):
        choose_path("views", splat, 9, 64)
    around = choose_path("auto", splat, 9, 64)
    assert around.closed and len(around.cameras) == 9


def test_scenes_are_on_the_cpu_where_there_is_no_gpu():
    assert rasteriser_device("cpu").type == "cpu"


QUICK = ["--steps=3", "--fit-steps=40", "--refit-steps=10", "--gaussians=600", "--side=48", "--frames=5"]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    write_task(3, folder, "recolour", views=16, side=64)
    return folder


@pytest.fixture(scope="module")
def run(sample: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edit")
    instruction = json.loads((sample / "scene.json").read_text())["instruction"]
    with redirect_stderr(StringIO()) as errors, redirect_stdout(StringIO()) as lines:
        words = [*QUICK, "--subtasks", "2", "--model", str(tiny_model)]
        assert main(["scene", str(sample), instruction, *words, "-o", str(folder / "run")]) == 0
    assert "subtask 2/2, reconstructing, PSNR" in errors.getvalue() and "v2edit view" in lines.getvalue()
    assert [one.name for one in folder.iterdir()] == ["run"]  # nothing half-written is left
    return folder / "run"


def test_the_run_folder_holds_what_was_promised(sample, run, tmp_path):
    names = {one.name for one in run.iterdir()}
    assert names == {
        "run.json", "scene.ply", "edited.ply", "camera_path.json", "dataparser_transforms.json", "before.mp4",
        "after.mp4", "compare.mp4", "subtask-1.mp4", "subtask-2.mp4", "contact.png", "dataset", "held-out",
        "held-out.png",
    }  # fmt: skip
    facts = json.loads((run / "run.json").read_text())
    assert len(facts["changes"]) == 2 and facts["reconstruction_psnr"] > 20
    # A scene shows what the frames of the video have in common, and agrees with itself better than they do.
    assert all(0 < change["view_error"] < change["view_error_video"] < 20 for change in facts["changes"])
    assert facts["config"]["guidance"] > 0 and facts["config"]["beta"] is not None  # what it was done with
    numbers = {"gaussians": 600, "fit_steps": 40, "refit_steps": 10, "degree": 1}
    assert facts["fit"] == {"quality": "normal", "antialias": False, **numbers}  # what was open, too
    before, after = read_splat(run / "scene.ply"), read_splat(run / "edited.ply")
    assert 600 == len(before) <= len(after) and not torch.equal(before.sh, after.sh[:600])
    assert video.read(run / "after.mp4").frames.shape == video.read(run / "before.mp4").frames.shape
    rows = ("before", "subtask 1, the video", "subtask 1, the scene", "subtask 2, the video", "after")
    sheet = video.contact_sheet(dict.fromkeys(rows, video.read(run / "after.mp4").frames), tmp_path / "sheet.png")
    assert Image.open(run / "contact.png").size == Image.open(sheet).size  # each scene once
    source, edited = (read_scene(folder, side=48).dataset for folder in (sample, run / "dataset"))
    assert source is not None and edited is not None
    # The edited dataset is the same views of another scene: what was trained on the one trains on the other.
    np.testing.assert_allclose(edited.cameras.camera_to_world, source.cameras.camera_to_world, atol=1e-6)
    np.testing.assert_allclose(edited.cameras.intrinsics, source.cameras.intrinsics, atol=1e-6)
    np.testing.assert_array_equal(edited.is_held_out, source.is_held_out)
    assert len(list((run / "held-out").iterdir())) == source.is_held_out.sum()


def test_a_splat_alone_can_be_edited(run, tiny_model, tmp_path):
    """By the prompts that another run's manifest holds, along the path that it saved. What its file says beside its
    Gaussians is kept, and the edited one is written in another format, too."""
    labels = np.ones(600, [("label", "u1")])
    write_splat_file(
        tmp_path / "a.ply", Splat(replace(read_splat(run / "scene.ply"), antialiased=True), ("Made by hand",), labels)
    )
    words = ["--prompts", run / "run.json", "--path", run / "camera_path.json", "--frames", 5, "--side", 32]
    quick = ["--steps", 2, "--refit-steps", 2, "--format", "spz", "--model", tiny_model]
    assert main(["scene", *map(str, [tmp_path / "a.ply", *words, *quick, "-o", tmp_path / "out"])]) == 0
    splat = read_splat_file(tmp_path / "out" / "edited.ply")
    assert splat.gaussians.antialiased and "Made by hand" in splat.comments and splat.extra is not None
    before, after = read_splat(run / "scene.ply").sh, splat.gaussians.sh[:600]
    untouched = (before == after).all(2).all(1).numpy()
    assert (splat.extra["label"][:600][~untouched] == 0).all() and not splat.extra["label"][600:].any()
    other = read_splat_file(tmp_path / "out" / "edited.spz")
    assert other.gaussians.antialiased and len(other.gaussians) == len(splat.gaussians)
    torch.testing.assert_close(other.gaussians.means, splat.gaussians.means, rtol=0, atol=1e-4)
    assert len(list((tmp_path / "out" / "dataset" / "images").iterdir())) == 5
    ours, theirs = (json.loads((folder / "run.json").read_text())["prompts"] for folder in (tmp_path / "out", run))
    assert (ours["source"], ours["target"]) == (theirs["source"], theirs["target"])


def test_the_viewer_serves_a_run(run):
    from v2edit.scenes.viewer import start

    viewer = start(run, 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{viewer.server.get_port()}", timeout=30) as page:
            assert page.status == 200 and b"<html" in page.read().lower()
    finally:
        viewer.server.stop()
    with pytest.raises(UserError, match="no scene to view"):
        start(run / "dataset", 0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["scene", "nowhere", "make it red"], "no such scene: nowhere"),
        (["scene", ".", "make it red", "--source-prompt", "a", "--target-prompt", "b"], "there is no scene in ."),
        (["scene", ".", "make it red", "--gaussians", "0"], "--gaussians is 0, expected 1 or more"),
        (["scene", ".", "--frames", "1"], "--frames is 1, expected 2 or more"),
        (["scene", ".", "--side", "0"], "--side is 0, expected 1 or more"),
        (["view", "nowhere"], "there is no scene to view in nowhere"),
    ],
)
def test_mistakes_are_one_line(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error
