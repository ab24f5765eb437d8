"""Whole batches by real processes at tiny size, interrupted, killed and resumed."""

import fcntl
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support.batch import PROMPTS, QUICK, InlinePool, leftovers, pid_of, write_clip, write_tasks
from support.interrupts import default_interrupts, interrupt
from support.models import pickled
from support.processes import PreloadedPool

from v2edit import video
from v2edit.batch.command import run_batch
from v2edit.batch.page import as_html
from v2edit.batch.state import BatchStatus, read_status
from v2edit.cli.app import main
from v2edit.editing import EditConfig
from v2edit.errors import UserError
from v2edit.jobs.functions import edit_video
from v2edit.runs import read_run_state


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


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


@pytest.mark.usefixtures("inline_workers")
def test_a_batch_takes_pickles_only_with_allow_pickle(tiny_model: Path, clip: Path, tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks.jsonl", {"video": str(clip), **PROMPTS})
    old = pickled(tiny_model, tmp_path / "old")
    with pytest.raises(UserError, match="--allow-pickle"):
        run_batch(tasks, out=tmp_path / "out", model=str(old), device="cpu", config=QUICK)
    status = run_batch(
        tasks, out=tmp_path / "out", model=str(old), device="cpu", config=QUICK, allow_pickle=True, revision="v1"
    )
    (done,) = status.done
    assert not status.failed and done.facts["revision"] == "v1"
    assert json.loads((tmp_path / "out" / done.name / "run.json").read_text())["model"]["revision"] == "v1"


def video_times(folder: Path) -> dict[str, int]:
    """Return the time at which each run's video was written, by the run's name: it tells whether one is made again."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/edited.mp4")}


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
        # Not "auto": that would join the Ray that another test runs at this moment.
        ({"ray": "127.0.0.1:1"}, ["Ray", "'127.0.0.1:1'"]),
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


# --- interrupted batches and killed workers -------------------------------------------------------


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
