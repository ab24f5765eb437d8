"""nerfstudio as a trainer: what its programs are called with, and nerfacto itself round the loop where it is installed.

The heavy test wants nerfstudio in an environment of its own, whose torch needs no GPU:

    python3.11 -m venv nerf && nerf/bin/pip install --only-binary fpsample nerfstudio torch==2.14.1 torchvision==0.29.1
    V2EDIT_NERFSTUDIO=$PWD/nerf pytest -m heavy -s tests/test_nerfstudio.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.scenes import cameras_of, dataset_of, gaussians_of

from v2edit import video as videos
from v2edit.errors import UserError
from v2edit.jobs.functions import resume_run
from v2edit.metrics.pixels import psnr
from v2edit.scenes.primitives import write_task
from v2edit.scenes.reading import read_scene
from v2edit.scenes.rer import render_video
from v2edit.scenes.trainers.base import FitRequest
from v2edit.scenes.trainers.nerfstudio import Nerfstudio
from v2edit.scenes.trainers.templates import Commands
from v2edit.scenes.trainers.views import TrainingFrame, write_training


def option(command: list[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command else None


def checkpoint(folder: Path, step: int) -> Path:
    file = folder / "model" / "scene" / "nerfacto" / "run" / "nerfstudio_models" / f"step-{step:09d}.ckpt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    (file.parent.parent / "config.yml").touch()
    return file


def test_steps_are_counted_on_from_fit_to_fit(tmp_path: Path) -> None:
    trainer = Nerfstudio("nerfacto", arguments=("--pipeline.model.far-plane", "50"))
    first = FitRequest(tmp_path / "fit-0", None, 300, 7, 0)
    command = trainer.fit_command(first)
    assert command[:2] == ["ns-train", "nerfacto"] and option(command, "--max-num-iterations") == "300"
    assert option(command, "--load-dir") is None and "--machine.device-type" not in command
    assert command.index("--pipeline.model.far-plane") < command.index("nerfstudio-data")  # the rest is the dataset's
    assert all(option(command, f"--{name}") == "none" for name in ("orientation-method", "center-method"))
    assert option(command, "--auto-scale-poses") == "False"
    assert trainer.find_fault(first) == "wrote no config.yml"
    checkpoint(first.folder, 200)
    assert trainer.find_fault(first) == "trained to step 200 only, of 299"
    checkpoint(first.folder, 299)
    assert trainer.find_fault(first) is None

    later = FitRequest(tmp_path / "fit-1", first.folder, 100, 7, 1)
    command = trainer.fit_command(later)
    folder = option(command, "--load-dir")
    assert folder is not None and (later.folder / folder).resolve() == checkpoint(first.folder, 299).parent
    assert option(command, "--max-num-iterations") == "100"
    text = "Step (% Done)\n310 (310.00%)  2 ms\n349 (349.00%)  2 ms\n"
    assert trainer.read_share(later, text) == pytest.approx(0.5)
    # One that was ended half way goes on from where it was.
    half = checkpoint(later.folder, 359)
    command = trainer.fit_command(later)
    assert option(command, "--load-dir") == str(half.parent.relative_to(later.folder))
    assert option(command, "--max-num-iterations") == "40"
    assert trainer.find_fault(later) == "trained to step 359 only, of 399"


def test_splatfacto_starts_anew_and_is_exported(tmp_path: Path) -> None:
    trainer = Nerfstudio("splatfacto", on_cpu=True)
    assert not trainer.starts_warm and trainer.programs == ("ns-train", "ns-render", "ns-export")
    command = trainer.fit_command(FitRequest(tmp_path, None, 300, 0, 1))
    assert not any(word.startswith("--pipeline.model") for word in command)
    assert option(command, "--machine.device-type") == "cpu"
    export = trainer.export_command(tmp_path, tmp_path / "export")
    assert export is not None and export[:2] == ["ns-export", "gaussian-splat"] and export[-1] == "export"
    assert Nerfstudio("nerfacto").export_command(tmp_path, tmp_path) is None


@pytest.mark.parametrize("seed", range(3))
def test_a_trainers_coordinates_show_the_same_scene(seed: int, tmp_path: Path) -> None:
    """Cameras lie within ±1 of the origin; a splat that is trained there looks the same in the scene's coordinates."""
    cameras, trained = cameras_of(seed, 4), gaussians_of(seed)
    frame = TrainingFrame.of(cameras)
    moved = frame.apply(cameras)
    assert np.abs(moved.centres).max() == pytest.approx(1) and np.abs(moved.centres.mean(0)).max() < 1e-9
    shown, restored = render_video(trained, moved), render_video(frame.restore(trained), cameras)
    assert np.abs(shown.astype(int) - restored).max() <= 2 and shown.std() > 5
    dataset = dataset_of(cameras, seed, masks=True)
    write_training(tmp_path / "dataset", dataset, frame)
    read = read_scene(tmp_path / "dataset").dataset
    assert read is not None and dataset.points is not None and read.points is not None
    np.testing.assert_allclose(read.cameras.camera_to_world, moved.camera_to_world, atol=1e-9)
    np.testing.assert_allclose(read.cameras.intrinsics, cameras.intrinsics)
    np.testing.assert_array_equal(read.masks, dataset.masks)
    in_frame = (dataset.points.positions - frame.centre) * frame.scale
    np.testing.assert_allclose(read.points.positions, in_frame, atol=1e-5)
    facts = json.loads((tmp_path / "dataset" / "transforms.json").read_text())
    assert len(facts["train_filenames"]) == 4 and len(facts["val_filenames"]) == len(facts["test_filenames"]) == 1


FIT, RENDER = 'fit = "a {dataset} {output}"\n', 'render = "a {model} {cameras} {output}"\n'
WRONG_FILES = {
    "no TOML": ("fit = ", "cannot read"),
    "no fit": (RENDER, "has no fit command"),
    "no render": (FIT, "has no render command"),
    "a command that there is not": (FIT + RENDER + 'train = "a"', "has 'train', expected fit, refit, render, export"),
    "a placeholder that there is not": ('fit = "a {dataset} {output} {previous}"\n' + RENDER, r"has \{previous\}"),
    "nothing to write into": ('fit = "a {dataset}"\n' + RENDER, r"has no \{output\}"),
    "half a quotation": ('fit = "a \'b"\n' + RENDER, "cannot be split into words"),
    "no text": ("fit = 3\n" + RENDER, "is no command"),
    "no words": ('fit = ""\n' + RENDER, "is no command"),
}


@pytest.mark.parametrize(("text", "says"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_file_of_commands_that_is_wrong_is_told_why(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(UserError, match=says):
        Commands.read(tmp_path / "t.toml")


# A nerfacto that a CPU can train: fewer rays, samples and cells. LPIPS, which is not asked for, gets random weights.
SMALL = """--pipeline.datamanager.train-num-rays-per-batch 256 --pipeline.model.num-nerf-samples-per-ray 16
--pipeline.model.num-proposal-samples-per-ray 32 16 --pipeline.model.log2-hashmap-size 14 --pipeline.model.max-res 256
--pipeline.model.num-levels 8"""
WEIGHTS = """import sys, torch, torchvision
torch.save(torchvision.models.alexnet().state_dict(), sys.argv[1])"""
STEPS, MORE_STEPS, CLEAR = 200, 80, 3.0  # of the first fit, of each later one; dB above a picture of one colour


@pytest.mark.heavy
def test_nerfacto_goes_round_the_loop_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nerfstudio itself: warm from fit to fit, ended within the last one and resumed, and what it shows is the
    edited video rather than anything else."""
    if not (env := os.environ.get("V2EDIT_NERFSTUDIO")):
        pytest.skip("V2EDIT_NERFSTUDIO names no environment with nerfstudio")
    weights = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    weights.parent.mkdir(parents=True)
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([Path(env, "bin", "python"), "-c", WEIGHTS, weights], check=True, env=bare)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    scene, out = tmp_path / "scene", tmp_path / "run"
    scene.mkdir()
    write_task(3, scene, "recolour", views=9, side=64)
    facts = json.loads((scene / "transforms.json").read_text())
    every = {"train_filenames": [frame["file_path"] for frame in facts["frames"]]}  # none is held out
    drop = {"val_filenames", "test_filenames"}
    facts = {name: fact for name, fact in facts.items() if name not in drop} | every
    (scene / "transforms.json").write_text(json.dumps(facts))
    words = ["--trainer", "nerfstudio:nerfacto", "--trainer-env", env, f"--trainer-args={' '.join(SMALL.split())}"]
    words += ["--path", "views", "--side", "64", "--frames", "9", "--steps", "10", "--subtasks", "2"]
    words += ["--fit-steps", str(STEPS), "--refit-steps", str(MORE_STEPS), "-o", str(out)]
    instruction = json.loads((scene / "scene.json").read_text())["instruction"]
    process = subprocess.Popen([sys.executable, "-m", "v2edit", "scene", str(scene), instruction, *words])
    log = out / ".state" / "trainer" / "fit-2" / "fit.log"
    while process.poll() is None and not (log.exists() and "% Done" in log.read_text()):
        time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130
    kept = {file: file.stat().st_mtime for file in (out / ".state" / "trainer").glob("fit-[01]/model/**/*.ckpt")}
    assert len(kept) == 2
    run = resume_run(out, show_progress=False)
    assert run.edited is None

    facts = json.loads((out / "run.json").read_text())
    assert [(fit["steps"], fit["warm"]) for fit in facts["fits"]] == [
        (STEPS, False), (MORE_STEPS, True), (MORE_STEPS, True),
    ]  # fmt: skip
    for number in (1, 2):
        assert "Done loading Nerfstudio checkpoint" in (out / "trained" / f"fit-{number}-fit.log").read_text()
    (last,) = (out / "trained" / "model").rglob("*.ckpt")
    assert last.name == f"step-{STEPS + 2 * MORE_STEPS - 1:09d}.ckpt"
    shown = [videos.read(out / f"{name}.mp4").frames[:] for name in ("before", "after")]
    source = read_scene(scene, side=64).dataset
    assert source is not None
    wanted = [source.images, videos.read(out / "subtask-2.mp4").frames[:]]
    plain = [np.broadcast_to(target.mean((0, 1, 2)).round().astype(np.uint8), target.shape) for target in wanted]
    likeness, colour = (
        [psnr(np.array(frames), target) for frames, target in zip(pair, wanted, strict=True)] for pair in (shown, plain)
    )
    print(f"PSNR {likeness}, of the mean colour {colour}; fits {facts['fits']}; changes {facts['changes']}")
    assert all(own > other + CLEAR for own, other in zip(likeness, colour, strict=True))
    # The edited scene is nearer to the edited video than the source's is.
    assert likeness[1] > psnr(shown[0], wanted[1])
