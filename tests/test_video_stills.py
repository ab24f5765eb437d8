"""Reading images: photos, sequences in a folder, pages and animations, and what is said where pictures are left out."""

import struct
import sys
import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from support.videos import NTSC, clip, error_of

from v2edit import video
from v2edit.metrics.pixels import psnr
from v2edit.video.stills import composite_on_black, natural_key, read_image

# --- folders ----------------------------------------------------------------------------------------


def test_a_folder_of_images_is_a_video_in_natural_order(tmp_path: Path) -> None:
    for k in (1, 2, 10, 9):
        Image.new("RGB", (20, 10), (k, 0, 0)).save(tmp_path / f"frame{k}.PNG")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / "._frame3.png").write_bytes(b"what a Mac leaves")
    result = video.read(tmp_path)
    assert result.frames[:, 0, 0, 0].tolist() == [1, 2, 9, 10]
    assert result.fps == 8 and result.duration == Fraction(1, 2) and result.path is None
    assert len(video.read(tmp_path, 2).frames) == 2
    assert video.read(tmp_path, image_fps=NTSC).fps == NTSC
    Image.new("RGB", (21, 10)).save(tmp_path / "frame11.png")
    assert "20x10" in error_of(lambda: video.read(tmp_path))


def test_stills(tmp_path: Path) -> None:
    still = clip(1)[0]
    picture = Image.fromarray(still)
    exif = picture.getexif()
    exif[0x0112] = 6  # turn clockwise to show
    picture.save(tmp_path / "phone.jpg", exif=exif, quality=98)
    assert psnr(video.read(tmp_path / "phone.jpg").frames[0], np.rot90(still, -1)) > 30
    Image.fromarray(np.full((4, 5), 0x8040, np.uint16)).save(tmp_path / "deep.png")
    assert (video.read(tmp_path / "deep.png").frames == 0x80).all()
    Image.new("P", (4, 5)).save(tmp_path / "palette.gif")
    assert video.read(tmp_path / "palette.gif").frames.shape == (1, 5, 4, 3)


def test_an_animated_png_moves(tmp_path: Path) -> None:
    images = [Image.fromarray(f) for f in clip(4)]
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:], duration=50)
    result = video.read(tmp_path / "a.png")
    assert (result.frames == clip(4)).all() and result.fps == 20


def unpack(data: Path, name: str, folder: Path) -> Path:
    """Unpack a folder of the fault collection."""
    with tarfile.open(data / "faults" / f"{name}.tgz") as archive:
        archive.extractall(folder, filter="fully_trusted")
    return folder / name


@pytest.mark.parametrize("name", ["d_circ", "dstray"])
def test_odd_names_in_a_folder_are_taken(data: Path, tmp_path: Path, name: str) -> None:
    """Digits that are no decimal ones, and a name beside the images that is no UTF-8."""
    folder = unpack(data, name, tmp_path)
    assert len(video.read(folder).frames) == len([p for p in folder.iterdir() if p.suffix.lower() == ".png"])


def test_natural_order_takes_any_name() -> None:
    names = ["f10", "f9", "F8", "²", "①2", "①10", "٣", "f\udcff", "10a", "9a", ""]
    order = sorted(names, key=natural_key)
    assert order.index("f9") < order.index("f10") and order.index("①2") < order.index("①10")
    assert order.index("F8") < order.index("f9") and order.index("٣") < order.index("9a")


def test_images_that_are_left_out_are_named(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for k in range(3):
        Image.new("RGB", (8, 6), (90 * k, 0, 0)).save(folder / f"{k}.jpg")
    (folder / "times.txt").touch()
    assert len(video.read(folder).frames) == 3 and caplog.text == ""
    for name in ("3.jxl", "4.EXR", "movie.mov"):
        (folder / name).touch()
    assert len(video.read(folder).frames) == 3
    assert all(name in caplog.text for name in ("3.jxl", "4.EXR", "movie.mov")) and "times.txt" not in caplog.text


def test_heic_photos_are_read_or_their_reader_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    folder = unpack(data, "d_mix", tmp_path)
    assert len(video.read(folder).frames) == 3
    assert "IMG_2.HEIC, IMG_4.HEIC" in caplog.text and "pillow-heif" in caplog.text
    photo = (folder / "IMG_2.HEIC").rename(tmp_path / "photo.jpg")  # by what it is, not by its name
    assert "pillow-heif" in error_of(lambda: video.read(photo))
    for path in folder.glob("*.jpg"):
        path.unlink()
    assert "pillow-heif" in error_of(lambda: video.read(folder))


def test_a_heic_photo_is_read(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.fromarray(clip(1)[0]).save(tmp_path / "a.heic", quality=95)
    assert psnr(video.read(tmp_path / "a.heic").frames[0], clip(1)[0]) > 30
    (tmp_path / "b.heic").write_bytes(struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic"))
    assert "b.heic" in error_of(lambda: video.read(tmp_path / "b.heic"))


# --- pages and animations ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "fps"), [("stack.tif", 8), ("anim.avif", 10)])
def test_pages_and_animations_are_read_whole(data: Path, name: str, fps: int) -> None:
    result = video.read(data / "faults" / name)
    assert result.fps == fps and np.abs(result.frames[:, 5, 5, 0] - np.arange(5.0) * 50).max() <= 2
    assert len(video.read(data / "faults" / name, 2).frames) == 2


@pytest.mark.parametrize("suffix", ["webp", "avif"])
def test_an_animation_keeps_its_times(tmp_path: Path, suffix: str) -> None:
    images = [Image.fromarray(frame) for frame in clip(4)]
    images[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=images[1:], duration=[100, 40, 200, 100])
    result = video.read(tmp_path / f"a.{suffix}")
    assert np.allclose(result.times, [0, 0.1, 0.14, 0.34]) and result.duration == Fraction(44, 100)
    assert psnr(result.frames, clip(4)) > 28


def test_pages_of_another_size_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pages = [Image.new("RGB", size, (200, 0, 0)) for size in ((32, 24), (32, 24), (8, 6))]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert video.read(tmp_path / "a.tif").frames.shape == (2, 24, 32, 3)
    assert "1 of 3 pages" in caplog.text
    caplog.clear()
    (tmp_path / "frames").mkdir()
    (tmp_path / "a.tif").rename(tmp_path / "frames" / "a.tif")
    assert len(video.read(tmp_path / "frames").frames) == 1 and "a.tif holds 3 pictures" in caplog.text


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("kind", ["pillow", "plain", "zlib"])
def test_pages_before_a_cut_are_read(tmp_path: Path, kind: str, share: float, caplog: pytest.LogCaptureFixture) -> None:
    path, pages = tmp_path / "a.tif", clip(6)
    if kind == "pillow":
        images = [Image.fromarray(page) for page in pages]
        images[0].save(path, save_all=True, append_images=images[1:])
    else:
        tifffile.imwrite(path, pages, photometric="rgb", compression="zlib" if kind == "zlib" else None)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    if kind == "plain" and share < 0.99:  # whose index comes last
        assert "damaged" in error_of(lambda: video.read(path))
        return
    result = video.read(path).frames
    assert 1 <= len(result) < 6 and (result == pages[: len(result)]).all()
    assert f"cut off: the first {len(result)} of its pictures" in caplog.text


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a"])
@pytest.mark.parametrize("kind", ["avif", "webp", "tiff", "png", "jpeg2000", "gif"])
def test_the_content_decides_what_a_file_is(tmp_path: Path, kind: str, name: str) -> None:
    images = [Image.fromarray(frame) for frame in clip(4)]
    images[0].save(tmp_path / name, kind, save_all=kind != "jpeg2000", append_images=images[1:], duration=100)
    result = video.read(tmp_path / name)
    count = 1 if kind == "jpeg2000" else 4
    assert len(result.frames) == count and psnr(result.frames, clip(count)) > 25
    (tmp_path / name).rename(tmp_path / "a.jpg")
    assert (video.read(tmp_path / "a.jpg").frames == result.frames).all()


def test_a_format_of_boxes_that_is_no_mp4_is_not_called_a_cut_one(tmp_path: Path) -> None:
    head = b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl \0\0\0\0jxl "
    (tmp_path / "a.jxl").write_bytes(head + bytes(40))
    assert "moov" not in error_of(lambda: video.read(tmp_path / "a.jxl"))


def test_the_preview_of_a_raw_photo_is_no_picture(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.dng", clip(1)[0], photometric="rgb", subfiletype=1)
    assert "raw photo" in error_of(lambda: video.read(tmp_path / "a.dng"))


# --- kinds of pixels --------------------------------------------------------------------------------

RAMP = np.linspace(0, 1, 48 * 64).reshape(48, 64)


@pytest.mark.parametrize(
    ("values", "photo"),
    [
        (RAMP.astype(np.float32), {}),
        ((RAMP * 255).astype(np.float32), {}),
        ((RAMP * 65535).astype(np.uint16), {}),
        ((RAMP * 65535).astype(np.uint32), {}),
        ((RAMP * (2**32 - 1)).astype(np.uint32), {}),
        ((RAMP * 32767).astype(np.int16), {}),
        ((RAMP * 65535).astype(np.int32), {}),
        ((RAMP * (2**31 - 1)).astype(np.int32), {}),
        ((np.repeat(RAMP[..., None], 3, 2) * 65535).astype(np.uint16), {"photometric": "rgb"}),
        (np.rint(RAMP * 127).astype(np.int8) - (RAMP == 0), {}),  # which begins with -1
        ((65535 - RAMP * 65535).astype(np.uint16), {"photometric": "miniswhite"}),
        ((1 - RAMP).astype(np.float32), {"photometric": "miniswhite"}),
    ],
    ids=lambda value: f"{value.dtype}-{value.max():.0f}" if isinstance(value, np.ndarray) else "",
)
def test_a_tiff_of_any_depth_goes_from_black_to_white(tmp_path: Path, values: np.ndarray, photo: dict) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values, **photo)
    assert np.abs(video.read(tmp_path / "a.tif").frames[0] - RAMP[..., None] * 255).max() < 1.5


def test_a_tiff_whose_samples_are_taken_for_others_is_refused(tmp_path: Path) -> None:
    planes = np.zeros((3, 8, 8), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    assert "separate planes" in error_of(lambda: video.read(tmp_path / "a.tif"))
    tifffile.imwrite(tmp_path / "b.tif", planes[0].astype(">i2"), byteorder=">", compression="zlib")
    assert "big-endian" in error_of(lambda: video.read(tmp_path / "b.tif"))


def test_decimal_numbers_beyond_white_are_clipped_and_reported(tmp_path: Path, caplog) -> None:
    values = (RAMP * 3).astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    tifffile.imwrite(tmp_path / "a.tif", np.stack([values / 300, values]))  # the dark page is not stretched
    result = video.read(tmp_path / "a.tif").frames[..., 0]
    assert result[0, 1:].max() <= 3 and np.abs(result[1, 1:] - np.clip(RAMP[1:] * 3, 0, 1) * 255).max() <= 1
    assert result[1, 0, :3].tolist() == [0, 255, 0]
    assert "1 for white" in caplog.text
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((8, 8, 3), np.float32), photometric="rgb")
    assert "8 or 16 bits" in error_of(lambda: video.read(tmp_path / "b.tif"))


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "avif"])
def test_colours_and_alpha_are_apart(tmp_path: Path, suffix: str) -> None:
    picture = np.full((30, 30, 4), (240, 120, 40, 255), np.uint8)
    picture[:, 10:20, 3], picture[:, 20:, 3] = 128, 0
    exact = {"lossless": True, "exact": True} if suffix == "webp" else {"quality": 100} if suffix == "avif" else {}
    Image.fromarray(picture).save(tmp_path / f"a.{suffix}", **exact)
    rgb, alpha = read_image(tmp_path / f"a.{suffix}")
    assert alpha is not None and alpha[5, ::10].tolist() == [255, 128, 0]
    assert np.abs(rgb[:, :20].astype(int) - (240, 120, 40)).max() <= 2
    black = composite_on_black(rgb, alpha)[5, ::10].astype(int)
    assert np.abs(black - np.outer([1, 128 / 255, 0], [240, 120, 40])).max() <= 2
    Image.fromarray(picture[..., :3]).save(tmp_path / f"b.{suffix}", **exact)
    assert read_image(tmp_path / f"b.{suffix}")[1] is None


@pytest.mark.parametrize("bits", [8, 16])
def test_a_grey_value_may_be_transparent(tmp_path: Path, bits: int) -> None:
    values = np.array([[10, 200, 100]] * 2) * (257 if bits == 16 else 1)
    picture = Image.fromarray(values.astype(np.uint16 if bits == 16 else np.uint8))
    picture.save(tmp_path / "a.png", transparency=int(values[0, 1]))
    rgb, alpha = read_image(tmp_path / "a.png")
    assert alpha is not None and alpha[0].tolist() == [255, 0, 255] and rgb[0, :, 2].tolist() == [10, 200, 100]


def test_stored_pixels_are_read_on_request(tmp_path: Path) -> None:
    picture = Image.fromarray(clip(1)[0])
    exif = picture.getexif()
    exif[0x0112] = 6
    for name in ("a.jpg", "a.png", "a.webp", "a.avif"):
        picture.save(tmp_path / name, exif=exif, quality=98)
        assert psnr(read_image(tmp_path / name, upright=False)[0], clip(1)[0]) > 30
        assert psnr(read_image(tmp_path / name)[0], np.rot90(clip(1)[0], -1)) > 30
