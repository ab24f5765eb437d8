"""Source and edited video side by side, and contact sheets of frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from v2edit.errors import UserError
from v2edit.video.formats import QUICK
from v2edit.video.stream import Frames
from v2edit.video.writing import atomic_output, check_frames, open_writer

if TYPE_CHECKING:
    from PIL.Image import Image

COMPARE_SIDE = 256  # a clip whose short side is less is shown enlarged, by a whole number
MAX_SIDE = 4096  # of a clip that is enlarged: encoders have limits
LARGE_SIDE = 720  # a clip whose short side is more is shown made smaller, by a whole number
CELL_MIN, CELL_MAX = 128, 288  # the short side of a contact sheet's cells
BACKGROUND, TEXT_COLOR = (24, 25, 28), (232, 232, 235)
GAP, TEXT_SIZE = 8, 16
COLUMNS = 5  # of a contact sheet, at most


def write_compare(
    source: Frames,
    edited: Frames,
    path: Path | str,
    fps: Fraction | int,
    audio_from: Path | str | None = None,
    times: np.ndarray | None = None,
) -> Path:
    """Write source | edited as one MP4 file, frame by frame in step, labelled; the rest is as in `write`.
    Both are uint8 [T, H, W, 3] with the same T; the lower one is enlarged to the height of the other, and clips with a
    short side under 256 pixels by a whole number, each pixel to a square; with one over 720 they are made smaller."""
    if len(check_frames(source)) != len(check_frames(edited)):
        raise UserError(f"source has {len(source)} frames and edited {len(edited)}: they cannot be shown in step")
    sizes = [(clip.shape[1], clip.shape[2]) for clip in (source, edited)]
    with open_compare(Path(path), len(source), sizes, Fraction(fps), audio_from, times) as write_pair:
        for before, after in zip(source, edited, strict=True):
            write_pair(before, after)
    return Path(path)


@contextmanager
def open_compare(
    path: Path,
    count: int,
    sizes: list[tuple[int, int]],
    fps: Fraction,
    audio_from: Path | str | None = None,
    times: np.ndarray | None = None,
) -> Iterator[Callable[[np.ndarray, np.ndarray], None]]:
    """Yield what writes the next frames of the source and of the edit, of `sizes` (H, W), as `write_compare` does."""
    height = max(height for height, _ in sizes)
    widths = [round(w * height / h) for h, w in sizes]
    scale = max(1, min(math.ceil(COMPARE_SIDE / min(height, *widths)), MAX_SIDE // max(height, sum(widths))))
    shrink = math.ceil(min(height, *widths) / LARGE_SIDE)
    widths, height = [-(-w * scale // shrink) for w in widths], -(-height * scale // shrink)
    head = TEXT_SIZE + GAP
    canvas = _blank_canvas(sum(widths) + GAP, head + height)
    lefts = [0, widths[0] + GAP]
    for left, width, label in zip(lefts, widths, ("source", "edited"), strict=True):
        _draw_text(canvas, (left + 4, 2), label, width - 4)
    base = np.array(canvas)

    with open_writer(path, (count, *base.shape[:2]), fps, audio_from, times, settings=QUICK) as write_frame:

        def write_pair(before: np.ndarray, after: np.ndarray) -> None:
            frame = base.copy()
            for left, width, picture in zip(lefts, widths, (before, after), strict=True):
                frame[head:, left : left + width] = _resize_shown(picture, width, height, shrink)
            write_frame(frame)

        yield write_pair


def contact_sheet(rows: Mapping[str, Frames], path: Path | str, columns: int = COLUMNS) -> Path:
    """Write a PNG file: a labelled row a video, of up to `columns` frames from first to last, in step. `rows` are label
    to frames uint8 [T, H, W, 3]; cells have the first one's shape. Small frames are enlarged by a whole number to 128
    pixels or more on the short side, large ones made smaller. Raises `UserError` where it cannot be written."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"cannot write {path}: the name must end in .png")
    if not rows or columns < 1:
        raise UserError("a contact sheet needs one video or more, and one column or more")
    clips = {label: check_frames(frames) for label, frames in rows.items()}
    _, height, width, _ = next(iter(clips.values())).shape
    short = min(height, width)
    scale = math.ceil(CELL_MIN / short) if short < CELL_MAX else CELL_MAX / short
    cell_w, cell_h = round(width * scale), round(height * scale)
    columns = min(columns, max(len(frames) for frames in clips.values()))
    head, margin = TEXT_SIZE + GAP, 2 * GAP
    step_x, step_y = cell_w + GAP // 2, head + cell_h + GAP
    sheet = _blank_canvas(2 * margin + columns * step_x - GAP // 2, 2 * margin + len(clips) * step_y - GAP)
    for row, (label, frames) in enumerate(clips.items()):
        y = margin + row * step_y
        _draw_text(sheet, (margin, y), label, columns * step_x - GAP // 2)
        for column, frame in enumerate(frames[spread_columns(len(frames), columns)]):
            sheet.paste(_resize(frame, cell_w, cell_h), (margin + column * step_x, y + head))
    with atomic_output(path) as part:
        sheet.save(part, "PNG", optimize=True)
    return path


def shrink_to_cell(frame: np.ndarray) -> np.ndarray:
    """Return a frame, uint8 [H, W, 3], at the size at which a contact sheet shows it, where that is smaller."""
    height, width = frame.shape[:2]
    if min(height, width) <= CELL_MAX:
        return frame
    scale = CELL_MAX / min(height, width)
    return np.asarray(_resize(frame, round(width * scale), round(height * scale)))


def spread_columns(count: int, columns: int = COLUMNS) -> np.ndarray:
    """Return which of `count` frames a sheet of so many columns shows, int [columns]: from the first to the last."""
    return np.linspace(0, count - 1, columns).round().astype(int)


def _resize(frame: np.ndarray, width: int, height: int) -> Image:
    """Resize a frame: by whole numbers pixels become squares, otherwise they are resampled."""
    from PIL import Image

    picture = Image.fromarray(frame)
    whole = width % picture.width == 0 and height % picture.height == 0
    return picture.resize((width, height), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


def _resize_shown(frame: np.ndarray, width: int, height: int, shrink: int) -> np.ndarray:
    """Resize a frame for a comparison: a large one to the means of squares of pixels."""
    from PIL import Image

    if frame.shape[:2] == (height, width):
        return frame
    if shrink > 1 and (-(-frame.shape[0] // shrink), -(-frame.shape[1] // shrink)) == (height, width):
        return np.asarray(Image.fromarray(frame).reduce(shrink))
    return np.asarray(_resize(frame, width, height))


def _blank_canvas(width: int, height: int) -> Image:
    from PIL import Image

    return Image.new("RGB", (width, height), BACKGROUND)


def _draw_text(sheet: Image, position: tuple[int, int], text: str, max_width: int) -> None:
    """Draw one line of text, shortened to a width in pixels."""
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_SIZE)
    text = " ".join(text.split())
    if draw.textlength(text, font) > max_width:
        while text and draw.textlength(text + "…", font) > max_width:
            text = text[:-1]
        text += "…"
    draw.text(position, text, TEXT_COLOR, font)
