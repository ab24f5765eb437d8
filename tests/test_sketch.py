"""The live preview: what the edit looks like so far, without the decoder, and without a trace in the result."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.world import write_easy_sample

from v2edit import backbones, edit_video, video
from v2edit.editing.editor import Progress
from v2edit.editing.sketch import SKETCHING, LatentColours, Sketch, spread
from v2edit.jobs.live_preview import PREVIEW_FILE, keep_preview
from v2edit.runs.manifest import STATE_DIR

GROUPS = np.repeat([0, 1, 2], [1, 4, 4])  # of 9 frames, as a causal autoencoder has them


def averaged(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return frames averaged over cells: float [T, height, width, 3]."""
    count, rows, columns, _ = frames.shape
    cells = frames.reshape(count, height, rows // height, width, columns // width, 3)
    return cells.mean((2, 4))


class LinearCoder:
    """An autoencoder whose latents are linear in the colours, in channels of its own."""

    def __init__(self) -> None:
        self.mixing = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def encode(self, frames: np.ndarray) -> torch.Tensor:
        small = torch.from_numpy(averaged(frames, 8, 12)) / 255
        groups = [small[GROUPS[: len(small)] == g].mean(0) for g in np.unique(GROUPS[: len(small)])]
        return (torch.stack(groups) @ self.mixing - 0.3).permute(0, 3, 1, 2)[None].float()


def test_a_linear_autoencoder_is_inverted() -> None:
    rng = np.random.default_rng(0)
    frames, coder = rng.integers(0, 256, (9, 32, 48, 3), dtype=np.uint8), LinearCoder()
    latents = coder.encode(frames)
    shown = LatentColours.fit(coder, latents, frames, GROUPS).render(latents)
    wanted = np.stack([averaged(frames, 8, 12)[group == GROUPS].mean(0) for group in range(3)])
    assert shown.shape == (3, 8, 12, 3) and np.abs(shown - wanted).max() < 1
    # A grey source says nothing of colours: those come from the chart.
    grey = np.full_like(frames, 90)
    colours = LatentColours.fit(coder, coder.encode(grey), grey, GROUPS)
    assert np.abs(colours.render(latents) - wanted).max() < 2


def test_some_frames_stand_for_many_and_each_is_where_it_belongs() -> None:
    colours = LatentColours(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    sketch = Sketch(colours, spread(200, 48), np.zeros((48, 1, 1, 3), np.uint8))
    assert len(sketch.shown) == 48 and sketch.shown[0] == 0 and sketch.shown[-1] == 199
    values = torch.arange(200.0).view(1, 200, 1, 1, 1)
    for first in range(0, 200, 30):
        before = sketch.frames.copy()
        sketch.update(slice(first, first + 30), values[:, first : first + 30])
        inside = (sketch.shown >= first) & (sketch.shown < first + 30)
        assert np.array_equal(sketch.frames[~inside], before[~inside])
    assert np.array_equal(sketch.frames[:, 0, 0, 0], sketch.shown)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_easy_sample(folder)
    return folder / "clip.mp4"


def test_the_sketch_of_an_edit_comes_to_look_like_it(clip: Path, tmp_path: Path) -> None:
    sketches, previews = [], []

    def watch(progress: Progress) -> None:
        if progress.sketch is not None:
            sketches.append(progress.sketch.copy())
            previews.append((tmp_path / "run" / STATE_DIR / PREVIEW_FILE).is_file())

    options = {"steps": 4, "show_progress": False}
    run = edit_video(clip, "make the cone yellow", out=tmp_path / "run", on_progress=watch, **options)
    source, groups = video.read(clip).frames, backbones.load("primitives").latent_frame_of(9)
    _, height, width, _ = sketches[-1].shape

    def distance(frames: np.ndarray) -> float:
        small = averaged(frames, height, width)
        wanted = np.stack([small[groups == group].mean(0) for group in range(groups.max() + 1)])
        return float(np.abs(sketches[-1] - wanted).mean())

    assert distance(run.edited.frames) < 8 and distance(run.edited.frames) < 0.8 * distance(source)
    # While it ran there was a video to look at; nothing of it is left, and the result is what it would have been.
    assert previews[0] and not list(run.folder.glob("**/*.webp"))
    unwatched = edit_video(clip, "make the cone yellow", out=tmp_path / "unwatched", **options)
    assert (unwatched.folder / "edited.mp4").read_bytes() == (run.folder / "edited.mp4").read_bytes()


def test_a_preview_plays_and_one_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    frames = np.stack([np.full((6, 10, 3), 60 * k, np.uint8) for k in range(4)])
    progress, seen = SimpleNamespace(sketch=frames, stage="editing"), []
    keep_preview(tmp_path, 2.0, seen.append)(progress)
    with Image.open(tmp_path / PREVIEW_FILE) as preview:
        assert preview.n_frames == 4 and min(preview.size) >= 128
        for k in range(4):
            preview.seek(k)
            assert abs(np.asarray(preview.convert("RGB")).mean() - 60 * k) < 4 and preview.info["duration"] == 500
    keep_preview(tmp_path / "gone", 2.0, seen.append)(progress)
    assert seen == [progress, progress]
    within = SimpleNamespace(sketch=frames[:2], stage=SKETCHING)  # a step: for the preview alone
    (tmp_path / "other").mkdir()
    keep_preview(tmp_path / "other", 2.0, seen.append)(within)
    assert len(seen) == 2 and (tmp_path / "other" / PREVIEW_FILE).is_file()
