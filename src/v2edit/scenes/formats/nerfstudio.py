"""Reading and writing of nerfstudio's `transforms.json`."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from v2edit.errors import UserError
from v2edit.files import check_content, is_existing_file, read_json
from v2edit.scenes.config import BLENDER_SPLITS, TRANSFORMS
from v2edit.scenes.dataset import Dataset, View, assemble, find_files, list_names
from v2edit.scenes.distortion import Distortion
from v2edit.scenes.formats.ply import read_points, write_points
from v2edit.video.stills import natural_key

log = logging.getLogger(__name__)
FILE = TRANSFORMS
PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL")
FISHEYES = ("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
SWITCHES = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "": False}
POINTS = "sparse_pc.ply"
SPLITS = ("train_filenames", "val_filenames", "test_filenames")
MAX_NUMBER, MIN_ANGLE = 1e9, 1e-6  # pixels or distortion coefficients; radians
MIN_DETERMINANT = 1e-12


def read_transforms(path: Path, side: int | None = None) -> Dataset:
    """Read the dataset of a `transforms.json`, in its own coordinates, views in the natural order of their names.
    An entry that is null is as good as none. Raises `UserError` for what is wrong with it, in one line."""
    facts, frames = _read_frames(path)
    return _read_dataset(path, facts, frames, side)


def read_blender(folder: Path, side: int | None = None) -> Dataset:
    """Read the dataset of a folder with a `transforms_train.json`, as NeRF's Blender scenes are: the views of
    `transforms_val.json` and `transforms_test.json` are held out."""
    every, names = [], {}
    for key, file in zip(SPLITS, BLENDER_SPLITS, strict=True):
        if (folder / file).is_file():
            facts, frames = _read_frames(folder / file)
            every += [facts | frame for frame in frames]  # each file has its own camera
            names[key] = [frame["file_path"] for frame in frames]
    return _read_dataset(folder / BLENDER_SPLITS[0], names, every, side)


def _read_frames(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read what a file says of all its frames, and of each."""
    facts = _drop_nulls(_read_object(path))
    frames = facts.pop("frames", None)
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{path} lists no frames")
    for frame in frames:
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            raise UserError(f"{path}: a frame has no file_path")
    return facts, list(map(_drop_nulls, frames))


def _read_dataset(path: Path, facts: Mapping[str, Any], frames: list[dict[str, Any]], side: int | None) -> Dataset:
    # Files list frames in any order, and a path through them needs the capture's.
    frames = sorted(frames, key=lambda frame: (natural_key(frame["file_path"]), frame["file_path"]))
    images = find_files(path.parent, [frame["file_path"] for frame in frames])
    masked = [k for k, frame in enumerate(frames) if isinstance(frame.get("mask_path"), str)]
    masks = dict(zip(masked, find_files(path.parent, [frames[k]["mask_path"] for k in masked]), strict=True))
    views = [replace(_read_view(path, facts, frame, images[k]), mask=masks.get(k)) for k, frame in enumerate(frames)]
    points, points_file = None, facts.get("ply_file_path")
    if isinstance(points_file, str) and is_existing_file(file := find_files(path.parent, [points_file])[0]):
        points = read_points(file)
    elif points_file is not None:
        log.warning("%s: its points (ply_file_path: %s) are missing; going on without them", path, points_file)
    applied = None
    if "applied_transform" in facts:
        applied = np.eye(4)
        rows = _matrix(facts["applied_transform"], f"{path}: applied_transform")
        applied[: len(rows)] = rows
        if not np.isfinite(applied).all() or abs(np.linalg.det(applied)) < MIN_DETERMINANT:
            raise UserError(f"{path}: applied_transform cannot be undone: it is not finite, or flat")
    return assemble(views, path, side, _read_split(path, facts, images), points, applied)


def write_transforms(folder: Path, dataset: Dataset) -> Path:
    """Write images, masks, points and `transforms.json` into an existing folder, for `read_transforms`; return the path
    of the latter. Poses are in the dataset's own coordinates: train on it with orientation, centring and scaling of
    poses off."""
    (folder / "images").mkdir()
    cameras = dataset.cameras
    facts: dict[str, Any] = {"camera_model": "OPENCV", "w": cameras.width, "h": cameras.height}
    shared = bool((cameras.intrinsics == cameras.intrinsics[0]).all())
    if shared:
        facts |= _intrinsics(cameras.intrinsics[0])
    if dataset.applied is not None:
        facts["applied_transform"] = dataset.applied[:3].tolist()
    if dataset.points is not None:
        write_points(folder / POINTS, dataset.points)
        facts["ply_file_path"] = POINTS
    frames = []
    for k, name in enumerate(file_names(dataset.names)):
        image = PurePosixPath("images") / f"{name}.png"
        _write_png(dataset.images[k], folder / image)
        frame: dict[str, Any] = {"file_path": str(image), "transform_matrix": cameras.camera_to_world[k].tolist()}
        if not shared:
            frame |= _intrinsics(cameras.intrinsics[k])
        if dataset.masks is not None:
            (folder / "masks").mkdir(exist_ok=True)
            frame["mask_path"] = str(PurePosixPath("masks") / image.name)
            _write_png(dataset.masks[k].astype(np.uint8) * 255, folder / frame["mask_path"])
        frames.append(frame)
    names, is_held_out = [frame["file_path"] for frame in frames], dataset.is_held_out
    if is_held_out.any():
        facts["train_filenames"] = [name for name, held_out in zip(names, is_held_out, strict=True) if not held_out]
        held_out_names = [name for name, held_out in zip(names, is_held_out, strict=True) if held_out]
        facts["val_filenames"] = facts["test_filenames"] = held_out_names
    path = folder / FILE
    path.write_text(json.dumps(facts | {"frames": frames}, indent=1) + "\n", encoding="utf-8")
    return path


def plain_name(stem: str) -> str:
    """Return a file's name, without its ending, as every file system and program takes it."""
    return re.sub(r"[^\w.-]+", "_", stem).strip(".")[:100] or "view"


def file_names(names: Sequence[str]) -> list[str]:
    """Return plain, distinct file names without an ending for views of any names, in an order that natural sorting
    (as `read_transforms` does) keeps."""
    stems = [plain_name(PurePosixPath(name).stem) for name in names]
    ordered = all(natural_key(f"{a}.png") < natural_key(f"{b}.png") for a, b in pairwise(stems))
    if ordered and len({stem.lower() for stem in stems}) == len(stems):  # some file systems ignore case
        return stems
    return [f"{k:0{len(str(len(names)))}d}-{stem}" for k, stem in enumerate(stems)]


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        with path.open("rb") as file:
            check_content(path, file.read(64), "dataset")
        facts = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no JSON that can be read: {error}") from error
    if not isinstance(facts, dict):
        raise UserError(f"{path} is no object with frames")
    return facts


def _drop_nulls(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that are not null, which some exporters write for what they do not know."""
    return {key: value for key, value in facts.items() if value is not None}


def _read_view(path: Path, shared: Mapping[str, Any], frame: Mapping[str, Any], image: Path) -> View:
    """Return the view of a frame, whose own entries go before those that all frames share."""
    name = frame["file_path"]
    where = f"{path}: {name}"
    if "transform_matrix" not in frame:
        raise UserError(f"{where} has no pose (transform_matrix); run ns-process-data or COLMAP on the images first")
    pose = _matrix(frame["transform_matrix"], f"{where}: transform_matrix")
    if pose.shape == (3, 4):
        pose = np.vstack([pose, [0, 0, 0, 1]])
    model = str(frame.get("camera_model", shared.get("camera_model", "OPENCV"))).upper()
    if model not in PINHOLES + FISHEYES:
        raise UserError(f"{where}: cannot read the camera model {model}; known are {', '.join(PINHOLES + FISHEYES)}")
    # instant-ngp's and its colmap2nerf.py's word for OpenCV's fisheye.
    flag = frame.get("is_fisheye", shared.get("is_fisheye", False))
    if (is_fisheye := SWITCHES.get(str(flag).lower())) is None:
        raise UserError(f"{where}: is_fisheye is {flag!r:.60}, expected true or false")

    def number(key: str, default: float | None = None) -> float | None:
        value = frame.get(key, shared.get(key, default))
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and abs(value) < MAX_NUMBER):
            raise UserError(f"{where}: {key} is {value!r:.60}, expected a number")
        return value

    width, height = number("w"), number("h")
    if not width or not height:
        height, width = _read_size(image)
    if min(height, width) < 1:
        raise UserError(f"{where} is {width}x{height}, expected a size in pixels")
    fx, fy = number("fl_x"), number("fl_y")
    angle_x, angle_y = number("camera_angle_x"), number("camera_angle_y")
    if any(angle and not MIN_ANGLE < angle < math.pi for angle in (angle_x, angle_y)):
        raise UserError(f"{where} has a camera_angle that is not between 0 and pi")
    fx = fx or (0.5 * width / math.tan(angle_x / 2) if angle_x else None)
    fy = fy or (0.5 * height / math.tan(angle_y / 2) if angle_y else fx)
    if fx is None or fy is None:
        raise UserError(f"{where} has no focal length (fl_x, or camera_angle_x)")
    cx, cy = number("cx", width / 2), number("cy", height / 2)
    distortion = {key: float(number(key, 0.0) or 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2")}
    return View(
        name=name,
        image=image,
        mask=None,
        intrinsics=np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64),
        size=(int(height), int(width)),
        distortion=Distortion(**distortion, fisheye=is_fisheye or model in FISHEYES),
        camera_to_world=pose,
    )


def _matrix(value: Any, where: str) -> np.ndarray:
    try:
        matrix = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.empty(0)
    if matrix.shape not in ((3, 4), (4, 4)):
        raise UserError(f"{where} is no 4x4 matrix")
    return matrix


def _read_size(image: Path) -> tuple[int, int]:
    """Return the height and width of an image, 1 x 1 where it is missing: such a view is left out later."""
    from v2edit.video.stills import open_image

    if not is_existing_file(image):  # a pipe would never end
        return 1, 1
    try:
        with open_image(image) as picture:
            return picture.height, picture.width
    except UserError:
        return 1, 1


def _read_split(path: Path, facts: Mapping[str, Any], images: Sequence[Path]) -> list[bool] | None:
    """Return which images the dataset itself holds out: those for validation and tests, and all that are not for
    training where those are named; None where it names none of them. Names stand for files as those of frames do."""
    splits = {key: facts[key] for key in SPLITS if isinstance(facts.get(key), list)}
    names = {key: list(dict.fromkeys(name for name in one if isinstance(name, str))) for key, one in splits.items()}
    files = {key: [file.absolute() for file in find_files(path.parent, one)] for key, one in names.items()}
    ordered = [image.absolute() for image in images]
    known = set(ordered)
    for key, one in files.items():
        if strange := [name for name, file in zip(names[key], one, strict=True) if file not in known]:
            message = "%s: %d of %d names in its %s are of no frame: %s"
            log.warning(message, path, len(strange), len(one), key, list_names(strange))
    training, *others = (known.intersection(files.get(key, ())) for key in SPLITS)
    held_out = set[Path]().union(*others, known - training if training else ())
    return [image in held_out for image in ordered] if training or held_out else None


def _intrinsics(matrix: np.ndarray) -> dict[str, float]:
    return {"fl_x": matrix[0, 0], "fl_y": matrix[1, 1], "cx": matrix[0, 2], "cy": matrix[1, 2]}


def _write_png(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path)
