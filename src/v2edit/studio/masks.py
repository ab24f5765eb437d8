"""Masks that a user has drawn: from pictures at some frames, or a box, to a video in step with the clip."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2edit.errors import UserError
from v2edit.studio.reading import PROXY_SIDE, fitted, resize

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from v2edit.video import Video
    from v2edit.video.stream import Frames

MAX_KEYFRAMES = 64
MAX_PIXELS = 8192 * 8192  # of a drawn picture
MASK_CRF = 4
MASK, PREVIEW = "mask.mp4", "preview.mp4"


def draw_mask(
    path: str, out: str, keyframes: list[dict[str, Any]], box: list[float] | None, carry: str
) -> dict[str, Any]:
    """Write the mask of a clip, white where it may change, and a small copy to show. `keyframes` have a `frame`,
    counted from 0, and a `png` (base64) of any size, white, or opaque, where the clip may change there; between them
    the earlier holds ("still"), or follows what moves in the pictures ("follow"). A `box` (x, y, w, h in pixels) is the
    same in all frames. Returns the `share` of all pixels that may change, 0 to 1. Raises `UserError`."""
    from v2edit import video as videos
    from v2edit.video.stream import clip_size

    source = videos.read(path)
    count, height, width = clip_size(source.frames)
    if box is not None:
        masks = _boxes(box, count, height, width)
    else:
        drawn = {int(one["frame"]): read_drawing(one["png"], height, width) for one in keyframes}
        if wrong := [frame for frame in drawn if not 0 <= frame < count]:
            raise UserError(f"there is no frame {wrong[0]}: the clip has {count}")
        if not any(one.any() for one in drawn.values()):
            raise UserError("the mask is empty: nothing may change")
        masks = _follow(source.frames, drawn) if carry == "follow" and count > 1 else _hold(drawn, count)
    return {"share": round(_write(source, masks, Path(out)), 5)}


def _write(source: Video, masks: Iterator[np.ndarray], out: Path) -> float:
    import numpy as np

    from v2edit.video.stream import clip_size
    from v2edit.video.writing import open_writer

    count, height, width = clip_size(source.frames)
    small, total = fitted(height, width, PROXY_SIDE, even=True), 0.0
    with (
        open_writer(out / MASK, (count, height, width), source.fps, times=source.times, crf=MASK_CRF) as write_mask,
        open_writer(out / PREVIEW, (count, *small), source.fps, times=source.times) as write_preview,
    ):
        for mask in masks:
            total += float(mask.mean())
            picture = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)
            write_mask(picture)
            write_preview(resize(picture, small))
    return total / count


def read_drawing(png: str, height: int, width: int) -> np.ndarray:
    """Return the mask, bool [H, W], of a drawn picture (base64): its alpha where anything is transparent, else what is
    light. Raises `UserError` for what is no such picture."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(png.partition("base64,")[2] or png, validate=True))) as image:
            if image.format != "PNG" or image.width * image.height > MAX_PIXELS:
                raise UserError("a drawn mask is a PNG of at most 8192 by 8192 pixels")
            pixels = np.asarray(image.convert("RGBA").resize((width, height), Image.Resampling.BILINEAR))
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError("a drawn mask is no PNG that can be read") from error
    alpha = pixels[..., 3]
    return alpha >= 128 if alpha.min() < 255 else pixels[..., :3].max(-1) >= 128


def _boxes(box: list[float], count: int, height: int, width: int) -> Iterator[np.ndarray]:
    import numpy as np

    x, y, w, h = box
    left, top = max(0, round(x)), max(0, round(y))
    mask = np.zeros((height, width), bool)
    mask[top : max(0, round(y + h)), left : max(0, round(x + w))] = True
    if not mask.any():
        raise UserError(f"the box lies outside the picture, which is {width}x{height}")
    return (mask for _ in range(count))


def _hold(drawn: dict[int, np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Yield the mask of each frame: that of the latest drawing up to it, before the first that one."""
    current = drawn[min(drawn)]
    for frame in range(count):
        current = drawn.get(frame, current)
        yield current


def _follow(frames: Frames, drawn: dict[int, np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the mask of each frame, carried along the flow of the pictures from the latest drawing up to it; before the
    first drawing backwards from that."""
    import numpy as np

    from v2edit.video.flow import estimate_flow, warp

    def carry(mask: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        moved = warp(mask.astype(np.float32)[..., None], estimate_flow(after, before))
        return moved.reshape(mask.shape) >= 0.5

    first = min(drawn)
    backwards, later = [drawn[first]], frames[first] if first else None
    for frame in range(first - 1, -1, -1):
        earlier = frames[frame]
        assert later is not None
        backwards.append(carry(backwards[-1], later, earlier))
        later = earlier
    yield from reversed(backwards)
    current, before = drawn[first], frames[first]
    for frame in range(first + 1, len(frames)):
        after = frames[frame]
        current = drawn[frame] if frame in drawn else carry(current, before, after)
        yield current
        before = after
