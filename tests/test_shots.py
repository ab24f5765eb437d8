"""Clips of several shots: cuts are found, each shot is edited as a clip of its own, shots without the subject stay."""

import json
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image
from support.batch import write_tasks
from support.clock import set_clock
from support.interrupts import interrupt_when_written
from support.servers import Request, completion, serve
from support.survival import contents

import v2edit
from v2edit import video
from v2edit.batch.tasks import read_tasks
from v2edit.cli.app import main
from v2edit.editing.local import EVERYWHERE
from v2edit.errors import UserError
from v2edit.jobs.options import job_from_keywords
from v2edit.jobs.shot_edits import plan_shots, shot_seed, weigh_shots
from v2edit.jobs.shots import Shot, ShotOptions
from v2edit.jobs.video import PreparedVideo, VideoEdit
from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import Object, Scene, sample_scene
from v2edit.prompts import PromptPair
from v2edit.runs.pace import Pace
from v2edit.video.shots import find_cuts
from v2edit.video.stream import FrameStream

LENGTHS, QUICK = (5, 4, 6), {"steps": 2, "show_progress": False}
INSTRUCTION = "make the red ball blue"


def shot(colour: str, shape: str, floor: str, sky: str, frames: int, height: int = 32) -> np.ndarray:
    """A clip of one thing, in the back, where nothing could hide behind it."""
    scene = Scene((Object(shape, colour, "big", "middle", "back", "hop"),), floor, sky)
    return render_clip(scene, frames, height, 3 * height // 2).frames


@pytest.fixture(scope="module")
def parts() -> list[np.ndarray]:
    """Three shots: the first and the last show a red ball."""
    looks = ("red", "ball", "gray", "blue"), ("green", "cube", "brown", "pink"), ("red", "ball", "teal", "golden")
    return [shot(*look, frames=frames) for look, frames in zip(looks, LENGTHS, strict=True)]


def write_images(frames: np.ndarray, folder: Path) -> Path:
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def clip(parts, tmp_path_factory) -> Path:
    """A folder of images, which lose nothing."""
    return write_images(np.concatenate(parts), tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def run(clip, tmp_path_factory):
    return v2edit.edit_video(clip, INSTRUCTION, out=tmp_path_factory.mktemp("run") / "r", **QUICK)


def lazily(frames: np.ndarray) -> FrameStream:
    return FrameStream(lambda first, stop: iter(frames[first:stop]), frames.shape)


def test_cuts_are_found_where_they_are_in_arrays_and_streams(parts):
    frames = np.concatenate(parts)
    assert find_cuts(frames, 8) == find_cuts(lazily(frames), 8) == [5, 9]
    assert all(find_cuts(one, 8) == [] for one in (*parts, frames[:1], frames[:2], frames[4:6][:1]))


def test_moving_cameras_are_no_cuts():
    for seed in range(8):
        assert find_cuts(render_clip(sample_scene(Random(seed)), 9).frames, 8) == []


def test_real_clips_joined_have_their_cuts_alone(data):
    names = ("cog-horse", "hiker", "cof-dog")
    clips = [np.asarray(video.read(data / "videos" / f"{name}.mp4", max_frames=12).frames) for name in names]
    clips = [clip[:, ::2, ::2][:, :160, :240] for clip in clips]
    assert all(find_cuts(clip, 10) == [] for clip in clips)
    lengths = [12, 4, 9]
    joined = np.concatenate([clip[:length] for clip, length in zip(clips, lengths, strict=True)])
    assert find_cuts(joined, 10) == np.cumsum(lengths)[:-1].tolist()


@pytest.mark.parametrize("held", [2, 3])
def test_a_clip_whose_frames_are_held_has_the_cuts_of_the_clip_itself(data, tmp_path, held):
    names, lengths = ("cog-horse", "hiker", "cof-dog"), (12, 7, 9)
    clips = [np.asarray(video.read(data / "videos" / f"{name}.mp4", max_frames=12).frames) for name in names]
    joined = np.concatenate([one[:length, :160, :240] for one, length in zip(clips, lengths, strict=True)])
    path = video.write(np.repeat(joined, held, 0), tmp_path / "clip.mp4", fps=8 * held)
    frames = video.read(path).frames
    assert not np.array_equal(frames[0], frames[1])  # as encoded
    assert find_cuts(frames, 8 * held) == [held * cut for cut in np.cumsum(lengths)[:-1]]


def test_a_missing_library_is_told_in_one_line_with_the_way_on(parts, monkeypatch):
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    assert find_cuts(parts[0][:1], 8) == []
    with pytest.raises(UserError, match="pip install scenedetect-headless, or say with --shots off"):
        find_cuts(parts[0], 8)


@pytest.mark.parametrize("length", [1, 2])
def test_a_flash_is_no_cut(length):
    frames = render_clip(sample_scene(Random(3)), 12).frames.copy()
    frames[5 : 5 + length] = 255
    assert find_cuts(frames, 8) == []


def test_shots_with_the_subject_alone_are_edited_and_the_others_keep_their_bytes(parts, clip, run):
    facts = json.loads((run.folder / "run.json").read_text())
    assert [(one["first"], one["stop"], one["edited"]) for one in facts["shots"]] == [
        (0, 5, True), (5, 9, False), (9, 15, True),
    ]  # fmt: skip
    assert facts["steps"]["done"] == facts["steps"]["total"] > 0
    assert "a teal floor" in facts["shots"][2]["prompts"]["target"]  # its own prompts
    images = sorted(clip.iterdir())
    edited = [run.folder / "edited" / path.name for path in images]
    unchanged = [one.read_bytes() == other.read_bytes() for one, other in zip(images, edited, strict=True)]
    assert unchanged == [False] * 5 + [True] * 4 + [False] * 6
    assert facts["share"]["frames"] == 11
    assert not (run.folder / "mask.mp4").exists()  # none was given, and none found


@pytest.mark.parametrize("shots", ["auto", "off"])
def test_nothing_bleeds_over_a_cut_and_a_clip_of_one_shot_is_edited_as_ever(parts, run, tmp_path, shots):
    images = write_images(parts[0], tmp_path / "one")
    alone = v2edit.edit_video(images, INSTRUCTION, out=tmp_path / "out", shots=shots, **QUICK)
    for path in (alone.folder / "edited").iterdir():
        assert path.read_bytes() == (run.folder / "edited" / path.name).read_bytes()


PROMPTS = {"source_prompt": "a red ball", "target_prompt": "a blue cube"}
OPTIONS = ["--source-prompt", "a red ball", "--target-prompt", "a blue cube"]


def test_an_edit_stopped_in_a_later_shot_resumes_to_the_same_bytes(clip, tiny_model, tmp_path):
    words = ["edit", str(clip), *OPTIONS, "--model", str(tiny_model), "--steps", "3", "--save-every", "1"]
    words += ["--only-shots", "1,3"]
    assert main([*words, "-o", str(tmp_path / "whole")]) == 0
    with interrupt_when_written("shot 3 (2 of 2), subtask 1/1, step 1/"):
        assert main([*words, "-o", str(tmp_path / "r")]) == 130
    with interrupt_when_written("") as log:
        assert main(["resume", str(tmp_path / "r")]) == 0
    assert "shot 1 (" not in log.getvalue() and "shot 1: its steps are done" in log.getvalue()
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


def test_a_file_with_cuts_goes_through_the_command_line(parts, tiny_model, tmp_path):
    path = video.write(np.concatenate(parts), tmp_path / "clip.mp4", fps=8)
    words = ["edit", str(path), *OPTIONS, "--model", str(tiny_model), "--steps", "2", "--format", "png"]
    assert main([*words, "--shots", "0.625,1.125", "--only-shots", "2", "-o", str(tmp_path / "r")]) == 0
    source, edited = video.read(path).frames, video.read(tmp_path / "r" / "edited").frames
    same = (np.asarray(source) == np.asarray(edited)).all((1, 2, 3)).tolist()
    assert same == [True] * 5 + [False] * 4 + [True] * 6


def test_a_mask_that_is_black_in_a_shot_leaves_it_out(parts, tiny_model, tmp_path):
    path = video.write(np.concatenate(parts), tmp_path / "clip.mp4", fps=8)
    options = QUICK | PROMPTS | {"model": str(tiny_model)}
    run = v2edit.edit_video(path, time=(1.2, None), out=tmp_path / "r", **options)
    facts = json.loads((run.folder / "run.json").read_text())
    assert [one["edited"] for one in facts["shots"]] == [False, False, True]


@pytest.fixture
def asked(parts, tmp_path):
    """Prepare an edit of a clip of three shots after a language model's answers."""
    path = video.write(np.concatenate(parts), tmp_path / "clip.mp4", fps=8)

    def prepare(*answers: object, **options: object) -> tuple[PreparedVideo, list[Request]]:
        with serve(*map(completion, answers)) as server:
            job = job_from_keywords(
                VideoEdit, video=path, instruction=INSTRUCTION, lvlm="m", lvlm_url=server.url, **options
            )
            return job.prepare(), server.requests

    return prepare


def written(floor: str) -> dict[str, str]:
    source = f"a big red ball in the middle hops on a {floor} floor under a blue sky, the camera is still."
    return {"source": source, "target": source.replace("red", "blue")}


def test_a_vision_model_tells_which_shots_show_the_subject(asked):
    edit, questions = asked({"shows": False}, {"shows": "yes"}, written("brown"), {"shows": True}, written("teal"))
    assert [one.edited for one in edit.shots] == [False, True, True]
    assert [one.prompts for one in edit.shots] == [None, PromptPair(**written("brown")), PromptPair(**written("teal"))]
    assert edit.prompts == edit.shots[1].prompts
    assert INSTRUCTION in questions[0].last_text


def test_a_vision_model_that_sees_no_subject_at_all_is_an_error_that_says_what_to_do(asked):
    with pytest.raises(UserError, match=r"no shot shows .*--only-shots"):
        asked(*[{"shows": False}] * 3)


def test_a_vision_model_writes_prompts_for_the_shots_that_are_chosen(asked):
    edit, questions = asked(written("gray"), written("teal"), only_shots=(1, 3))
    assert len(questions) == 2 and [one.edited for one in edit.shots] == [True, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": "2,1"}, "--shots is '2,1', expected auto, off, or times in rising order"),
        ({"shots": "1,x"}, "--shots is '1,x', expected auto, off, or times"),
        ({"shots": ""}, "--shots is '', expected auto, off"),
        ({"only_shots": "1,0"}, "--only-shots is '1,0', expected auto, all, or numbers"),
        ({"only_shots": "second"}, "--only-shots is 'second'"),
        ({"only_shots": "3-2"}, "--only-shots is '3-2'"),
        ({"only_shots": "0-2"}, "--only-shots is '0-2'"),
        ({"only_shots": "1-"}, "--only-shots is '1-'"),
        ({"model_fps": "fast"}, "--model-fps is fast, expected a number above 0"),
    ],
)
def test_mistakes_are_told_in_one_line(options, message):
    with pytest.raises(UserError) as error:
        ShotOptions(**options)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 99}, "the video ends at 1.875 s"),
        ({"only_shots": 4}, "--only-shots is 4, and there are 3 shots"),
        ({"only_shots": "2-99999999999"}, "and there are 3 shots"),
        ({"shots": "off", "only_shots": 2}, "there is one shot"),
        ({"shots": "0.5", "loop": True}, "a loop is one shot"),
        ({"only_shots": 1, "time": "1.2-"}, "nothing may change in these shots"),
    ],
)
def test_what_does_not_fit_the_video_is_told_before_anything_is_written(parts, tmp_path, options, message):
    path = video.write(np.concatenate(parts), tmp_path / "clip.mp4", fps=8)
    with pytest.raises(UserError, match=message):
        v2edit.edit_video(path, INSTRUCTION, out=tmp_path / "r", **options)
    assert not (tmp_path / "r").exists()


def test_ranges_of_shots_are_chosen_and_shots_are_named_by_their_numbers(parts, tmp_path, caplog):
    path = video.write(np.concatenate(parts), tmp_path / "clip.mp4", fps=8)
    source = video.read(path)
    with caplog.at_level("INFO"):
        shots = ShotOptions(only_shots="2-3").find(source, slice(0, 15), EVERYWHERE)
    assert [one.edited for one in shots] == [False, True, True]
    assert "shots: 1 at 0 s, 2 at 0.625 s, 3 at 1.125 s" in caplog.text
    times = ",".join(f"{k / 8}" for k in range(1, 15))
    with caplog.at_level("INFO"):
        ShotOptions(shots=times).find(source, slice(0, 15), EVERYWHERE)
    assert "6 at 0.625 s, …, 15 at 1.75 s" in caplog.text


def test_what_is_said_of_a_shot_names_it(clip, parts, tmp_path, caplog):
    job = partial(job_from_keywords, VideoEdit, video=clip)
    job(instruction="make the red ball blue").prepare()
    said = [one.message for one in caplog.records if "is taken to show" in one.message]
    assert [one.partition(" is")[0] for one in said] == ["shot 1", "shot 3"]  # and not the one that stays as it is
    with pytest.raises(UserError, match="in shot 2, the source shows nothing that fits"):
        job(instruction="make the red ball blue", only_shots="all").prepare()
    strange = np.random.default_rng(0).integers(0, 256, (6, 32, 48, 3)).astype(np.uint8)
    strange = np.broadcast_to(strange[:1], strange.shape)
    images = write_images(np.concatenate([strange, parts[1], 255 - parts[2]]), tmp_path / "strange")
    with pytest.raises(UserError, match=r"not of the built-in model's world.*there are shots, 1 at 0 s, 2 at"):
        job_from_keywords(VideoEdit, video=images, instruction=INSTRUCTION, shots="off").prepare()


def test_an_edit_without_prompts_is_refused_before_cuts_are_looked_for(clip, monkeypatch):
    monkeypatch.setattr("v2edit.video.shots.find_cuts", lambda *given: pytest.fail("cuts were looked for"))
    for given in ({}, {"instruction": " "}, {"source_prompt": "a ball"}, {"target_prompt": "a ball"}):
        with pytest.raises(UserError):
            job_from_keywords(VideoEdit, video=clip, **given).prepare()


def test_shots_differ_in_their_noise_and_the_first_is_the_clips_own():
    seeds = [shot_seed(7, number) for number in range(5)]
    assert seeds[0] == 7 and len(set(seeds)) == 5
    assert not {shot_seed(8, number) for number in range(1, 5)} & set(seeds)


def test_the_time_left_knows_that_longer_shots_take_longer(monkeypatch):
    shots = [Shot(0, 5), Shot(5, 9, edited=False), Shot(9, 24)]
    steps = {"edit-1": 2, "edit-2": 2}
    plan, weights = plan_shots(shots, steps), weigh_shots(shots, steps, [5, 15])
    assert plan == {"edit-1": 2, "edit-2": 2, "edit-1-shot-3": 2, "edit-2-shot-3": 2}
    now, pace = 0.0, Pace(plan, weights=weights)
    set_clock(monkeypatch, "v2edit.runs.pace", lambda: now)
    for done in (0, 1):
        pace.update("edit-1", done, 2)
        now += 1.0
    assert pace.to_dict()["seconds_left"] == 1 + 2 + 3 * 2 * 2


def test_several_seeds_edit_each_shot(clip, tiny_model, tmp_path):
    phases: list[str] = []
    options = QUICK | PROMPTS | {"model": str(tiny_model), "only_shots": "1,3", "out": tmp_path / "r", "seeds": 2}
    run = v2edit.edit_video(clip, on_progress=lambda one: phases.append(one.phase), **options)
    order = [one for one, after in pairwise([*phases, ""]) if one != after]
    places = [(n, m, k) for n in (0, 1) for m, k in ((1, 1), (2, 3))]
    assert order == [f"seed {n} ({n + 1}/2), shot {k} ({m} of 2), subtask 1/1" for n, m, k in places]
    facts = json.loads((run.folder / "run.json").read_text())
    assert facts["steps"]["done"] == facts["steps"]["total"] == len(phases)


def test_a_batch_takes_shots(clip, tmp_path):
    line = {"video": str(clip), "instruction": INSTRUCTION, "shots": "0.5", "only_shots": "1"}
    (task,) = read_tasks(write_tasks(tmp_path / "tasks.jsonl", line))
    assert task.shots == ShotOptions("0.5", "1") and task.facts["only_shots"] == "1"
