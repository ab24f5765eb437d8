"""Batches: what a file of tasks may hold, and whole batches by real processes at tiny size, killed and resumed."""

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.batch import InlinePool, PreloadedPool
from support.interrupts import default_interrupts, interrupt
from support.models import pickled

from v2edit import video
from v2edit.batch.command import EditBatch, run_batch
from v2edit.batch.page import as_html
from v2edit.batch.state import BatchStatus, read_status
from v2edit.batch.tasks import MAX_LINE_BYTES, MAX_TASKS, TaskLine, read_tasks
from v2edit.cli.app import main
from v2edit.editing import EditConfig
from v2edit.errors import UserError
from v2edit.files import MAX_JSON_BYTES
from v2edit.jobs.functions import edit_video
from v2edit.jobs.scene import SceneEdit
from v2edit.runs import read_run_state

PROMPTS = {"source_prompt": "a red ball", "target_prompt": "a blue cube"}
QUICK = EditConfig(steps=2)


def write_tasks(path: Path, *lines: dict[str, Any] | str) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8", errors="surrogateescape")
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = np.zeros((5, 32, 32, 3), np.uint8)
    frames[:, 8:24, 8:24] = (200, 30, 30)
    return video.write(frames, path, fps=8)


@pytest.fixture
def inline_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches start no processes."""
    monkeypatch.setattr("v2edit.workers.ProcessPool", InlinePool)


@pytest.fixture(scope="module")
def preloaded_workers() -> Iterator[None]:
    """Batches start processes that have the libraries imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("v2edit.workers.ProcessPool", PreloadedPool)
        yield


# --- the file of tasks ----------------------------------------------------------------------------


def test_lines_become_tasks(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").touch()
    path = write_tasks(
        tmp_path / "tasks.jsonl",
        "\ufeff" + json.dumps({"video": "in/a.mp4", "instruction": "make the ball blue", "subtasks": 3, "seed": 7}),
        "",
        {"scene": str(tmp_path / "in"), "target_prompt": "a cube", "name": "räume 1", "alpha": 1, "beta": None},
        {"video": "in/a.mp4", "instruction": "Make the ball BLUE!"},
    )
    first, second, third = read_tasks(path, EditConfig(steps=9, alpha=0.5))
    assert (first.line, first.kind, first.path) == (1, "video", tmp_path / "in" / "a.mp4")
    assert first.config == EditConfig(steps=9, alpha=0.5, subtasks=3, seed=7)
    assert (second.line, second.kind, second.path, second.name) == (3, "scene", tmp_path / "in", "räume 1")
    assert second.config == EditConfig(steps=9, alpha=1.0)
    assert (first.name, third.name) == ("a-make-the-ball-blue", "a-make-the-ball-blue-2")


def test_every_setting_of_an_edit_may_stand_in_a_line() -> None:
    assert {setting.name: setting.default for setting in fields(EditConfig)}.items() <= {
        name: field.default for name, field in TaskLine.model_fields.items()
    }.items()


@pytest.mark.usefixtures("inline_workers")
def test_a_batch_takes_pickles_only_with_allow_pickle(tiny_model: Path, clip: Path, tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks.jsonl", {"video": str(clip), **PROMPTS})
    old = pickled(tiny_model, tmp_path / "old")
    with pytest.raises(UserError, match="--allow-pickle"):
        run_batch(tasks, out=tmp_path / "out", model=str(old), device="cpu", config=QUICK)
    status = run_batch(tasks, out=tmp_path / "out", model=str(old), device="cpu", config=QUICK, allow_pickle=True)
    assert len(status.done) == 1 and not status.failed


def test_options_are_those_of_one_edit() -> None:
    """The same groups, so that defaults and help texts are the same."""
    batch, edit = ({option.name: option.default for option in fields(job)} for job in (EditBatch, SceneEdit))
    assert {name: batch[name] for name in ("lvlm", "model_options", "config", "fit")}.items() <= edit.items()


# A line with a mistake, and the field, the value and the hints that its message must name.
A = '"video": "a.mp4"'
MISTAKES = {
    "no JSON": ("{", ["JSON"]),
    "no object": ('["a.mp4"]', ['["a.mp4"]', '{"video"']),
    "a key twice": (f'{{{A}, "seed": 1, "seed": 2}}', ["'seed'", "twice"]),
    "an unknown key": (f'{{{A}, "subtask": 3}}', ["'subtask'", '"subtasks"']),
    "nothing to edit": ('{"instruction": "make it blue"}', ['"video"', '"scene"', "neither"]),
    "two things to edit": (f'{{{A}, "scene": "a.mp4"}}', ["both"]),
    "no such file": ('{"video": "b.mp4"}', ["b.mp4", "no such file"]),
    "no path at all": ('{"video": "a\\u0000.mp4"}', ["no such file"]),
    "a path that is too long": (json.dumps({"video": "a" * 5000}), ["no such file"]),
    "a number as text": (f'{{{A}, "subtasks": "3"}}', ['"subtasks"', "'3'", "integer"]),
    "a fraction": (f'{{{A}, "steps": 2.5}}', ['"steps"', "2.5", "integer"]),
    "null for a number": (f'{{{A}, "steps": null}}', ['"steps"', "None", "integer"]),
    "an unknown choice": (f'{{{A}, "solver": "euler"}}', ['"solver"', "'euler'", "'auto', 'ddim'"]),
    "half a character in a name": (f'{{{A}, "in\\ud83d": "b"}}', ["'in\\ud83d'"]),
    "half a character": (f'{{{A}, "instruction": "\\ud800"}}', ['"instruction"', "'\\ud800'"]),
    "out of range": (f'{{{A}, "subtasks": 9}}', ['"subtasks"', "9", "1 to 6"]),
    "not a number": (f'{{{A}, "alpha": NaN}}', ['"alpha"', "nan", "0.0 to 1.0"]),
    "two settings at odds": (f'{{{A}, "alpha": 0.2, "beta": 0.3}}', ['"beta"', "0.3", '"alpha"', "0.2"]),
    "no source prompt": (f'{{{A}, "instruction": "make it blue"}}', ['"source_prompt"']),
    "no change": (f'{{{A}, "source_prompt": "a ball"}}', ['"target_prompt"']),
    "an instruction not of the world": (f'{{{A}, "source_prompt": "a", "instruction": "fly"}}', ['"target_prompt"']),
    **{
        f"a name that is {name!r:.20}": (f'{{{A}, "name": {json.dumps(name)}}}', ['"name"', f"{name!r:.50}"])
        for name in ("", ".", "..", "../a", "a/b", "/a", "a\\b", ".hidden", "a\nb", "a\x00", "a\u202eb", " a", "é" * 61,
                     "results.jsonl", "INDEX.html", "errors")
    },
}  # fmt: skip


@pytest.mark.parametrize(("line", "facts"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_nothing_runs(line, facts, tiny_model, tmp_path) -> None:
    (tmp_path / "a.mp4").touch()
    path = write_tasks(tmp_path / "tasks.jsonl", {"video": "a.mp4"} | PROMPTS, line)
    with pytest.raises(UserError) as caught:
        run_batch(path, out=tmp_path / "out", model=str(tiny_model))
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: ") and message.isprintable()
    assert [fact for fact in facts if fact not in message] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "tasks.jsonl"]


def test_several_mistakes_are_listed_together(tiny_model, tmp_path, capsys) -> None:
    (tmp_path / "a.mp4").touch()
    path = write_tasks(tmp_path / "tasks.jsonl", "{", {"video": "a.mp4"} | PROMPTS, *[{"video": "b.mp4"}] * 30)
    assert main(["batch", str(path), "-o", str(tmp_path / "out"), "--model", str(tiny_model)]) == 2
    *notes, last = capsys.readouterr().err.splitlines()
    assert len(notes) == 20 and f"{path}, line 1: " in notes[0]
    assert last.startswith(f"v2edit: error: 31 lines of {path} ") and "20" in last
    assert not (tmp_path / "out").exists()


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_tasks(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("first", "second"), [("a", "a"), ("Räume", "RÄUME"), ("é", "e\u0301"), ("straße", "STRASSE")])
def test_names_that_are_equal_on_some_file_system(first, second, tmp_path) -> None:
    (tmp_path / "a.mp4").touch()
    path = write_tasks(tmp_path / "tasks.jsonl", *({"video": "a.mp4", "name": name} for name in (first, "b", second)))
    assert "line 3: " in (message := refused(path)) and "line 1 " in message


def test_generated_names_are_unique_and_stay_the_same(tmp_path) -> None:
    (tmp_path / f"{'long' * 50}.mp4").touch()
    video = {"video": f"{'long' * 50}.mp4", "instruction": "make it blue"}
    (tmp_path / "a.mp4").touch()
    short = {"video": "a.mp4", "instruction": "make it blue"}
    lines = [short, video, short | {"name": "a-make-it-blue-2"}, short, video, {"video": "a.mp4", "target_prompt": "…"}]
    tasks = read_tasks(write_tasks(tmp_path / "tasks.jsonl", *lines))
    names = [task.name for task in tasks]
    assert (names[0], *names[2:4], names[5]) == ("a-make-it-blue", "a-make-it-blue-2", "a-make-it-blue-3", "a")
    assert len(set(names)) == 6 and max(map(len, names)) == 120
    assert [task.name for task in read_tasks(tmp_path / "tasks.jsonl")] == names


def test_files_that_are_no_file_of_tasks(tmp_path) -> None:
    path = tmp_path / "tasks.jsonl"
    assert "no such file" in refused(path)
    assert "is no file of tasks" in refused(tmp_path)
    assert "is no file of tasks" in refused(Path("/dev/zero"))
    os.mkfifo(tmp_path / "pipe")
    assert "is no file of tasks" in refused(tmp_path / "pipe")  # and is not waited for
    path.write_text("\n \n")
    assert "has no tasks" in refused(path)
    path.write_bytes(b'{"video": "a.mp4"}\n\xff\n')
    assert "line 2: it is not UTF-8" in refused(path)


def test_hostile_files_of_tasks_take_no_memory(tmp_path) -> None:
    path = tmp_path / "tasks.jsonl"
    hostile = {
        "bytes": lambda file: file.truncate(1 << 33),  # sparse: it takes no room
        "longer than": lambda file: file.write(b"[" * MAX_JSON_BYTES),
        "nested too deeply": lambda file: file.write(b"[" * MAX_LINE_BYTES),
        "no JSON": lambda file: file.write(b'{"seed": ' + b"9" * 60_000 + b"}"),
        f"more than {MAX_TASKS:,} tasks": lambda file: file.write(b"1\n" * (MAX_TASKS + 1)),
    }
    for fact, write in hostile.items():
        with path.open("wb") as file:
            write(file)
        tracemalloc.start()
        message = refused(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert fact in message and len(message) < 500
        assert peak < 48 * 2**20, fact


# --- whole batches --------------------------------------------------------------------------------


def video_times(folder: Path) -> dict[str, int]:
    """Return the time at which each run's video was written, by the run's name: it tells whether one is made again."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/edited.mp4")}


def leftovers(folder: Path) -> list[str]:
    """Return the files that only a running batch may have in its folder."""
    return [path.name for path in (*folder.glob("*/.state"), *folder.glob(".batch/running/*"), *folder.glob("*-2"))]


@pytest.fixture(scope="module")
def first(
    tiny_model, clip, preloaded_workers, tmp_path_factory
) -> tuple[Path, Path, Path, BatchStatus, dict[str, int]]:
    """A batch of three tasks that can be done and one that cannot, whose model is gone once the first is done: its
    file of tasks, the model and the output folder, its status, and when each run's video was written."""
    folder = tmp_path_factory.mktemp("batch")
    shutil.copytree(tiny_model, folder / "model")
    (folder / "broken.mp4").write_bytes(b"no video")
    path = write_tasks(
        folder / "tasks.jsonl",
        {"video": str(clip), "name": "one", "seed": 5} | PROMPTS,
        {"video": "broken.mp4", "name": "broken"} | PROMPTS,
        {"video": str(clip), "name": "two", "instruction": "</script><b>&"} | PROMPTS,
        {"video": str(clip), "subtasks": 2} | PROMPTS,
    )

    def on_progress(*_: object) -> None:
        if (folder / "model").exists():
            (folder / "model").rename(folder / "gone")

    status = run_batch(path, out=folder / "out", model=str(folder / "model"), config=QUICK, on_progress=on_progress)
    (folder / "gone").rename(folder / "model")
    return path, folder / "model", folder / "out", status, video_times(folder / "out")


def test_tasks_are_edits_with_one_model_loaded_once(first, clip, tmp_path) -> None:
    _, model, out, status, runs = first
    assert sorted(runs) == ["clip-a-blue-cube", "one", "two"]
    assert len({result.worker for result in status.results.values()}) == 1  # The model's files were gone meanwhile.
    edit_video(clip, **PROMPTS, model=str(model), config=EditConfig(steps=2, seed=5), out=tmp_path / "one")
    assert (video.read(out / "one" / "edited.mp4").frames == video.read(tmp_path / "one" / "edited.mp4").frames).all()
    assert sorted(path.name for path in (out / "one").iterdir()) == sorted(os.listdir(tmp_path / "one"))
    assert (out / "clip-a-blue-cube" / "subtask-1.mp4").is_file()
    batch, alone = (json.loads((folder / "one" / "run.json").read_text()) for folder in (out, tmp_path))
    for name in ("input", "prompts", "model", "config", "seed", "guidance", "solver"):
        assert batch[name] == alone[name]
    assert not leftovers(out)


def test_results_say_what_became_of_each_task(first) -> None:
    _, _, out, status, _ = first
    lines = {line["name"]: line for line in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    assert {name: line["state"] for name, line in lines.items()} == {
        "one": "done", "two": "done", "clip-a-blue-cube": "done", "broken": "failed",
    }  # fmt: skip
    assert lines["broken"]["attempts"] == 2 and lines["one"]["attempts"] == 1
    assert "broken.mp4" in lines["broken"]["reason"] and lines["broken"]["earlier"] == [lines["broken"]["reason"]]
    assert (len(status.done), len(status.failed), status.waiting, status.active) == (3, 1, 0, False)


class Page(HTMLParser):
    """Collects what a browser would fetch, and the data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.data, self.inside = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.links += [value for key, value in attributes.items() if key in ("src", "href") and value]
        self.inside = attributes.get("type") == "application/json"

    def handle_data(self, data: str) -> None:
        self.data += data if self.inside else ""


def test_the_page_shows_every_task_and_takes_nothing_from_elsewhere(first) -> None:
    _, _, out, status, _ = first
    text = (out / "index.html").read_text()
    page = Page(text)
    assert all(link.startswith("data:") for link in page.links) and "http" not in text.replace("html", "")
    data = {task["name"]: task for task in json.loads(page.data)["tasks"]}
    assert {name: task["state"] for name, task in data.items()} == {
        name: result.state for name, result in status.results.items()
    }
    assert data["two"]["about"] == "</script><b>&"
    for name, task in data.items():
        assert all((out / name / file).is_file() for file in task["files"])
        assert len(task["files"]) == (3 if task["state"] == "done" else 0)
    assert "broken.mp4" in data["broken"]["reason"] and text == as_html(read_status(out))


def test_finished_and_failed_tasks_are_not_run_again(first, capsys) -> None:
    path, model, out, _, runs = first
    words = ["batch", str(path), "-o", str(out), "--model", str(model), "--steps", "2"]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "4 tasks: 3 done, 1 failed" and "broken: " in captured.out.splitlines()[1]
    assert "1 of 4" in captured.err and "--retry-failed" in captured.err and captured.err.count("\n") == 1
    assert video_times(out) == runs
    assert main(["batch-status", str(out)]) == 0
    assert capsys.readouterr().out == captured.out


def test_a_result_of_other_settings_is_refused(first) -> None:
    path, model, out, _, runs = first
    with pytest.raises(UserError, match=r"line 1: 'one' .*\"steps\" \(2, now 3\)"):
        run_batch(path, out=out, model=str(model), config=EditConfig(steps=3))
    assert video_times(out) == runs and len(read_status(out).done) == 3


@pytest.mark.usefixtures("inline_workers")
def test_a_batch_grows_and_failed_tasks_are_retried_with_retry_failed(first, clip, tmp_path) -> None:
    path, model, out, _, _ = first
    folder = tmp_path / "copy"
    shutil.copytree(out, folder)
    before = video_times(folder)
    video.write(np.zeros((5, 32, 32, 3), np.uint8), tmp_path / "mended.mp4", fps=8)
    (path.parent / "broken.mp4").write_bytes((tmp_path / "mended.mp4").read_bytes())
    more = json.dumps({"video": str(clip), "name": "more"} | PROMPTS)
    grown = path.with_name("grown.jsonl")
    grown.write_text(path.read_text() + more + "\n")
    status = run_batch(grown, out=folder, model=str(model), config=QUICK, retry_failed=True)
    assert (len(status.done), len(status.failed)) == (5, 0)
    assert video_times(folder).items() >= before.items() and len(video_times(folder)) == 5


def test_folders_of_others_are_left_alone(first, tiny_model, tmp_path) -> None:
    path, _, out, _, _ = first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no batch"):
        run_batch(path, out=tmp_path / "mine", model=str(tiny_model))
    with pytest.raises(UserError, match="holds no batch"):
        read_status(tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["a.txt"]
    (tmp_path / "out" / ".batch").mkdir(parents=True)
    (tmp_path / "out" / ".batch" / "lock").touch()
    (tmp_path / "out" / "one").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"line 1: .*one "):
        run_batch(path, out=tmp_path / "out", model=str(tiny_model))
    with (out / ".batch" / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another batch is running"):
            run_batch(path, out=out, model=str(tiny_model), config=QUICK)
        assert read_status(out).active


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"workers": 0}, ["--workers", "0", "1 or more"]),
        ({"retries": -1}, ["--retries", "-1"]),
        ({"device": "nowhere"}, ["'nowhere'"]),
        ({"model": "nothing-here"}, ["'nothing-here'"]),
        ({"ray": "auto"}, ["Ray", "'auto'"]),
    ],
    ids=str,
)
def test_a_mistake_in_the_options_leaves_nothing(options, facts, clip, tiny_model, tmp_path) -> None:
    path = write_tasks(tmp_path / "tasks.jsonl", {"video": str(clip)} | PROMPTS)
    with pytest.raises(UserError) as caught:
        run_batch(path, **{"out": tmp_path / "out", "model": str(tiny_model)} | options)
    assert [fact for fact in facts if fact not in str(caught.value)] == []
    assert [path.name for path in tmp_path.iterdir()] == ["tasks.jsonl"]


@pytest.mark.heavy
def test_a_model_that_no_worker_can_load_is_no_failure_of_the_tasks(clip, tiny_model, tmp_path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    weights = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    path = write_tasks(tmp_path / "tasks.jsonl", {"video": str(clip)} | PROMPTS)
    with pytest.raises(UserError, match="no worker can start"):
        run_batch(path, out=tmp_path / "out", model=str(tmp_path / "model"))
    assert (read_status(tmp_path / "out").waiting, leftovers(tmp_path / "out")) == (1, [])


# --- what ends workers and batches ----------------------------------------------------------------


def start_command(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "v2edit", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def wait_for(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def poll_status(process: subprocess.Popen[str], folder: Path) -> Iterator[BatchStatus]:
    """Yield the status of a batch, again and again while it runs."""
    while process.poll() is None:
        if (folder / ".batch" / "tasks.jsonl").exists():
            yield read_status(folder)
        time.sleep(0.02)


def pid_of(worker: str) -> int:
    return int(re.findall(r"process (\d+)$", worker)[0])


def wait_until_begun(task: str, out: Path) -> None:
    while not (out / task / ".state" / "request.json").exists():
        time.sleep(0.005)


def interrupt_at(task: str, out: Path) -> None:
    wait_until_begun(task, out)
    interrupt()


def kill_worker_of(task: str, out: Path) -> None:
    wait_until_begun(task, out)
    (running,) = (running for running in read_status(out).running if running.name == task)
    os.kill(pid_of(running.worker), signal.SIGKILL)


@pytest.mark.usefixtures("preloaded_workers")
def test_an_interrupted_batch_goes_on_and_a_killed_worker_costs_one_attempt(tiny_model, clip, tmp_path, capsys) -> None:
    steps = {"quick": 2, "interrupted": 50, "killed": 50}
    lines = ({"video": str(clip), "name": name, "steps": count} | PROMPTS for name, count in steps.items())
    out, path = tmp_path / "out", write_tasks(tmp_path / "tasks.jsonl", *lines)
    words = ["batch", str(path), "-o", str(out), "--model", str(tiny_model)]
    threading.Thread(target=interrupt_at, args=("interrupted", out), daemon=True).start()
    with default_interrupts():
        assert main(words) == 130
    assert "the same command" in capsys.readouterr().err.splitlines()[-1]
    status, before = read_status(out), video_times(out)
    assert not status.active and list(before) == ["quick"] and len(status.done) == 1
    assert read_run_state(out / "interrupted").state == "stopped"

    threading.Thread(target=kill_worker_of, args=("killed", out), daemon=True).start()
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("3 tasks: 3 done\n") and leftovers(out) == []
    assert video_times(out).items() >= before.items() and len(video_times(out)) == 3
    results = read_status(out).results
    assert {name: result.attempts for name, result in results.items()} == {"quick": 1, "interrupted": 1, "killed": 2}
    assert "SIGKILL" in results["killed"].earlier[0]


def skip_where_ray_did_not_start(err: str) -> None:
    """Skip the test where Ray did not start in its half minute: a busy machine must not fail a test."""
    if "The current node timed out during startup" in err:
        pytest.skip("Ray did not start in its 30 s on a machine as busy as this")


def test_ray_does_the_same(first, clip, tiny_model, tmp_path) -> None:
    """On Ray itself, one actor on this machine."""
    pytest.importorskip("ray")
    path = write_tasks(
        tmp_path / "tasks.jsonl",
        {"video": str(clip), "name": "one", "seed": 5} | PROMPTS,
        {"video": str(first[0].parent / "tasks.jsonl"), "name": "broken"} | PROMPTS,
    )
    words = [
        "batch",
        path,
        "-o",
        tmp_path / "out",
        "--model",
        tiny_model,
        "--steps",
        2,
        "--ray",
        "local",
        "--retries",
        0,
    ]
    code, stdout, err = wait_for(start_command(*words))
    skip_where_ray_did_not_start(err)
    assert code == 2 and stdout.startswith("2 tasks: 1 done, 1 failed\n"), err
    status = read_status(tmp_path / "out")
    assert len({result.worker for result in status.results.values()}) == 1 and not leftovers(tmp_path / "out")
    ours, theirs = (video.read(folder / "one" / "edited.mp4").frames for folder in (tmp_path / "out", first[2]))
    assert (ours == theirs).all()


def broken_inputs(folder: Path) -> dict[str, tuple[dict[str, str], str]]:
    """Return tasks that cannot be done, each for a reason of its own, and a part of the message."""
    folder.mkdir()
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    (folder / "empty").mkdir()
    (folder / "note.txt").write_text("no picture")
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "splat.ply").write_text("ply\nformat ascii 1.0\nend_header\n")
    (folder / "dataset").mkdir()
    (folder / "dataset" / "transforms.json").write_text('{"frames": 3}')
    return {
        "noise": ({"video": "broken/noise.mp4"}, "is not a video that can be read"),
        "empty": ({"video": "broken/empty"}, "folder without images"),
        "picture": ({"video": "broken/picture.png"}, "picture.png"),
        "splat": ({"scene": "broken/splat.ply"}, "splat.ply"),
        "dataset": ({"scene": "broken/dataset"}, "transforms.json"),
    }


@pytest.mark.heavy
def test_forty_of_forty_five_tasks_on_ray_whose_workers_are_killed_at_random(clip, tiny_model, tmp_path) -> None:
    """39 videos and a scene are made, once each and as they would alone; five fail, each for its own reason."""
    broken = broken_inputs(tmp_path / "broken")
    assert main(["sample", "--scene", "--seed", "3", "-o", str(tmp_path / "scene")]) == 0
    lines = [{"video": str(clip), "name": f"video {k}", "seed": k} | PROMPTS for k in range(39)]
    lines.insert(5, {"scene": "scene", "name": "scene"} | PROMPTS)
    for position, (name, (line, _)) in enumerate(broken.items()):
        lines.insert(9 * position, line | {"name": name} | PROMPTS)
    path = write_tasks(tmp_path / "tasks.jsonl", *lines)
    assert len(lines) == 45

    out, rng = tmp_path / "out", random.Random(0)
    words = [
        "batch",
        path,
        "-o",
        out,
        "--model",
        tiny_model,
        "--steps",
        2,
        "--retries",
        4,
        "--ray",
        "local",
        "--workers",
        2,
    ]
    words += ["--fit-steps", 20, "--refit-steps", 10, "--gaussians", 300]
    process, killed, after = start_command(*words), [], 1
    for status in poll_status(process, out):
        if status.running and len(status.results) >= after:
            killed.append(rng.choice(status.running))
            os.kill(pid_of(killed[-1].worker), signal.SIGKILL)
            after = len(status.results) + rng.randint(2, 6)
            while process.poll() is None and killed[-1] in read_status(out).running:
                time.sleep(0.02)
    code, stdout, err = wait_for(process)
    skip_where_ray_did_not_start(err)
    assert code == 2 and stdout.startswith("45 tasks: 40 done, 5 failed\n"), err
    print(stdout, *(f"killed: {task.name}, attempt {task.attempt}, {task.worker}" for task in killed), sep="\n")

    names = [json.loads(line)["name"] for line in (out / "results.jsonl").read_text().splitlines()]
    assert sorted(names) == sorted(line["name"] for line in lines)  # one result each
    results = read_status(out).results
    assert {result.name for result in results.values() if result.state == "failed"} == broken.keys()
    for name, (_, text) in broken.items():
        assert results[name].attempts == 5
        assert any(text in (reason or "") for reason in (results[name].reason, *results[name].earlier))
    assert {path.parent.name for path in out.glob("*/run.json")} == results.keys() - broken.keys()
    assert leftovers(out) == []

    assert len(killed) >= 6
    deaths = [reason for result in results.values() for reason in result.earlier if "worker process" in reason]
    assert len(killed) // 2 <= len(deaths) <= len(killed)  # Some had just ended.
    retried = next(one for one in results.values() if one.state == "done" and one.earlier and one.name != "scene")
    config = EditConfig(steps=2, seed=retried.facts["seed"])
    edit_video(clip, **PROMPTS, model=str(tiny_model), config=config, out=tmp_path / "alone")
    ours, theirs = (video.read(folder / "edited.mp4").frames for folder in (out / retried.name, tmp_path / "alone"))
    assert (ours == theirs).all()
