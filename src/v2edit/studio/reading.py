"""What the tools do with foreign files: look at uploads, make pictures and copies that browsers show.

These functions run in a process of their own, whose memory and time are bounded."""

from __future__ import annotations

import os
import zipfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2edit.errors import UserError
from v2edit.files import atomic_path
from v2edit.runs import MANIFEST
from v2edit.runs.layout import AFTER_VIDEO, COMPARISON_VIDEO, EDITED, SEEDS_SHEET, seed_folder

if TYPE_CHECKING:
    import numpy as np

    from v2edit.video import Video

PROXY_SIDE, THUMB_SIDE, FRAME_SIDE = 960, 512, 1024  # pixels of the longest side
PROXY_CRF, JPEG_QUALITY = 20, 85
SMALL_PIXELS, SMALL_FRAMES = 256 * 256, 256  # of clips that may be of the built-in world
ZIP_KINDS = ("png-zip", "run-zip")
TRANSCODED = {"mp4": ".mp4", "webm": ".webm", "gif": ".gif", "webp": ".webp", "prores": ".mov"}


def probe(folder: str, kind: str, max_bytes: int, max_files: int) -> dict[str, Any]:
    """Look at an upload, whose files are in `files` of its folder, and return what it is; a video gets a proxy and a
    thumbnail. Raises `UserError` for what cannot be read."""
    from v2edit.jobs.inputs import is_scene

    place = Path(folder)
    files = sorted((place / "files").iterdir())
    main = [path for path in files if path.suffix.lower() != ".json"] or files
    if len(main) == 1 and zipfile.is_zipfile(main[0]):
        from v2edit.studio.archives import unzip

        unzip(main[0], place / "unpacked", max_bytes, max_files)
        path = _innermost(place / "unpacked")
        return _probe_scene(path, place) if kind == "scene" or is_scene(path) else _probe_video(path, place, "frames")
    if len(main) == 1 and kind != "frames":
        # a file, or the folder of a scene that was copied from this machine
        return _probe_scene(main[0], place) if is_scene(main[0]) else _probe_video(main[0], place, None)
    path = place / "files"
    return _probe_scene(path, place) if kind == "scene" or is_scene(path) else _probe_video(path, place, "frames")


def _innermost(folder: Path) -> Path:
    """Return the folder itself, or the one in it where there is nothing else."""
    while len(entries := [one for one in folder.iterdir() if one.name != "__MACOSX"]) == 1 and entries[0].is_dir():
        folder = entries[0]
    return folder


def _probe_scene(path: Path, place: Path) -> dict[str, Any]:
    from v2edit.jobs.prompts import source_prompt_beside_scene

    return {
        "kind": "scene", "path": str(path.relative_to(place)), "bytes": _size(path),
        "source_prompt": source_prompt_beside_scene(path),
    }  # fmt: skip


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)


def _probe_video(path: Path, place: Path, kind: str | None) -> dict[str, Any]:
    from v2edit import video as videos
    from v2edit.jobs.prompts import source_prompt_beside_video
    from v2edit.video.shots import find_cuts
    from v2edit.video.stream import clip_size

    source = videos.read(path)
    count, height, width = clip_size(source.frames)
    if kind is None:
        kind = "image" if source.names else "video"
    write_thumb(source.frames[0], place / "thumb.jpg", THUMB_SIDE)
    write_proxy(source, place / "proxy.mp4")
    cuts = find_cuts(source.frames, source.fps) if kind != "image" else []
    return {
        "kind": kind, "path": str(path.relative_to(place)), "frames": count, "fps": float(source.fps),
        "width": width, "height": height, "seconds": round(float(source.duration), 3), "sound": has_sound(source),
        "shots": [0, *cuts] if cuts else None, "source_prompt": source_prompt_beside_video(path),
        "may_be_built_in": count <= SMALL_FRAMES and height * width <= SMALL_PIXELS,
    }  # fmt: skip


def has_sound(video: Video) -> bool:
    """Return whether a video's file has sound."""
    from v2edit.video.decoding import find_sound_streams, open_container

    if video.path is None or video.names:
        return False
    with open_container(video.path) as container:
        return bool(find_sound_streams(container))


def fitted(height: int, width: int, side: int, even: bool = False) -> tuple[int, int]:
    """Return the size (height, width) at which the longest side has so many pixels at most."""
    scale = min(1.0, side / max(height, width))
    unit = 2 if even else 1
    return tuple(max(unit, round(scale * one / unit) * unit) for one in (height, width))  # pyright: ignore[reportReturnType]


def resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a frame, uint8 [H, W, 3], at a size (height, width)."""
    if frame.shape[:2] == size:
        return frame
    import cv2

    height, width = size
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def write_proxy(source: Video, path: Path) -> None:
    """Write a copy of a video that browsers play: H.264 of a bounded size, frame for frame at the same times."""
    from v2edit.video.stream import clip_size
    from v2edit.video.writing import open_writer

    count, height, width = clip_size(source.frames)
    size = fitted(height, width, PROXY_SIDE, even=True)
    sound = source.path if has_sound(source) else None
    with open_writer(path, (count, *size), source.fps, sound, source.times, PROXY_CRF) as write_frame:
        for frame in source.frames:
            write_frame(resize(frame, size))


def write_thumb(frame: np.ndarray, path: Path, side: int) -> None:
    """Write a frame as a JPEG file whose longest side is bounded."""
    from PIL import Image

    small = resize(frame, fitted(frame.shape[0], frame.shape[1], side))
    with atomic_path(path) as part:
        Image.fromarray(small).save(part, "JPEG", quality=JPEG_QUALITY)


def write_frame(path: str, number: int, out: str) -> dict[str, Any]:
    """Write a frame of a video, counted from 0, as a JPEG file. Raises `UserError` where there is none."""
    from v2edit import video as videos

    frames = videos.read(path).frames
    if not 0 <= number < len(frames):
        raise UserError(f"there is no frame {number}: the video has {len(frames)}")
    write_thumb(frames[number], Path(out), FRAME_SIDE)
    return {}


def find_edited(folder: Path) -> Path | None:
    """Return the video that shows a run best: the edited one, or else one of those beside it."""
    for name in (*(EDITED + suffix for suffix in (".mp4", ".webm", ".mov", ".gif", ".webp")), AFTER_VIDEO):
        if (folder / name).is_file():
            return folder / name
    return next((folder / name for name in (EDITED, COMPARISON_VIDEO) if (folder / name).exists()), None)


def describe_run(folder: str, thumb: str) -> dict[str, Any]:
    """Return the size of a run's video, and write its thumbnail. Raises `UserError` where there is nothing to see."""
    from v2edit import video as videos
    from v2edit.video.stream import clip_size

    place = Path(folder)
    if (sheet := place / SEEDS_SHEET).is_file():
        write_thumb(videos.read(sheet).frames[0], Path(thumb), THUMB_SIDE)
        inner = sorted(place.glob(seed_folder(0).replace("0", "*")))
        path = next((found for one in inner if (found := find_edited(one))), None)
    else:
        inner = [] if (place / MANIFEST).is_file() else sorted(one for one in place.iterdir() if one.is_dir())
        path = next((found for one in [place, *inner] if (found := find_edited(one))), None)
    if path is None:
        raise UserError("there is nothing to see of it yet")
    source = videos.read(path)
    count, height, width = clip_size(source.frames)
    if not os.path.exists(thumb):
        write_thumb(source.frames[count // 2], Path(thumb), THUMB_SIDE)
    size = {"width": width, "height": height}
    return {"frames": count, "fps": float(source.fps), **size, "sound": has_sound(source)}


def transcode(folder: str, kind: str, out: str) -> dict[str, Any]:
    """Write a run's edited video in another format. Raises `UserError` where it has none."""
    from v2edit import video as videos

    path = find_edited(Path(folder))
    if path is None:
        raise UserError("the run has no edited video")
    source = videos.read(path)
    if kind == "png-zip":
        _zip_frames(source, Path(out))
    else:
        videos.write(source, out)
    return {}


def _zip_frames(source: Video, out: Path) -> None:
    import io

    from PIL import Image

    digits = max(5, len(str(len(source.frames))))
    with atomic_path(out) as part, closing(zipfile.ZipFile(part, "w", zipfile.ZIP_STORED)) as file:
        for number, frame in enumerate(source.frames):
            Image.fromarray(frame).save(picture := io.BytesIO(), "PNG")
            file.writestr(f"{number:0{digits}}.png", picture.getvalue())


def zip_files(folder: str, names: list[str], out: str) -> dict[str, Any]:
    """Write a zip archive of some files of a run."""
    place = Path(folder)
    with atomic_path(Path(out)) as part, closing(zipfile.ZipFile(part, "w", zipfile.ZIP_STORED)) as file:
        for name in names:
            file.write(place / name, f"{place.name}/{name}")
    return {}
