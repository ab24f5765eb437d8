"""Read video files, folders of images and still images to frames."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from v2edit.errors import UserError
from v2edit.files import check_content
from v2edit.host import quiet_log
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
    TimedFrame,
    claimed_end,
    count_claimed_frames,
    decode_frames,
    find_video_stream,
    named_rates,
    open_container,
)
from v2edit.video.rereading import FileStamp, Rereader
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
from v2edit.video.stream import FRAME_OVERHEAD, Frames, FrameStream, is_large
from v2edit.video.timing import compute_rate, is_rising, resolve_times
from v2edit.video.tonemap import HLG, PQ, WHITE, ToneMap

if TYPE_CHECKING:
    from av import VideoStream
    from av.container import InputContainer

log = logging.getLogger(__name__)

MEMORY_LIMIT = 4 * 2**30  # bytes of decoded frames that are to be in memory
MAX_FRAMES = 2**20  # of a clip; of each its times are in memory, in any case
SIDECARS = {".txt", ".json", ".csv", ".xml", ".md", ".html", ".ini", ".db", ".log", ".aae", ".xmp", ".yaml", ".toml"}
SIZE_TAG = "v2edit_size"  # in a file's metadata: "WxH" before the sides were made even for H.264

MAX_REORDERED = 16  # frames, by the standards of video

Flatten: TypeAlias = Callable[[np.ndarray, np.ndarray | None], np.ndarray]  # like `composite_on_black`


def read(
    path: Path | str,
    max_frames: int | None = None,
    image_fps: Fraction | int = 8,
    flatten: Flatten = composite_on_black,
    streamed: bool | None = None,
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
    alpha, uint8 [H, W] or None, the frame, uint8 [H, W, 3].

    Frames that take more than `stream.STREAM_LIMIT`, or (`streamed`) all or none of them, are a stream, which reads the
    file again, and fails in one line where that has changed. Raises `UserError`, in one line, for what cannot be
    decoded, takes more than 4 GiB and is not `streamed`, or has more than a million frames."""
    path = Path(path)
    if max_frames is not None and max_frames < 1:
        raise UserError(f"max_frames is {max_frames}; it must be 1 or more")
    if path.is_dir():
        return _read_images(_list_images(path), max_frames, Fraction(image_fps), flatten, streamed)
    head = _read_header(path)
    is_photo = head.startswith(b"\xff\xd8\xff") and path.suffix.lower() in IMAGES  # else perhaps frames, one by one
    if is_photo or (is_image(head) and not _is_animated_png(path)):
        return _read_pictures(path, max_frames, Fraction(image_fps), flatten, streamed)
    return _read_video(path, max_frames, flatten, streamed)


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


@dataclass
class Collector:
    """The frames of a clip as they are read: kept while all of them are small enough for memory, else counted."""

    path: Path
    streamed: bool | None  # None: where they are large
    frames: list[np.ndarray] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)  # of the first
    count: int = 0

    def expect(self, width: int, height: int, count: int) -> None:
        """Raise `UserError` for frames that are too large, or too many."""
        check_size(self.path, width, height, count)
        if self.streamed is False:
            check_memory(self.path, width, height, count)

    def add(self, make: Callable[[], np.ndarray]) -> None:
        """Add the next frame, made only where it is kept, or the first."""
        self.count += 1
        if self.count == 1 or not self.streamed:
            frame = make()
            self.size = frame.shape[:2] if self.count == 1 else self.size
            self.frames.append(frame)
        height, width = self.size
        self.expect(width, height, self.count)
        if self.streamed or (self.streamed is None and is_large(self.count, height, width)):
            self.streamed = True
            self.frames.clear()

    def result(
        self, height: int, width: int, begin: Callable[[], Iterator], convert: Callable[..., np.ndarray]
    ) -> Frames:
        """Return the frames, cropped: those that are kept, or a stream, for which `begin` starts to read them again and
        `convert` makes a frame of each item."""
        if not self.streamed:
            return _stack_frames(self.frames, height, width)
        reread = Rereader(self.path, self.count, begin, lambda item: convert(item)[:height, :width])
        return FrameStream(reread, (self.count, height, width, 3))


def _read_images(
    files: list[Path], max_frames: int | None, fps: Fraction, flatten: Flatten, streamed: bool | None
) -> Video:
    """Read images of one size, one a frame. Raises `UserError` for images that differ in size or cannot be read."""
    if fps <= 0:
        raise UserError(f"the frame rate is {fps}; it must be above 0")
    files = files[:max_frames]
    frames = Collector(files[0].parent, streamed)
    stamps = [FileStamp(file) for file in files]
    for file in files:
        _read_header(file)
        if not frames.count:
            with open_image(file) as image:
                frames.expect(*image.size, len(files))
        frame = flatten(*read_image(file))
        if frames.count and frame.shape[:2] != frames.size:
            first, size = (f"{width}x{height}" for height, width in (frames.size, frame.shape[:2]))
            raise UserError(f"images of one video must be of one size: {files[0]} is {first}, {file} is {size}")
        frames.add(lambda frame=frame: frame)

    def convert(stamp: FileStamp) -> np.ndarray:
        stamp.check()
        with quiet_log("v2edit"):  # what it says it has said
            return flatten(*read_image(stamp.path))

    names = tuple(file.name for file in files)
    return Video(frames.result(*frames.size, lambda: iter(stamps), convert), fps, names=names)


def _read_pictures(path: Path, max_frames: int | None, fps: Fraction, flatten: Flatten, streamed: bool | None) -> Video:
    """Read an image file of one or many pictures: a photo, the pages of a TIFF file at a frame rate, or an animated
    WebP or AVIF file at its own times. Pages of another size than the first are left out, which is logged."""
    frames, stamp = Collector(path, streamed), FileStamp(path)
    with open_image(path) as image:
        count = count_pictures(image)
        frames.expect(*image.size, min(count, max_frames or count))
    if count == 1:
        return _read_images([path], max_frames, fps, flatten, streamed)
    starts, end, others = [], Fraction(0), 0
    for rgb, alpha, milliseconds in islice(read_pictures(path), max_frames):
        if frames.count and rgb.shape[:2] != frames.size:
            others += 1
            continue
        frames.add(lambda picture=(rgb, alpha): flatten(*picture))
        starts.append(end)
        end += Fraction(round(milliseconds), 1000) if milliseconds >= 1 else 1 / fps
    if others:
        log.warning("%s: %d of %d pages are of another size than the first and left out", path.name, others, count)
    rate, times = compute_rate(path, starts, end, [fps], Fraction(1, 1000))

    def begin() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        stamp.check()
        pictures = read_pictures(path)
        while True:
            with quiet_log("v2edit"):
                picture = next(pictures, None)
            if picture is None:
                return
            if picture[0].shape[:2] == frames.size:
                yield picture[:2]

    return Video(frames.result(*frames.size, begin, lambda picture: flatten(*picture)), rate, times)


def _read_video(path: Path, max_frames: int | None, flatten: Flatten, streamed: bool | None) -> Video:
    """Read a video file: strictly, and where that shows damage again, with the damage concealed, which is logged."""
    try:
        return _read_stream(path, max_frames, True, flatten, streamed)
    except DamageError:
        video = _read_stream(path, max_frames, False, flatten, streamed)
    log.warning("%s is damaged or begins in the middle: pictures there are missing or made up from others", path.name)
    return video


@dataclass(eq=False)
class Conversion:
    """How decoded frames of a video become pictures, uint8 [H, W, 3]; one at a time, whoever asks."""

    flatten: Flatten
    size: tuple[int, int] = (0, 0)  # width and height, of square pixels
    matrix: list[int] | None = None  # of the display
    tone_map: ToneMap | None = None

    def __post_init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter, self._lock = VideoReformatter(), threading.Lock()

    def __call__(self, decoded: TimedFrame) -> np.ndarray:
        with self._lock:
            picture = frame_to_rgb(decoded.frame, self.size, self._reformatter, self.tone_map, self.flatten)
        return apply_display_matrix(picture, self.matrix)


def _read_stream(path: Path, max_frames: int | None, strict: bool, flatten: Flatten, streamed: bool | None) -> Video:
    frames, stamp, convert = Collector(path, streamed), FileStamp(path), Conversion(flatten)
    clock: list[list] = []  # what `resolve_times` takes, by frame
    with open_container(path) as container:
        stream = find_video_stream(container)
        if stream is None:
            what = "only sound" if container.streams.audio else "no pictures that can be decoded"
            raise UserError(f"{path} is no video: it holds {what}")
        claimed = count_claimed_frames(container, stream)
        frames.expect(stream.width, stream.height, min(max(claimed, 1), max_frames or claimed or 1))
        packets = DemuxedPackets(container)
        decoded_frames = decode_frames(packets, stream, strict)
        for decoded in islice(decoded_frames, max_frames):
            frame = decoded.frame
            if not frames.count:
                convert.size = square_pixel_size(frame.width, frame.height, stream.sample_aspect_ratio)
                convert.matrix = find_display_matrix(frame)
            if frame.color_trc in (PQ, HLG) and convert.tone_map is None:
                convert.tone_map = _fit_tone_map(path, max_frames, strict, frame.color_trc)
            frames.expect(*convert.size, frames.count + 1)
            frames.add(partial(convert, decoded))
            clock.append(list(decoded[1:]))
            del frame, decoded  # see `decode_frames`
        if not frames.count:
            reason = "it is damaged, encrypted or an initialisation part"
            if packets.is_cut_off(stream):
                reason = "it is cut off before the first one; get or export the file again"
            raise UserError(f"{path} holds no frame that can be decoded: {reason}")
        if not is_rising([times[0] for times in clock]):  # sorted, they need the next ones, too
            clock += [times for _, *times in islice(decoded_frames, MAX_REORDERED if max_frames else 0)]
        starts = resolve_times(*zip(*clock, strict=True))[: frames.count]
        end = starts[-1] + clock[frames.count - 1][2]
        if frames.count != max_frames:
            end = _find_end(container, stream, starts, end)
            is_cut_off = packets.is_cut_off(stream)
            if strict and not is_cut_off and (packets.errors.count or packets.lacks_pictures(stream)):
                raise DamageError
            if is_cut_off:
                of_all = f" of about {claimed}" if claimed > frames.count + 1 else ""
                log.warning("%s is cut off: %d frames%s are there", path.name, frames.count, of_all)
        crop = re.fullmatch(r"(\d+)x(\d+)", container.metadata.get(SIZE_TAG, ""))
        rates, tick = named_rates(stream), stream.time_base or Fraction(1, 1000)
    if tone_map := convert.tone_map:
        curve = "PQ" if tone_map.transfer == PQ else "HLG"
        log.warning("%s is HDR (%s, %.0f cd/m2): tone-mapped to SDR by BT.2390", path.name, curve, tone_map.peak)
    height, width = frames.size
    if crop and (w := int(crop[1])) in (width, width - 1) and (h := int(crop[2])) in (height, height - 1):
        height, width = h, w
    fps, times = compute_rate(path, starts, end, rates, tick)

    def begin() -> Iterator[TimedFrame]:
        stamp.check()
        with open_container(path) as container:
            again = find_video_stream(container)
            assert again is not None
            yield from decode_frames(DemuxedPackets(container), again, strict)

    return Video(frames.result(height, width, begin, convert), fps, times, path)


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


def check_size(path: Path | str, width: int, height: int, count: int) -> None:
    """Raise `UserError` for frames that are too large, or too many for any edit."""
    if width * height > MAX_PIXELS:
        raise UserError(f"{path} is too big: its frames are {width}x{height}; make it smaller first")
    if count > MAX_FRAMES:
        raise UserError(
            f"{path} is too long: it has {count:,} frames, and the limit is {MAX_FRAMES:,}; read a part of it"
        )


def check_memory(path: Path | str, width: int, height: int, count: int) -> None:
    """Raise `UserError` for frames that are too many for the memory limit."""
    if (need := max(width * height * 3, FRAME_OVERHEAD) * count) > MEMORY_LIMIT:
        raise UserError(
            f"{path} is too big: {count} frames of {width}x{height} take {need / 2**30:.1f} GiB in memory, "
            f"and the limit is {MEMORY_LIMIT / 2**30:g}; read fewer frames, or make it smaller first"
        )
