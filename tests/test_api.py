"""Where an edit's prompts come from, what is said of them, and what a run's manifest tells."""

import inspect
import json
import math
import pydoc
import re
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import pipeline_of
from support.world import BALL

import v2edit
from v2edit import backbones, video
from v2edit.editing import EditConfig
from v2edit.errors import UserError
from v2edit.jobs.functions import edit_video
from v2edit.jobs.options import ModelOptions, PromptOptions, job_from_keywords
from v2edit.jobs.scene import SceneEdit
from v2edit.jobs.video import VideoEdit
from v2edit.prompts import PromptPair
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.runs import default_run_folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    (tmp_path / "clip.json").write_text(json.dumps({"source_prompt": BALL}))
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "rabbit.mp4").touch()
    return tmp_path / "clip.mp4"


def prompts_of(video: Path, instruction: str | None, source: str | None, target: str | None) -> PromptPair:
    """The prompts of an edit with a model that reads none off the frames."""
    options = {"prompt_options": PromptOptions(source, target), "model_options": ModelOptions(model="some/model")}
    pair = VideoEdit(video, instruction, **options).given_prompts().pair
    assert pair is not None
    return pair


def test_the_instruction_changes_the_prompt_beside_the_video(clip: Path) -> None:
    pair = prompts_of(clip, "make the ball blue", None, None)
    assert pair == PromptPair(BALL, BALL.replace("red", "blue"))


def test_what_the_user_says_comes_first(clip: Path) -> None:
    given = prompts_of(clip, "make the ball blue", "a cat", "a dog")
    assert given == PromptPair("a cat", "a dog")
    assert prompts_of(clip, None, None, "a dog") == PromptPair(BALL, "a dog")


def test_an_instruction_that_is_not_of_the_world_is_led_to_the_prompts(tmp_path: Path, clip: Path) -> None:
    """For every model: nobody is sent in circles."""
    with pytest.raises(UserError, match=r"--source-prompt.* --target-prompt"):
        prompts_of(tmp_path / "rabbit.mp4", "make it a cat", None, None)
    with pytest.raises(UserError, match=r"rabbit.* --target-prompt"):
        prompts_of(tmp_path / "rabbit.mp4", "make it a cat", "a rabbit eats", None)
    with pytest.raises(UserError, match="--target-prompt"):
        prompts_of(clip, "make it a cat", None, None)
    for target in (None, "a cat"):
        with pytest.raises(UserError, match=r"the source prompt is empty.* --source-prompt"):
            prompts_of(clip, "make it a cat", " ", target)


def test_the_folder_that_the_user_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames.json").write_text(json.dumps({"source_prompt": BALL}))
    monkeypatch.chdir(tmp_path / "frames")
    assert prompts_of(Path("."), "make the ball blue", None, None).target == BALL.replace("red", "blue")
    assert default_run_folder(Path("."), "make the ball blue").name == "frames-make-the-ball-blue"
    monkeypatch.chdir("/")
    with pytest.raises(UserError, match="--source-prompt"):
        prompts_of(Path("."), "make the ball blue", None, None)


def test_a_broken_file_beside_the_video(clip: Path) -> None:
    for text in ("{", "[]", '{"source_prompt": 3}'):
        clip.with_suffix(".json").write_text(text)
        with pytest.raises(UserError, match="--source-prompt"):
            prompts_of(clip, "make the ball blue", None, None)


@pytest.mark.parametrize("job", [VideoEdit, SceneEdit])
def test_options_are_keywords(job: type) -> None:
    """Single options go over a whole group's; each lands in its group; paths may be texts."""
    config = EditConfig(steps=30, seed=4)
    path = {"video" if job is VideoEdit else "scene": Path("x")}
    made = job_from_keywords(job, **path, config=config, steps=8, lvlm="m", lvlm_url="http://localhost/v1", out="run")
    assert made.config == EditConfig(steps=8, seed=4)
    assert made.lvlm == LVLMConfig(model="m", url="http://localhost/v1")
    assert made.run_options.out == Path("run") and made.model_options == ModelOptions()
    assert job_from_keywords(job, **path, lvlm=LVLMConfig(model="n"), model="a/b").lvlm.model == "n"
    with pytest.raises(TypeError, match=r"'guidence'.*'guidance'"):
        job_from_keywords(job, **path, guidence=3)
    with pytest.raises(UserError, match="--steps"):
        job_from_keywords(job, **path, steps=0)
    for name, value in (("solver", "euler"), ("steps", "8"), ("seed", 1.5), ("instruction", 3), ("guidance", "much")):
        with pytest.raises(UserError, match=f"--{name} is {value!r}, expected"):
            job_from_keywords(job, **path, **{name: value})
    assert job_from_keywords(job, **path, guidance=np.float32(3), seed=np.int64(2), model=Path("m")).config.seed == 2


def test_the_run_folder_has_both_names_of_the_command_line() -> None:
    assert job_from_keywords(VideoEdit, video=Path("x"), output="run").run_options.out == Path("run")
    with pytest.raises(TypeError, match="output"):
        job_from_keywords(VideoEdit, video=Path("x"), output="run", out="run")


def test_frames_in_place_of_a_file_are_led_to_writing_them() -> None:
    frames = np.zeros((9, 32, 32, 3), np.uint8)
    for given in (frames, v2edit.Video(frames, Fraction(8))):
        with pytest.raises(UserError, match=r"v2edit\.video\.write"):
            v2edit.edit_video(given, "make it blue")  # type: ignore[arg-type]


def test_help_reads_as_a_person_writes() -> None:
    for function in (v2edit.edit_video, v2edit.edit_scene, v2edit.run_batch, v2edit.resume_run):
        text, names = pydoc.render_doc(function), inspect.signature(function).parameters
        assert "_ArgConfig" not in text and "Annotated" not in text and len(names) <= 12
        explained = f"{function.__doc__} {v2edit.edit_video.__doc__ if 'edit_video' in str(function.__doc__) else ''}"
        assert [name for name in names if not re.search(rf"{name}[:`]", explained)] == []


def test_defaults_are_those_of_loading() -> None:
    defaults = {one.name: one.default for one in fields(ModelOptions)}
    parameters = dict(inspect.signature(backbones.load).parameters)
    assert parameters.pop("options").default == backbones.LoadOptions() and parameters.pop("changes")
    assert parameters.pop("mode").default is None  # settled for each clip
    for name, parameter in parameters.items():
        assert defaults[name] == parameter.default, name


@pytest.fixture
def model(tiny_model: Path) -> Path:
    return tiny_model  # trained on 9 frames


@pytest.fixture(scope="module")
def absolute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "absolute"
    pipeline_of("2b").save_pretrained(folder)
    return folder


def edited(tmp_path: Path, model: Path, frames: int, prompts: tuple[str, str] = ("a ball", "a cube")) -> Path:
    """Edit a clip, a long one in windows, which a model of absolute positions is noted to be bad at."""
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "clip.mp4"
    video.write(np.zeros((frames, 32, 32, 3), np.uint8), path, fps=8)
    source, target = prompts
    config = EditConfig(steps=2, long="windows")
    run = edit_video(
        path, source_prompt=source, target_prompt=target, model=str(model), config=config, out=tmp_path / "run"
    )
    return run.folder


def test_stills_and_folders_come_out_as_they_came_in(tmp_path, model):
    """Of any aspect: nothing is cut off and nothing put around."""
    from PIL import Image

    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (37, 61), (200, 0, 0)).save(tmp_path / "in" / name)
    options = {"source_prompt": "a red wall", "target_prompt": "a blue wall", "model": str(model)}
    options |= {"config": EditConfig(steps=2)}
    edit_video(tmp_path / "in", **options, out=tmp_path / "of folder")
    written = sorted((tmp_path / "of folder" / "edited").iterdir())
    assert [path.name for path in written] == ["a.png", "b.png"]
    edit_video(tmp_path / "in" / "a.jpg", **options, out=tmp_path / "of still")
    sizes = {Image.open(path).size for path in (*written, tmp_path / "of still" / "edited.png")}
    assert sizes == {(37, 61)}
    assert video.read(tmp_path / "of folder" / "edited.mp4").frames.shape == (2, 61, 37, 3)
    run = edit_video(tmp_path / "of folder" / "edited.mp4", **options, save_frames=True, out=tmp_path / "of video")
    assert [path.name for path in sorted((run.folder / "edited").iterdir())] == ["00000.png", "00001.png"]


def test_the_manifest_says_what_was_used_and_not_what_was_asked(tmp_path, model, caplog):
    facts = json.loads((edited(tmp_path, model, 9) / "run.json").read_text())
    assert facts["model"] == {
        "name": str(model), "revision": None, "commit": None,
        "device": "cuda:0" if torch.cuda.is_available() else "cpu",
        "dtype": "bfloat16" if torch.cuda.is_available() else "float32",
    }  # fmt: skip
    assert facts["guidance"] == 7.0 and facts["solver"] == "dpm-sde"
    assert caplog.messages == []


def test_a_long_clip_is_noted_where_positions_are_absolute(tmp_path, model, absolute, caplog):
    edited(tmp_path, absolute, 9)
    edited(tmp_path / "relative", model, 10)
    assert caplog.messages == []
    edited(tmp_path / "absolute", absolute, 10)
    (note,) = caplog.messages
    assert note.startswith("10 frames, and the model, whose positions are absolute, was trained on 9: ")


@pytest.mark.parametrize(
    ("prompts", "foreign"),
    [
        ((BALL, BALL.replace("red", "blue")), False),
        (("a rabbit", "a cat"), True),
        ((BALL, "a cat"), True),
        (("a cinematic shot of " + BALL, BALL), True),
    ],
)
@pytest.mark.parametrize("frames", [9, 10])
def test_the_built_in_model_has_one_note_at_most(tmp_path, absolute, monkeypatch, caplog, prompts, foreign, frames):
    monkeypatch.setattr("v2edit.backbones.hub.BUILT_IN_FOLDER", absolute)
    monkeypatch.setattr("v2edit.prompts.tokens.log.disabled", True)  # the tiny tokenizer cuts these prompts
    edited(tmp_path, "primitives", frames, prompts)
    plans = [record for record in caplog.records if record.name == "v2edit.jobs.plan"]
    assert len(plans) == (foreign or frames > 9)
    assert ("knows only its own world" in caplog.text) is foreign
    assert ("trained on 9" in caplog.text) is (frames > 9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"guidance": math.nan},
        {"guidance": math.inf},
        {"solver": "euler"},
        {"ending": "abrupt"},
        {"alpha": 0.9, "beta": 0.9},
        {"beta": 1.0, "inc": False},
        {"alpha": 0.3, "beta": 0.3, "pnc": False},
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(UserError, match=f"--{next(iter(wrong))}") as told:
        EditConfig(**wrong)
    assert "\n" not in str(told.value)


def test_the_ends_of_the_range_may_be_meant():
    EditConfig(beta=0.0)
    EditConfig(beta=0.95, inc=False)
    EditConfig(alpha=0.3, pnc=False, amr=False)


def test_a_run_is_one_line(tmp_path: Path, model: Path) -> None:
    video.write(np.zeros((9, 32, 32, 3), np.uint8), tmp_path / "clip.mp4", fps=8)
    options = {"source_prompt": "a ball", "target_prompt": "a cube", "model": str(model), "steps": 2}
    run = v2edit.edit_video(tmp_path / "clip.mp4", **options, out=tmp_path / "run")
    assert repr(run) == f"EditRun({str(tmp_path / 'run')!r}, 9 frames of 32x32)"


def test_a_progress_bar_shows_by_itself(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video.write(np.zeros((9, 32, 32, 3), np.uint8), tmp_path / "clip.mp4", fps=8)
    options = {"source_prompt": "a ball", "target_prompt": "a cube", "model": str(model), "steps": 4}
    steps: list[object] = []
    v2edit.edit_video(tmp_path / "clip.mp4", **options, out=tmp_path / "run", on_progress=steps.append)
    assert "subtask 1/1" in capsys.readouterr().err and len(steps) == 3
    v2edit.edit_video(tmp_path / "clip.mp4", **options, out=tmp_path / "quiet", show_progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_stranger_beside_a_scene_is_not_its_prompt(tmp_path: Path) -> None:
    (tmp_path / "garden").mkdir()
    (tmp_path / "garden.json").write_text(json.dumps({"source_prompt": BALL}))
    job = SceneEdit(tmp_path / "garden", "make the ball blue", model_options=ModelOptions(model="some/model"))
    with pytest.raises(UserError, match="--source-prompt"):
        job.given_prompts()
    (tmp_path / "garden" / "scene.json").write_text(json.dumps({"source_prompt": BALL}))
    assert job.given_prompts().pair == PromptPair(BALL, BALL.replace("red", "blue"))
