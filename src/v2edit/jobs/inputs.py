"""The input of a job: which of video and scene a path is, and what is said of a path that is neither or the other."""

from __future__ import annotations

import mimetypes
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Literal

from v2edit.errors import UserError
from v2edit.jobs.options import FILE_SUFFIXES
from v2edit.runs.layout import SPLAT_SUFFIXES
from v2edit.scenes.config import BLENDER_SPLITS, TRANSFORMS
from v2edit.video.stills import IMAGES

VIDEOS = {".mkv", ".webm", ".m4v", ".mts", ".m2ts", ".ts", ".3gp", ".wmv", ".flv"}  # not known to every system
ANIMATED = {".gif", ".webp", ".avif", ".png"}  # image files that may be a video
QUOTED = 80  # characters of what was given that a message quotes


def is_scene(path: Path) -> bool:
    """Whether a path is a scene rather than a video: a splat, a dataset, or its folder."""
    if path.is_dir():
        from v2edit.scenes.formats.colmap import find_models
        from v2edit.scenes.formats.splats import is_splat

        names = TRANSFORMS, BLENDER_SPLITS[0]
        return any((path / name).is_file() for name in names) or bool(find_models(path)) or is_splat(path)
    return path.suffix.lower() in (*SPLAT_SUFFIXES, ".json")


def is_unposed(path: Path) -> bool:
    """Whether a path is pictures of a scene without their cameras: a video, or a folder of photographs."""
    if is_scene(path):
        return False
    if path.is_dir():
        from v2edit.scenes.poses.pictures import NO_HEIF, list_photographs

        files, left_out = list_photographs(path)
        return bool(files or left_out.get(NO_HEIF))
    return path.is_file() and (_kind(path) == "video" or path.suffix.lower() in ANIMATED | VIDEOS)


def check_posed(path: Path) -> None:
    """Raise `UserError` for pictures of a scene without their cameras, which only `v2edit scene` finds."""
    if is_unposed(path):
        raise UserError(
            f"{path} has no cameras: v2edit scene {path} finds them first; its run.json names the dataset (cameras, "
            "dataset) to give here"
        )


def are_photographs(folder: Path) -> bool:
    """Whether the images of a folder are photographs rather than the frames of a video: they name the camera that took
    them, or have several sizes."""
    from v2edit.scenes.poses.pictures import describe_photograph, list_photographs

    sizes = set()
    for file in list_photographs(folder)[0]:
        with suppress(UserError):
            if (picture := describe_photograph(file)) is not None:
                sizes.add(picture.size)
                if any(picture.camera[2:4]) or len(sizes) > 1:
                    return True
    return False


def choose_input(video: str | None, scene: str | None) -> tuple[Literal["video", "scene"], str]:
    """Return which of the two a line of a file of tasks says to edit, and its path as given. Raises `UserError` where
    that is none, or both."""
    if (video is None) == (scene is None):
        what = "both are given" if video is not None else "neither is given"
        raise UserError(f'"video" or "scene" says what to edit, and {what}')
    return ("video", video) if video is not None else ("scene", scene or "")


def check_input(path: Path, instruction: str | None, kind: Literal["file", "scene"]) -> None:
    """Raise `UserError` for an input that does not exist, that was swapped with the instruction, or that is a scene
    where a video is edited (a `kind` of "file"), or the other way round."""
    if not os.path.exists(path):
        quoted, what = f"{str(path)[:QUOTED]}{'…' * (len(str(path)) > QUOTED)}", {"file": "video"}.get(kind, kind)
        if instruction and (os.path.exists(instruction) or Path(instruction).suffix.lower() in FILE_SUFFIXES):
            raise UserError(f'the {what} goes first, then the instruction: {instruction} "{quoted}"')
        if re.match(r"[a-z]{2,}:/", str(path)):
            raise UserError(f"no such {kind}: {quoted}; nothing is fetched from an address: download it first")
        raise UserError(f"no such {kind}: {quoted}")
    if kind == "scene":
        _check_scene(path)
    elif is_scene(path) and (path.suffix.lower() != ".json" or path.name == TRANSFORMS):
        raise UserError(f"{path} is a scene: v2edit scene edits it (a folder of images is edited as a video)")
    elif path.is_dir():
        videos, images = _files(path, "video"), _files(path, "image")
        if videos and len(videos) >= len(images):
            names = ", ".join(file.name for file in videos[:5])
            raise UserError(f"{path} is a folder with videos in it: name the one to edit ({names})")


def _check_scene(path: Path) -> None:
    if path.is_file() and path.suffix.lower() in IMAGES - ANIMATED:
        raise UserError(f"{path} is one picture, which v2edit edit edits; a scene is many, in a folder, or a video")
    if path.is_dir() and not is_scene(path) and not is_unposed(path) and (videos := _files(path, "video")):
        names = ", ".join(file.name for file in videos[:5])
        raise UserError(f"{path} is a folder with videos in it: name the one that is the scene ({names})")


def _files(folder: Path, kind: str) -> list[Path]:
    return sorted(file for file in folder.iterdir() if _kind(file) == kind)


def _kind(path: Path) -> str:
    return (mimetypes.guess_type(path.name)[0] or "").partition("/")[0]
