"""Batches: what a file of tasks may say, and whole batches by real processes at tiny size, killed and gone on with."""

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import pickled, pipeline_of

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

PROMPTS = {"source_prompt": "a red ball", "target_prompt": "a blue cube"}
QUICK = EditConfig(steps=2)


def write_tasks(path: Path, *lines: dict[str, Any] | str) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8", errors="surrogateescape")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pipeline_of("5b").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = np.zeros((5, 32, 32, 3), np.uint8)
    frames[:, 8:24, 8:24] = (200, 30, 30)
    return video.write(frames, path, fps=8)


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
    one, two, three = read_tasks(path, EditConfig(steps=9, alpha=0.5))
    assert (one.line, one.kind, one.path) == (1, "video", tmp_path / "in" / "a.mp4")
    assert one.config == EditConfig(steps=9, alpha=0.5, subtasks=3, seed=7)
    assert (two.line, two.kind, two.path, two.name) == (3, "scene", tmp_path / "in", "räume 1")
    assert two.config == EditConfig(steps=9, alpha=1.0)
    assert (one.name, three.name) == ("a-make-the-ball-blue", "a-make-the-ball-blue-2")


def test_every_setting_of_an_edit_may_stand_in_a_line() -> None:
    from dataclasses import fields

    assert {one.name: one.default for one in fields(EditConfig)}.items() <= {
        name: field.default for name, field in TaskLine.model_fields.items()
    }.items()


def test_a_batch_takes_pickles_where_it_is_asked_to(model: Path, clip: Path, tmp_path: Path) -> None:
    """As one edit does; the workers load what was found before."""
    tasks = write_tasks(tmp_path / "tasks.jsonl", {"video": str(clip), **PROMPTS})
    old = pickled(model, tmp_path / "old")
    with pytest.raises(UserError, match="--allow-pickle"):
        run_batch(tasks, out=tmp_path / "out", model=str(old), device="cpu", config=QUICK)
    status = run_batch(tasks, out=tmp_path / "out", model=str(old), device="cpu", config=QUICK, allow_pickle=True)
    assert len(status.done) == 1 and not status.failed


def test_options_are_those_of_one_edit() -> None:
    """The same groups, so that defaults and help texts are the same."""
    batch, edit = ({one.name: one.default for one in fields(job)} for job in (EditBatch, SceneEdit))
    assert {name: batch[name] for name in ("lvlm", "model_options", "config", "fit")}.items() <= edit.items()


# A line, and what is said of it: all of it one line that names the field, what was given and what is expected.
A = '"video": "a.mp4"'
MISTAKES = {
    "no JSON": ("{", "it is no JSON"),
    "no object": ('["a.mp4"]', 'it is ["a.mp4"], expected an object such as {"video"'),
    "a key twice": (f'{{{A}, "seed": 1, "seed": 2}}', "'seed' twice"),
    "an unknown key": (f'{{{A}, "subtask": 3}}', "there is no field 'subtask'; did you mean \"subtasks\"?"),
    "nothing to edit": ('{"instruction": "make it blue"}', '"video" or "scene" says what to edit, and neither'),
    "two things to edit": (f'{{{A}, "scene": "a.mp4"}}', "both are given"),
    "no such file": ('{"video": "b.mp4"}', "b.mp4', and there is no such file"),
    "no path at all": ('{"video": "a\\u0000.mp4"}', "there is no such file"),
    "a path that is too long": (json.dumps({"video": "a" * 5000}), "there is no such file"),
    "a number as text": (f'{{{A}, "subtasks": "3"}}', "\"subtasks\" is '3', expected a valid integer"),
    "a fraction": (f'{{{A}, "steps": 2.5}}', '"steps" is 2.5, expected a valid integer'),
    "nothing where something must be": (f'{{{A}, "steps": null}}', '"steps" is None, expected a valid integer'),
    "a word that is none of those": (f'{{{A}, "solver": "euler"}}', "\"solver\" is 'euler', expected 'auto', 'ddim'"),
    "half a character in a name": (f'{{{A}, "in\\ud83d": "b"}}', "a field is called 'in\\ud83d', which is no text"),
    "half a character": (f'{{{A}, "instruction": "\\ud800"}}', '"instruction" is \'\\ud800\', expected text of whole'),
    "out of range": (f'{{{A}, "subtasks": 9}}', '"subtasks" is 9, expected 1 to 6'),
    "not a number": (f'{{{A}, "alpha": NaN}}', '"alpha" is nan, expected 0.0 to 1.0'),
    "two settings at odds": (f'{{{A}, "alpha": 0.2, "beta": 0.3}}', '"beta" is 0.3, expected below "alpha" (0.2)'),
    "no source prompt": (f'{{{A}, "instruction": "make it blue"}}', 'Say it with "source_prompt"'),
    "no change": (f'{{{A}, "source_prompt": "a ball"}}', '"target_prompt"'),
    "an instruction not of the world": (f'{{{A}, "source_prompt": "a", "instruction": "fly"}}', '"target_prompt"'),
    **{
        f"a name that is {name!r:.20}": (f'{{{A}, "name": {json.dumps(name)}}}', f'"name" is {name!r:.50}')
        for name in ("", ".", "..", "../a", "a/b", "/a", "a\\b", ".hidden", "a\nb", "a\x00", "a\u202eb", " a", "é" * 61,
                     "results.jsonl", "INDEX.html", "errors")
    },
}  # fmt: skip


@pytest.mark.parametrize(("line", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_nothing_runs(line, says, model, tmp_path, capsys) -> None:
    (tmp_path / "a.mp4").touch()
    path = write_tasks(tmp_path / "tasks.jsonl", {"video": "a.mp4"} | PROMPTS, line)
    assert main(["batch", str(path), "-o", str(tmp_path / "out"), "--model", str(model)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and says in told.err
    assert told.err.startswith(f"v2edit: error: {path}, line 2: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "tasks.jsonl"]


def test_several_mistakes_are_told_together(model, tmp_path, capsys) -> None:
    (tmp_path / "a.mp4").touch()
    path = write_tasks(tmp_path / "tasks.jsonl", "{", {"video": "a.mp4"} | PROMPTS, *[{"video": "b.mp4"}] * 30)
    assert main(["batch", str(path), "-o", str(tmp_path / "out"), "--model", str(model)]) == 2
    *notes, last = capsys.readouterr().err.splitlines()
    assert len(notes) == 20 and notes[0].startswith(f"v2edit: note: {path}, line 1: it is no JSON")
    assert last == f"v2edit: error: 31 lines of {path} have mistakes, of which 20 are shown; nothing was run"


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_tasks(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("one", "other"), [("a", "a"), ("Räume", "RÄUME"), ("é", "e\u0301"), ("straße", "STRASSE")])
def test_names_that_some_file_system_takes_for_one(one, other, tmp_path) -> None:
    (tmp_path / "a.mp4").touch()
    path = write_tasks(tmp_path / "tasks.jsonl", *({"video": "a.mp4", "name": name} for name in (one, "b", other)))
    assert "line 3: " in (told := refused(path)) and "line 1 has that name too" in told


def test_names_that_are_made_take_no_others_and_stay_the_same(tmp_path) -> None:
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
    for says, write in hostile.items():
        with path.open("wb") as file:
            write(file)
        tracemalloc.start()
        told = refused(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert says in told and len(told) < 500
        assert peak < 48 * 2**20, says


# --- whole batches --------------------------------------------------------------------------------


def made(folder: Path) -> dict[str, int]:
    """Every run folder, by its name, with the time of its film: one that is made again has another."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/edited.mp4")}


def left_over(folder: Path) -> list[str]:
    """What only a batch at work may have in its folder."""
    return [path.name for path in (*folder.glob("*/.state"), *folder.glob(".batch/running/*"), *folder.glob("*-2"))]


@pytest.fixture(scope="module")
def first(model, clip, tmp_path_factory) -> tuple[Path, Path, Path, BatchStatus, dict[str, int]]:
    """A batch of three tasks that can be done and one that cannot, whose model is gone once the first is done; its
    file of tasks, the model and the output folder, how it ended, and when each run was made."""
    folder = tmp_path_factory.mktemp("batch")
    shutil.copytree(model, folder / "model")
    (folder / "broken.mp4").write_bytes(b"no video")
    path = write_tasks(
        folder / "tasks.jsonl",
        {"video": str(clip), "name": "one", "seed": 5} | PROMPTS,
        {"video": "broken.mp4", "name": "broken"} | PROMPTS,
        {"video": str(clip), "name": "two", "instruction": "</script><b>&"} | PROMPTS,
        {"video": str(clip), "subtasks": 2} | PROMPTS,
    )

    def tell(*_: object) -> None:
        if (folder / "model").exists():
            (folder / "model").rename(folder / "gone")

    status = run_batch(path, out=folder / "out", model=str(folder / "model"), config=QUICK, on_progress=tell)
    (folder / "gone").rename(folder / "model")
    return path, folder / "model", folder / "out", status, made(folder / "out")


def test_tasks_are_edits_with_one_model_loaded_once(first, clip, tmp_path) -> None:
    _, model, out, status, runs = first
    assert sorted(runs) == ["clip-a-blue-cube", "one", "two"]
    assert len({one.worker for one in status.results.values()}) == 1  # and its model's files were gone meanwhile
    edit_video(clip, **PROMPTS, model=str(model), config=EditConfig(steps=2, seed=5), out=tmp_path / "one")
    assert (video.read(out / "one" / "edited.mp4").frames == video.read(tmp_path / "one" / "edited.mp4").frames).all()
    assert sorted(path.name for path in (out / "one").iterdir()) == sorted(os.listdir(tmp_path / "one"))
    assert (out / "clip-a-blue-cube" / "subtask-1.mp4").is_file()
    own, alone = (json.loads((folder / "one" / "run.json").read_text()) for folder in (out, tmp_path))
    for name in ("input", "prompts", "model", "config", "seed", "guidance", "solver"):
        assert own[name] == alone[name]
    assert not left_over(out)


def test_results_say_what_became_of_each_task(first) -> None:
    _, _, out, status, _ = first
    lines = {one["name"]: one for one in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    assert {name: one["state"] for name, one in lines.items()} == {
        "one": "done", "two": "done", "clip-a-blue-cube": "done", "broken": "failed",
    }  # fmt: skip
    assert lines["broken"]["attempts"] == 2 and lines["one"]["attempts"] == 1
    assert "is not a video" in lines["broken"]["reason"] and lines["broken"]["earlier"] == [lines["broken"]["reason"]]
    assert (len(status.done), len(status.failed), status.waiting, status.active) == (3, 1, 0, False)


class Page(HTMLParser):
    """Collects what a browser would fetch, and the data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.data, self.inside = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [value for key, value in given.items() if key in ("src", "href") and value]
        self.inside = given.get("type") == "application/json"

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
    assert "is not a video" in data["broken"]["reason"] and text == as_html(read_status(out))


def test_what_is_done_is_not_done_again_and_what_was_set_aside_stays_so(first, capsys) -> None:
    path, model, out, _, runs = first
    words = ["batch", str(path), "-o", str(out), "--model", str(model), "--steps", "2"]
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out.splitlines()[0] == "4 tasks: 3 done, 1 failed" and "broken: " in told.out.splitlines()[1]
    assert told.err == "v2edit: error: 1 of 4 tasks failed, for the reasons above; --retry-failed tries it again\n"
    assert made(out) == runs
    assert main(["batch-status", str(out)]) == 0
    assert capsys.readouterr().out == told.out


def test_a_result_of_other_settings_is_not_passed_off_as_this_one(first) -> None:
    path, model, out, _, runs = first
    with pytest.raises(UserError, match=r"line 1: 'one' is done, with another \"steps\" \(2, now 3\)"):
        run_batch(path, out=out, model=str(model), config=EditConfig(steps=3))
    assert made(out) == runs and len(read_status(out).done) == 3


def test_a_batch_grows_and_what_failed_is_tried_again_when_asked(first, clip, tmp_path) -> None:
    path, model, out, _, _ = first
    folder = tmp_path / "copy"
    shutil.copytree(out, folder)
    before = made(folder)
    video.write(np.zeros((5, 32, 32, 3), np.uint8), tmp_path / "mended.mp4", fps=8)
    (path.parent / "broken.mp4").write_bytes((tmp_path / "mended.mp4").read_bytes())
    more = json.dumps({"video": str(clip), "name": "more"} | PROMPTS)
    grown = path.with_name("grown.jsonl")
    grown.write_text(path.read_text() + more + "\n")
    status = run_batch(grown, out=folder, model=str(model), config=QUICK, retry_failed=True)
    assert (len(status.done), len(status.failed)) == (5, 0)
    assert made(folder).items() >= before.items() and len(made(folder)) == 5


def test_folders_of_others_are_left_alone(first, clip, model, tmp_path) -> None:
    path, _, out, _, _ = first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no batch"):
        run_batch(path, out=tmp_path / "mine", model=str(model))
    with pytest.raises(UserError, match="holds no batch"):
        read_status(tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["a.txt"]
    (tmp_path / "out" / ".batch").mkdir(parents=True)
    (tmp_path / "out" / ".batch" / "lock").touch()
    (tmp_path / "out" / "one").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"line 1: .*one is there and is no run of this batch"):
        run_batch(path, out=tmp_path / "out", model=str(model))
    with (out / ".batch" / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another batch is running"):
            run_batch(path, out=out, model=str(model), config=QUICK)
        assert read_status(out).active


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--workers", "0"], "--workers is 0, expected 1 or more"),
        (["--retries", "-1"], "--retries is -1"),
        (["--device", "nowhere"], "the device 'nowhere' cannot be used here"),
        (["--model", "nothing-here"], "no model 'nothing-here'"),
        (["--ray", "auto"], "cannot use Ray at 'auto': Could not find any running Ray instance"),
    ],
    ids=str,
)
def test_a_mistake_in_the_command_leaves_nothing(words, says, clip, model, tmp_path, capsys) -> None:
    path = write_tasks(tmp_path / "tasks.jsonl", {"video": str(clip)} | PROMPTS)
    assert main(["batch", str(path), "-o", str(tmp_path / "out"), "--model", str(model), *words]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and says in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["tasks.jsonl"]


@pytest.mark.heavy
def test_a_model_that_no_worker_can_load_is_no_failure_of_the_tasks(clip, model, tmp_path) -> None:
    shutil.copytree(model, tmp_path / "model")
    weights = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    path = write_tasks(tmp_path / "tasks.jsonl", {"video": str(clip)} | PROMPTS)
    with pytest.raises(UserError, match="no worker can start: cannot load the model"):
        run_batch(path, out=tmp_path / "out", model=str(tmp_path / "model"))
    assert (read_status(tmp_path / "out").waiting, left_over(tmp_path / "out")) == (1, [])


# --- what ends workers and batches ----------------------------------------------------------------


def v2edit(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "v2edit", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def watched(process: subprocess.Popen[str], folder: Path) -> Iterator[BatchStatus]:
    """How far a batch is, again and again while it runs."""
    while process.poll() is None:
        if (folder / ".batch" / "tasks.jsonl").exists():
            yield read_status(folder)
        time.sleep(0.02)


def pid_of(worker: str) -> int:
    return int(re.findall(r"process (\d+)$", worker)[0])


def alive(pid: int) -> bool:
    """Whether a process runs: neither gone nor waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def slow(model, clip, tmp_path_factory) -> tuple[Path, list[object]]:
    """A file of four tasks that take some seconds, and the words that run them."""
    folder = tmp_path_factory.mktemp("slow")
    lines = ({"video": str(clip), "name": f"task {k}", "seed": k} | PROMPTS for k in range(4))
    path = write_tasks(folder / "tasks.jsonl", *lines)
    return folder, ["batch", path, "-o", folder / "out", "--model", model, "--steps", 50]


def test_an_interrupted_batch_goes_on_and_a_killed_worker_costs_one_attempt(slow) -> None:
    folder, words = slow
    out = folder / "out"
    process = v2edit(*words, "--workers", 2)
    for status in watched(process, out):
        if status.done and status.running:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
            break
    code, _, err = finished(process)
    assert code == 130 and err.endswith("v2edit: interrupted; the same command continues from here\n"), err
    assert "Traceback" not in err  # what was running is left as far as it was, to be gone on with
    status, before = read_status(out), made(out)
    assert not status.active and 1 <= len(status.done) == len(before) < 4

    process, killed = v2edit(*words), ""
    for status in watched(process, out):
        if status.running:
            killed = status.running[0].name
            try:
                os.kill(pid_of(status.running[0].worker), signal.SIGKILL)
            except ProcessLookupError:
                continue  # That is what the batch before was at; this one has not looked yet.
            break
    code, told, err = finished(process)
    assert code == 0 and told.startswith("4 tasks: 4 done\n") and left_over(out) == [], err
    assert made(out).items() >= before.items() and len(made(out)) == 4
    results = read_status(out).results
    assert {name: (one.attempts, one.earlier) for name, one in results.items() if one.attempts > 1} == {
        killed: (2, ["its worker process was ended by SIGKILL: for want of memory, perhaps"])
    }


def skip_where_ray_gave_up(err: str) -> None:
    """A busy machine must not fail a test, and Ray waits half a minute for itself, which nothing can change."""
    if "The current node timed out during startup" in err:
        pytest.skip("Ray did not start in its 30 s on a machine as busy as this")


def test_ray_does_the_same(first, clip, model, tmp_path) -> None:
    """On Ray itself, one actor on this machine."""
    pytest.importorskip("ray")
    path = write_tasks(
        tmp_path / "tasks.jsonl",
        {"video": str(clip), "name": "one", "seed": 5} | PROMPTS,
        {"video": str(first[0].parent / "tasks.jsonl"), "name": "broken"} | PROMPTS,
        {"video": str(clip), "name": "two"} | PROMPTS,
    )
    words = ["batch", path, "-o", tmp_path / "out", "--model", model, "--steps", 2, "--ray", "local", "--retries", 0]
    code, told, err = finished(v2edit(*words))
    skip_where_ray_gave_up(err)
    assert code == 2 and told.startswith("3 tasks: 2 done, 1 failed\n"), err
    status = read_status(tmp_path / "out")
    assert len({one.worker for one in status.results.values()}) == 1 and not left_over(tmp_path / "out")
    ours, theirs = (video.read(folder / "one" / "edited.mp4").frames for folder in (tmp_path / "out", first[2]))
    assert (ours == theirs).all()


def broken_inputs(folder: Path) -> dict[str, tuple[dict[str, str], str]]:
    """Tasks that cannot be done, each for a reason of its own, and what is said of it."""
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
def test_forty_of_forty_five_tasks_on_ray_whose_workers_are_killed_at_random(clip, model, tmp_path) -> None:
    """39 videos and a scene come out, once each and as they would alone; five are set aside for their own reasons."""
    broken = broken_inputs(tmp_path / "broken")
    assert main(["sample", "--scene", "--seed", "3", "-o", str(tmp_path / "scene")]) == 0
    lines = [{"video": str(clip), "name": f"video {k}", "seed": k} | PROMPTS for k in range(39)]
    lines.insert(5, {"scene": "scene", "name": "scene"} | PROMPTS)
    for place, (name, (line, _)) in enumerate(broken.items()):
        lines.insert(9 * place, line | {"name": name} | PROMPTS)
    path = write_tasks(tmp_path / "tasks.jsonl", *lines)
    assert len(lines) == 45

    out, chance = tmp_path / "out", random.Random(0)
    words = ["batch", path, "-o", out, "--model", model, "--steps", 2, "--retries", 4, "--ray", "local", "--workers", 2]
    words += ["--fit-steps", 20, "--refit-steps", 10, "--gaussians", 300]
    process, killed, after = v2edit(*words), [], 1
    for status in watched(process, out):
        if status.running and len(status.results) >= after:
            killed.append(chance.choice(status.running))
            os.kill(pid_of(killed[-1].worker), signal.SIGKILL)
            after = len(status.results) + chance.randint(2, 6)
            while process.poll() is None and killed[-1] in read_status(out).running:
                time.sleep(0.02)
    code, told, err = finished(process)
    skip_where_ray_gave_up(err)
    assert code == 2 and told.startswith("45 tasks: 40 done, 5 failed\n"), err
    print(told, *(f"killed: {one.name}, attempt {one.attempt}, {one.worker}" for one in killed), sep="\n")

    names = [json.loads(line)["name"] for line in (out / "results.jsonl").read_text().splitlines()]
    assert sorted(names) == sorted(line["name"] for line in lines)  # one end each
    results = read_status(out).results
    assert {one.name for one in results.values() if one.state == "failed"} == broken.keys()
    for name, (_, says) in broken.items():
        assert results[name].attempts == 5
        assert any(says in (reason or "") for reason in (results[name].reason, *results[name].earlier))
    assert {path.parent.name for path in out.glob("*/run.json")} == results.keys() - broken.keys()
    assert left_over(out) == []

    assert len(killed) >= 6
    deaths = [reason for one in results.values() for reason in one.earlier if "worker process" in reason]
    assert len(killed) // 2 <= len(deaths) <= len(killed)  # some had just come to their end
    again = next(one for one in results.values() if one.state == "done" and one.earlier and one.name != "scene")
    config = EditConfig(steps=2, seed=again.facts["seed"])
    edit_video(clip, **PROMPTS, model=str(model), config=config, out=tmp_path / "alone")
    ours, theirs = (video.read(folder / "edited.mp4").frames for folder in (out / again.name, tmp_path / "alone"))
    assert (ours == theirs).all()
