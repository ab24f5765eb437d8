"""Reading of COLMAP projects, through pycolmap."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np

from v2edit.errors import UserError
from v2edit.scenes.cameras import from_opencv
from v2edit.scenes.dataset import Dataset, Points, View, assemble
from v2edit.scenes.distortion import Distortion

# Folders of a model in a project, the likeliest first.
MODEL_FOLDERS = ("sparse/0", "colmap/sparse/0", "sparse", "colmap/sparse", ".")
# The distortion parameters of each known camera model, which follow the principal point, in COLMAP's order.
MODELS = {
    "SIMPLE_PINHOLE": (),
    "PINHOLE": (),
    "SIMPLE_RADIAL": ("k1",),
    "RADIAL": ("k1", "k2"),
    "OPENCV": ("k1", "k2", "p1", "p2"),
    "SIMPLE_RADIAL_FISHEYE": ("k1",),
    "RADIAL_FISHEYE": ("k1", "k2"),
    "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4"),
}


def find_model(folder: Path) -> Path | None:
    """Return the COLMAP model in a project's folder, or None."""
    files = ("cameras.bin", "cameras.txt")
    models = (folder / name for name in MODEL_FOLDERS)
    return next((model for model in models if any((model / file).is_file() for file in files)), None)


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
    """Read the dataset of a COLMAP project, in COLMAP's world, views in the order of their names; images in `images/`.
    Raises `UserError` for what is wrong with it, in one line."""
    from PIL import Image  # noqa: F401 (before pycolmap, whose zlib crashes Pillow's PNG decoder)

    try:
        import pycolmap
    except ModuleNotFoundError as missing:
        raise UserError(f"COLMAP folders need {missing.name}: pip install 'v2edit[scenes]'") from missing
    model = find_model(folder)
    assert model is not None
    _check_counts(model)
    try:
        scene = pycolmap.Reconstruction(str(model))
    except Exception as error:  # pycolmap raises whatever its C++ did
        reason = str(error).strip().splitlines()
        raise UserError(f"cannot read the COLMAP model {model}: {reason[0] if reason else type(error)}") from error
    image_folder = next((path for path in (folder / "images", folder) if path.is_dir()), folder)
    views = []
    try:
        images = sorted(scene.images.values(), key=lambda image: image.name)
    except UnicodeDecodeError as error:
        raise UserError(f"the COLMAP model {model} names an image in no UTF-8") from error
    for image in images:
        if not image.has_pose:
            continue
        camera = scene.cameras[image.camera_id]
        name = camera.model_name
        if name not in MODELS:
            raise UserError(f"{model}: cannot read the camera model {name}; undistort with colmap image_undistorter")
        distortion = camera.params[len(camera.params) - len(MODELS[name]) :]
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().matrix()
        views.append(
            View(
                name=image.name,
                image=image_folder / image.name,
                mask=None,
                intrinsics=np.array(camera.calibration_matrix()),
                size=(camera.height, camera.width),
                distortion=Distortion(**dict(zip(MODELS[name], distortion, strict=True)), fisheye="FISHEYE" in name),
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
