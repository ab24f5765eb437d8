"""Reading of COLMAP projects, through pycolmap."""

from __future__ import annotations

import logging
import mmap
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from v2edit.errors import UserError
from v2edit.scenes.cameras import from_opencv
from v2edit.scenes.dataset import Dataset, Points, View, assemble
from v2edit.scenes.distortion import Distortion
from v2edit.video.stills import natural_key

if TYPE_CHECKING:
    import pycolmap

log = logging.getLogger(__name__)
# Folders of a model in a project, the likeliest first; in those of numbers each is a model of its own.
MODEL_FOLDERS = ("sparse/[0-9]*", "colmap/sparse/[0-9]*", "sparse", "colmap/sparse", ".")
# The distortion parameters of each known camera model, which follow the principal point, in COLMAP's order.
MODELS = {
    "SIMPLE_PINHOLE": (),
    "PINHOLE": (),
    "SIMPLE_RADIAL": ("k1",),
    "RADIAL": ("k1", "k2"),
    "OPENCV": ("k1", "k2", "p1", "p2"),
    "FULL_OPENCV": ("k1", "k2", "p1", "p2", "k3", "d1", "d2", "d3"),
    "SIMPLE_RADIAL_FISHEYE": ("k1",),
    "RADIAL_FISHEYE": ("k1", "k2"),
    "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4"),
}


def find_models(folder: Path) -> list[Path]:
    """Return the COLMAP models in a project's folder: one, or all parts into which a reconstruction fell."""
    for pattern in MODEL_FOLDERS:
        models = sorted(folder.glob(pattern), key=lambda model: natural_key(model.name)) if pattern != "." else [folder]
        if models := [model for model in models if any((model / f"cameras.{end}").is_file() for end in ("bin", "txt"))]:
            return models
    return []


def _choose_model(folder: Path) -> Path:
    """Return the model with the most images, with a note where there are several: COLMAP numbers them as they began,
    and the first may hold a few images of the capture."""
    models = find_models(folder)
    counts = [_count_images(model) for model in models]
    chosen = counts.index(max(counts))
    if len(models) > 1:
        others = ", ".join(f"{m.name}: {n}" for k, (m, n) in enumerate(zip(models, counts, strict=True)) if k != chosen)
        message = "%s holds %d models: taking %s, which has the most images, %d (left out are %s)"
        log.warning(message, models[0].parent, len(models), models[chosen].name, counts[chosen], others)
    return models[chosen]


def _count_images(model: Path) -> int:
    """Return the number of images of a model; 0 where its files do not say."""
    if (model / "images.bin").is_file():
        with (model / "images.bin").open("rb") as file:
            return int.from_bytes(file.read(8), "little")
    return len(_read_image_names(model))


def _read_image_names(model: Path) -> dict[int, bytes]:
    """Return the names of a text model's images by their ids: COLMAP ends them at the first blank. {} where there is no
    such file."""
    try:
        lines = iter((model / "images.txt").read_bytes().splitlines())
    except OSError:
        return {}
    names = {}
    for line in lines:
        words = line.strip().split(None, 9)  # id, rotation, translation, camera; then the name
        if words and not words[0].startswith(b"#"):
            next(lines, None)  # its points, which may be none
            if len(words) == 10 and words[0].isdigit():
                names[int(words[0])] = words[9]
    return names


@contextmanager
def _with_points(model: Path) -> Iterator[Path]:
    """Yield a folder of the model's files, with an empty file of points where it has none, as pycolmap demands."""
    end = ".bin" if (model / "cameras.bin").is_file() else ".txt"
    if (model / f"points3D{end}").is_file() or not (model / f"images{end}").is_file():
        yield model
        return
    with tempfile.TemporaryDirectory() as name:
        for part in ("cameras", "images", "rigs", "frames"):
            if (model / f"{part}{end}").is_file():
                shutil.copy(model / f"{part}{end}", name)
        (Path(name) / f"points3D{end}").write_bytes(bytes(8) if end == ".bin" else b"")
        yield Path(name)


def _check_counts(model: Path) -> None:
    """Raise `UserError` where a binary file's counts exceed its size: COLMAP would read on for years, and take
    uninitialised memory for the count of an empty file."""
    message = "cannot read the COLMAP model {}: {} says it holds more than it does"
    for name, walk in {"images.bin": _images_end, "points3D.bin": _points_end, "frames.bin": _frames_end}.items():
        path = model / name
        if path.is_file():
            if not path.stat().st_size:
                raise UserError(message.format(model, name))
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                try:
                    end = walk(data)
                except (struct.error, ValueError, OverflowError):  # past the end, or a name without one
                    end = len(data) + 1
                if end > len(data):
                    raise UserError(message.format(model, name))
    for name, least in {"cameras.bin": 48, "rigs.bin": 8}.items():
        path = model / name
        if path.is_file():
            with path.open("rb") as file:
                count = int.from_bytes(file.read(8), "little")
            if 8 + count * least > path.stat().st_size:
                raise UserError(message.format(model, name))


# COLMAP's binary files begin with a count; their records have fixed fields and lists of variable length.
def _images_end(data: mmap.mmap) -> int:
    at = 8
    for _ in range(struct.unpack_from("<Q", data)[0]):
        name_end = data.find(b"\0", at + 64)  # after id, pose and camera
        if name_end < 0:
            raise ValueError
        at = name_end + 9 + 24 * struct.unpack_from("<Q", data, name_end + 1)[0]
    return at


def _points_end(data: mmap.mmap) -> int:
    at = 8
    for _ in range(struct.unpack_from("<Q", data)[0]):
        at += 51 + 8 * struct.unpack_from("<Q", data, at + 43)[0]
    return at


def _frames_end(data: mmap.mmap) -> int:
    at = 8
    for _ in range(struct.unpack_from("<Q", data)[0]):
        at += 68 + 16 * struct.unpack_from("<I", data, at + 64)[0]
    return at


def read_colmap(folder: Path, side: int | None = None) -> Dataset:
    """Read the dataset of a COLMAP project, in COLMAP's world, views in the natural order of their names; images in
    `images/`. Raises `UserError` for what is wrong with it, in one line."""
    from PIL import Image  # noqa: F401 (before pycolmap, whose zlib crashes Pillow's PNG decoder)

    try:
        import pycolmap
    except ModuleNotFoundError as missing:
        raise UserError(f"COLMAP folders need {missing.name}: pip install 'v2edit[scenes]'") from missing
    model = _choose_model(folder)
    _check_counts(model)
    try:
        with _with_points(model) as complete:
            scene = pycolmap.Reconstruction(str(complete))
    except Exception as error:  # pycolmap raises whatever its C++ did
        reason = str(error).strip().splitlines()
        raise UserError(f"cannot read the COLMAP model {model}: {reason[0] if reason else type(error)}") from error
    image_folder = next((path for path in (folder / "images", folder) if path.is_dir()), folder)
    views = []
    for name, image in _list_images(scene, model):
        camera = scene.cameras[image.camera_id]
        lens = camera.model_name
        if lens not in MODELS:
            raise UserError(f"{model}: cannot read the camera model {lens}; undistort with colmap image_undistorter")
        distortion = camera.params[len(camera.params) - len(MODELS[lens]) :]
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().matrix()
        views.append(
            View(
                name=name,
                image=image_folder / name,
                mask=None,
                intrinsics=np.array(camera.calibration_matrix()),
                size=(camera.height, camera.width),
                distortion=Distortion(**dict(zip(MODELS[lens], distortion, strict=True)), fisheye="FISHEYE" in lens),
                camera_to_world=from_opencv(pose),
            )
        )
    if not views:
        raise UserError(f"the COLMAP model {model} has no image with a pose")
    points = None
    if len(scene.points3D):
        positions = np.array([point.xyz for point in scene.points3D.values()])
        colours = np.array([point.color for point in scene.points3D.values()], np.uint8)
        finite = np.isfinite(positions).all(1)
        points = Points(positions[finite], colours[finite]) if finite.any() else None
    return assemble(views, model, side, points=points)


def _list_images(scene: pycolmap.Reconstruction, model: Path) -> list[tuple[str, pycolmap.Image]]:
    """Return the images that have a pose with their names, in natural order. Raises `UserError` for no UTF-8."""
    names = {} if (model / "images.bin").is_file() else _read_image_names(model)
    try:
        images = [(names[k].decode() if k in names else image.name, image) for k, image in scene.images.items()]
    except UnicodeDecodeError as error:
        raise UserError(f"the COLMAP model {model} names an image in no UTF-8") from error
    return sorted(
        ((name, image) for name, image in images if image.has_pose), key=lambda one: (natural_key(one[0]), one[0])
    )
