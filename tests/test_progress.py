"""How far long work is, as people and programs see it: lines, events, or nothing."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.models import pipeline_of
from support.processes import run_command

from v2edit import video
from v2edit.cli.app import main
from v2edit.cli.output import OutputOptions, TextReporter, reporter_for
from v2edit.errors import UserError
from v2edit.scenes.rer import SceneProgress

PROMPTS = ["--source-prompt", "a red ball on the floor", "--target-prompt", "a blue cube on the floor"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An edit of a tiny model: two subtasks of nine steps."""
    folder = tmp_path_factory.mktemp("printed")
    pipeline_of("5b").save_pretrained(folder / "model")
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    video.write(frames, folder / "clip.mp4", fps=8)
    return ["edit", str(folder / "clip.mp4"), *PROMPTS, "--model", str(folder / "model"), "--steps", "10",
            "--subtasks", "2"]  # fmt: skip


def events(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_program_follows_an_edit_in_a_process_of_its_own(words: list[str], tmp_path: Path) -> None:
    ran = run_command("--json", *words, "-o", tmp_path / "run", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    first, *steps, last = events(ran.stdout)
    assert first["event"] == "started" and first["command"][:3] == ["v2edit", "--json", "edit"]
    steps = [one for one in steps if one["event"] == "progress"]
    assert [(one["subtask"], one["step"]) for one in steps] == [(s, k) for s in (1, 2) for k in range(1, 10)]
    assert {(one["subtasks"], one["steps"]) for one in steps} == {(2, 9)}
    # Quick steps may have next to nothing left.
    assert steps[0]["seconds_left"] is None and steps[-1]["seconds_left"] == 0 <= steps[1]["seconds_left"]
    assert last["event"] == "result" and last["folder"] == str(tmp_path / "run")
    assert sorted(last["files"]) == sorted(str(path) for path in (tmp_path / "run").iterdir())
    assert last["prompts"]["target"] == "a blue cube on the floor"


def test_whoever_reads_the_events_may_go(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "v2edit", "sample", "--json", "-o", str(tmp_path / "run")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stderr is not None
    assert json.loads(child.stdout.readline())["event"] == "started"
    child.stdout.close()
    errors = child.stderr.read()
    assert (child.wait(timeout=300), errors) == (0, "") and (tmp_path / "run" / "clip.mp4").is_file()


def test_quiet_says_nothing(words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "-q", "-o", str(tmp_path / "run")]) == 0
    assert capfd.readouterr() == ("", "")
    assert main(["--quiet", *words, "-o", str(tmp_path / "run")]) == 2
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.startswith("v2edit: error: ") and printed.err.count("\n") == 1


def test_plain_lines_where_stderr_is_no_terminal(words: list[str], tmp_path: Path, capsys) -> None:
    assert main([*words, "-o", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("subtask")]
    assert len(lines) == 18 and "left" not in lines[0] and "s left" in lines[1]  # at most ten a subtask, of nine steps
    assert lines[-1].startswith("subtask 2/2, step 9/9") and str(tmp_path / "run" / "edited.mp4") in printed.out


MISTAKES = {
    "a mistake": (["edit", "nowhere.mp4", *PROMPTS], "no such file: nowhere.mp4"),
    "a value": (["edit", "nowhere.mp4", "--subtasks", "0"], "--subtasks is 0"),
    "a slip of the command line": (["edit", "clip.mp4", "--stpes", "3"], "no option --stpes; did you mean --steps?"),
}


@pytest.mark.parametrize(("wrong", "says"), MISTAKES.values(), ids=MISTAKES)
def test_errors_are_events_with_the_exit_code(wrong: list[str], says: str, capsys) -> None:
    assert main(["--json", *wrong]) == 2
    printed = capsys.readouterr()
    *_, last = events(printed.out)
    assert (last["event"], last["code"], printed.err) == ("error", 2, "") and says in last["message"]


def test_an_interruption_and_a_bug_are_events_too(words: list[str], monkeypatch, capsys) -> None:
    def interrupt(*_: object, **__: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("v2edit.video.read", interrupt)
    assert main([*words, "--json"]) == 130
    assert events(capsys.readouterr().out)[-1] == {
        "event": "error", "message": "interrupted; nothing was written", "code": 130,
    }  # fmt: skip
    monkeypatch.setattr("v2edit.video.read", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([*words, "--json"])
    assert events(capsys.readouterr().out)[-1]["code"] == 1


def test_secrets_are_no_events(capsys) -> None:
    main(["--json", "edit", "nowhere.mp4", "make it blue", "--lvlm-url", "http://me:hunter2@localhost", "--lvlm", "m"])
    assert "hunter2" not in capsys.readouterr().out


def test_notes_are_events(tmp_path: Path, capsys) -> None:
    """`v2edit sample` of a clip, whose prompts are then read off the frames: that is noted."""
    assert main(["sample", "--json", "--seed", "7", "-o", str(tmp_path / "s")]) == 0
    *_, made = events(capsys.readouterr().out)
    assert str(tmp_path / "s" / "clip.mp4") in made["files"] and made["command"].startswith("v2edit edit ")
    (tmp_path / "s" / "clip.json").unlink()
    assert main(["prompts", str(tmp_path / "s" / "clip.mp4"), "turn the sky dark", "--json"]) == 0
    _, note, last = events(capsys.readouterr().out)
    assert note["event"] == "note" and "is taken to show" in note["message"]
    assert last["prompts"]["target"] and last["forwards"] == [142]


def test_stages_are_counted_each_by_itself(capsys) -> None:
    reporter = reporter_for(OutputOptions())
    for what, steps in (("reconstructing", 20), ("editing", 10)):
        for step in range(1, steps + 1):
            reporter.on_scene(SceneProgress(what, step, steps, 20.0 + step if what == "reconstructing" else None))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20 and lines[9].startswith("reconstructing, PSNR 40.0 dB, step 20/20")
    assert lines[10] == "editing, step 1/10"  # timed anew, from the end of its first step


def test_a_bar_where_there_is_a_terminal(monkeypatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    reporter = TextReporter()
    with reporter.working():
        for done in range(1, 4):
            reporter.on_count(done, 3, f"task {done}")
        reporter.note("a word above the bar")
    printed = capsys.readouterr().err
    assert "\x1b[" in printed and "a word above the bar" in printed and "3 of 3: task 3" in printed


def test_one_way_to_speak_at_a_time(capsys) -> None:
    with pytest.raises(UserError, match="--quiet and --json"):
        OutputOptions(quiet=True, json=True)
    assert main(["edit", "clip.mp4", "--json", "--quiet"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_what_follows_two_dashes_is_no_flag() -> None:
    assert OutputOptions.from_words(["edit", "--", "--json"]) == OutputOptions() and OutputOptions.from_words(
        ["edit", "-q"]
    ) == OutputOptions(quiet=True)
