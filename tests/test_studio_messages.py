"""What the studio answers to mistakes, in words that need no command line, and to values that are none."""

import errno
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from support.processes import PreloadedPool
from support.scenes import gaussians_of
from support.survival import contents

from v2edit import edit_video
from v2edit.batch.worker import describe_error
from v2edit.errors import UserError
from v2edit.runs import read_run_state
from v2edit.runs.naming import why_not_writable
from v2edit.scenes.formats.splats import write_splat
from v2edit.studio.messages import for_browser
from v2edit.studio.options import check_model
from v2edit.studio.tools import READER, Tools

SHELL = re.compile(r"(?<!\w)--?[a-z]|INSTRUCTION|v2edit |Errno|/tmp|/[\w.-]+/[\w.-]+/|\.part\b")


@pytest.fixture(scope="module")
def upload(studio, sample) -> str:
    return studio.upload(sample.clip)["id"]


MISTAKES: dict[str, dict[str, Any]] = {
    "steps is 0": {"options": {"steps": 0}},
    "steps is True": {"options": {"steps": True}},
    "guidance": {"options": {"guidance": True}},
    "seeds is 0": {"options": {"seeds": 0}},
    "subtasks is 9": {"options": {"subtasks": 9}},
    "strength is": {"options": {"strength": "huge"}},
    "beta is": {"options": {"alpha": 0.3, "beta": 0.5}},
    "grow is -1": {"options": {"grow": -1}},
    "end is 1": {"trim": [2, 1]},
    "flow shift is": {"options": {"flow_shift": -1}},
    "save every is 0": {"options": {"save_every": 0}},
    "resolution is": {"options": {"resolution": "big"}},
    "quality (CRF) is": {"options": {"crf": 900}},
    "target prompt": {"instruction": "turn it into an opera of ghosts"},
    "what is to change": {"instruction": None},
    "language model": {"options": {"lvlm": True}},
    "owner/name": {"options": {"model": "/etc"}},
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_told_without_words_of_the_command_line(studio, sample, upload, words):
    asked = {"input": {"upload": upload}, "instruction": sample.instruction} | MISTAKES[words]
    asked["options"] = {"source_prompt": sample.source_prompt} | asked.get("options", {})
    answer = studio.api("POST", "/jobs", asked)
    if answer.status == 201:  # a mistake that only the model's schedule or the file's format shows
        ended = studio.ended(answer.json["id"], "failed")
        text = ended["reason"]
    else:
        assert answer.status == 422
        text = answer.error
    assert words in text and not SHELL.search(text.replace("owner/name", "")), text


def test_errors_of_the_system_are_told_by_what_they_mean(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert for_browser(f"{full}; then go on with: v2edit resume runs/a-run") == "No space left on device"
    hidden, named = tmp_path / ".state" / "a.part", tmp_path / "a clip.mp4"
    for path, expected in ((hidden, "No such file or directory"), (named, "No such file or directory: a clip.mp4")):
        with pytest.raises(OSError) as caught:
            path.read_bytes()
        assert for_browser(describe_error(caught.value)) == expected
    (tmp_path / "taken").write_text("x")
    assert for_browser(str(why_not_writable(tmp_path / "taken"))) == "taken exists"
    assert not SHELL.search(for_browser(describe_error(MemoryError())))
    kept = "https://huggingface.co/zai-org/CogVideoX-5b says 404; try owner/name -- or 3/4 of it"
    assert for_browser(kept) == kept


def test_an_empty_file_is_called_so(studio):
    answer = studio.api("POST", "/uploads", {"name": "clip.mp4", "bytes": 0})
    assert answer.status == 422 and answer.error == "this file is empty"


def test_the_models_that_are_offered_are_taken(studio):
    models = studio.get("/machine")["models"]
    assert len({one["name"] for one in models}) == len(models) > 5
    for one in models:
        check_model(one["name"], studio.studio.settings)


def test_the_time_of_a_scene_is_not_told_without_its_reconstructions(studio, tmp_path):
    upload = studio.upload(write_splat(tmp_path / "a.ply", gaussians_of(0)))
    options = {"source_prompt": "a ball", "target_prompt": "a cube", "frames": 2, "side": 32}
    told = studio.api(
        "POST", "/estimates", {"kind": "scene", "input": {"upload": upload["id"]}, "options": options}
    ).json
    assert told["total_seconds"] is None and told["seconds"] and told["memory_gib"] > 0
    assert "not timed" in told["note"] and not SHELL.search(told["note"] + told["summary"])


def test_a_run_of_the_command_line_is_gone_on_with(studio, sample, sample_run):
    def interrupt(progress: Any) -> None:
        if progress.stage == "editing" and progress.step == 2:
            raise KeyboardInterrupt

    begun = studio.folder / "begun-elsewhere"
    with pytest.raises(KeyboardInterrupt):
        edit_video(
            sample.clip, sample.instruction, out=begun, show_progress=False, on_progress=interrupt, **sample.options
        )
    assert read_run_state(begun).state == "stopped"
    studio.studio.library.scan()
    job = studio.api("POST", f"/runs/{begun.name}/resume")
    assert job.status == 201 and job.json["run"] == begun.name and "v2edit resume" in job.json["command"]
    done = studio.ended(job.json["id"])
    assert done["run"] == begun.name and contents(begun) == contents(sample_run)
    studio.wait(f"/runs/{begun.name}", lambda run: run["state"] == "done")
    assert studio.api("POST", f"/runs/{begun.name}/resume").status == 409
    assert studio.api("POST", f"/jobs/{job.json['id']}/again").status == 409
    assert studio.api("POST", "/runs/there-is-none/resume").status == 404

    # Its description comes as an event, also where the run changes while it is looked at.
    listener = studio.listen()
    listener.next()
    shutil.rmtree(studio.studio.cache_of(begun.name), ignore_errors=True)
    studio.studio.library._media.clear()
    studio.studio.describe(begun.name)
    os.utime(begun / "run.json")
    studio.studio.library.scan()
    listener.until(lambda name, run: name == "run" and run["name"] == begun.name and run["frames"] == 5)
    listener.close()


def test_tools_take_work_while_a_process_is_started():
    begins, may_end = threading.Event(), threading.Event()

    class SlowPool(PreloadedPool):
        def start(self, worker: int) -> None:
            begins.set()
            assert may_end.wait(60)
            super().start(worker)

    tools = Tools(2**33, 8, SlowPool)
    try:
        first = tools.call("write_frame", READER, 60.0, path="none.mp4", number=0, out="none.jpg")
        assert begins.wait(60)
        second: list[Any] = []
        caller = threading.Thread(
            target=lambda: second.append(tools.call("write_frame", READER, 60.0, path="no.mp4", number=0, out="n.jpg")),
            daemon=True,
        )
        caller.start()
        caller.join(30)
        assert second and not first.done()
        may_end.set()
        assert isinstance(first.exception(), UserError) and isinstance(second[0].exception(), UserError)
    finally:
        may_end.set()
        tools.close()


def test_streams_end_with_the_studio(tmp_path: Path):
    from support.studio import serving

    with serving(tmp_path / "runs") as client:
        listener = client.listen()
        listener.next()
        client.studio.begin_to_close()
        assert listener.socket.recv(1000) in (b"0\r\n\r\n", b"")
        listener.close()
