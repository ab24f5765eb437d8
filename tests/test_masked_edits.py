"""`v2edit edit` with masks, boxes and times, from file to run folder: what is kept is the source's, bit for bit."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.batch import write_tasks
from support.interrupts import interrupt_when_written
from support.world import EASY_KIND, EASY_SEED

import v2edit
from v2edit import video
from v2edit.batch.tasks import read_tasks
from v2edit.cli.app import main
from v2edit.errors import UserError
from v2edit.jobs.masks import MaskOptions
from v2edit.jobs.regions import RegionOptions
from v2edit.jobs.video import EditRun
from v2edit.video.masks import open_share

QUICK = {"steps": 4, "show_progress": False}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a clip of the built-in world and an instruction for it."""
    folder = tmp_path_factory.mktemp("sample") / "s"
    assert main(["sample", "-o", str(folder), "--seed", str(EASY_SEED), "--kind", EASY_KIND]) == 0
    return folder / "clip.mp4", json.loads((folder / "clip.json").read_text())["instruction"]


@pytest.fixture(scope="module")
def half() -> np.ndarray:
    """Return a mask whose left third may change."""
    mask = np.zeros((64, 96), np.uint8)
    mask[:, :32] = 255
    return mask


def frames_in(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


@pytest.fixture(scope="module")
def run(sample, half, tmp_path_factory) -> EditRun:
    out = tmp_path_factory.mktemp("run") / "r"
    return v2edit.edit_video(*sample, mask=half, out=out, save_frames=True, **QUICK)


def test_frames_outside_the_mask_are_the_sources_bit_for_bit(sample, run):
    source, edited = video.read(sample[0]).frames, frames_in(run.folder / "edited")
    np.testing.assert_array_equal(edited[:, :, 34:], source[:, :, 34:])  # it is grown by 2 pixels
    assert not np.array_equal(edited[:, :, :32], source[:, :, :32])
    facts = json.loads((run.folder / "run.json").read_text())
    assert facts["local"]["mask"] == "an array [64, 96]"
    assert facts["share"] == {"frames": 9, "of_frames": pytest.approx(34 / 96, abs=1 / 96)}


def test_the_mask_that_a_run_shows_can_be_given_back(sample, run, half, tmp_path):
    """Though it was encoded lossily, no more and no less changes, however often it is given back."""
    source, first = video.read(sample[0]), MaskOptions(mask=half).build(video.read(sample[0])).share  # type: ignore[arg-type]
    assert first is not None
    share, path = first, run.folder / "mask.mp4"
    for number in range(3):
        share = MaskOptions(mask=str(path)).build(source).share
        assert share is not None
        np.testing.assert_array_equal(share == 1, first == 1)
        np.testing.assert_array_equal(share == 0, first == 0)
        np.testing.assert_allclose(share, first, atol=0.02)
        with open_share(path := tmp_path / f"{number}.mp4", source) as write_share:
            for frame in share:
                write_share(frame)
    again = v2edit.edit_video(*sample, mask=str(path), out=tmp_path / "r", save_frames=True, **QUICK)
    np.testing.assert_array_equal(frames_in(again.folder / "edited")[:, :, 34:], source.frames[:, :, 34:])


def test_a_mask_that_a_run_wrote_can_be_limited_and_grown(sample, run):
    source, mask = video.read(sample[0]), str(run.folder / "mask.mp4")
    whole, lower, grown = (
        MaskOptions(mask=mask, **more).build(source).share
        for more in ({}, {"box": "0,32,96,32", "grow": 0}, {"grow": 4})
    )
    assert whole is not None and lower is not None and grown is not None
    np.testing.assert_array_equal(lower[:, 34:], whole[:, 34:])
    assert lower[:, :32].max() == 0 and (np.asarray(grown) > 0).mean() > (np.asarray(whole) > 0).mean()


def test_a_mask_that_was_painted_on_is_grown_as_any(sample, run, tmp_path):
    source, shown = video.read(sample[0]), video.read(run.folder / "mask.mp4").frames.copy()
    shown[:, :, :40] = 255
    video.write(shown, tmp_path / "mask.mp4", fps=source.fps)  # as an editor does, without tags that it does not know
    share = MaskOptions(mask=str(tmp_path / "mask.mp4")).build(source).share
    assert share is not None and share[..., :40].min() == 1 and share[..., 40].min() > 0


def test_a_run_with_a_mask_resumes_though_its_file_is_gone(sample, half, run, tmp_path):
    mask = tmp_path / "mask.png"
    Image.fromarray(half).save(mask)
    command = ["edit", str(sample[0]), sample[1], "-o", str(tmp_path / "r"), "--mask", str(mask), "--steps", "4"]
    with interrupt_when_written(", step 2"):
        assert main([*command, "--save-every", "1", "--save-frames"]) == 130
    mask.unlink()
    assert main(["resume", str(tmp_path / "r")]) == 0
    np.testing.assert_array_equal(frames_in(tmp_path / "r" / "edited"), frames_in(run.folder / "edited"))


@pytest.mark.parametrize(("steps", "alpha", "noted"), [(10, 0.1, True), (4, None, False)])
def test_an_edit_that_changed_next_to_nothing_is_noted(sample, tmp_path, caplog, steps, alpha, noted):
    run = v2edit.edit_video(*sample, steps=steps, alpha=alpha, out=tmp_path / "r", show_progress=False)
    assert ("next to nothing changed" in caplog.text) == noted, run


def test_a_dry_run_tells_what_may_change_and_the_window(sample):
    limits = v2edit.estimate_edit(*sample, box=(8, 8, 8, 8), grow=2, time=(0, 0.5)).limits
    assert limits["mask"].endswith("in 4 frames") and "48x32 of 96x64" in limits["window"]
    assert not v2edit.estimate_edit(*sample, mask="auto").limits


def test_box_time_and_keep_limit_each_other(sample, half, tmp_path):
    source = video.read(sample[0])
    share = MaskOptions(box="0,16,64,16", time="0.25-0.6", keep=half, grow=0).build(source).share  # type: ignore[arg-type]
    assert share is not None
    changing = np.flatnonzero(share.any((1, 2)))
    assert changing.min() == 2 and changing.max() <= 5
    assert (
        share[:, :16].max() == share[:, 32:].max() == share[:, :, :32].max() == 0 and share[3, 20:28, 40:60].min() == 1
    )


def test_numbers_of_python_are_those_of_the_command_line():
    given = MaskOptions(box=(0, 16, 64, 16), time=(0.25, None))  # type: ignore[arg-type]
    assert given == MaskOptions(box="0,16,64,16", time="0.25-")
    assert RegionOptions(box3d=[-1, 0, 0, 1, 2, 2.5]) == RegionOptions(box3d="-1,0,0,1,2,2.5")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--mask", "nothing.png"], "nothing.png"),
        (["--box", "100,100,5,5"], "box"),
        (["--time", "7-9"], "time"),
        (["--grow", "-1"], "--grow"),
        (["--keep", "white.png"], "nothing may change"),
        (["--grow", "9999", "--box", "9,9,9,9"], "9999"),
        (["--mask", "clip.mp4"], "the video itself"),
    ],
)
def test_a_bad_mask_is_refused_in_one_line_before_any_work(sample, words, what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (96, 64), 255).save("white.png")
    Path("clip.mp4").symlink_to(sample[0])
    assert main(["edit", str(sample[0]), sample[1], "-o", "r", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert what in error and "\n" not in error and not Path("r").exists()


def test_a_mask_that_no_file_can_be_is_refused(sample, tmp_path):
    with pytest.raises(UserError, match="mask"):
        v2edit.edit_video(*sample, mask=np.full((3, 3, 3, 3, 3), 2.0), out=tmp_path / "r", **QUICK)


def test_a_run_whose_share_is_gone_edits_nothing_else(sample, half, tmp_path):
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        v2edit.edit_video(*sample, mask=half, out=tmp_path / "r", on_progress=stop, **QUICK)
    (tmp_path / "r" / ".state" / "share.npz").unlink()
    with pytest.raises(UserError, match="is gone"):
        v2edit.resume_run(tmp_path / "r", show_progress=False)


def test_lines_of_a_batch_have_masks_relative_to_their_file(sample, half, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(half).save(folder / "left.png")
    line = {"video": str(sample[0]), "instruction": sample[1], "mask": "left.png", "keep": "left.png", "box": "0,0,9,9"}
    path = write_tasks(folder / "tasks.jsonl", line, {"video": line["video"], "instruction": sample[1], "mask": "auto"})
    one, other = read_tasks(path)
    assert one.masks == MaskOptions(mask=str(folder / "left.png"), keep=str(folder / "left.png"), box="0,0,9,9")
    assert other.masks.finds and one.facts["box"] == "0,0,9,9"
    for wrong in ({"box3d": "0,0,0,1,1,1"}, {"grow": -1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            read_tasks(write_tasks(folder / "wrong.jsonl", line | wrong))
