"""Parts of a clip and other frame rates: what is edited, what stays, and what is refused."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.batch import PROMPTS, write_tasks
from support.sync import find_beeps, find_flashes, flash_and_beep
from support.videos import clip, error_of, make, sound_of

import v2edit
from v2edit import video
from v2edit.backbones.loading import LoadedModel
from v2edit.batch.tasks import read_tasks
from v2edit.batch.worker import WorkerSetup
from v2edit.cli.app import main
from v2edit.jobs.clip import ClipOptions, FormatOptions, parse_rate, parse_time
from v2edit.jobs.evaluate import read_run
from v2edit.jobs.options import ModelOptions
from v2edit.jobs.video import VideoEdit
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.runs import read_run_state
from v2edit.scenes.config import FitConfig
from v2edit.video import Video
from v2edit.video.cut import SLACK, find_part, resample, splice
from v2edit.video.stream import FrameStream

gaps = st.lists(st.integers(1, 90), min_size=1, max_size=30)


def uneven(hundredths: list[int]) -> Video:
    """Return a clip whose frames last so many hundredths of a second; each frame tells its number."""
    times = np.cumsum([0, *hundredths[:-1]]) / 100
    frames = np.arange(len(hundredths), dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    return Video(frames, Fraction(len(hundredths) * 100, sum(hundredths)), times)


@given(gaps, st.integers(0, 1000), st.integers(1, 1000))
def test_a_part_is_the_frames_that_appear_in_it(hundredths: list[int], start: int, length: int) -> None:
    whole, begin, end = uneven(hundredths), start / 100, (start + length) / 100
    inside = [k for k, t in enumerate(whole.times) if begin - SLACK <= t < end - SLACK]
    if inside and begin < whole.duration:
        part = find_part(whole, begin, end)
        assert list(range(len(whole.times)))[part] == inside
    else:
        error_of(lambda: find_part(whole, begin, end))


@given(gaps, st.integers(0, 29))
def test_two_parts_that_meet_are_the_clip(hundredths: list[int], at: int) -> None:
    whole = uneven(hundredths)
    assert find_part(whole) == slice(0, len(whole.times))
    if (at := at % len(hundredths)) > 0:
        middle = round(float(whole.times[at]), 3)  # as it is typed
        assert (find_part(whole, end=middle), find_part(whole, middle)) == (slice(0, at), slice(at, len(hundredths)))


@given(gaps, st.fractions(Fraction(1, 4), 60, max_denominator=1001))
def test_another_rate_shows_the_nearest_frames_for_as_long(hundredths: list[int], fps: Fraction) -> None:
    whole = uneven(hundredths)
    if round(whole.duration * fps) == 0:
        assert "no frame is left" in error_of(lambda: resample(whole, fps))
        return
    other = resample(whole, fps)
    assert other.fps == fps and abs(other.duration - whole.duration) <= 1 / (2 * fps)
    for time, frame in zip(other.times, other.frames[:, 0, 0, 0], strict=True):
        distances = np.abs(whole.times - time)
        assert distances[frame] <= distances.min() + 1e-8


def test_rates_that_divide_each_other() -> None:
    even = Video(np.arange(12, dtype=np.uint8)[:, None, None, None].repeat(3, 3), Fraction(12))
    numbers = {fps: resample(even, Fraction(fps)).frames[:, 0, 0, 0].tolist() for fps in (4, 6, 12, 24)}
    assert numbers[12] == list(range(12)) and numbers[6] == list(range(0, 12, 2)) and numbers[4] == [0, 3, 6, 9]
    assert numbers[24] == [k // 2 for k in range(24)]  # the earlier of two that are as near
    images = replace(even, names=tuple(f"{k}.png" for k in range(12)), fps=Fraction(8), times=np.empty(0))
    assert (
        resample(images, Fraction(24)).duration == Fraction(1, 2) and len(resample(images, Fraction(24)).frames) == 12
    )
    large = Video(np.zeros((8, 700, 900, 3), np.uint8), Fraction(1, 100))
    many = resample(large, Fraction(1000)).frames  # 800,000, of 1.4 TiB
    assert isinstance(many, FrameStream) and many[799_999].shape == (700, 900, 3)
    assert "too long" in error_of(lambda: resample(large, Fraction(10_000)))


def test_a_spliced_part_leaves_the_rest() -> None:
    frames = clip(9)
    spliced = splice(frames, slice(3, 5), 255 - frames[3:5])
    assert (spliced[3:5] == 255 - frames[3:5]).all() and (
        np.delete(spliced, [3, 4], 0) == np.delete(frames, [3, 4], 0)
    ).all()


TIMES = {
    "0": 0,
    "2.5": 2.5,
    ".5": 0.5,
    "90": 90,
    "1:30": 90,
    "0:01.5": 1.5,
    "75:00": 4500,
    "1:01:01": 3661,
    3: 3,
    0.25: 0.25,
}


@pytest.mark.parametrize(("text", "seconds"), TIMES.items())
def test_times(text: str | float, seconds: float) -> None:
    assert parse_time(text, "--start") == seconds


@pytest.mark.parametrize(
    "text", ["", "-1", "a", "1:60", "1:60:00", "1:2:3:4", "1e3", "nan", "inf", -1, float("nan"), float("inf")]
)
def test_what_is_no_time(text: Any) -> None:
    assert f"--start is {text}, expected seconds" in error_of(lambda: ClipOptions(start=text))


def test_rates() -> None:
    assert [parse_rate(x) for x in (8, 12.5, "30000/1001", "24")] == [8, Fraction(25, 2), Fraction(30000, 1001), 24]
    for bad in (0, -1, "x", "1/0", float("nan"), 1001, "1e-9"):
        assert f"--fps is {bad}" in error_of(lambda bad=bad: ClipOptions(fps=bad))


# --- edits ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 2 s at 10 fps, with a flash and a beep at 1 s."""
    return flash_and_beep(tmp_path_factory.mktemp("source") / "clip.mp4", ("libx264", "aac"), 0)


@pytest.fixture(scope="module")
def options(tiny_model: Path) -> dict[str, Any]:
    model = ModelOptions(model=str(tiny_model), device="cpu")
    loaded = LoadedModel(checkpoint := model.find(), model.load(checkpoint))
    return {**PROMPTS, "model_options": model, "steps": 2, "show_progress": False, "loaded": loaded}


def test_only_the_part_changes(source: Path, options: dict[str, Any], tmp_path: Path) -> None:
    run = v2edit.edit_video(source, **options, start=0.5, end="0:01.2", out=tmp_path / "run")
    before, edited = video.read(source), run.edited
    assert len(edited.frames) == 20 and edited.fps == 10
    stays = [k for k in range(20) if not 5 <= k < 12]
    assert (edited.frames[stays] == before.frames[stays]).all()
    assert all((edited.frames[k] != before.frames[k]).any() for k in range(5, 12))
    written = run.folder / "edited.mp4"
    assert video.write(edited, tmp_path / "again.mp4").read_bytes() == written.read_bytes()
    assert sound_of(written) == sound_of(source) != []
    assert json.loads((run.folder / "run.json").read_text())["clip"] == {"start": 0.5, "end": "0:01.2", "fps": None}
    measured = read_run(run.folder)
    assert (measured.source == before.frames[5:12]).all() and len(measured.edited) == 7
    counted = {name: options[name] for name in (*PROMPTS, "model_options", "steps")}
    assert v2edit.estimate_edit(source, **counted, start=0.5, end=1.2, shots="off").frames == 7


def test_a_mask_is_the_whole_clips(source: Path, options: dict[str, Any], tmp_path: Path) -> None:
    """Its times, too; and so is the mask that is written, which can be given again."""
    box = {"box": "0,0,32,48", "grow": 0, "crop": "off"}
    run = v2edit.edit_video(source, **options, **box, start=0.5, end=1.2, time="1.0-", out=tmp_path / "run")
    before, mask = (np.asarray(video.read(path).frames) for path in (source, run.folder / "mask.mp4"))
    changed = (run.edited.frames != before).any((1, 2, 3))
    assert changed.nonzero()[0].tolist() == [10, 11] and (mask > 128).any((1, 2, 3)).nonzero()[0].tolist() == [10, 11]
    assert (run.edited.frames[:, :, 32:] == before[:, :, 32:]).all()
    says = error_of(lambda: v2edit.edit_video(source, **options, time="1.5-", end=1, out=tmp_path / "none"))
    assert "between --start and --end" in says


@pytest.mark.parametrize("fps", [5, 25])
def test_another_rate_keeps_length_and_sound(source: Path, options: dict[str, Any], tmp_path: Path, fps: int) -> None:
    run = v2edit.edit_video(source, **options, fps=fps, start=1.6, out=tmp_path / "run")
    written = video.read(run.folder / "edited.mp4")
    assert written.fps == fps and written.duration == 2 and len(written.frames) == 2 * fps
    assert sound_of(run.folder / "edited.mp4") == sound_of(source)
    flash = find_flashes(written.frames, written.times)[0]
    assert abs(flash - 1) <= 0.05 and abs(find_beeps(run.folder / "edited.mp4")[0] - 1) < 0.005


def test_a_part_of_a_variable_rate_keeps_its_times(options: dict[str, Any], tmp_path: Path) -> None:
    pts = [0, 100, 150, 400, 430, 700, 800]
    path = make(tmp_path / "a.mkv", clip(7), "ffv1", "bgr0", pts=pts, time_base=Fraction(1, 1000))
    run = v2edit.edit_video(path, **options, start=0.4, end=0.75, out=tmp_path / "run", format="webm")
    before, written = video.read(path), video.read(run.folder / "edited.webm")
    assert np.allclose(written.times, before.times, atol=1e-3)
    changed = [k for k in range(7) if (run.edited.frames[k] != before.frames[k]).any()]
    assert changed == [3, 4, 5]


def test_seeds_are_shown_in_their_format(source: Path, options: dict[str, Any], tmp_path: Path) -> None:
    run = v2edit.edit_video(source, **options, seeds=2, start=1.5, format="webp", out=tmp_path / "run")
    assert run.edited.frames.shape == (20, 48, 64, 3) and (run.folder / "seeds.png").is_file()
    assert all((one.folder / "edited.webp").is_file() for one in run.runs)


class Stop(Exception):
    pass


def test_a_stopped_run_goes_on_with_its_part(source: Path, options: dict[str, Any], tmp_path: Path) -> None:
    options = options | {"start": 0.3, "end": 1, "fps": 12, "format": "webm", "crf": 30, "subtasks": 2, "save_every": 1}
    whole = v2edit.edit_video(source, **options, out=tmp_path / "whole")

    def stop(progress: Any) -> None:
        if progress.subtask == 2:
            raise Stop

    with pytest.raises(Stop):
        v2edit.edit_video(source, **options, out=tmp_path / "run", on_progress=stop)
    assert read_run_state(tmp_path / "run").state == "failed"
    resumed = v2edit.resume_run(tmp_path / "run", show_progress=False, loaded=options["loaded"])
    assert (resumed.folder / "edited.webm").read_bytes() == (whole.folder / "edited.webm").read_bytes()
    assert {path.name for path in resumed.folder.iterdir()} == {path.name for path in whole.folder.iterdir()} == {
        "edited.webm", "subtask-1.webm", "compare.mp4", "contact.png", "run.json"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("format", "name"), [("gif", "edited.gif"), ("webp", "edited.webp"), ("mov", "edited.mov"), ("png", "edited")]
)
def test_a_run_is_read_in_its_format(
    source: Path, options: dict[str, Any], tmp_path: Path, format: str, name: str
) -> None:
    run = v2edit.edit_video(source, **options, start=1.5, format=format, out=tmp_path / "run")
    assert {path.name for path in run.folder.iterdir()} == {name, "compare.mp4", "contact.png", "run.json"}
    read = v2edit.resume_run(run.folder, show_progress=False)  # which is done
    assert isinstance(read, type(run)) and read.edited.frames.shape == run.edited.frames.shape
    assert read.edited.fps == 10 and np.allclose(read.edited.times, run.edited.times)
    if format == "png":
        assert (read.edited.frames == run.edited.frames).all()
    measured = read_run(run.folder)
    assert len(measured.edited) == len(measured.source) == 5


def test_images_are_shown_at_the_rate(options: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    video.write_frames(Video(clip(6), Fraction(8), names=tuple(f"f{k}.png" for k in range(6))), folder)
    run = v2edit.edit_video(folder, **options, fps=4, start=0.5, end=1, out=tmp_path / "run")
    before, written = video.read(folder), video.read(run.folder / "edited.mp4")
    assert written.fps == 4 and len(written.frames) == 6
    changed = [k for k in range(6) if (run.edited.frames[k] != before.frames[k]).any()]
    assert changed == [2, 3]
    assert sorted(path.name for path in (run.folder / "edited").iterdir()) == [f"f{k}.png" for k in range(6)]


REFUSED = {
    "--start 9": "the clip ends at 2 s", "--start 1 --end 1": "expected a time after --start", "--end 0": "--end is 0",
    "--start 0.11 --end 0.19": "no frame appears", "--loop --end 1": "a part of a loop",
    "--fps 0.1": "no frame is left",
    "--format gif --fps 60": "50 frames a second", "--format gif --crf 20": "only mp4 and webm",
    "--format png --crf 20": "leave it out", "--crf 52": "0 to 51", "--format avi": "expected one of mp4, webm",
}  # fmt: skip


@pytest.mark.parametrize(("words", "says"), REFUSED.items())
def test_what_cannot_be_is_one_line(
    source: Path, options: dict[str, Any], words: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "edit",
        str(source),
        "--source-prompt",
        "a",
        "--target-prompt",
        "b",
        "--model",
        options["model_options"].model,
    ]
    assert main([*line, "-o", str(tmp_path / "run"), *words.split()]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_batch_takes_the_same_keys(source: Path, options: dict[str, Any], tmp_path: Path) -> None:
    given = {"start": 0.5, "end": "0:01", "fps": 12, "format": "webm", "crf": 30}
    task = {"video": str(source), **PROMPTS}
    path = write_tasks(tmp_path / "tasks.jsonl", task | given, task)
    first, second = read_tasks(path)
    assert first.clip == ClipOptions(0.5, "0:01", 12) and first.output == FormatOptions("webm", 30)
    assert second.clip == ClipOptions() and second.output == FormatOptions()
    assert first.facts.items() >= given.items() and second.facts["format"] == "mp4"
    setup = WorkerSetup(options["loaded"].checkpoint, options["model_options"], LVLMConfig(), FitConfig(), None)
    job = setup.job(first)
    assert isinstance(job, VideoEdit) and (job.clip_options, job.format_options) == (first.clip, first.output)
    for bad, says in (
        ({"start": -1}, '"start" is -1'),
        ({"loop": True, "end": 1}, '"loop": a part'),
        ({"crf": 99}, '"crf" is 99'),
    ):
        write_tasks(path, task | bad)
        assert says in error_of(lambda: read_tasks(path, check=setup.job))
    write_tasks(path, {"scene": str(tmp_path), **PROMPTS, "fps": 8})
    assert '"fps" is for videos' in error_of(lambda: read_tasks(path))
