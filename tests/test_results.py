"""What a run writes: in one pass, the same files of streams as of arrays."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from support.videos import clip
from support.world import easy_edit

import v2edit
from v2edit import video
from v2edit.editing.editor import EditResult
from v2edit.errors import UserError
from v2edit.jobs.clip import FormatOptions
from v2edit.jobs.results import write_results
from v2edit.primitives.render import render_clip
from v2edit.video import Video, stream
from v2edit.video.stream import FrameStream, as_stream

FRAMES = clip(7, 32, 48)
SOURCE = Video(FRAMES, Fraction(4), np.array([0, 0.1, 0.5, 0.6, 1.3, 1.4, 1.5]))
PART = slice(2, 6)
SHARE = np.linspace(0, 1, 4 * 32 * 48, dtype=np.float32).reshape(4, 32, 48)


def written(folder: Path, source: Video, result: EditResult, output: str = "mp4") -> dict[str, bytes]:
    """Write an edit of a part, and return the files by name."""
    folder.mkdir()
    reports: list[tuple[int, int]] = []
    report = lambda done, total: reports.append((done, total))  # noqa: E731
    write_results(folder, source, PART, result, "title", FormatOptions(output), True, True, report)
    assert reports == [(k, 7) for k in range(8)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("output", ["mp4", "png"])
def test_streams_give_the_files_that_arrays_give(tmp_path: Path, output: str) -> None:
    milder, edited = 255 - FRAMES[PART] // 2, 255 - FRAMES[PART]
    arrays = written(tmp_path / "a", SOURCE, EditResult([milder, edited], SHARE), output)
    opened: list[int] = []

    def read(first: int, stop: int):
        opened.append(first)
        yield from edited[first:stop]

    streams = EditResult([as_stream(milder), FrameStream(read, edited.shape)], as_stream(SHARE))
    long = Video(as_stream(SOURCE.frames), SOURCE.fps, SOURCE.times)
    assert written(tmp_path / "s", long, streams, output) == arrays and opened == [0]  # what costs is read once
    names = {"compare.mp4", "mask.mp4", "contact.png", "edited.png", *(f"edited/{k:05}.png" for k in range(7))}
    if output == "mp4":
        assert arrays.keys() == names | {"edited.mp4", "subtask-1.mp4"}
        assert (video.read(tmp_path / "s" / "edited.mp4").times == SOURCE.times).all()
    else:
        assert arrays.keys() == names | {f"subtask-1/{k:05}.png" for k in range(7)}
    frames = video.read(tmp_path / "s" / "edited").frames
    assert np.array_equal(frames[:2], SOURCE.frames[:2]) and np.array_equal(frames[2:6], edited)


def test_an_edit_that_fails_in_the_middle_leaves_no_part(tmp_path: Path) -> None:
    def read(first: int, stop: int):
        yield SOURCE.frames[0]
        raise UserError("the video has changed")

    result = EditResult([FrameStream(read, SOURCE.frames[PART].shape)])
    with pytest.raises(UserError, match="has changed"):
        written(tmp_path / "a", SOURCE, result)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["edited.png"]  # which was done before


def test_an_edit_of_a_long_clip_is_that_of_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File by file, with a mask, a part and the progress of writing; and its video is still there afterwards."""
    source = render_clip(easy_edit().source, 9).frames
    path = video.write(source, tmp_path / "clip.mp4", 8)
    options = {"steps": 2, "show_progress": False, "save_frames": True, "box": "0,0,40,64", "time": "0-0.8", "end": 1.0}
    folders, seen = [], []
    monkeypatch.setattr("v2edit.jobs.time_left.LONG", 0)  # so that writing is reported of so few frames, too
    for limit in (stream.STREAM_LIMIT, 0):
        monkeypatch.setattr(stream, "STREAM_LIMIT", limit)
        folders.append(tmp_path / str(limit))
        run = v2edit.edit_video(path, "make the cone yellow", out=folders[-1], on_progress=seen.append, **options)
        assert isinstance(run.edited.frames, FrameStream) == (limit == 0) and len(list(run.edited.frames)) == 9
    assert [at.phase for at in seen[-9:]] == ["writing"] * 9 and seen[-1].step == seen[-1].steps == 9
    files = [{p.relative_to(one): p.read_bytes() for p in one.rglob("*") if p.is_file()} for one in folders]
    assert all(one.pop(Path("run.json")) for one in files) and files[0] == files[1]
    edited = np.asarray(video.read(folders[1] / "edited").frames)
    before = np.asarray(video.read(path).frames)
    assert np.array_equal(edited[:, :, 50:], before[:, :, 50:]) and np.array_equal(edited[8], before[8])
    assert not np.array_equal(edited[:8], before[:8])
