"""Masks from outside: files of every kind, arrays, boxes and times; growth and feather."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from support.videos import clip, error_of, make

from v2edit import video
from v2edit.video.cut import find_part
from v2edit.video.feather import default_grow, feathered_share
from v2edit.video.masks import box_mask, clean_levels, combine_masks, mask_from_array, read_mask, time_mask
from v2edit.video.reading import read

HEIGHT, WIDTH = 48, 64
CLIP = video.Video(clip(10, HEIGHT, WIDTH), Fraction(10))


def discs(count: int = 10, height: int = HEIGHT, width: int = WIDTH, speed: float = 3) -> np.ndarray:
    """Return a disc that moves to the right, bool [T, H, W], as the same part of frames of any size."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    scale = height / HEIGHT
    return np.stack(
        [(x - scale * (16 + speed * k)) ** 2 + (y - height / 2) ** 2 < (11 * scale) ** 2 for k in range(count)]
    )


def grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels.astype(np.uint8)[..., None], 3, -1)


def save_images(folder: Path, masks: np.ndarray, names: list[str] | None = None) -> Path:
    folder.mkdir()
    for k, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"{names[k] if names else k}.png")
    return folder


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crf", [17, 23, 28])
def test_a_hard_mask_comes_back_exact_from_a_lossy_file(tmp_path: Path, crf: int) -> None:
    hard = discs(10, 240, 320)
    path = video.write(grey(hard * 255), tmp_path / "mask.mp4", fps=10, crf=crf)
    stored = read(path).frames[..., 1]
    assert ((stored > 2) & (stored < 253)).any()  # the file is lossy
    mask = read_mask(path, video.Video(np.zeros((10, 240, 320, 3), np.uint8), 10))
    assert mask.dtype == np.float32 and set(np.unique(mask)) == {0, 1}
    beside = feathered_share(hard.astype(np.float32), grow=2) > 0
    inside = feathered_share(1 - hard.astype(np.float32), grow=2) == 0
    assert not mask[~beside].any() and (mask[inside] == 1).all()


def test_greys_are_shares(data: Path) -> None:
    """A mask whose greys are levels of their own, coded by H.264."""
    source = read(data / "masks" / "BigBen.mp4", 4)
    mask = read_mask(data / "masks" / "BigBen-mask.mp4", source)
    assert np.allclose(np.unique(mask), [0, 127 / 255, 1], atol=0.02)


def test_a_soft_mask_keeps_its_ramp_and_loses_its_noise() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (1, 8, 1))
    result = clean_levels(ramp)[0, 0]
    assert (np.diff(result) >= 0).all() and (result[48:208] == (np.arange(48, 208) / 255).astype(np.float32)).all()
    assert (result[:25] == 0).all() and (result[-25:] == 1).all() and np.diff(result).max() < 0.02


def test_masks_of_data_sets(data: Path) -> None:
    """DAVIS annotations, by name, beside the frames they belong to."""
    frames, folder = data / "videos" / "davis-kite-surf", data / "videos" / "davis-kite-surf-masks"
    source = read(frames, 5)
    mask = read_mask(folder, source)
    stored = np.stack([np.asarray(Image.open(folder / f"{k:05}.png")) for k in range(5)])
    assert (mask == (stored > 0)).all()


@pytest.mark.parametrize("kind", ["palette", "numbers", "bits", "alpha", "inverse", "deep", "colours"])
def test_images_of_masks_are_understood(tmp_path: Path, kind: str) -> None:
    hard = discs(1)[0]
    if kind == "palette":  # as DAVIS has it: the second object is index 2, dark colours all
        image = Image.fromarray((hard * np.where(np.arange(WIDTH) < 16, 1, 2)).astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    elif kind == "alpha":  # colours that mean nothing
        image = Image.fromarray(np.dstack([clip(1)[0], hard * np.uint8(255)]), "RGBA")
    elif kind == "inverse":  # alpha that means nothing
        image = Image.fromarray(np.dstack([grey(hard * 255), np.full(hard.shape, 255, np.uint8)]), "RGBA")
    elif kind == "colours":
        image = Image.fromarray(np.where(hard[..., None], np.uint8([255, 0, 0]), np.uint8(0)))
    else:
        image = Image.fromarray({"numbers": hard.astype(np.uint8), "bits": hard, "deep": hard * np.uint16(65535)}[kind])
    image.save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", CLIP)
    assert mask.shape == (10, HEIGHT, WIDTH) and (mask == hard).all()


def test_any_size_and_rate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hard = discs()
    half = make(tmp_path / "half.mp4", list(grey(discs(20, HEIGHT // 2, WIDTH // 2, 1.5) * 255)), fps=Fraction(20))
    double = make(tmp_path / "double.mp4", list(grey(discs(5, HEIGHT * 2, WIDTH * 2, 6) * 255)), fps=Fraction(5))
    for path in (half, double):
        mask = read_mask(path, CLIP)
        assert mask.shape == hard.shape and mask.min() >= 0 and mask.max() == 1
        same = [k for k in range(10) if path == half or k % 2 == 0]  # the times that both have
        assert np.abs(mask - hard)[same].mean() < 0.02
    assert caplog.text == ""


def test_frames_are_matched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    levels = discs(10)
    images = levels * np.uint8(255)
    assert (read_mask(save_images(tmp_path / "same", images), CLIP) == levels).all()
    short = make(tmp_path / "short.mp4", list(grey(images[:4])), fps=Fraction(10))
    assert (read_mask(short, CLIP) == levels[[0, 1, 2, 3, 3, 3, 3, 3, 3, 3]]).all()
    assert "ends at 0.4 s" in caplog.text and "last frame holds" in caplog.text
    long = make(tmp_path / "long.mp4", list(grey(images)), fps=Fraction(10))
    assert (read_mask(long, video.Video(CLIP.frames[:3], 10)) == levels[:3]).all()
    assert (read_mask(long, video.Video(CLIP.frames[:5], 5)) == levels[::2]).all()
    caplog.clear()
    assert (read_mask(save_images(tmp_path / "five", images[::2]), CLIP) == levels[::2].repeat(2, 0)).all()
    assert "5 images" in caplog.text and "spread" in caplog.text
    named = video.Video(CLIP.frames, 10, names=tuple(f"f{k}.jpg" for k in range(10)))
    folder = save_images(tmp_path / "named", images[[2, 7]], ["f2", "f7"])
    assert (read_mask(folder, named) == levels[[2] * 5 + [7] * 5]).all()
    unsorted = save_images(tmp_path / "unsorted", images[[0, 1, 2]], ["a", "b", "c"])
    three = video.Video(CLIP.frames[:4], 10, names=("c.jpg", "a.jpg", "d.jpg", "b.jpg"))
    assert (read_mask(unsorted, three) == levels[[2, 0, 0, 1]]).all()
    assert "2 of the clip's 10 frames" in caplog.text


def test_bad_masks_are_refused_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def refusal(name: str, image: np.ndarray) -> str:
        Image.fromarray(image).save(tmp_path / name)
        return error_of(lambda: read_mask(tmp_path / name, CLIP))

    assert "same proportions" in refusal("wide.png", np.full((48, 70), 255, np.uint8))
    assert "may change nothing" in refusal("black.png", np.zeros((48, 64), np.uint8))
    assert "brightest value is 9" in refusal("ids.png", np.full((48, 64), 9, np.uint8))
    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    assert "no mask" in refusal("photo.png", photo)
    film = make(tmp_path / "film.mp4", [*[np.zeros_like(photo)] * 20, *[photo] * 60])
    assert "no mask" in error_of(lambda: read_mask(film, CLIP))
    (tmp_path / "mask.txt").write_text("0 0 1 1")
    assert "mask.txt" in error_of(lambda: read_mask(tmp_path / "mask.txt", CLIP))
    assert "no such file" in error_of(lambda: read_mask(tmp_path / "none.png", CLIP))
    Image.fromarray(np.full((49, 64), 255, np.uint8)).save(tmp_path / "white.png")  # nearly its proportions
    assert (read_mask(tmp_path / "white.png", CLIP) == 1).all() and "everything may change" in caplog.text
    assert "nothing may change" in error_of(lambda: read_mask(tmp_path / "white.png", CLIP, "keep"))
    assert not read_mask(tmp_path / "black.png", CLIP, "keep").any() and "keeps nothing" in caplog.text


# --- arrays, boxes, times ---------------------------------------------------------------------------


def test_arrays() -> None:
    hard, shape = discs(), CLIP.frames.shape[:3]
    forms = [hard, hard.astype(int), hard * np.uint8(255), hard.astype(np.float64), grey(hard * 255), hard[..., None]]
    of_torch = torch.from_numpy(hard.astype(np.float32))
    for one in [*forms, torch.from_numpy(hard), of_torch.bfloat16(), of_torch.requires_grad_(), hard.tolist()]:
        mask = mask_from_array(one, shape)
        assert mask.dtype == np.float32 and (mask == hard).all()
    assert (mask_from_array(hard[0], shape) == hard[0]).all()
    assert (mask_from_array(np.full((24, 32), 0.25), shape) == 0.25).all()
    bad = [np.zeros(4), hard[:3], hard[:, :9], hard * 0, hard * 256, hard * 2.5, hard * np.nan, hard.astype(str)]
    for one in [
        *bad,
        np.zeros((10, HEIGHT, WIDTH, 2)),
        -hard.astype(int),
        np.zeros((0, HEIGHT, WIDTH)),
        "mask",
        [[1, 0], [1]],
    ]:
        assert "mask" in error_of(lambda one=one: mask_from_array(one, shape))


def test_boxes(caplog: pytest.LogCaptureFixture) -> None:
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[12:36, 16:48] = True
    for text in ("16,12,32,24", " 16, 12 ,32,24", "25%,25%,50%,50%", "0.25,0.25,0.5,0.5"):
        assert (box_mask(text, HEIGHT, WIDTH) == expected).all()
    assert caplog.text == ""
    assert box_mask("-10,40,20,20", HEIGHT, WIDTH).sum() == 10 * 8 and "cut off" in caplog.text
    assert box_mask("99%,0%,0.1%,100%", HEIGHT, WIDTH).sum() == HEIGHT
    for text in ("64,0,5,5", "0,-9,5,9"):
        assert "outside the picture" in error_of(lambda text=text: box_mask(text, HEIGHT, WIDTH))
    for text in ("", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,0,4", "10%,2,3,4", "nan,1,1,1", "0.5,0.5,20,20", "1,2,-3,4"):
        assert "box" in error_of(lambda text=text: box_mask(text, HEIGHT, WIDTH))


def test_times() -> None:
    def frames(text: str, source: video.Video = CLIP) -> list[int]:
        return np.flatnonzero(time_mask(text, source)).tolist()

    assert frames("0.2-0.5") == frames("0.2 - 0.5s") == frames("0:00.2-0:00.5") == [2, 3, 4]
    assert frames("0.8-") == [8, 9] and frames("-0.2") == [0, 1] and frames("0-99") == list(range(10))
    assert frames("0.31-0.32") == [3] and frames("0-0.0001") == [0]  # a part of one frame
    assert frames("0.26-0.54") == list(range(10))[find_part(CLIP, 0.26, 0.54)]  # as --start and --end cut
    slow = video.Video(CLIP.frames[:3], Fraction(3, 100), np.array([0.0, 61, 80]))
    assert frames("1:01-1:10", slow) == [1] and frames("0:01:20-", slow) == [2]
    for text in ("", "-", "3", "b-c", "0.5-0.2", "0.5-0.5", "1-", "5-6", "1--2", "-0"):
        assert "time" in error_of(lambda text=text: time_mask(text, CLIP))


def test_masks_combine() -> None:
    hard, shape = discs().astype(np.float32), CLIP.frames.shape[:3]
    box, time = box_mask("0,0,32,48", HEIGHT, WIDTH), time_mask("0.3-", CLIP)
    allowed = combine_masks(shape, hard, np.flip(hard, 2), box, time)
    assert (allowed == hard * (1 - np.flip(hard, 2)) * box * time[:, None, None]).all() and allowed.any()
    assert (combine_masks(shape, keep=hard) == 1 - hard).all() and (hard == discs()).all()
    message = error_of(lambda: combine_masks(shape, hard, hard))
    assert "nothing may change" in message and "--mask and --keep" in message
    assert "that --keep allows" in error_of(lambda: combine_masks(shape, keep=np.ones(shape, np.float32)))
    assert "this is 65" in error_of(lambda: feathered_share(allowed, grow=65))


# --- growth and feather -----------------------------------------------------------------------------


def distance_to(mask: np.ndarray) -> np.ndarray:
    """Return each pixel's distance to the nearest one of a mask, bool [H, W], by looking at all of them."""
    places = np.argwhere(mask)
    grid = np.stack(np.mgrid[0 : mask.shape[0], 0 : mask.shape[1]], -1)
    return np.sqrt(((grid[:, :, None] - places) ** 2).sum(-1)).min(-1)


masks = hnp.arrays(np.float32, (2, 15, 18), elements=st.sampled_from([0.0] * 8 + [1.0, 0.25]))


@given(masks, masks, st.integers(0, 6))
def test_the_share_stays_within_its_bounds(allowed: np.ndarray, keep: np.ndarray, grow: int) -> None:
    share = feathered_share(allowed, grow=grow)
    assert share.dtype == np.float32 and share.min() >= 0 and share.max() <= 1
    for one, mask in zip(share, allowed, strict=True):
        if not mask.any():
            assert not one.any()
        elif grow:
            distance = distance_to(mask > 0)
            assert (one >= mask).all() and not one[distance > grow].any()
            assert not (mask == 1).any() or (one[distance_to(mask == 1) < grow] > 0).all()
        else:
            assert (one <= mask).all() and one.any()
    kept = feathered_share(allowed, keep, grow)
    assert not kept[keep == 1].any() and (kept <= share).all() and (kept <= 1 - keep).all()


def test_the_feather_is_round_and_smooth() -> None:
    """Of a point it is a disc, to the pixel; of an edge a curve without a step."""
    point = np.zeros((1, 41, 41), np.float32)
    point[0, 20, 20] = 1
    share = feathered_share(point, grow=8)[0]
    assert (share == share.T).all() and (share == share[::-1]).all() and not share[distance_to(point[0] > 0) > 8].any()
    edge = np.zeros((1, 40, 60), np.float32)
    edge[..., 30:] = 1
    profile = feathered_share(edge, grow=8)[0, 20]
    assert (np.diff(profile) >= 0).all() and np.diff(profile).max() < 0.25
    inner = feathered_share(np.repeat(np.repeat(edge, 12, 1), 12, 2), grow=0)[0, 240]
    assert not inner[:360].any() and 0 < inner[360] < 1 and inner[370] == 1
    assert default_grow(64, 64) == 2 and default_grow(480, 854) == 8
    assert "-1" in error_of(lambda: feathered_share(edge, grow=-1))
