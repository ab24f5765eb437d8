"""The command line as a user meets it: real processes, exit codes, one line for each mistake."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from support.models import pipeline_of
from support.processes import run_command

from v2edit import video
from v2edit.cli.app import main, parse
from v2edit.editing.config import EditConfig
from v2edit.jobs.options import ModelOptions


def v2edit(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command, env = [sys.executable, "-m", "v2edit", *words], os.environ | environment
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def refused(process: subprocess.CompletedProcess[str], says: str) -> None:
    """A mistake of the user's: one line, and that exit code."""
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("v2edit: error: ") and process.stderr.count("\n") == 1 and says in process.stderr


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "sample"
    assert main(["sample", "--seed", "7", "-o", str(folder)]) == 0
    return folder / "clip.mp4"


def test_version_and_help(tmp_path: Path) -> None:
    process = v2edit("--version", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "") and process.stdout.startswith("v2edit 0.")
    process = v2edit("edit", "--help", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    for option in ("--source-prompt", "--model", "-o", "--offload", "--subtasks", "--no-amr", "--seed"):
        assert option in process.stdout


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize("words", [["edit", "--help"], ["runs", "."], ["--version"]])
def test_a_reader_that_has_gone_is_no_error(tmp_path: Path, words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "v2edit", *words]
    process = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (process.returncode, process.stderr) == (141, "")


# What the user types, and what the one line must say.
MISTAKES = {
    "no such video": (["nowhere.mp4", "make the ball red"], "no such file: nowhere.mp4"),
    "no source prompt": (["broken.mp4", "make the ball red", "--model", "some/model"], "--source-prompt"),
    "no change": (["broken.mp4", "--source-prompt", "a ball"], "--target-prompt"),
    "an instruction alone": (["broken.mp4", "make it a cat", "--model", "some/model"], "--target-prompt"),
    "an empty source prompt": (["broken.mp4", "make it a cat", "--source-prompt", ""], "the source prompt is empty"),
    "a folder of videos": ([".", "--source-prompt", "a", "--target-prompt", "b"], "name the one to edit (broken.mp4)"),
    "a folder without images": (["taken", "--source-prompt", "a", "--target-prompt", "b"], "folder without images"),
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
    "a negative seed": (["broken.mp4", "--seed", "-1"], "--seed is -1"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file that is no video and a folder that is taken."""
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("words", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(
    folder: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    code, (out, err) = main(["edit", *words]), capsys.readouterr()
    assert (code, out) == (2, "") and err.startswith("v2edit: error: ") and err.count("\n") == 1 and says in err
    assert sorted(folder.rglob("*")) == before


def test_a_mistake_in_a_process_of_its_own(folder: Path) -> None:
    refused(v2edit("edit", "nowhere.mp4", "make the ball red", cwd=folder), "no such file: nowhere.mp4")


def test_the_style_of_messages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong, in the user's words, and what to do: the one place where wording itself is tested."""
    messages = []
    for words in (
        ["nowhere.mp4", "make the ball red"],
        ["broken.mp4", "make the ball red", "--model", "some/model"],
        ["broken.mp4", "--source-prompt", "a ball", "--target-prompt", "a cube", "-o", "taken"],
        ["broken.mp4", "--subtasks", "0"],
        ["broken.mp4", "--source-prompt", "a ball", "--target-prompt", "a cube"],
    ):
        assert main(["edit", *words]) == 2
        messages.append(capsys.readouterr().err.removeprefix("v2edit: error: ").strip())
    taken = folder / "taken"
    assert messages == [
        "no such file: nowhere.mp4",
        "what does broken.mp4 show? Name a language model that looks and writes both prompts (--lvlm), or say what it "
        "shows with --source-prompt and what it is to show with --target-prompt",
        f"{taken} exists; choose another -o or remove it",
        "--subtasks is 0, expected 1 to 6",
        "broken.mp4 is not a video that can be read (of an unknown kind, or damaged)",
    ]


def test_options_reach_the_configuration() -> None:
    words = ["edit", "clip.mp4", "make it red", "--steps", "8", "--no-amr", "--guidance", "3", "--vae-tiling"]
    job = parse(words).options["job"]
    assert job.config == EditConfig(steps=8, amr=False, guidance=3.0)
    assert job.model_options == ModelOptions(vae_tiling=True)
    assert parse(words[:3]).options["job"].config == EditConfig()


def test_a_sample_of_the_world(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(clip.with_suffix(".json").read_text())
    assert {"source_prompt", "target_prompt", "instruction"} <= facts.keys()
    content = clip.read_bytes()
    assert main(["sample", "--seed", "8", "-o", str(clip.parent)]) == 2
    assert "exists; choose another -o" in capsys.readouterr().err
    assert clip.read_bytes() == content


def interrupt(*_: object, **__: object) -> None:
    # A runner started in the background inherits an ignored SIGINT; a terminal gives Python's own handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


def terminate(*_: object, **__: object) -> None:
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL  # which would end the tests, too
    signal.raise_signal(signal.SIGTERM)


def run_out_of_gpu_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def run_out_of_memory(*_: object, **__: object) -> None:
    torch.empty(2**55, dtype=torch.uint8)


def run_out_of_python_memory(*_: object, **__: object) -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("happens", "code", "says"),
    [
        (interrupt, 130, "interrupted"),
        (terminate, 130, "interrupted"),
        (run_out_of_gpu_memory, 2, "--offload"),
        (run_out_of_memory, 2, "out of memory; try a shorter video"),
        (run_out_of_python_memory, 2, "out of memory; try a shorter video"),
    ],
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
    monkeypatch.setattr("v2edit.video.read", happens)
    assert main(["edit", str(clip), "turn the sky dark", "-o", str(tmp_path / "run")]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and says in printed.err
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("there", [False, True], ids=["a new folder", "an empty folder"])
def test_a_disk_that_fills_up_at_the_very_end(
    tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, replace = tmp_path / "deep" / "sample", Path.replace

    def fails(path: Path, target: Path) -> Path:
        if path.name == "truth.mp4":  # not the first file to be moved
            raise OSError(errno.ENOSPC, "no space left on device")
        return replace(path, target)

    if there:
        out.mkdir(parents=True)
    monkeypatch.setattr(Path, "replace", fails)
    assert main(["sample", "-o", str(out)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "no space left" in printed
    assert sorted(tmp_path.rglob("*")) == ([out.parent, out] if there else [])


PROMPTS = ["--source-prompt", "a ball", "--target-prompt", "a cube"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pipeline_of("5b").save_pretrained(folder)
    return folder


def test_an_empty_part_of_a_model(
    clip: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "tokenizer")
    (tmp_path / "model" / "tokenizer").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["edit", str(clip), *PROMPTS, "--model", "model"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "lacks tokenizer/tokenizer.json or spiece.model" in printed.err.splitlines()[-1]
    assert printed.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_broken_part_of_a_model_is_one_line_in_spite_of_the_libraries(
    clip: Path, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unheard_of": 1}))  # of which diffusers has a remark
    weights = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    refused(run_command("edit", clip, *PROMPTS, "--model", "model", cwd=tmp_path), "cannot load the model model: ")


def test_a_model_is_looked_for_before_the_whole_video_is_read(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, limits = video.read, []

    def counted(path: Path, max_frames: int | None = None) -> video.Video:
        limits.append(max_frames)
        return read(path, max_frames)

    monkeypatch.setattr("v2edit.video.read", counted)
    assert main(["edit", str(clip), *PROMPTS, "--model", "nothing-here", "-o", str(tmp_path / "run")]) == 2
    assert limits == [1]


class Hub(BaseHTTPRequestHandler):
    """A hub whose every model has the trouble that it is named after."""

    asked: list[str] = []  # noqa: RUF012 (emptied by the fixture)
    STATUS = {"RepoNotFound": 404, "GatedRepo": 403, "RevisionNotFound": 404, "EntryNotFound": 404}  # noqa: RUF012

    def do_HEAD(self) -> None:
        trouble = self.path.split("/")[2]
        self.asked.append(self.path)
        self.send_response(self.STATUS.get(trouble, 503))
        self.send_header("X-Error-Code", trouble)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.asked.clear()
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("RepoNotFound", "there is no model org/RepoNotFound"),
        ("GatedRepo", "is gated: accept its terms"),
        ("RevisionNotFound", "has no revision 'v9'"),
        ("EntryNotFound", "is not a diffusers pipeline: it has no model_index.json"),
        ("Unavailable", "cannot reach the hub for org/Unavailable: is there a network?"),
    ],
)
def test_what_the_hub_says_is_one_line(clip: Path, tmp_path: Path, hub: str, trouble: str, says: str) -> None:
    words = ["edit", str(clip), *PROMPTS, "--model", f"org/{trouble}", "--revision", "v9"]
    refused(v2edit(*words, cwd=tmp_path, HF_ENDPOINT=hub, HF_HOME=str(tmp_path / "home")), says)
    assert len(Hub.asked) == 1  # A hub that is down is not asked for half a minute.


@pytest.mark.parametrize("network", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}], ids=str)
def test_no_network(clip: Path, tmp_path: Path, network: dict[str, str]) -> None:
    process = v2edit(
        "edit", str(clip), *PROMPTS, "--model", "org/model", cwd=tmp_path, HF_HOME=str(tmp_path), **network
    )
    refused(process, "cannot reach the hub for org/model: is there a network?")


def test_a_model_downloaded_before_needs_no_network_and_is_named_by_its_commit(
    clip: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, commit = tmp_path / "hub" / "models--org--tiny", "0123456789abcdef" * 2 + "01234567"
    shutil.copytree(model, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    # What a model says of itself is not believed because it comes from the hub.
    lying = shutil.copytree(cache, cache.with_name("models--org--lying"))
    path = lying / "snapshots" / commit / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_attention_heads": 100_000}))

    # As HF_HOME and HF_ENDPOINT set them, which are read when the hub's package is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    words = ["edit", str(clip), *PROMPTS, "--steps", "2", "-o"]
    assert main([*words, str(tmp_path / "tiny"), "--model", "org/tiny"]) == 0
    assert json.loads((tmp_path / "tiny" / "run.json").read_text())["model"]["commit"] == commit
    capsys.readouterr()
    assert main([*words, str(tmp_path / "lying"), "--model", "org/lying"]) == 2
    printed = capsys.readouterr().err
    assert "they were cut off, or are of another model" in printed.splitlines()[-1]
    assert printed.count("v2edit: ") == 1
