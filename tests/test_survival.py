"""Runs survive any end of their process: same bytes, few steps done again, nothing left lying about."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pipeline_of("5b").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def edit(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an edit takes; its clip is of noise, so that every bit of it matters."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    video.write(frames, path, fps=8)
    config = EditConfig(steps=STEPS, subtasks=SUBTASKS)
    prompts = {"source_prompt": "a red ball on the floor", "target_prompt": "a blue cube on the floor"}
    return {"video": path, **prompts, "model": str(model), "config": config, "frames": True}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An edit by a model that has learnt to draw: an untrained one's pictures are grey, whatever its latents are."""
    folder = tmp_path_factory.mktemp("drawn")
    write_sample(7, folder, "recolour")
    facts = json.loads((folder / "clip.json").read_text())
    config = EditConfig(steps=STEPS, subtasks=SUBTASKS)
    return {"video": folder / "clip.mp4", "instruction": facts["instruction"], "config": config, "frames": True}


@pytest.fixture(scope="module")
def scene(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("scene")
    write_task(3, folder, "recolour")
    prompts = {"source_prompt": "a red ball on the floor", "target_prompt": "a blue cube on the floor"}
    config, fit = EditConfig(steps=STEPS, subtasks=2), FitConfig(gaussians=300, fit_steps=60, refit_steps=30)
    return {"scene": folder, **prompts, "model": str(model), "config": config, "fit": fit, "side": 32, "frames": 9}


def test_an_edit_survives_being_killed(drawn, tmp_path):
    found = survive(edit_video, drawn, tmp_path / "runs", 4, signal.SIGKILL, seed=0)
    assert found.ends == 4 and found.codes == {-signal.SIGKILL: 4}


def test_a_scene_edit_survives_being_killed(scene, tmp_path):
    assert survive(edit_scene, scene, tmp_path / "runs", 3, signal.SIGKILL, seed=1).ends == 3


class Ended(BaseException):
    """An end without a word, for tests that go on in the same process."""


def ended(edit: dict[str, Any], out: Path, step: int, end: type[BaseException] = KeyboardInterrupt) -> None:
    """An edit that is ended after its so-manieth step."""
    left = [step]

    def tell(at: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise end

    with pytest.raises(end):
        edit_video(**edit, out=out, save_every=2, on_progress=tell)


def test_a_changed_input_is_refused_and_loses_nothing(edit, tmp_path):
    clip = Path(shutil.copy(edit["video"], tmp_path / "mine.mp4"))
    ended(edit | {"video": clip}, tmp_path / "run", 4)
    content = clip.read_bytes()
    clip.write_bytes(content + b"0")
    with pytest.raises(UserError, match="is not what it was when the run began; put that back") as told:
        resume_run(tmp_path / "run")
    assert "v2edit resume" in str(told.value) and "\n" not in str(told.value)
    clip.unlink()
    with pytest.raises(UserError, match="the input is gone"):
        resume_run(tmp_path / "run")
    assert read_run_state(tmp_path / "run").state == "failed"
    clip.write_bytes(content)
    steps: list[Any] = []
    again = resume_run(tmp_path / "run", on_progress=steps.append)
    assert [(at.subtask, at.step) for at in steps[:2]] == [(1, 4), (1, 5)]
    assert resume_run(again.folder).prompts == again.prompts  # done, it stays as it is
    assert read_run_state(again.folder).state == "done" and read_run_state(again.folder).done == len(steps) + 3


def test_a_changed_scene_is_refused(scene, tmp_path):
    folder = Path(shutil.copytree(scene["scene"], tmp_path / "scene"))

    def stop(stage: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit_scene(**scene | {"scene": folder}, out=tmp_path / "run", on_progress=stop)
    picture = sorted((folder / "images").iterdir())[5]
    shutil.copy(folder / "truth" / "images" / picture.name, picture)
    with pytest.raises(UserError, match="is not what it was when the run began"):
        resume_run(tmp_path / "run")


def test_a_language_model_is_asked_once_and_no_secret_is_kept(edit, tmp_path, monkeypatch):
    monkeypatch.setenv("V2EDIT_LVLM_KEY", "sk-quite-secret")
    pair = {"source": "a red ball on the floor", "target": "a blue cube on the floor"}
    request = {name: value for name, value in edit.items() if not name.endswith("_prompt")}
    with serve(completion(pair)) as server:
        url = server.url.replace("://", "://me:quite-secret@")
        lvlm = LVLMConfig(model="m", url=url)
        ended(request | {"instruction": "make it a blue cube", "lvlm": lvlm}, tmp_path / "run", 3)
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
        seen: list[int] = []

        def stop(at: FitProgress, seen: list[int] = seen, end: int = end) -> None:
            seen.append(at.step)
            if at.step == end + 1:
                raise Ended  # before this step is kept

        with pytest.raises(Ended):
            go(stop, snapshot)
        assert seen == list(range(before + 1, end + 2))
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

    # Before anything; when the first state is to be kept; in the middle; when the results are to be written.
    for full_at, room in ((0, 0), (1, 0), (9, 0), (7 * SUBTASKS, 32768)):
        out, steps = small_disk / f"run{full_at}", []

        def told(at: object, steps: list[object] = steps, full_at: int = full_at, room: int = room) -> None:
            steps.append(at)
            if len(steps) == full_at:
                fill(room)

        if full_at == 0:
            fill(room)
        with pytest.raises(UserError, match="No space left on device") as error:
            edit_video(**edit, out=out, save_every=2, on_progress=told)
        assert "\n" not in str(error.value)
        (small_disk / "filler").unlink()
        if full_at == 0:
            assert list(small_disk.iterdir()) == []
            continue
        assert f"v2edit resume {out}" in str(error.value)
        assert not [path for path in out.rglob("*") if path.name.endswith(".part")]
        before = len(steps)
        assert contents(resume_run(out, on_progress=told).folder) == whole
        assert before <= len(steps) <= 7 * SUBTASKS + 2  # what was not kept, and no more, was done again
        assert [path.name for path in small_disk.iterdir()] == [out.name]
        shutil.rmtree(out)


def test_ctrl_c_says_how_to_go_on(edit, tmp_path, monkeypatch, capsys):
    """The command itself: it stops after the step, with 130, and what it says to do next does it."""
    words = ["edit", str(edit["video"]), "--source-prompt", edit["source_prompt"], "--target-prompt",
             edit["target_prompt"], "--model", edit["model"], "--steps", "100", "-o", "run"]  # fmt: skip
    # A runner started in the background hands on an ignored SIGINT; a terminal does not.
    command = [sys.executable, "-c", "import signal; signal.signal(2, signal.default_int_handler); "
               "from v2edit.cli.app import main; raise SystemExit(main())"]  # fmt: skip
    process = subprocess.Popen([*command, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "step" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read().splitlines()
    assert process.wait() == 130
    assert rest[-1] == "v2edit: interrupted; go on with: v2edit resume run"
    (found,) = find_runs(tmp_path)
    assert found.state == "stopped" and 0 < found.done < found.total == 90
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "run"]) == 0
    capsys.readouterr()
    assert main(["runs", "."]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith("run  done") and "90/90 steps" in listed and listed.count("\n") == 1


@pytest.mark.heavy
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
@pytest.mark.parametrize("what", ["drawn", "scene"], ids=["edit", "scene"])
def test_fifty_ends(what, how, tmp_path, request):
    start = edit_video if what == "drawn" else edit_scene
    found = survive(start, request.getfixturevalue(what), tmp_path / "runs", 50, how, seed=2)
    print(f"\n{what}, {how.name}: {found}")
    assert found.ends == 50


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
    for stop in range(1, 5 * config.subtasks):
        snapshots, seen = Snapshots(tmp_path / str(stop), every=1), []
        snapshots.folder.mkdir()

        def tell(at: object, seen: list[object] = seen, stop: int = stop) -> None:
            seen.append(at)
            if len(seen) == stop + 1:
                raise Ended  # before this step is kept

        with pytest.raises(Ended):
            list(editor.subtasks(x0, text, config, tell, snapshots=snapshots))
        again: list[object] = []
        after = list(editor.subtasks(x0, text, config, again.append, snapshots=snapshots))
        assert again[0] == seen[-1], "no step that was kept is done again"
        assert all(torch.equal(one, other) for one, other in zip(after, whole, strict=True))
