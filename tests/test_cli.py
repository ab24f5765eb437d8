"""The command line as a user meets it: real processes, exit codes, one line for each mistake."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from v2edit.cli import main, parse
from v2edit.editing.config import EditConfig


def v2edit(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "v2edit", *words], cwd=cwd, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "sample"
    assert main(["world", "sample", "--seed", "7", "-o", str(folder)]) == 0
    return folder / "clip.mp4"


def test_version_and_help(tmp_path: Path) -> None:
    told = v2edit("--version", cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "") and told.stdout.startswith("v2edit 0.")
    told = v2edit("edit", "--help", cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    for option in ("--source-prompt", "--model", "-o", "--offload", "--subtasks", "--no-amr", "--seed"):
        assert option in told.stdout


# What the user types, and what the one line must say.
MISTAKES = {
    "no such video": (["nowhere.mp4", "make the ball red"], "no such file: nowhere.mp4"),
    "no source prompt": (["broken.mp4", "make the ball red"], "--source-prompt"),
    "no change": (["broken.mp4", "--source-prompt", "a ball"], "--target-prompt"),
    "not of the world": (
        ["broken.mp4", "make it snow", "--source-prompt", "a street", "--model", "some/model"],
        "--target-prompt",
    ),
    "the video, before the model": (
        ["broken.mp4", "--source-prompt", "a", "--target-prompt", "b", "--model", "no/such-model"],
        "broken.mp4",
    ),
    "the output is taken": (
        ["broken.mp4", "--source-prompt", "a", "--target-prompt", "b", "-o", "taken"],
        "taken exists; choose another -o or remove it",
    ),
    "a value out of range": (["broken.mp4", "--subtasks", "0"], "--subtasks is 0"),
}


@pytest.mark.parametrize(("words", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    told = v2edit("edit", *words, cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("v2edit: error: ") and told.stderr.count("\n") == 1
    assert says in told.stderr
    # A parent folder for runs may have been made; there is nothing in it.
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "runs"] == before


@pytest.mark.parametrize("words", [["edit"], ["edti", "clip.mp4"], ["edit", "clip.mp4", "--steps", "many"]])
def test_a_slip_of_the_command_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    told = capsys.readouterr()
    assert told.out == "" and "Traceback" not in told.err and told.err.count("For full helptext") == 1


def test_options_reach_the_configuration() -> None:
    words = ["edit", "clip.mp4", "make it red", "--steps", "8", "--no-amr", "--guidance", "3", "--vae-tiling"]
    options = parse(words).keywords
    assert options["config"] == EditConfig(steps=8, amr=False, guidance=3.0)
    assert options["vae_tiling"] is True and options["model"] == "primitives"
    assert parse(words[:3]).keywords["config"] == EditConfig()


def test_a_sample_of_the_world(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(clip.with_suffix(".json").read_text())
    assert {"source_prompt", "target_prompt", "instruction"} <= facts.keys()
    content = clip.read_bytes()
    assert main(["world", "sample", "--seed", "8", "-o", str(clip.parent)]) == 2
    assert "exists; choose another -o" in capsys.readouterr().err
    assert clip.read_bytes() == content


def interrupt(*_: object) -> None:
    signal.raise_signal(signal.SIGINT)


def run_out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("happens", "code", "says"), [(interrupt, 130, "interrupted"), (run_out_of_memory, 2, "--offload")]
)
def test_what_ends_a_run_early_leaves_nothing(
    clip: Path,
    tmp_path: Path,
    happens: Callable[..., None],
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("v2edit.video.read", happens)  # By then the run folder is in the making.
    assert main(["edit", str(clip), "make the ball red", "-o", str(tmp_path / "run")]) == code
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and says in told.err
    assert list(tmp_path.iterdir()) == []
