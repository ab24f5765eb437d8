"""Scenes that another program trains: a program of the tests' own goes round the loop, and wrong in every way."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes import RunningCommand
from support.scenes import gaussians_of

from v2edit import video as videos
from v2edit.cli.app import main
from v2edit.errors import UserError
from v2edit.jobs.functions import edit_scene, resume_run
from v2edit.scenes.formats.rows import Splat
from v2edit.scenes.formats.splats import read_splat, write_splat_file
from v2edit.scenes.primitives import write_task
from v2edit.scenes.reading import read_scene
from v2edit.scenes.trainers.base import FitRequest
from v2edit.scenes.trainers.templates import Commands

PROGRAM = Path(__file__).parent / "support" / "other_trainer.py"
TOML = '''
fit = """mytrain fit --data {dataset} --out {output} --steps {steps} --seed {seed} --subtask {subtask}
         --note 'a "b" c'"""
render = "mytrain render --model {model} --cameras={cameras} --out {output}"
'''
REFIT = """
refit = ["mytrain", "fit", "--data", "{dataset}", "--out", "{output}", "--steps={steps}", "--subtask", "{subtask}",
         "--warm", "{previous}"]
"""
EXPORT = """
export = "mytrain export --model {model} --out {output}"
"""
QUICK: dict[str, Any] = {"steps": 3, "subtasks": 2, "side": 48, "frames": 5, "fit_steps": 40, "refit_steps": 10}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    write_task(3, folder, "recolour", views=16, side=64)
    return folder


class Trainer:
    """The program in an environment of its own, whose path no shell would leave in one piece, and the model that edits
    what it shows."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.model = model
        self.env = folder / "my 'env' & co"
        self.bin = self.env / "bin"
        self.bin.mkdir(parents=True)
        (self.env / "pyvenv.cfg").touch()
        program = self.bin / "mytrain"
        program.write_text(f"#!{sys.executable}\n" + PROGRAM.read_text())
        program.chmod(0o755)
        self.toml = folder / "trainer.toml"
        self.toml.write_text(TOML + REFIT)

    @property
    def options(self) -> dict[str, Any]:
        return {"trainer": str(self.toml), "trainer_env": self.env, "model": str(self.model)}

    @property
    def words(self) -> list[Any]:
        options = QUICK | self.options
        return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]

    @property
    def calls(self) -> list[dict[str, Any]]:
        file = self.bin / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def fits(self) -> list[str]:
        return [call["subtask"] for call in self.calls if call["command"] == "fit"]

    def go_wrong(self, mode: str | None) -> None:
        if mode is None:
            (self.bin / "mode").unlink()
        else:
            (self.bin / "mode").write_text(mode)


@pytest.fixture
def trainer(tmp_path: Path, tiny_model: Path) -> Trainer:
    return Trainer(tmp_path, tiny_model)


def instruction_of(sample: Path) -> str:
    return json.loads((sample / "scene.json").read_text())["instruction"]


def edit(sample: Path, out: Path, trainer: Trainer, /, **more: Any) -> Any:
    return edit_scene(sample, instruction_of(sample), out=out, **(QUICK | trainer.options | more), show_progress=False)


@pytest.fixture(scope="module")
def done(sample: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer, list[Any]]:
    """A run of two subtasks, the trainer that it called, and the progress that it told."""
    folder = tmp_path_factory.mktemp("done")
    trainer, reports = Trainer(folder, tiny_model), list[Any]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(["/ours", os.environ.get("PYTHONPATH", "")]))
        patch.setenv("LD_LIBRARY_PATH", "/ours/lib")
        patch.setenv("VIRTUAL_ENV", "/ours")
        run = edit(sample, folder / "run", trainer, on_progress=reports.append)
    assert run.edited is None and "another program" in repr(run)
    return folder / "run", trainer, reports


def test_the_loop_goes_through_another_program(done: tuple[Path, Trainer, list[Any]], tmp_path: Path) -> None:
    run, trainer, reports = done
    assert trainer.fits == ["0", "1", "2"]
    model = json.loads((run / "trained" / "model" / "model.json").read_text())
    assert model["history"] == ["40", "10", "10"]  # each fit started from the one before
    facts = json.loads((run / "run.json").read_text())
    assert [(fit["subtask"], fit["steps"], fit["warm"]) for fit in facts["fits"]] == [
        (0, 40, False), (1, 10, True), (2, 10, True),
    ]  # fmt: skip
    # The program's own: it loads a picture or two, where this process has loaded torch.
    assert all(2**20 < fit["peak_memory"] < 150 * 2**20 for fit in facts["fits"])
    assert all(fit[f"{what}_seconds"] > 0 for fit in facts["fits"] for what in ("fitting", "rendering"))
    assert facts["trainer"]["calls"]["commands"]["refit"][-2:] == ["--warm", "{previous}"]
    assert all(change["view_error"] is None for change in facts["changes"])  # it does not tell its depth
    trained = read_scene(run / "trained" / "dataset").dataset
    assert trained is not None
    shown = videos.write(trained.images, tmp_path / "trained.mp4", fps=videos.read(run / "after.mp4").fps)
    assert shown.read_bytes() == (run / "after.mp4").read_bytes()
    edits = [f"subtask {k}/2, {verb}" for k in (1, 2) for verb in ("editing", "reconstructing")]
    phases = list(dict.fromkeys(report.phase for report in reports))
    assert phases == ["reconstructing", *edits]
    assert facts["steps"]["done"] == facts["steps"]["total"]


def test_the_run_folder_holds_what_another_programs_scene_can_give(
    done: tuple[Path, Trainer, list[Any]], sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, *_ = done
    assert {one.name for one in run.iterdir()} == {
        "run.json", "trained", "camera_path.json", "dataparser_transforms.json", "before.mp4", "after.mp4",
        "compare.mp4", "subtask-1.mp4", "subtask-2.mp4", "contact.png", "dataset", "held-out", "held-out.png",
    }  # fmt: skip
    logs = {f"fit-{k}-{what}.log" for k in range(3) for what in ("fit", "render")}
    assert {one.name for one in (run / "trained").iterdir()} == {
        "dataset",
        "model",
        "dataparser_transforms.json",
        *logs,
    }
    assert resume_run(run, show_progress=False).edited is None
    source, edited = (read_scene(folder, side=48).dataset for folder in (sample, run / "dataset"))
    assert source is not None and edited is not None
    np.testing.assert_allclose(edited.cameras.camera_to_world, source.cameras.camera_to_world, atol=1e-6)
    before, after = (videos.read(run / f"{name}.mp4").frames[:] for name in ("before", "after"))
    assert before.shape == after.shape == (5, 32, 48, 3) and np.abs(before.astype(int) - after).mean() > 1
    assert main(["view", str(run)]) == 2
    assert "no scene to view" in capsys.readouterr().err


def test_the_program_runs_in_its_own_environment(done: tuple[Path, Trainer, list[Any]]) -> None:
    _, trainer, _ = done
    for call in trainer.calls:
        environment = call["environment"]
        assert environment.keys() == {"VIRTUAL_ENV", "PATH"}  # nothing of ours
        assert environment["VIRTUAL_ENV"] == str(trainer.env)
        assert environment["PATH"].split(os.pathsep)[0] == str(trainer.bin)
    assert trainer.calls[0]["note"] == 'a "b" c'


WRONG = {
    "fails": ("fit 1 fail", ["mytrain failed with code 3: MemoryError: the model is too large"]),
    "hangs": ("fit 1 hang", ["mytrain said nothing for 3 s", "--trainer-timeout", "loading"]),
    "renders in another size": ("render 0 small", ["rendered frames of 20x12, expected 40x24"]),
}
WRONG_TOO = {
    "writes nothing": ("fit 1 nothing", ["mytrain ended without an error and wrote nothing"]),
    "fails at first": ("fit 0 fail", ["mytrain failed with code 3"]),
    "is killed": ("fit 2 killed", ["mytrain was ended by SIGKILL", "said nothing"]),
    "renders nothing": ("render 1 nothing", ["rendered nothing", "expected 5 images"]),
    "fails to render": ("render 2 fail", ["mytrain failed with code 3"]),
}
CASES = [
    *(pytest.param(*case, id=name) for name, case in WRONG.items()),
    *(pytest.param(*case, id=name, marks=pytest.mark.heavy) for name, case in WRONG_TOO.items()),
]


@pytest.mark.parametrize(("mode", "says"), CASES)
def test_what_goes_wrong_is_told_in_one_line_and_can_be_resumed(
    mode: str, says: list[str], sample: Path, trainer: Trainer, tmp_path: Path, done: tuple[Path, Trainer, list[Any]]
) -> None:
    out = tmp_path / "run"
    trainer.go_wrong(mode)
    with pytest.raises(UserError, match="v2edit resume") as error:
        edit(sample, out, trainer, **({"trainer_timeout": 3.0} if mode.endswith("hang") else {}))
    assert all(words in str(error.value) for words in says), error.value
    assert "\x1b" not in str(error.value)
    assert json.loads((out / "run.json").read_text())["status"] == "failed"
    command, number, _ = mode.split()
    finished = trainer.fits[:-1] if command == "fit" else trainer.fits
    trainer.go_wrong(None)
    resume_run(out, show_progress=False)
    again = trainer.fits[len(finished) + (command == "fit") :]
    assert finished + again == ["0", "1", "2"] and number in [*again, *finished[-1:]]  # what was done is not done again
    expected, result = (sorted((run / "dataset" / "images").iterdir()) for run in (done[0], out))
    assert [one.read_bytes() for one in result] == [one.read_bytes() for one in expected]


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to look at processes")
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.heavy), signal.SIGKILL], ids=lambda one: one.name
)
def test_it_ends_with_the_run_however_that_ends(
    number: signal.Signals, sample: Path, trainer: Trainer, tmp_path: Path, done: tuple[Path, Trainer, list[Any]]
) -> None:
    out, pids = tmp_path / "run", trainer.bin / "pids"
    trainer.go_wrong("fit 2 wait")
    process = RunningCommand("scene", sample, instruction_of(sample), *trainer.words, "--quiet", "-o", out)
    try:
        deadline = time.monotonic() + 300
        while not pids.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        children = list(map(int, pids.read_text().split()))
        assert all(map(is_alive, children))
        process.send_signal(number)
        code = process.wait(60)
    finally:
        process.kill()
    assert code == (130 if number != signal.SIGKILL else -number), process.stderr.read()
    deadline = time.monotonic() + 60
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, children))
    trainer.go_wrong(None)
    resume_run(out, show_progress=False)
    assert trainer.fits == ["0", "1", "2", "2"]
    assert not (out / "trained" / "model" / "half").exists()  # what the first one left
    expected, result = (sorted((run / "dataset" / "images").iterdir()) for run in (done[0], out))
    assert [one.read_bytes() for one in result] == [one.read_bytes() for one in expected]


def test_a_command_that_was_wrong_is_mended_and_the_run_goes_on(
    sample: Path, trainer: Trainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    right = trainer.toml.read_text()
    trainer.toml.write_text(right.replace("--warm", "--warn"))
    with pytest.raises(UserError, match="--warn"):
        edit(sample, tmp_path / "run", trainer)
    resumed = tmp_path / "run"
    trainer.toml.unlink()
    with pytest.raises(UserError, match="cannot read"):
        resume_run(resumed, show_progress=False)
    trainer.toml.write_text(right)
    resume_run(resumed, show_progress=False)
    assert "trainer.toml has changed since the run began" in caplog.text
    told = next(line for line in caplog.messages if line.startswith("going on runs what"))  # its programs, in a line
    assert "\n" not in told and all(" ".join(words) in told for words in [["fit", "--data"], ["render", "--model"]])
    assert trainer.fits == ["0", "1", "2"]
    commands = [fit["command"] for fit in json.loads((resumed / "run.json").read_text())["fits"]]
    assert ["--warm" in command for command in commands] == [False, True, True]


def test_odd_commands_and_odd_output_are_no_crash(tmp_path: Path) -> None:
    file, render = tmp_path / "trainer.toml", 'render = "r {model} {cameras} {output}"\n'
    file.write_text('fit = ["python", "a\\u0000b", "{dataset}", "{output}"]\n' + render)
    with pytest.raises(UserError, match="no command"):
        Commands.read(file)
    # Files beside the .toml are meant, wherever the command runs.
    for name in ("fit.sh", "train.py"):
        (tmp_path / name).touch()
    file.write_text('fit = "./fit.sh train.py other.py {dataset} {output}"\n' + render)
    commands, request = Commands.read(file), FitRequest(tmp_path / "fit", None, 10, 0, 0)
    words = commands.fit_command(request)
    assert words[:3] == [str(tmp_path / "fit.sh"), str(tmp_path / "train.py"), "other.py"]
    shares = [("50%", 0.5), ("9" * 400 + "%", None), ("3/4", 0.75), (f"{'9' * 5000}/3", None), ("1/0", None)]
    assert [commands.read_share(request, text) for text, _ in shares] == [share for _, share in shares]


def test_a_dry_run_says_what_is_called(sample: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--timed"]):
        command = ["scene", sample, instruction_of(sample), *trainer.words, "--dry-run", *more]
        assert main(list(map(str, command))) == 0
        printed = capsys.readouterr().out
        assert "without the reconstructions" in printed and "trainer.toml: mytrain fit --data" in printed
        assert "40 steps, then 10 from there after each subtask" in printed
    assert not trainer.calls


def test_a_splat_is_trained_from_and_exported_in_the_scenes_coordinates(trainer: Trainer, tmp_path: Path) -> None:
    """Without a refit command each fit starts anew. What the program exports is in its coordinates, not the scene's."""
    scene = gaussians_of(0, 50, 1)
    write_splat_file(tmp_path / "scene.ply", Splat(scene))
    write_splat_file(trainer.bin / "splat.ply", Splat(scene))
    trainer.toml.write_text(TOML + EXPORT)
    out, options = tmp_path / "run", QUICK | trainer.options | {"subtasks": 1, "format": "spz", "show_progress": False}
    options |= {"source_prompt": "a red ball on the floor", "target_prompt": "a blue ball on the floor"}
    run = edit_scene(tmp_path / "scene.ply", out=out, box3d="-9,-9,-9,9,9,9", **options)
    facts = json.loads((out / "run.json").read_text())
    assert [(fit["steps"], fit["warm"]) for fit in facts["fits"]] == [(40, False), (40, False)]
    assert (out / "edited.spz").is_file() and len(read_splat(out / "scene.ply")) == 50
    transform = json.loads((out / "trained" / "dataparser_transforms.json").read_text())
    matrix, scale = np.array(transform["transform"]), transform["scale"]
    assert run.edited is not None and 0 < scale < 1
    trained = scale * (run.edited.means.double().numpy() @ matrix[:, :3].T + matrix[:, 3])
    np.testing.assert_allclose(trained, scene.means, atol=1e-4)


REFUSED = {
    "no such trainer": ({"trainer": "instant-ngp"}, "expected gaussians, nerfstudio:nerfacto"),
    "no such method": ({"trainer": "nerfstudio:vanilla-nerf"}, "expected nerfstudio:nerfacto or nerfstudio:splatfacto"),
    "no program": ({"trainer": "nerfstudio:nerfacto"}, "there is no ns-train in"),
    "no environment": ({"trainer_env": Path("nowhere")}, "which is no environment"),
    "Gaussians": ({"gaussians": 100}, "--gaussians takes the built-in Gaussians"),
    "a mask": ({"mask": "masks"}, "--mask takes the built-in Gaussians"),
    "arguments": ({"trainer_args": "--more"}, "write them into the .toml"),
    "patience": ({"trainer_timeout": -1.0}, "expected seconds, or 0"),
    "for ever": ({"trainer_timeout": float("inf")}, "expected seconds, or 0"),
    "a splat of none": ({"format": "spz"}, "exports none"),
    "an environment for nothing": ({"trainer": "gaussians"}, "--trainer-env is for other programs"),
}


@pytest.mark.parametrize(("more", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_made(
    more: dict[str, Any], says: str, sample: Path, trainer: Trainer, tmp_path: Path
) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "0000.png").touch()
    if "mask" in more:
        more = {"mask": str(tmp_path / "masks")}
    with pytest.raises(UserError, match=says):
        edit(sample, tmp_path / "run", trainer, **more)
    assert not (tmp_path / "run").exists() and not trainer.calls
