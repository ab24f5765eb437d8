"""Run folders: never over what is there, with a manifest and a state that can be trusted."""

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.clock import set_clock

from v2edit.errors import UserError
from v2edit.runs import (
    Pace,
    Request,
    RunWriter,
    default_run_folder,
    find_runs,
    fingerprint_input,
    read_run_state,
    redact,
)
from v2edit.runs.snapshots import LoopState


@dataclass(frozen=True)
class Settings:
    steps: int = 50
    folder: Path = Path("a/b")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_appears_when_its_work_begins_and_its_results_when_all_are_there(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with RunWriter(out) as run:
        assert not (tmp_path / "deep").exists()
        (run.folder / "edited.mp4").write_bytes(b"video")
        assert names(out) == [".state"]
        run.write_manifest({"config": Settings(), "seed": 3}, argv=["v2edit", "edit", "clip.mp4"])
    assert names(out) == ["edited.mp4", "run.json"] and names(out.parent) == ["run"]
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["config"] == {"steps": 50, "folder": "a/b"}
    assert manifest["seed"] == 3 and manifest["status"] == "done"
    assert manifest["command"] == ["v2edit", "edit", "clip.mp4"]
    assert {"v2edit", "torch", "diffusers", "transformers", "av", "python"} == set(manifest["versions"])
    assert manifest["started"] <= manifest["finished"]


def test_two_runs_differ_in_their_times_alone(tmp_path: Path) -> None:
    manifests = []
    for name in ("one", "two"):
        with RunWriter(tmp_path / name) as run:
            run.write_manifest({"prompts": {"target": "a blue ball"}, "config": Settings()})
        manifest = json.loads((tmp_path / name / "run.json").read_text())
        manifests.append({key: manifest[key] for key in manifest if key not in ("started", "finished")})
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_run_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), RunWriter(tmp_path / "run") as run:
        (run.folder / "edited.mp4").write_bytes(b"half a video")
        raise error
    assert names(tmp_path) == []


def test_existing_files_are_refused_and_stay(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("run", "file", "link"):
        with pytest.raises(UserError, match="exists"):
            RunWriter(tmp_path / name)
    assert (tmp_path / "run" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_is_filled_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the folder that the user stands in."""
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    with RunWriter(Path(".")) as run:
        run.write_manifest({})
        (run.folder / "edited.mp4").write_bytes(b"video")
    assert names(Path(".")) == ["edited.mp4", "run.json"] and names(tmp_path) == ["run"]


def test_files_that_turn_up_meanwhile_stay(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as run:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "edited.mp4").write_bytes(b"theirs")
        (run.folder / "edited.mp4").write_bytes(b"ours")
    assert (tmp_path / "run" / "edited.mp4").read_bytes() == b"theirs"
    assert run.out == tmp_path / "run-2" and (run.out / "edited.mp4").read_bytes() == b"ours"


def test_an_unwritable_place_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(UserError, match="choose another -o"), RunWriter(tmp_path / "file" / "run"):
        pass


def test_default_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = default_run_folder(Path("in/my clip.v2.mp4"), "Make the ball blue!")
    assert first == Path("runs/my_clip.v2-make-the-ball-blue")
    for expected in ("", "-2", "-3"):
        folder = default_run_folder(Path("in/my clip.v2.mp4"), "Make the ball blue!")
        assert folder == Path(f"{first}{expected}")
        with RunWriter(folder) as run:
            run.write_manifest({})
    assert len(default_run_folder(Path("a.mp4"), "very " * 100).name) < 60
    assert default_run_folder(Path("a.mp4"), "把球变蓝") == Path("runs/a")


def test_the_input_is_identified(tmp_path: Path) -> None:
    clip, folder = tmp_path / "clip.mp4", tmp_path / "frames"
    clip.write_bytes(b"bytes")
    assert fingerprint_input(clip) == {"path": str(clip), "sha256": hashlib.sha256(b"bytes").hexdigest()}
    folder.mkdir()
    seen = set()
    for name, content in (("1.png", b"x"), ("2.png", b"x"), ("2.png", b"y")):
        (folder / name).write_bytes(content)
        seen.add(fingerprint_input(folder)["sha256"])
    assert len(seen) == 3
    (folder / "notes\udce9.txt").touch()  # a name that is no UTF-8
    seen.add(fingerprint_input(folder)["sha256"])
    assert len(seen) == 4


def test_secrets_are_blanked() -> None:
    words = redact(
        [
            "v2edit",
            "--api-key",
            "abc",
            "--hf-token=abc",
            "https://me:abc@host/x",
            "--lvlm-url=http://host/v1?api-version=abc&k=abc#x",
            f"hf_{'abc' * 8}",
            "--model",
            "x",
        ]
    )
    assert "abc" not in " ".join(words)
    assert words == [
        "v2edit",
        "--api-key",
        "***",
        "--hf-token=***",
        "https://***@host/x",
        "--lvlm-url=http://host/v1?api-version=***&k=***#x",
        "hf_***",
        "--model",
        "x",
    ]


REQUEST = Request("edit", {"seed": 3, "config": Settings()}, {"edit-1": 4, "edit-2": 6}, 2, ["v2edit", "--token", "x"])


def loop_state(k: int) -> LoopState:
    return LoopState({"edit": torch.full((2,), float(k))}, {"k": k})


def end_run(out: Path, steps: int, error: type[BaseException] = KeyboardInterrupt) -> None:
    """Begin a run and end it by an error after so many steps of its first loop."""
    with RunWriter(out) as run:
        run.begin(REQUEST)
        assert read_run_state(out).state == "running"
        done = []
        for k in run.snapshots.loop("edit-1").steps(0, 4, lambda: loop_state(len(done))):
            done.append(k)
            if len(done) == steps:
                raise error("x")


def test_a_run_that_is_stopped_says_how_far_it_came_and_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt, match="go on with: v2edit resume run"):
        end_run(Path("run"), 3)
    assert names(tmp_path / "run") == [".state", "run.json"]
    state = read_run_state("run")
    assert (state.state, state.reason, state.done, state.total) == ("stopped", "interrupted", 2, 10)
    manifest = json.loads(Path("run/run.json").read_text())
    assert manifest["status"] == "stopped" and manifest["seed"] == 3 and manifest["command"][-1] == "***"
    assert "x" not in json.loads(Path("run/.state/request.json").read_text())["command"]  # no secret is stored
    with pytest.raises(UserError, match="is an unfinished run: go on with v2edit resume run, or choose another -o"):
        RunWriter(Path("run"))
    with RunWriter(Path("run"), resume=True, command=["v2edit", "resume", "run"]) as run:
        assert run.request is not None and run.request.plan == REQUEST.plan
        snapshot = run.snapshots.loop("edit-1")
        saved = snapshot.load()
        assert (
            saved is not None and saved.facts == {"k": 2} and torch.equal(saved.tensors["edit"], torch.full((2,), 2.0))
        )
        assert list(snapshot.steps(2, 4, lambda: loop_state(4))) == [2, 3]
        assert read_run_state("run").done == 4
        (run.folder / "edited.mp4").write_bytes(b"video")
        run.write_manifest({"more": 1})
    assert names(tmp_path / "run") == ["edited.mp4", "run.json"]
    manifest = json.loads(Path("run/run.json").read_text())
    assert manifest["status"] == "done" and manifest["more"] == 1 and manifest["resumed"]["command"][1] == "resume"
    assert manifest["started"] == REQUEST.started and manifest["config"]["steps"] == 50
    assert [one.state for one in find_runs(".")] == ["done"]


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_a_run_that_fails_keeps_its_steps(tmp_path: Path, error: type[Exception]) -> None:
    with pytest.raises(UserError if error is OSError else error) as caught:
        end_run(tmp_path / "run", 3, error)
    assert "v2edit resume" in " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    state = read_run_state(tmp_path / "run")
    assert (state.state, state.reason, state.done) == ("failed", "x", 2)


def test_a_mistake_found_before_the_first_step_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mend this"), RunWriter(tmp_path / "run") as run:
        run.begin(REQUEST)
        raise UserError("mend this")
    assert names(tmp_path) == []


WRITER = """
import sys, time
from pathlib import Path
from typing import Any
from v2edit.runs import RunWriter, Request
with RunWriter(Path(sys.argv[1])) as run:
    run.begin(Request("edit", {}, {"edit-1": 5}) if sys.argv[2] else None)
    print(run.folder, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("request_", ["yes", ""], ids=["resumable", "not resumable"])
def test_a_run_is_one_processs_own_until_that_dies(tmp_path: Path, request_: str) -> None:
    out = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", WRITER, str(out), request_], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        assert other.stdout.readline().strip() == str(out / ".state" / "results")
        with pytest.raises(UserError, match="another process is working on" if request_ else "exists; choose another"):
            RunWriter(out)
        if request_:
            assert read_run_state(out).state == "running"
            with pytest.raises(UserError, match="another process is working on"):
                RunWriter(out, resume=True)
    finally:
        other.kill()
        other.wait()
    if request_:
        state = read_run_state(out)
        assert state.state == "stopped" and state.reason == "its process ended without a word"
        with RunWriter(out, resume=True) as run:
            run.write_manifest()
    else:  # Nothing was done: the place is as good as free.
        with pytest.raises(UserError, match="is no run folder"):
            read_run_state(out)
        with RunWriter(out) as run:
            run.write_manifest({})
    assert names(out) == ["run.json"] and names(tmp_path) == ["run"]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run to go on with"):
        RunWriter(tmp_path, resume=True)
    with pytest.raises(UserError, match="is no run folder"):
        read_run_state(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        find_runs(tmp_path / "nowhere")
    assert find_runs(tmp_path) == []
    with RunWriter(tmp_path / "run") as run:
        run.write_manifest({})
    with pytest.raises(UserError, match="there is no run to go on with"):
        RunWriter(tmp_path / "run", resume=True)


def test_damaged_or_strange_state_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        end_run(tmp_path / "run", 3)
    state = tmp_path / "run" / ".state"
    (state / "edit-1.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="is damaged"), RunWriter(tmp_path / "run", resume=True) as run:
        run.snapshots.loop("edit-1").load()
    facts = json.loads((state / "request.json").read_text())
    (state / "request.json").write_text(json.dumps(facts | {"format": 99}))
    with pytest.raises(UserError, match="begun by another version"):
        RunWriter(tmp_path / "run", resume=True)
    (state / "request.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_run_state(tmp_path / "run")


def test_other_versions_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        end_run(tmp_path / "run", 3)
    path = tmp_path / "run" / ".state" / "request.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"versions": facts["versions"] | {"torch": "1.0"}}))
    with RunWriter(tmp_path / "run", resume=True) as run:
        run.write_manifest()
    assert "the run began with torch 1.0" in caplog.text


def test_the_pace_of_steps_tells_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    set_clock(monkeypatch, "v2edit.runs.pace", lambda: now[0])

    def update(pace: Pace, seconds: float, *step: Any) -> float | None:
        now[0] += seconds
        return pace.update(*step)

    pace = Pace({"edit-1": 4, "edit-2": 4, "fit-1": 10})
    assert update(pace, 100, "edit-1", 1, 4) is None  # loading is in the first step
    assert update(pace, 2, "edit-1", 2, 4) == 4
    assert update(pace, 4, "edit-1", 4, 4) == 0
    assert (pace.done, pace.total, pace.to_dict()["seconds_left"]) == (4, 18, None)  # nothing is known of fits
    assert update(pace, 50, "edit-2", 1, 4) == 6  # steps of the same kind take as long
    assert [update(pace, 0.5, "fit-1", step, 10) for step in (1, 2)] == [None, 4]
    resumed = Pace({"edit-1": 4, "edit-2": 4, "fit-1": 10}, pace.to_dict())
    assert (resumed.done, resumed.to_dict()["seconds_left"]) == (7, 3 * 2 + 8 * 0.5)
    assert update(pace, 9, "fit-1", 1, 10) is None  # a loop that starts again is timed anew
