"""Runs survive any end of their process: same bytes, few steps made again, nothing left behind."""

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.interrupts import interrupt_when_written
from support.models import pipeline_of
from support.servers import completion, serve
from support.survival import contents, survive

from v2edit import video
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.cli.app import main
from v2edit.editing import EditConfig, Editor
from v2edit.editing.progression import aligned_text
from v2edit.errors import UserError
from v2edit.jobs.functions import edit_scene, edit_video, resume_run
from v2edit.primitives.sample import write_sample
from v2edit.prompts import PromptPair
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.runs import find_runs, read_run_state
from v2edit.runs.snapshots import LoopSnapshot, Snapshots
from v2edit.scenes.config import FitConfig
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.optimise import FitProgress, optimise_gaussians, reconstruct
from v2edit.scenes.primitives import write_task
from v2edit.scenes.reading import read_scene

STEPS, SUBTASKS = 8, 3


@pytest.fixture(scope="module")
def edit(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The options of an edit of a clip of noise."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    video.write(frames, path, fps=8)
    config = EditConfig(steps=STEPS, subtasks=SUBTASKS)
    prompts = {"source_prompt": "a red ball on the floor", "target_prompt": "a blue cube on the floor"}
    return {"video": path, **prompts, "model": str(tiny_model), "config": config, "save_frames": True}


@pytest.fixture(scope="module")
def trained_edit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The options of an edit by the built-in model: an untrained one's pictures are grey, whatever its latents are."""
    folder = tmp_path_factory.mktemp("trained")
    write_sample(7, folder, "recolour", frames=5, size=32)
    facts = json.loads((folder / "clip.json").read_text())
    config = EditConfig(steps=6, subtasks=2, guidance=1.0)
    return {"video": folder / "clip.mp4", "instruction": facts["instruction"], "config": config, "save_frames": True}


@pytest.fixture(scope="module")
def scene(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The options of an edit of a small scene."""
    folder = tmp_path_factory.mktemp("scene")
    write_task(3, folder, "recolour", views=12, side=32)
    prompts = {"source_prompt": "a red ball on the floor", "target_prompt": "a blue cube on the floor"}
    config, fit = EditConfig(steps=6, subtasks=2), FitConfig(gaussians=200, fit_steps=24, refit_steps=12)
    return {"scene": folder, **prompts, "model": str(tiny_model), "config": config, "fit": fit, "side": 32, "frames": 9,
            "spread": True}  # fmt: skip


def test_an_edit_survives_being_killed(trained_edit, tmp_path):
    survival = survive(edit_video, trained_edit, tmp_path / "runs", 2, signal.SIGKILL, seed=0)
    assert survival.ends == 2 and survival.codes == {-signal.SIGKILL: 2}


def test_a_scene_edit_survives_being_killed(scene, tmp_path):
    assert survive(edit_scene, scene, tmp_path / "runs", 2, signal.SIGKILL, seed=1).ends == 2


class Killed(BaseException):
    """The end of a process, for tests that resume in the same process."""


def stop_after(steps: int, error: type[BaseException]) -> Callable[[object], None]:
    """Return an `on_progress` that raises an error when it is called for the so-manieth time."""
    calls = iter(range(1, steps + 1))

    def on_progress(progress: object) -> None:
        if next(calls) == steps:
            raise error

    return on_progress


def interrupt_edit(edit: dict[str, Any], out: Path, steps: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        edit_video(**edit, out=out, save_every=2, on_progress=stop_after(steps, KeyboardInterrupt))


def test_a_changed_input_is_refused_and_loses_nothing(edit, tmp_path):
    clip = Path(shutil.copy(edit["video"], tmp_path / "mine.mp4"))
    interrupt_edit(edit | {"video": clip}, tmp_path / "run", 4)
    content = clip.read_bytes()
    clip.write_bytes(content + b"0")
    with pytest.raises(UserError, match=re.escape(str(clip))) as caught:
        resume_run(tmp_path / "run")
    assert "v2edit resume" in str(caught.value)
    clip.unlink()
    with pytest.raises(UserError, match=re.escape(str(clip))):
        resume_run(tmp_path / "run")
    assert read_run_state(tmp_path / "run").state == "failed"
    clip.write_bytes(content)
    steps: list[Any] = []
    again = resume_run(tmp_path / "run", on_progress=steps.append)
    assert [(step.subtask, step.step) for step in steps[:2]] == [(1, 4), (1, 5)]
    assert resume_run(again.folder).prompts == again.prompts  # A run that is done stays as it is.
    assert read_run_state(again.folder).state == "done" and read_run_state(again.folder).done == len(steps) + 3


def test_a_changed_scene_is_refused(scene, tmp_path):
    folder = Path(shutil.copytree(scene["scene"], tmp_path / "scene"))
    with pytest.raises(KeyboardInterrupt):
        edit_scene(**scene | {"scene": folder}, out=tmp_path / "run", on_progress=stop_after(1, KeyboardInterrupt))
    picture = sorted((folder / "images").iterdir())[5]
    shutil.copy(folder / "truth" / "images" / picture.name, picture)
    with pytest.raises(UserError, match=re.escape(str(folder))):
        resume_run(tmp_path / "run")


def test_a_resumed_scene_says_how_to_look_at_it(scene, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        edit_scene(**scene, out=tmp_path / "run", on_progress=stop_after(1, KeyboardInterrupt))
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert f"v2edit view {tmp_path / 'run'}" in capsys.readouterr().out


def test_a_language_model_is_asked_once_and_no_secret_is_kept(edit, tmp_path, monkeypatch):
    monkeypatch.setenv("V2EDIT_LVLM_KEY", "sk-quite-secret")
    pair = {"source": "a red ball on the floor", "target": "a blue cube on the floor"}
    options = {name: value for name, value in edit.items() if not name.endswith("_prompt")}
    with serve(completion(pair)) as server:
        url = server.url.replace("://", "://me:quite-secret@")
        lvlm = LVLMConfig(model="m", url=url)
        interrupt_edit(options | {"instruction": "make it a blue cube", "lvlm": lvlm}, tmp_path / "run", 3)
        assert len(server.requests) == 1
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or b"quite-secret" not in path.read_bytes(), path
    run = resume_run(tmp_path / "run")  # the server is gone
    assert (run.prompts.source, run.prompts.target) == tuple(pair.values())


@pytest.mark.parametrize("some", [False, True], ids=["all", "some free"])
def test_a_fit_goes_on_from_any_step_to_the_same_gaussians(scene, tmp_path, monkeypatch, some):
    """Also across the steps at which faded Gaussians move, and become free where only some are."""
    monkeypatch.setattr("v2edit.runs.snapshots.PAUSE", -1.0)  # keep every step
    monkeypatch.setattr("v2edit.runs.snapshots.SHARE", 1e9)
    dataset, config = read_scene(scene["scene"], 32).dataset, FitConfig(gaussians=100, fit_steps=70)
    assert dataset is not None
    dataset = dataset.select(np.arange(8))
    start, free = reconstruct(dataset, replace(config, fit_steps=2)), torch.arange(100) < 40
    start.logit_opacities[60:] = -9  # faded, and not free

    def go(
        on_progress: Callable[[FitProgress], None] | None = None,
        snapshot: LoopSnapshot = LoopSnapshot(),
    ) -> Gaussians:
        if some:
            return optimise_gaussians(
                start, dataset, config.fit_steps, editable=free, on_progress=on_progress, snapshot=snapshot
            )
        return reconstruct(dataset, config, on_progress, snapshot=snapshot)

    whole = go()
    snapshot = Snapshots(tmp_path).loop("fit-0", every_step=False)
    for before, end in pairwise((0, 1, 49, 50, 69)):
        steps: list[int] = []
        stop = stop_after(end + 1 - before, Killed)  # before this step is saved

        def on_progress(progress: FitProgress, steps: list[int] = steps, stop: Callable[[object], None] = stop) -> None:
            steps.append(progress.step)
            stop(progress)

        with pytest.raises(Killed):
            go(on_progress, snapshot)
        assert steps == list(range(before + 1, end + 2))
    after = go(snapshot=snapshot)
    for name, tensor in whole.tensors().items():
        assert torch.equal(getattr(after, name), tensor), name


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing(edit, small_disk, tmp_path):
    whole = contents(edit_video(**edit, out=tmp_path / "whole").folder)

    def fill(room: int) -> None:
        with (small_disk / "filler").open("wb", buffering=0) as file:
            with suppress(OSError):
                while True:
                    file.write(bytes(4096))
            file.truncate(max(0, file.tell() - room))

    # Before anything; at the first snapshot; in the middle; when the results are to be written.
    for full_at, room in ((0, 0), (1, 0), (9, 0), (7 * SUBTASKS, 32768)):
        out, steps = small_disk / f"run{full_at}", []

        def on_progress(step: object, steps: list[object] = steps, full_at: int = full_at, room: int = room) -> None:
            steps.append(step)
            if len(steps) == full_at:
                fill(room)

        if full_at == 0:
            fill(room)
        with pytest.raises(UserError, match="No space left on device") as error:
            edit_video(**edit, out=out, save_every=2, on_progress=on_progress)
        assert "\n" not in str(error.value)
        (small_disk / "filler").unlink()
        if full_at == 0:
            assert list(small_disk.iterdir()) == []
            continue
        assert f"v2edit resume {out}" in str(error.value) and str(out / ".state") in str(error.value)
        assert not [path for path in out.rglob("*") if path.name.endswith(".part")]
        before = len(steps)
        assert contents(resume_run(out, on_progress=on_progress).folder) == whole
        assert (
            before <= len(steps) <= 7 * SUBTASKS + 2
        )  # The steps since the last snapshot, and no more, were made again.
        assert [path.name for path in small_disk.iterdir()] == [out.name]
        shutil.rmtree(out)


def test_ctrl_c_says_how_to_go_on(edit, tmp_path, monkeypatch, capsys):
    """The command stops after the step, with 130, and what it says to do next does it."""
    monkeypatch.chdir(tmp_path)
    words = ["edit", str(edit["video"]), "--source-prompt", edit["source_prompt"], "--target-prompt",
             edit["target_prompt"], "--model", edit["model"], "--steps", "20", "-o", "run"]  # fmt: skip
    with interrupt_when_written(", step ") as stderr:
        assert main(words) == 130
    assert "v2edit resume run" in stderr.getvalue().splitlines()[-1]
    (state,) = find_runs(tmp_path)
    assert state.state == "stopped" and 0 < state.done < state.total == 18
    assert main(["resume", "run"]) == 0
    capsys.readouterr()
    assert main(["runs", "."]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and {"run", "done", "18/18"} <= set(lines[0].split())


@pytest.mark.heavy
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
@pytest.mark.parametrize("kind", ["trained_edit", "scene"])
def test_fifty_ends(kind, how, tmp_path, request):
    start = edit_video if kind == "trained_edit" else edit_scene
    survival = survive(start, request.getfixturevalue(kind), tmp_path / "runs", 50, how, seed=2)
    print(f"\n{kind}, {how.name}: {survival}")
    assert survival.ends == 50


@pytest.mark.parametrize(
    "config",
    [
        EditConfig(steps=6, subtasks=2, beta=0.4, guidance=6.0),
        EditConfig(steps=6, solver="dpm-sde", beta=0.4, ending="same", guidance=6.0),
        EditConfig(steps=6, solver="dpm-sde", beta=0.4, pnc=False, guidance=6.0),
    ],
    ids=["two sources", "noise to the end", "maps alone"],
)
def test_an_edit_goes_on_from_any_step_to_the_same_latents(config, tmp_path):
    """To the last bit, which pictures of an untrained autoencoder would not show: ended after each step in turn."""
    editor = Editor(CogVideoX(pipeline_of("5b")))
    text = aligned_text(editor.backbone, PromptPair("a red ball on the floor", "a blue cube on the floor"))
    x0 = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = list(editor.subtasks(x0, text, config))
    for end in range(1, 5 * config.subtasks):
        snapshots, before, after = Snapshots(tmp_path / str(end), every=1), [], []
        snapshots.folder.mkdir()
        stop = stop_after(end + 1, Killed)  # before this step is saved

        def on_progress(step: object, steps: list[object] = before, stop: Callable[[object], None] = stop) -> None:
            steps.append(step)
            stop(step)

        with pytest.raises(Killed):
            list(editor.subtasks(x0, text, config, on_progress, snapshots=snapshots))
        resumed = list(editor.subtasks(x0, text, config, after.append, snapshots=snapshots))
        assert after[0] == before[-1], "no step that was saved is made again"
        assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))
