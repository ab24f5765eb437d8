"""Read video files, folders of images and still images to frames."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from v2edit.errors import UserError
from v2edit.video.clip import Video, frame_times
from v2edit.video.stills import (
    HEIC,
    IMAGES,
    MAX_PIXELS,
    composite_on_black,
    count_pictures,
    has_heif,
    is_heic,
    natural_key,
    open_image,
    read_image,
    read_pictures,
)

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer
    from av.video.reformatter import VideoReformatter

log = logging.getLogger(__name__)

MEMORY_LIMIT = 4 * 2**30  # bytes of decoded frames; no edit takes anything near this many
SIDECARS = {".txt", ".json", ".csv", ".xml", ".md", ".html", ".ini", ".db", ".log", ".aae", ".xmp", ".yaml", ".toml"}
SIZE_TAG = "v2edit_size"  # in a file's metadata: "WxH" before the sides were made even for H.264

BT709, BT601, SMPTE240M, BT2020, FCC = 1, 5, 7, 9, 4  # matrices, by FFmpeg's numbers
MATRIX_OF_TAG = {1: BT709, 4: FCC, 5: BT601, 6: BT601, 7: SMPTE240M, 9: BT2020, 10: BT2020}
LIMITED, FULL = 1, 2
FULL_FROM_LIMITED = ((np.arange(256) - 16) * 255 / 219).round().clip(0, 255).astype(np.uint8)
# FFmpeg's names of the formats of video and sound files, without playlists, which could lead to any file on the disk.
FORMATS = (
    "mov,matroska,avi,gif,apng,ogg,mpegts,mpeg,mpegvideo,flv,asf,mxf,ivf,nut,rm,dv,wtv,yuv4mpegpipe,mjpeg,"
    "h261,h263,h264,hevc,m4v,obu,av1,vc1,dirac,aac,ac3,aiff,amr,caf,flac,mp3,w64,wav,png_pipe,jpeg_pipe,webp_pipe"
)
FRAME_OVERHEAD = 1024  # bytes that a frame takes however small it is
MIN_FPS, MAX_FPS = Fraction(1, 100_000), 1000  # frames a second
HDR_CURVES = {16, 18}  # PQ and HLG


def read(path: Path | str, max_frames: int | None = None, image_fps: Fraction | int = 8) -> Video:
    """Read a video, a GIF, a folder of images (in natural order) or a still image as a player shows it.

    Rotation and mirroring tags are applied and pixels made square (by stretching, so that nothing is lost).
    Transparency is laid over black. Colours follow the file's matrix and range; where it names no matrix,
    BT.709 from 1280 columns or 577 lines up, else BT.601, as players do. HDR (PQ, HLG) is mapped to BT.709.
    The first of several video streams that is not a cover picture is read. Damaged stretches are skipped, and the
    frames after them keep their times. With `max_frames` the first frames alone are read; `image_fps` is the frame rate
    of images, which have none. Raises `UserError`, in one line, for what cannot be decoded or takes more than 4 GiB."""
    path = Path(path)
    if max_frames is not None and max_frames < 1:
        raise UserError(f"max_frames is {max_frames}; it must be 1 or more")
    if path.is_dir():
        return _read_images(_list_images(path), max_frames, Fraction(image_fps))
    if _check_header(path) or (path.suffix.lower() in IMAGES and not _is_animated_png(path)):
        return _read_pictures(path, max_frames, Fraction(image_fps))
    return _read_video(path, max_frames)


def _check_header(path: Path) -> bool:
    """Return whether the first bytes of a file are those of a HEIC photo, of which FFmpeg would show one tile of many.
    Raises `UserError` for what they already show to be no video."""
    if not path.exists():
        raise UserError(f"no such file: {path}")
    if not path.is_file():
        raise UserError(f"{path} is not a file or a folder of images")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not head:
        raise UserError(f"{path} is an empty file")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the video itself: fetch it with `git lfs pull`")
    return is_heic(head)


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


def _read_images(files: list[Path], max_frames: int | None, fps: Fraction) -> Video:
    """Read images of one size, one a frame. Raises `UserError` for images that differ in size or cannot be read."""
    if fps <= 0:
        raise UserError(f"the frame rate is {fps}; it must be above 0")
    frames: list[np.ndarray] = []
    for file in files[:max_frames]:
        _check_header(file)
        if not frames:
            with open_image(file) as image:
                _check_memory(file.parent, image.size, min(len(files), max_frames or len(files)))
        frame = composite_on_black(*read_image(file))
        if frames and frame.shape != frames[0].shape:
            first, size = (f"{f.shape[1]}x{f.shape[0]}" for f in (frames[0], frame))
            raise UserError(f"images of one video must be of one size: {files[0]} is {first}, {file} is {size}")
        frames.append(frame)
    names = tuple(file.name for file in files[: len(frames)])
    return Video(_stack_frames(frames, *frames[0].shape[:2]), fps, names=names)


def _read_pictures(path: Path, max_frames: int | None, fps: Fraction) -> Video:
    """Read an image file of one or many pictures: a photo, the pages of a TIFF file at a frame rate, or an animated
    WebP or AVIF file at its own times. Pages of another size than the first are left out, which is logged."""
    with open_image(path) as image:
        count = count_pictures(image)
        _check_memory(path, image.size, min(count, max_frames or count))
    if count == 1:
        return _read_images([path], max_frames, fps)
    frames: list[np.ndarray] = []
    starts, end, others = [], Fraction(0), 0
    for rgb, alpha, milliseconds in islice(read_pictures(path), max_frames):
        if frames and rgb.shape != frames[0].shape:
            others += 1
            continue
        frames.append(composite_on_black(rgb, alpha))
        starts.append(end)
        end += Fraction(round(milliseconds), 1000) if milliseconds >= 1 else 1 / fps
    if others:
        log.warning("%s: %d of %d pages are of another size than the first and left out", path.name, others, count)
    rate, times = _compute_timing(path, starts, end, [fps], Fraction(1, 1000))
    return Video(_stack_frames(frames, *frames[0].shape[:2]), rate, times)


def _read_video(path: Path, max_frames: int | None) -> Video:
    from av.video.reformatter import VideoReformatter

    frames: list[np.ndarray] = []
    starts: list[Fraction] = []
    with open_container(path) as container:
        stream = find_video_stream(container)
        if stream is None:
            what = "only sound" if container.streams.audio else "no pictures that can be decoded"
            raise UserError(f"{path} is no video: it holds {what}")
        tick = stream.time_base or Fraction(1, 1000)
        rates = [r for r in (stream.guessed_rate, stream.average_rate, stream.base_rate) if r and r <= 1000]
        usual = 1 / rates[0] if rates else Fraction(1, 25)  # seconds of a frame without a duration
        claimed = stream.frames or int(Fraction(container.duration or 0, 1_000_000) * (stream.average_rate or 0))
        _check_memory(path, (stream.width, stream.height), min(max(claimed, 1), max_frames or claimed or 1))
        size, end, reformatter = None, Fraction(0), VideoReformatter()
        for frame in _decode_frames(container, stream, path):
            if size is None:
                size = _square_pixel_size(frame.width, frame.height, stream.sample_aspect_ratio)
            _check_memory(path, size, len(frames) + 1)
            frames.append(_apply_display_matrix(_frame_to_rgb(frame, size, reformatter), frame))
            start = frame.pts * (frame.time_base or tick) if frame.pts is not None else end
            starts.append(start if not starts or start > starts[-1] else end)
            end = starts[-1] + ((frame.duration or 0) * (frame.time_base or tick) or usual)
            if len(frames) == max_frames:
                break
        else:
            # A frame's own duration is a guess where frames are stored out of order; the stream's is not.
            whole = ((stream.start_time or 0) + (stream.duration or 0)) * tick
            if starts and starts[-1] < whole < end:
                end = whole
        crop = re.fullmatch(r"(\d+)x(\d+)", container.metadata.get(SIZE_TAG, ""))
    if not frames:
        raise UserError(
            f"{path} holds no frame that can be decoded: it is damaged, encrypted or an initialisation part"
        )
    height, width = frames[0].shape[:2]
    if crop and (w := int(crop[1])) in (width, width - 1) and (h := int(crop[2])) in (height, height - 1):
        height, width = h, w
    fps, times = _compute_timing(path, starts, end, rates, tick)
    return Video(_stack_frames(frames, height, width), fps, times, path)


@contextmanager
def open_container(path: Path) -> Iterator[InputContainer]:
    """Open a file for demuxing. Raises `UserError` where FFmpeg cannot read it."""
    import av
    from av.error import FFmpegError

    try:
        # An absolute path is never taken for a protocol, and a playlist inside the file reaches no network.
        container = av.open(
            str(path.absolute()),
            container_options={"protocol_whitelist": "file", "format_whitelist": FORMATS},
            options={"max_pixels": str(MAX_PIXELS)},
            metadata_errors="ignore",
        )
    except (FFmpegError, OSError):
        if _is_truncated_mp4(path):
            raise UserError(
                f"{path} is cut off: its index (moov) is missing or unfinished; get or export the file again"
            ) from None
        raise UserError(f"{path} is not a video that can be read (of an unknown kind, or damaged)") from None
    with container:
        yield container


def find_video_stream(container: InputContainer) -> VideoStream | None:
    """Return the first video stream that is not a cover picture and has a decoder, or None."""
    from av.stream import Disposition

    still = Disposition.attached_pic | Disposition.timed_thumbnails
    return next((s for s in container.streams.video if not s.disposition & still and s.codec_context), None)


def _is_truncated_mp4(path: Path) -> bool:
    """Return whether an MP4 or MOV file ends too early, by its top boxes, of which moov is the index."""
    kinds, size, at = set(), path.stat().st_size, 0
    with path.open("rb") as file:
        while at + 8 <= size and len(kinds) < 64:
            file.seek(at)
            header = file.read(16)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            kinds.add(kind)
            if length == 0:  # to the end of the file
                break
            at += max(8, int.from_bytes(header[8:], "big") if length == 1 else length)
    return bool(kinds & {b"ftyp", b"mdat"}) and (b"moov" not in kinds or at > size)


def _decode_frames(container: InputContainer, stream: VideoStream, path: Path) -> Iterator[VideoFrame]:
    """Yield the stream's frames in display order; packets that cannot be decoded are skipped."""
    import av
    from av.error import FFmpegError

    decoder = stream.codec_context
    if stream.metadata.get("alpha_mode") == "1" and decoder.name in ("vp8", "vp9"):
        # FFmpeg's own decoders ignore the second layer that holds the alpha; libvpx reads both.
        decoder = av.CodecContext.create("libvpx-vp9" if decoder.name == "vp9" else "libvpx", "r")
    for packet in demux_packets(container, stream):
        if packet is not None and packet.has_sidedata("encryption_info"):
            raise UserError(f"{path} is encrypted, so its pictures cannot be read")
        try:
            yield from decoder.decode(packet)
        except FFmpegError:
            continue


def demux_packets(container: InputContainer, *streams) -> Iterator[Packet | None]:
    """Yield packets to the end of the file, or to where it is cut off, then None to flush a decoder."""
    from av.error import FFmpegError

    try:
        for packet in container.demux(*streams):
            if packet.size:
                yield packet
    except FFmpegError:
        pass  # cut off here: what came before is what a player shows
    yield None


def _square_pixel_size(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Return (width, height) for square pixels: the side that is squeezed in storage is stretched."""
    aspect = aspect or Fraction(1)
    if aspect > 1:
        width = int(width * aspect + Fraction(1, 2))
    elif 0 < aspect < 1:
        height = int(height / aspect + Fraction(1, 2))
    return width, height


def _frame_to_rgb(frame: VideoFrame, size: tuple[int, int], reformatter: VideoReformatter) -> np.ndarray:
    """Convert a decoded frame to RGB, uint8 [H, W, 3], by its own matrix, range and transfer curve."""
    from av.video.reformatter import ColorPrimaries, ColorTrc, Interpolation

    kind, colours = frame.format, {}
    transparent = kind.name == "pal8" or any(c.is_alpha for c in kind.components)
    if not kind.is_rgb and len(kind.components) > 2:
        guess = BT709 if frame.width >= 1280 or frame.height > 576 else BT601
        full = frame.color_range == FULL or kind.name.startswith("yuvj")
        colours = {
            "src_colorspace": MATRIX_OF_TAG.get(frame.colorspace, guess),
            "src_color_range": FULL if full else LIMITED,
            "dst_color_range": FULL,
        }
    if frame.color_trc in HDR_CURVES:
        colours |= {"dst_color_trc": ColorTrc.BT709, "dst_color_primaries": ColorPrimaries.BT709}
    smooth = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    rgb = reformatter.reformat(
        frame, *size, "rgba" if transparent else "rgb24", interpolation=smooth, threads=1, **colours
    ).to_ndarray()
    if len(kind.components) == 1 and frame.color_range == LIMITED:  # swscale takes grey for full range
        rgb = FULL_FROM_LIMITED[rgb.astype(np.uint8)]
    return composite_on_black(rgb[..., :3], rgb[..., 3]) if transparent else rgb


def _apply_display_matrix(image: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Turn and mirror a frame's image [H, W, 3] by its display matrix, to the nearest quarter turn: a stored pixel at
    (x, y) is shown at (a x + c y, b x + d y), up to scale and shift."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _stack_frames(frames: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Stack the cropped frames, releasing each once it is copied, so as not to need the memory twice."""
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for k in range(len(frames)):
        out[k], frames[k] = frames[k][:height, :width], out[:0]
    return out


def _check_memory(path: Path, size: tuple[int, int], count: int) -> None:
    """Raise `UserError` for frames that are too large, or too many for the memory limit."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise UserError(f"{path} is too big: its frames are {width}x{height}; make it smaller first")
    if (need := max(width * height * 3, FRAME_OVERHEAD) * count) > MEMORY_LIMIT:
        raise UserError(
            f"{path} is too big: {count} frames of {width}x{height} take {need / 2**30:.1f} GiB in memory, "
            f"and the limit is {MEMORY_LIMIT / 2**30:g}; read fewer frames, or make it smaller first"
        )


def _compute_timing(
    path: Path, starts: list[Fraction], end: Fraction, rates: list[Fraction], tick: Fraction
) -> tuple[Fraction, np.ndarray]:
    """Return the frame rate and the times [T] at which frames appear, from timestamps that are whole ticks. Containers
    round timestamps to their tick (Matroska: 1 ms). Where those fit a rate that the file names, the times are exactly k
    / fps; where they only have jitter around it, the rate is that one and the times are as stored; otherwise (and where
    the last frame is held long) the frame rate is variable, and fps is the average."""
    count, since, duration = len(starts), [start - starts[0] for start in starts], end - starts[0]
    times = np.array([float(t) for t in since])
    average = count / duration
    if not MIN_FPS <= average <= MAX_FPS:
        raise UserError(f"{path} shows {float(average):.3g} frames a second, which no player does")
    evenly = (count - 1) / since[-1] if count > 1 else average

    def fits(fps: Fraction, slack: Fraction) -> bool:
        lasts = abs(duration - count / fps) <= (1 / (2 * fps) if count > 1 else tick)
        return lasts and all(abs(t - k / fps) <= slack for k, t in enumerate(since))

    for fps in [*rates, evenly]:
        if fits(fps, tick if fps * tick < Fraction(1, 4) else Fraction(0)):
            return fps, frame_times(count, fps)
    for fps in rates:
        if fits(fps, 1 / (2 * fps)):
            return fps, times
    return average.limit_denominator(1_000_000), times
