"""Read video files, folders of images and still images to frames."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from v2edit.errors import UserError
from v2edit.files import check_content
from v2edit.video.clip import Video
from v2edit.video.colour import (
    apply_display_matrix,
    find_brightest,
    find_display_matrix,
    frame_to_rgb,
    square_pixel_size,
)
from v2edit.video.decoding import (
    DamageError,
    DemuxedPackets,
    claimed_end,
    count_claimed_frames,
    decode_frames,
    find_video_stream,
    named_rates,
    open_container,
)
from v2edit.video.stills import (
    HEIC,
    IMAGES,
    MAX_PIXELS,
    composite_on_black,
    count_pictures,
    has_heif,
    is_image,
    natural_key,
    open_image,
    read_image,
    read_pictures,
)
from v2edit.video.timing import compute_rate, is_rising, resolve_times
from v2edit.video.tonemap import HLG, PQ, WHITE, ToneMap

if TYPE_CHECKING:
    from av import VideoStream
    from av.container import InputContainer

log = logging.getLogger(__name__)

MEMORY_LIMIT = 4 * 2**30  # bytes of decoded frames; no edit takes anything near this many
SIDECARS = {".txt", ".json", ".csv", ".xml", ".md", ".html", ".ini", ".db", ".log", ".aae", ".xmp", ".yaml", ".toml"}
SIZE_TAG = "v2edit_size"  # in a file's metadata: "WxH" before the sides were made even for H.264

MAX_REORDERED = 16  # frames, by the standards of video
FRAME_OVERHEAD = 1024  # bytes that a frame takes however small it is

Flatten: TypeAlias = Callable[[np.ndarray, np.ndarray | None], np.ndarray]  # like `composite_on_black`


def read(
    path: Path | str,
    max_frames: int | None = None,
    image_fps: Fraction | int = 8,
    flatten: Flatten = composite_on_black,
) -> Video:
    """Read a video, a GIF, a folder of images (in natural order) or a still image as a player shows it.

    Rotation and mirroring tags are applied and pixels made square (by stretching, so that nothing is lost).
    Transparency is laid over black. Colours follow the file's matrix and range; where it names no matrix, BT.709 from
    1280 columns or 577 lines up, else BT.601, as players do. HDR (PQ, HLG) is tone-mapped by BT.2390. The first of
    several video streams that is not a cover picture is read. Damage is concealed as FFmpeg does it, and the frames
    after it keep their times. Damage, tone mapping, a file that is cut off and images that are left out of a folder or
    a file are logged; but almost any bytes are valid to a decoder of VP8, VP9, HEVC without hashes or lossless codecs
    without checksums, and a part of an MPEG-TS file may pass for a whole one. With `max_frames` the first frames alone
    are read; `image_fps` is the frame rate of images, which have none; `flatten` makes of colours, uint8 [H, W, 3], and
    alpha, uint8 [H, W] or None, the frame, uint8 [H, W, 3]. Raises `UserError`, in one line, for what cannot
    be decoded or takes more than 4 GiB."""
    path = Path(path)
    if max_frames is not None and max_frames < 1:
        raise UserError(f"max_frames is {max_frames}; it must be 1 or more")
    if path.is_dir():
        return _read_images(_list_images(path), max_frames, Fraction(image_fps), flatten)
    head = _read_header(path)
    is_photo = head.startswith(b"\xff\xd8\xff") and path.suffix.lower() in IMAGES  # else perhaps frames, one by one
    if is_photo or (is_image(head) and not _is_animated_png(path)):
        return _read_pictures(path, max_frames, Fraction(image_fps), flatten)
    return _read_video(path, max_frames, flatten)


def _read_header(path: Path) -> bytes:
    """Return the first 64 bytes of a file. Raises `UserError` for what they already show to be no video."""
    if not path.exists():
        raise UserError(f"no such file: {path}")
    if not path.is_file():
        raise UserError(f"{path} is not a file or a folder of images")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    check_content(path, head, "video")
    return head


def _is_animated_png(path: Path) -> bool:
    """Return whether an image file is an animated PNG, which PyAV reads."""
    with open_image(path) as image:
        return image.format == "PNG" and getattr(image, "is_animated", False)


def _list_images(folder: Path) -> list[Path]:
    """Return the images of a folder in natural order; other files, which may hold pictures, are named in the log.
    Raises `UserError` where there is no image."""
    files = [f for f in folder.iterdir() if not f.name.startswith(".") and f.suffix.lower() not in SIDECARS]
    images = [f for f in files if f.suffix.lower() in (IMAGES if has_heif() else IMAGES - HEIC)]
    rest = sorted((f.name for f in files if f not in images and f.is_file()), key=natural_key)
    advice = "; `pip install pillow-heif` reads HEIC photos" if HEIC & {Path(n).suffix.lower() for n in rest} else ""
    if not images:
        raise UserError(f"{folder} is a folder without images ({', '.join(sorted(IMAGES - HEIC))}){advice}")
    if rest:
        names = ", ".join(rest[:5]) + (f" and {len(rest) - 5} more" if len(rest) > 5 else "")
        log.warning("%s: %d images are read; left out: %s%s", folder, len(images), names, advice)
    return sorted(images, key=lambda file: natural_key(file.name))


def _read_images(files: list[Path], max_frames: int | None, fps: Fraction, flatten: Flatten) -> Video:
    """Read images of one size, one a frame. Raises `UserError` for images that differ in size or cannot be read."""
    if fps <= 0:
        raise UserError(f"the frame rate is {fps}; it must be above 0")
    frames: list[np.ndarray] = []
    for file in files[:max_frames]:
        _read_header(file)
        if not frames:
            with open_image(file) as image:
                check_memory(file.parent, image.size, min(len(files), max_frames or len(files)))
        frame = flatten(*read_image(file))
        if frames and frame.shape != frames[0].shape:
            first, size = (f"{f.shape[1]}x{f.shape[0]}" for f in (frames[0], frame))
            raise UserError(f"images of one video must be of one size: {files[0]} is {first}, {file} is {size}")
        frames.append(frame)
    names = tuple(file.name for file in files[: len(frames)])
    return Video(_stack_frames(frames, *frames[0].shape[:2]), fps, names=names)


def _read_pictures(path: Path, max_frames: int | None, fps: Fraction, flatten: Flatten) -> Video:
    """Read an image file of one or many pictures: a photo, the pages of a TIFF file at a frame rate, or an animated
    WebP or AVIF file at its own times. Pages of another size than the first are left out, which is logged."""
    with open_image(path) as image:
        count = count_pictures(image)
        check_memory(path, image.size, min(count, max_frames or count))
    if count == 1:
        return _read_images([path], max_frames, fps, flatten)
    frames: list[np.ndarray] = []
    starts, end, others = [], Fraction(0), 0
    for rgb, alpha, milliseconds in islice(read_pictures(path), max_frames):
        if frames and rgb.shape != frames[0].shape:
            others += 1
            continue
        frames.append(flatten(rgb, alpha))
        starts.append(end)
        end += Fraction(round(milliseconds), 1000) if milliseconds >= 1 else 1 / fps
    if others:
        log.warning("%s: %d of %d pages are of another size than the first and left out", path.name, others, count)
    rate, times = compute_rate(path, starts, end, [fps], Fraction(1, 1000))
    return Video(_stack_frames(frames, *frames[0].shape[:2]), rate, times)


def _read_video(path: Path, max_frames: int | None, flatten: Flatten) -> Video:
    """Read a video file: strictly, and where that shows damage again, with the damage concealed, which is logged."""
    try:
        return _read_stream(path, max_frames, True, flatten)
    except DamageError:
        video = _read_stream(path, max_frames, False, flatten)
    log.warning("%s is damaged or begins in the middle: pictures there are missing or made up from others", path.name)
    return video


def _read_stream(path: Path, max_frames: int | None, strict: bool, flatten: Flatten) -> Video:
    from av.video.reformatter import VideoReformatter

    frames: list[np.ndarray] = []
    clock: list[list] = []  # what `resolve_times` takes, by frame
    with open_container(path) as container:
        stream = find_video_stream(container)
        if stream is None:
            what = "only sound" if container.streams.audio else "no pictures that can be decoded"
            raise UserError(f"{path} is no video: it holds {what}")
        claimed = count_claimed_frames(container, stream)
        check_memory(path, (stream.width, stream.height), min(max(claimed, 1), max_frames or claimed or 1))
        size, matrix, tone_map = None, None, None
        reformatter, packets = VideoReformatter(), DemuxedPackets(container)
        decoded_frames = decode_frames(packets, stream, strict)
        for frame, *times in islice(decoded_frames, max_frames):
            if size is None:
                size = square_pixel_size(frame.width, frame.height, stream.sample_aspect_ratio)
                matrix = find_display_matrix(frame)
            if frame.color_trc in (PQ, HLG) and tone_map is None:
                tone_map = _fit_tone_map(path, max_frames, strict, frame.color_trc)
            check_memory(path, size, len(frames) + 1)
            frames.append(apply_display_matrix(frame_to_rgb(frame, size, reformatter, tone_map, flatten), matrix))
            clock.append(times)
            del frame  # see `decode_frames`
        if not frames:
            reason = "it is damaged, encrypted or an initialisation part"
            if packets.is_cut_off(stream):
                reason = "it is cut off before the first one; get or export the file again"
            raise UserError(f"{path} holds no frame that can be decoded: {reason}")
        if not is_rising([times[0] for times in clock]):  # sorted, they need the next ones, too
            clock += [times for _, *times in islice(decoded_frames, MAX_REORDERED if max_frames else 0)]
        starts = resolve_times(*zip(*clock, strict=True))[: len(frames)]
        end = starts[-1] + clock[len(frames) - 1][2]
        if len(frames) != max_frames:
            end = _find_end(container, stream, starts, end)
            is_cut_off = packets.is_cut_off(stream)
            if strict and not is_cut_off and (packets.errors.count or packets.lacks_pictures(stream)):
                raise DamageError
            if is_cut_off:
                of_all = f" of about {claimed}" if claimed > len(frames) + 1 else ""
                log.warning("%s is cut off: %d frames%s are there", path.name, len(frames), of_all)
        crop = re.fullmatch(r"(\d+)x(\d+)", container.metadata.get(SIZE_TAG, ""))
        rates, tick = named_rates(stream), stream.time_base or Fraction(1, 1000)
    if tone_map:
        curve = "PQ" if tone_map.transfer == PQ else "HLG"
        log.warning("%s is HDR (%s, %.0f cd/m2): tone-mapped to SDR by BT.2390", path.name, curve, tone_map.peak)
    height, width = frames[0].shape[:2]
    if crop and (w := int(crop[1])) in (width, width - 1) and (h := int(crop[2])) in (height, height - 1):
        height, width = h, w
    fps, times = compute_rate(path, starts, end, rates, tick)
    return Video(_stack_frames(frames, height, width), fps, times, path)


def _fit_tone_map(path: Path, max_frames: int | None, strict: bool, transfer: int) -> ToneMap:
    """Return the tone map of a video in the PQ or HLG curve, by the luminance of its brightest part."""
    from av.video.reformatter import VideoReformatter

    with open_container(path) as container:
        stream, reformatter, tone_map = find_video_stream(container), VideoReformatter(), ToneMap(transfer)
        assert stream is not None
        frames = islice(decode_frames(DemuxedPackets(container), stream, strict), max_frames)
        peaks = (find_brightest(f.frame, reformatter, tone_map) for f in frames if f.frame.color_trc == transfer)
        return ToneMap(transfer, max(peaks, default=WHITE))


def _find_end(container: InputContainer, stream: VideoStream, starts: list[Fraction], end: Fraction) -> Fraction:
    """Return the seconds at which the last frame ends, by its own duration or the file's. A frame's own is a guess
    where frames are stored out of order, and a tick where a file of one frame says it of the whole file alone."""
    whole = claimed_end(container, stream, of_stream=len(starts) > 1)
    return whole if whole and starts[-1] < whole and (whole < end or len(starts) == 1) else end


def _stack_frames(frames: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Stack the cropped frames, releasing each once it is copied, so as not to need the memory twice."""
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for k in range(len(frames)):
        out[k], frames[k] = frames[k][:height, :width], out[:0]
    return out


def check_memory(path: Path | str, size: tuple[int, int], count: int) -> None:
    """Raise `UserError` for frames that are too large, or too many for the memory limit."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise UserError(f"{path} is too big: its frames are {width}x{height}; make it smaller first")
    if (need := max(width * height * 3, FRAME_OVERHEAD) * count) > MEMORY_LIMIT:
        raise UserError(
            f"{path} is too big: {count} frames of {width}x{height} take {need / 2**30:.1f} GiB in memory, "
            f"and the limit is {MEMORY_LIMIT / 2**30:g}; read fewer frames, or make it smaller first"
        )
