"""The studio from end to end: upload, edit, watch, download; stopped and gone on with; killed, and gone on with."""

import json
import os
import re
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support.studio import API, Client, Sample, server_process, serving
from support.survival import contents

from v2edit.backbones import BUILT_IN
from v2edit.cli.app import parse


@pytest.fixture(scope="module")
def whole(sample_run: Path) -> dict[str, bytes]:
    """The files of the edit as the command line makes it."""
    return contents(sample_run)


@pytest.fixture(scope="module")
def upload(studio: Client, sample: Sample) -> dict[str, Any]:
    return studio.upload(sample.clip)


@pytest.fixture(scope="module")
def done(studio: Client, sample: Sample, upload: dict[str, Any]) -> dict[str, Any]:
    """A job that is done, with the events that were seen of it."""
    listener = studio.listen()
    id = studio.submit(upload["id"], sample.instruction, **sample.options)
    listener.until(lambda name, data: name == "job" and data["id"] == id and data["state"] == "done")
    run = studio.get(f"/jobs/{id}")["run"]
    listener.until(lambda name, data: name == "run" and data["name"] == run and data["state"] == "done")
    listener.close()
    return studio.get(f"/jobs/{id}") | {"seen": listener.events}


def test_an_upload_is_looked_at(studio, upload, sample):
    assert upload["state"] == "ready" and upload["kind"] == "video"
    assert (upload["frames"], upload["width"], upload["height"], upload["sound"]) == (5, 48, 32, False)
    for name, kind in (("proxy.mp4", "video/mp4"), ("thumb.jpg", "image/jpeg"), ("frames/3.jpg", "image/jpeg")):
        answer = studio.api("GET", f"/uploads/{upload['id']}/{name}")
        assert answer.status == 200 and answer.headers["content-type"] == kind and len(answer.body) > 100
    assert studio.api("GET", f"/uploads/{upload['id']}/frames/5.jpg").status == 404


def test_a_sidecar_gives_the_source_prompt(studio, sample):
    found = studio.upload(sample.clip, sample.clip.with_name("clip.json"))
    assert found["kind"] == "video" and found["source_prompt"] == sample.source_prompt


def test_a_job_makes_the_bytes_that_the_command_line_makes(studio, done, whole):
    assert contents(studio.folder / done["run"]) == whole
    answer = studio.api("GET", f"/runs/{done['run']}/download?format=mp4")
    assert answer.body == whole["edited.mp4"] and "attachment" in answer.headers["content-disposition"]


def test_events_tell_how_a_job_goes_on(done):
    seen = [data for _, name, data in done["seen"] if name == "job" and data["id"] == done["id"]]
    states = [data["state"] for data in seen]
    assert states == sorted(states, key=["queued", "loading", "running", "done"].index) and states[-1] == "done"
    shares = [data["progress"]["done"] for data in seen if data["progress"]]
    assert shares == sorted(shares) and shares and 0 < shares[-1] <= 1
    assert any("target prompt" in line for line in done["plan"])


def test_the_command_of_a_job_is_its_command(studio, done, sample):
    import shlex

    from v2edit.jobs.video import VideoEdit

    job: Any = parse(shlex.split(done["command"])[1:]).options["job"]
    assert isinstance(job, VideoEdit) and job.instruction == sample.instruction
    assert job.config.steps == 4 and job.config.seed == 5 and job.run_options.out == studio.folder / done["run"]
    assert json.loads((studio.folder / done["run"] / "run.json").read_text())["command"] == shlex.split(done["command"])
    names: dict[str, Any] = {}
    code = re.sub(r"^import v2edit\n", "", done["python"]).replace("v2edit.edit_video", "call")
    exec(code, {"call": lambda video, instruction, **options: names.update(options, instruction=instruction)})
    assert names["steps"] == 4 and names["instruction"] == sample.instruction


def test_a_run_is_listed_with_its_files(studio, done, sample):
    (run,) = [one for one in studio.get("/runs?q=" + done["run"])["runs"] if one["name"] == done["run"]]
    assert run["state"] == "done" and run["model"] == sample.options["model"] and run["seconds"] >= 0
    full = studio.get(f"/runs/{done['run']}")
    roles = {one["name"]: one["role"] for one in full["files"]}
    assert roles == {"compare.mp4": "compare", "contact.png": "sheet", "edited.mp4": "edited", "run.json": "manifest"}
    assert full["media"]["compare"].startswith(API) and full["settings"]["config"]["steps"] == 4
    assert (
        studio.ask("GET", full["media"]["compare"]).body == (studio.folder / done["run"] / "compare.mp4").read_bytes()
    )
    assert studio.ask("GET", run["thumb"]).body[:2] == b"\xff\xd8"
    assert studio.wait(f"/runs/{done['run']}", lambda one: one["frames"])["frames"] == 5


@pytest.mark.parametrize(
    ("kind", "head"), [("gif", b"GIF8"), ("webp", b"RIFF"), ("png-zip", b"PK"), ("run-zip", b"PK")]
)
def test_downloads_are_made_of_a_run(studio, done, tmp_path, kind, head):
    answer = studio.api("GET", f"/runs/{done['run']}/download?format={kind}")
    assert answer.status == 200 and answer.body.startswith(head)
    if kind.endswith("zip"):
        (tmp_path / "a.zip").write_bytes(answer.body)
        names = zipfile.ZipFile(tmp_path / "a.zip").namelist()
        assert len(names) == (5 if kind == "png-zip" else 4)


def test_prompts_and_estimates_are_told_before(studio, upload, sample):
    options = {"steps": 4, "model": BUILT_IN}  # a tiny one's seconds are none
    body = {"input": {"upload": upload["id"]}, "instruction": sample.instruction, "options": options}
    told = studio.api("POST", "/prompts", body | {"source_prompt": sample.source_prompt}).json
    assert told["source"] == sample.source_prompt and told["written_by"] == "grammar" and told["forwards"]
    kinds = {kind for one in told["comparisons"] for kind, _ in one["pieces"]}
    assert {"shared", "removed", "added"} <= kinds
    estimate = studio.api("POST", "/estimates", body | {"source_prompt": sample.source_prompt}).json
    assert estimate["fits"] and estimate["total_seconds"] > 0 and estimate["memory_gib"] > 0


def test_a_job_that_is_stopped_goes_on_to_the_same_bytes(studio, upload, sample, whole):
    listener = studio.listen()
    id = studio.submit(upload["id"], sample.instruction, **sample.options)
    listener.until(lambda name, data: name == "job" and data["id"] == id and data["state"] == "running")
    listener.close()
    assert studio.api("POST", f"/jobs/{id}/resume").status == 409
    assert studio.api("POST", f"/jobs/{id}/cancel").json["stopping"]
    stopped = studio.ended(id, "stopped")
    assert studio.get(f"/runs/{stopped['run']}")["state"] == "stopped"
    assert studio.api("DELETE", f"/runs/{stopped['run']}").status == 200  # a stopped one may go to the trash,
    (thrown,) = [one for one in studio.get("/trash")["runs"] if one["name"] == stopped["run"]]
    assert studio.api("POST", f"/trash/{thrown['id']}/restore").json == {"name": stopped["run"]}  # and come back
    assert studio.api("POST", f"/jobs/{id}/resume").json["state"] == "queued"
    assert contents(studio.folder / studio.ended(id)["run"]) == whole


def test_a_worker_that_is_killed_is_replaced(studio, upload, sample, whole):
    listener = studio.listen()
    id = studio.submit(upload["id"], sample.instruction, **sample.options)
    listener.until(lambda name, data: name == "job" and data["id"] == id and data["state"] == "running")
    (worker,) = studio.studio.queue._pool._processes.values()
    listener.close()
    os.kill(worker[0].pid, signal.SIGKILL)
    assert contents(studio.folder / studio.ended(id)["run"]) == whole
    (another,) = studio.studio.queue._pool._processes.values()
    assert another[0].pid != worker[0].pid


def test_a_server_that_is_killed_goes_on_with_its_next_start(sample, whole, tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    with server_process(folder, model=sample.options["model"]) as (client, process):
        upload = client.upload(sample.clip)["id"]
        jobs = [client.submit(upload, sample.instruction, **sample.options) for _ in range(2)]
        client.wait(f"/jobs/{jobs[0]}", lambda one: one["state"] in ("running", "done"))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    with server_process(folder, model=sample.options["model"]) as (client, process):
        runs = [client.ended(id)["run"] for id in jobs]
        assert client.get("/jobs")["total"] == 2 and len(set(runs)) == 2
        assert {one["name"] for one in client.get("/runs")["runs"]} == set(runs)
    for run in runs:
        assert contents(folder / run) == whole
    assert sorted(path.name for path in folder.iterdir()) == sorted([".studio", *runs])


def test_one_studio_serves_a_folder(studio):
    from support.videos import error_of

    def second() -> None:
        with serving(studio.folder):
            pass

    assert "another studio serves" in error_of(second)


def test_the_example_of_the_documents_edits(studio, sample, whole):
    page = (Path(__file__).parent.parent / "docs" / "studio.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(code.replace("127.0.0.1:7860", f"127.0.0.1:{studio.port}"), "studio.md", "exec"), names)
    run = names["edit"](sample.clip.read_bytes(), sample.instruction, **sample.options)
    assert contents(studio.folder / run) == whole


def test_masks_are_drawn_and_carried(studio, upload, sample):
    import base64
    import io

    import numpy as np
    from PIL import Image

    drawn = np.zeros((32, 48), np.uint8)
    drawn[8:24, 12:36] = 255
    Image.fromarray(drawn).save(png := io.BytesIO(), "PNG")
    keyframe = {"frame": 1, "png": base64.b64encode(png.getvalue()).decode()}
    body = {"input": {"upload": upload["id"]}, "keyframes": [keyframe]}
    for carry in ("still", "follow"):
        mask = studio.api("POST", "/masks", body | {"carry": carry, "grow": 0}).json
        assert mask["share"] == pytest.approx(0.25, abs=0.1)
        assert studio.ask("GET", mask["preview"]).headers["content-type"] == "video/mp4"
    assert (
        mask["share"]
        and studio.api("POST", "/masks", {"input": body["input"], "box": [0, 0, 24, 32]}).json["share"] == 0.5
    )
    options = sample.options | {"steps": 2}
    body = {"input": body["input"], "instruction": sample.instruction, "options": options, "mask": mask["id"]}
    job = studio.ended(studio.api("POST", "/jobs", body).json["id"])
    facts = json.loads((studio.folder / job["run"] / "run.json").read_text())
    assert Path(facts["local"]["mask"]).parent.name == mask["id"] and facts["local"]["grow"] == 0
    assert (studio.folder / job["run"] / "mask.mp4").exists()
