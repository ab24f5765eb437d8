"""Masks from outside: which pixels of a clip may change, from files, arrays, boxes and times.

A mask is float32 [T, H, W] at the clip's size: 1 may change, 0 stays, values between are shares.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from v2edit.errors import UserError
from v2edit.video.clip import Video
from v2edit.video.cut import frames_between
from v2edit.video.decoding import open_container
from v2edit.video.feather import dilate
from v2edit.video.formats import QUICK
from v2edit.video.reading import read
from v2edit.video.stream import Frames, as_stream, clip_size, is_large, map_frames, pick
from v2edit.video.writing import WriteFrame, open_writer

log = logging.getLogger(__name__)

# Of 255. H.264 at CRF 17 to 28 leaves black and white off by up to 16 and 30 levels within 4 pixels of a hard edge, by
# less further away.
BLACK, SHADE = 24, 48  # the one and less is black, the other and more is as it is
RINGING = 6  # pixels
MAX_GREY = 0.01  # of the pixels that are not black: with fewer greys away from edges, a mask is hard
COLOURED = 24  # of 255, between the channels of a pixel: more is a colour
MAX_COLOURS = 40  # of 4096, in nine tenths of the pixels: more is a photo
LOOKED_AT = 9  # frames, whose colours are counted
ASPECT = 0.03  # by which the ratio of a mask's sides may differ from the clip's
SHARE_TAG = "v2edit_share"  # in a file's metadata: it is a share of an edit as a run wrote it, already feathered
SHARE_CRF = 4  # at which H.264 leaves levels off by up to 3 of 255
SHARE_SLACK = 4  # of 255: in a share that was written so, what is nearer to black or white is that

Marks = Literal["change", "keep"]


def read_mask(path: Path | str, clip: Video, marks: Marks = "change", of: str = "the clip") -> Frames:
    """Read a clip's mask, float32 [T, H, W] of 0..1 at the clip's size, from a video, an image or a folder of images.

    White is 1, black 0, a grey is a share; where there is transparency, what is opaque is white; where there are
    colours, as in maps of objects, all but black is white; an image without any value above 1 holds 0 and 1. What lossy
    coding leaves around black, white and hard edges is removed (`clean_levels`). Each frame of the clip takes the
    mask's frame that is nearest in time: an image holds for all; as many frames as the clip's are taken one by one;
    images named as the clip's are taken by name, others are spread over the clip. `marks` is what white means. A file
    of `open_share` holds the share that was written: 0 and 1 exactly, what is between to a few levels of 255. Messages
    call the clip what it is a mask `of`.

    Raises `UserError` for what cannot be read, has other proportions than the clip, or leaves nothing to change."""
    path = Path(path)
    count, height, width = clip_size(clip.frames)
    mask = read(path, flatten=_flatten)
    _check_aspect(path, mask.frames.shape[1:3], (height, width), of)
    levels = _to_levels(path, mask.frames)
    peak = _peak(levels)
    if mask.path is None and peak == 1:  # what no lossy coding has been at
        levels, peak = map_frames(lambda _, frame: frame * np.uint8(255), [levels]), 255
    index = _match_frames(path, mask, clip)
    used, inverse = np.unique(index, return_inverse=True)
    clean = _snap_levels if is_share(path) else clean_levels
    result = resize_mask(clean(pick(levels, used)), height, width)
    if not np.array_equal(inverse, np.arange(count)):
        result = pick(result, inverse, streamed=is_large(count, height, width))
    assert result.shape == (count, height, width)
    hint = "" if peak <= 1 else f" (its brightest value is {peak} of 255)"
    if not any(frame.any() for frame in result):
        if marks == "change":
            raise UserError(f"{path} is black everywhere{hint}: it may change nothing; what may change is white")
        log.warning("%s is black everywhere%s: it keeps nothing", path, hint)
    if all((frame == 1).all() for frame in result):
        if marks == "keep":
            raise UserError(f"{path} is white everywhere: it keeps all, and nothing may change")
        log.warning("%s is white everywhere: everything may change", path)
    return result


@contextmanager
def open_share(path: Path, source: Video) -> Iterator[WriteFrame]:
    """Yield what writes how much of the edit each pixel of the source's next frame takes, float32 [H, W], to a grey MP4
    file in step with the source, by which `read_mask` finds the same. The file says that it is one (`is_share`), until
    a program that changes it writes it anew."""
    size, tags = clip_size(source.frames), {SHARE_TAG: "1"}
    shown = picture = None
    with open_writer(
        path, size, source.fps, times=source.times, crf=SHARE_CRF, tags=tags, settings=QUICK
    ) as write_frame:

        def write_share(share: np.ndarray) -> None:
            nonlocal shown, picture
            if picture is None or share is not shown or share.flags.writeable:
                shown, picture = share, share_picture(share)
            write_frame(picture)

        yield write_share


def share_picture(share: np.ndarray) -> np.ndarray:
    """Return a picture, uint8 [H, W, 3], of how much of the edit each pixel takes, float32 [H, W]: white for all."""
    grey = np.rint(share * 255).astype(np.uint8)
    return np.broadcast_to(grey[..., None], (*grey.shape, 3))


def read_share(path: Path) -> Frames:
    """Read how much of the edit each pixel took, float32 [T, H, W], from a file of `open_share`. Raises `UserError`
    where it cannot be read."""
    frames = read(path).frames
    return _snap_levels(map_frames(lambda _, frame: frame[..., 1], [frames], frames.shape[1:3]))


def is_share(path: Path | str) -> bool:
    """Return whether a file is one of `open_share`, unchanged: programs that write MP4 files drop others' tags."""
    path = Path(path)
    if path.suffix.lower() != ".mp4" or not path.is_file():
        return False
    with open_container(path) as container:
        return SHARE_TAG in container.metadata


def mask_from_array(array: Any, shape: tuple[int, int, int]) -> Frames:
    """Return a mask, float32 [T, H, W] of 0..1, for a clip of `shape` (T, H, W) from an array or tensor.

    It is of bool, of integers 0..1 or 0..255, or of floats 0..1; [H, W] or [T, H, W], also with a last axis of 1 or 3,
    and resized where H and W differ. Raises `UserError` for anything else."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    try:
        values = np.asarray(array)
    except ValueError as error:
        raise UserError(f"a mask is [H, W] or [T, H, W], and this one is no array: {error}") from None
    given = f"{values.dtype} {list(values.shape)}"
    if values.ndim == 4 or (values.ndim == 3 and values.shape[2] in (1, 3) and shape[2] not in (1, 3)):
        if values.shape[-1] not in (1, 3):
            raise UserError(f"a mask is [H, W] or [T, H, W], and this one is {given}")
        values = values.max(-1)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or not values.size or values.shape[0] not in (1, shape[0]):
        raise UserError(f"a mask is [H, W] or [T, H, W] with {shape[0]} frames, as the clip, and this one is {given}")
    _check_aspect("the mask", values.shape[1:], shape[1:])
    if values.dtype.kind in "iu":
        if values.min() < 0 or values.max() > 255:
            raise UserError(
                f"whole numbers of a mask are 0..1 or 0..255, and these go to {values.min()}..{values.max()}"
            )
        if values.max() > 1:
            values = np.asarray(clean_levels(values.astype(np.uint8)))
    elif values.dtype.kind == "f":
        if not (values.min() >= -1e-3 and values.max() <= 1 + 1e-3):  # NaN, too
            raise UserError(f"decimal numbers of a mask are 0..1, and these go to {values.min():g}..{values.max():g}")
    elif values.dtype.kind != "b":
        raise UserError(f"a mask is of bool, whole numbers or decimal numbers, and this one is {given}")
    if is_large(*shape):
        values = as_stream(values)
    shares = map_frames(lambda _, frame: frame.astype(np.float32).clip(0, 1), [values], dtype=np.float32)
    result = resize_mask(shares, *shape[1:])
    if not any(frame.any() for frame in result):
        raise UserError("the mask is 0 everywhere: it may change nothing; what may change is 1")
    if result.shape == shape:
        return result
    everywhere = np.zeros(shape[0], int)
    return pick(result, everywhere, streamed=is_large(*shape))


def box_mask(text: str, height: int, width: int) -> np.ndarray:
    """Return the mask, float32 [H, W], of a box `x,y,w,h`: whole pixels of the clip, percent where all values end in %,
    or fractions of the sides where one has a decimal point. What lies outside the picture is cut off, which is logged.
    Raises `UserError` for another form and for a box outside the picture."""
    parts = [part.strip() for part in text.split(",")]
    percent = [part.endswith("%") for part in parts]
    try:
        x, y, w, h = (float(part.removesuffix("%")) for part in parts)
        if any(percent) != all(percent) or not np.isfinite([x, y, w, h]).all() or w <= 0 or h <= 0:
            raise ValueError
    except ValueError:
        raise UserError(
            f"a box is x,y,width,height: pixels as 120,80,64,64, percent as 10%,20%,50%,50%, or fractions as "
            f"0.1,0.2,0.5,0.5; this one is {text!r}"
        ) from None
    if percent[0] or "." in text:
        scale = 100 if percent[0] else 1
        if max(x, y, w, h) > scale:
            raise UserError(f"the box {text} goes beyond {'100%' if percent[0] else '1'}; pixels are whole numbers")
        x, y, w, h = x * width / scale, y * height / scale, w * width / scale, h * height / scale
    left, top, right, bottom = (round(value) for value in (x, y, x + w, y + h))
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        raise UserError(f"the box {text} lies outside the picture, which is {width}x{height}")
    if left < 0 or top < 0 or right > width or bottom > height:
        log.warning("the box %s goes beyond the picture, which is %dx%d: it is cut off there", text, width, height)
    mask = np.zeros((height, width), np.float32)
    mask[max(top, 0) : bottom, max(left, 0) : right] = 1
    return mask


_TIME = r"((?:(?:\d+:)?\d+:)?(?:\d+(?:\.\d*)?|\.\d+))\s*s?"
_SPAN = re.compile(rf"\s*(?:{_TIME})?\s*[-\u2013]\s*(?:{_TIME})?\s*")


def time_mask(text: str, clip: Video) -> np.ndarray:
    """Return the mask, float32 [T], of a span of time `start-end`, each in seconds or mm:ss, of which one may be left
    out: the frames that appear then, as those of a part of a clip, or the one that is shown where none appears. Raises
    `UserError` for another form and for a span outside the clip."""
    match = _SPAN.fullmatch(text)
    if not match or not any(match.groups()):
        raise UserError(f"a time is start-end in seconds, as 2.0-4.5, 2.0-, -4.5 or 1:02-1:04.5; this one is {text!r}")
    duration = float(clip.duration)
    start = _seconds(match[1]) if match[1] else 0.0
    end = _seconds(match[2]) if match[2] else duration
    if match[2] and end <= start:
        raise UserError(f"the time {text} ends before it begins")
    if start >= duration:
        raise UserError(f"the time {text} begins after the clip's end, at {duration:.3g} s")
    first, stop = frames_between(clip, start, end)
    if stop <= first:
        first = max(0, first - 1)
        stop = first + 1
    mask = np.zeros(len(clip.times), np.float32)
    mask[first:stop] = 1
    return mask


def _seconds(text: str) -> float:
    seconds = 0.0
    for part in text.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds


def combine_masks(
    shape: tuple[int, int, int],
    mask: Frames | None = None,
    keep: Frames | None = None,
    box: np.ndarray | None = None,
    time: np.ndarray | None = None,
) -> Frames:
    """Return what may change, float32 [T, H, W] of `shape`: within the mask [T, H, W], the box [H, W] and the time [T],
    and not kept [T, H, W]; what is None does not limit it. Raises `UserError` where nothing is left."""
    whole = np.broadcast_to(np.float32(1), shape)
    first = mask if mask is not None else as_stream(whole) if is_large(*shape) else whole

    def limit(number: int, allowed: np.ndarray, *kept: np.ndarray) -> np.ndarray:
        allowed = allowed.astype(np.float32, copy=False)
        if box is not None:
            allowed = allowed * box
        if time is not None:
            allowed = allowed * time[number]
        for one in kept:
            allowed = allowed * (1 - one)
        return allowed

    result = map_frames(limit, [first, *([] if keep is None else [keep])], dtype=np.float32)
    if not any(frame.any() for frame in result):
        given = {"--mask": mask, "--keep": keep, "--box": box, "--time": time}
        names = [name for name, value in given.items() if value is not None]
        allow = "allows" if len(names) == 1 else "all allow"
        raise UserError(f"nothing may change: no pixel is left that {' and '.join(names)} {allow}")
    return result


def clean_levels(levels: Frames) -> Frames:
    """Remove from a mask, uint8 [T, H, W], what lossy coding leaves: return float32 [T, H, W] of 0..1.

    Levels near black and white become exactly 0 and 1. In a hard mask (that has next to no greys but beside edges) a
    grey between black and white becomes the one that is nearer; the greys of other masks are kept as shares."""
    ramp = np.interp(np.arange(256), [BLACK, SHADE, 255 - SHADE, 255 - BLACK], [0, SHADE / 255, 1 - SHADE / 255, 1])
    ramp = ramp.astype(np.float32)
    counts, at_edges = np.zeros(256, int), 0
    for frame in levels:
        counts += (own := np.bincount(frame.ravel(), minlength=256))
        if own[BLACK + 1 : 255 - BLACK].any():
            at_edges += int(_greys_at_edges(frame).sum())
    greys, others = int(counts[BLACK + 1 : 255 - BLACK].sum()), int(counts[BLACK + 1 :].sum())
    is_hard = greys > 0 and greys - at_edges <= MAX_GREY * others

    def clean(number: int, frame: np.ndarray) -> np.ndarray:
        result = ramp[frame]
        if is_hard:
            edges = _greys_at_edges(frame)
            result[edges] = frame[edges] >= 128
        return result

    return map_frames(clean, [levels], dtype=np.float32)


def _greys_at_edges(levels: np.ndarray) -> np.ndarray:
    """Return which pixels of a mask, uint8 [H, W], are grey near both black and white."""
    greys = (levels > BLACK) & (levels < 255 - BLACK)
    if not greys.any():
        return greys
    both = np.stack([levels <= BLACK, levels >= 255 - BLACK])
    return greys & dilate(both, RINGING).all(0)


def _snap_levels(levels: Frames) -> Frames:
    """Return a share, float32 [T, H, W] of 0..1, from the levels uint8 that are read of its file."""

    def snap(number: int, frame: np.ndarray) -> np.ndarray:
        ends = np.where(frame <= SHARE_SLACK, 0, np.where(frame >= 255 - SHARE_SLACK, 255, frame))
        return (ends / np.float32(255)).astype(np.float32)

    return map_frames(snap, [levels], dtype=np.float32)


def resize_mask(mask: Frames, height: int, width: int) -> Frames:
    """Resize a mask, float32 [T, h, w] of 0..1, to [T, H, W]: bilinear, antialiased where it becomes smaller; what is
    0 or 1 all around stays exactly so."""
    if mask.shape[1:] == (height, width):
        return mask

    def resize(number: int, frame: np.ndarray) -> np.ndarray:
        part = torch.from_numpy(np.require(frame, requirements=["C", "W"]))[None, None]
        part = F.interpolate(part, (height, width), mode="bilinear", antialias=True)[0, 0]
        return torch.where(part > 1 - 1e-4, 1.0, torch.where(part < 1e-4, 0.0, part)).numpy()

    return map_frames(resize, [mask], (height, width))


def _flatten(rgb: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """Return a picture of a mask, uint8 [H, W, 3]: its alpha where anything is transparent, else its colours."""
    if alpha is None or alpha.min() == 255:
        return rgb
    return np.repeat(alpha[..., None], 3, axis=2)


def _check_aspect(name: Path | str, given: tuple[int, ...], wanted: tuple[int, ...], of: str = "the clip") -> None:
    """Raise `UserError` where the sides (H, W) of a mask have other proportions than what it is a mask `of`."""
    if abs(given[1] * wanted[0] / (given[0] * wanted[1]) - 1) > ASPECT:
        sizes = [f"{width}x{height}" for height, width in (given, wanted)]
        raise UserError(f"{name} is {sizes[0]} and {of} {sizes[1]}: a mask has the same proportions")


def _to_levels(path: Path, frames: Frames) -> Frames:
    """Return the grey levels, uint8 [T, H, W], of a mask's frames, uint8 [T, H, W, 3]; where there are colours, all but
    black is white. Raises `UserError` for a photo or a film."""
    _, height, width = clip_size(frames)
    if not any((frame.max(-1) - frame.min(-1) > COLOURED).any() for frame in frames):
        return map_frames(lambda _, frame: frame[..., 1].copy(), [frames], (height, width))
    step = max(1, height * width // 100_000)
    for frame in frames[:: max(1, -(-len(frames) // LOOKED_AT))]:  # the first of a film may be black
        colours = frame.reshape(-1, 3)[::step].astype(int) // 16
        counts = np.sort(np.bincount(colours @ [256, 16, 1]))[::-1].cumsum()
        if np.searchsorted(counts, 0.9 * counts[-1]) >= MAX_COLOURS:
            raise UserError(
                f"{path} is a picture in colours, no mask: a mask is white where the clip may change, else black"
            )
    log.warning("%s has colours: all but black may change", path)
    return map_frames(lambda _, frame: (frame.max(-1) > COLOURED) * np.uint8(255), [frames], (height, width))


def _peak(levels: Frames) -> int:
    """Return the largest level of a mask."""
    return max(int(frame.max()) for frame in levels)


def _match_frames(path: Path, mask: Video, clip: Video) -> np.ndarray:
    """Return for each frame of the clip the index of its mask's frame, int [T]; what is not obvious is logged."""
    count, masks = len(clip.frames), len(mask.frames)
    if masks in (1, count):
        return np.arange(count) % masks
    own = {Path(name).stem: k for k, name in enumerate(clip.names)}
    stems = [Path(name).stem for name in mask.names]
    if stems and (own.keys() >= set(stems) or own.keys() <= set(stems)) and own:
        places = np.array([own.get(stem, -1) for stem in stems])
        known = np.flatnonzero(places >= 0)
        if len(known) < count:
            log.warning("%s has images for %d of the clip's %d frames: the nearest is taken", path, len(known), count)
        return known[nearest(places[known].astype(float), np.arange(count, dtype=float))]
    if stems:
        log.warning("%s has %d images and the clip %d frames: they are spread over it", path, masks, count)
        return (clip.times / float(clip.duration) * masks).astype(int).clip(0, masks - 1)
    end, duration = float(mask.duration), float(clip.duration)
    if end < duration - max(1 / float(mask.fps), 1 / float(clip.fps)):
        log.warning(
            "%s ends at %.3g s and the clip at %.3g s: its last frame holds from there (a time that ends there keeps "
            "the rest)", path, end, duration,
        )  # fmt: skip
    return nearest(mask.times, clip.times)


def nearest(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return for each wanted time [T] the index of the nearest of times [N], the earlier of two."""
    order = np.argsort(times, kind="stable")
    middles = (times[order][1:] + times[order][:-1]) / 2
    return order[np.searchsorted(middles, wanted)]
