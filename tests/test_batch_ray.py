"""Batches on Ray, on this machine."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.batch import PROMPTS, leftovers, pid_of, write_clip, write_tasks

from v2edit import video
from v2edit.batch.state import BatchStatus, read_status
from v2edit.cli.app import main
from v2edit.editing import EditConfig
from v2edit.jobs.functions import edit_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


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


def skip_where_ray_did_not_start(err: str) -> None:
    """Skip the test where Ray did not start in its half minute: a busy machine must not fail a test."""
    if "The current node timed out during startup" in err:
        pytest.skip("Ray did not start in its 30 s on a machine as busy as this")


def test_ray_does_the_same(clip, tiny_model, tmp_path) -> None:
    """On Ray itself, one actor on this machine."""
    pytest.importorskip("ray")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    path = write_tasks(
        tmp_path / "tasks.jsonl",
        {"video": str(clip), "name": "one", "seed": 5} | PROMPTS,
        {"video": "broken.mp4", "name": "broken"} | PROMPTS,
    )
    words = ["batch", path, "-o", tmp_path / "out", "--model", tiny_model, "--steps", 2, "--ray", "local"]
    code, stdout, err = wait_for(start_command(*words, "--retries", 0))
    skip_where_ray_did_not_start(err)
    assert code == 2 and stdout.startswith("2 tasks: 1 done, 1 failed\n"), err
    status = read_status(tmp_path / "out")
    assert len({result.worker for result in status.results.values()}) == 1 and not leftovers(tmp_path / "out")
    config = EditConfig(steps=2, seed=5)
    edit_video(clip, **PROMPTS, model=str(tiny_model), config=config, out=tmp_path / "alone")
    ours, theirs = (video.read(folder / "edited.mp4").frames for folder in (tmp_path / "out/one", tmp_path / "alone"))
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
    words = ["batch", path, "-o", out, "--model", tiny_model, "--steps", 2, "--retries", 4, "--ray", "local"]
    words += ["--workers", 2, "--fit-steps", 20, "--refit-steps", 10, "--gaussians", 300]
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
