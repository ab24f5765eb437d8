"""COLMAP models, read through pycolmap."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from v2edit.errors import UserError
from v2edit.scenes.cameras import from_opencv
from v2edit.scenes.dataset import Dataset, Points, View, assemble
from v2edit.scenes.distortion import Distortion

# Where a model lies in a project's folder, the likeliest first.
MODELS = ("sparse/0", "colmap/sparse/0", "sparse", "colmap/sparse", ".")
# Each model's parameters after the principal point, in COLMAP's order.
KNOWN = {
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
    """The COLMAP model in a project's folder, or None."""
    files = ("cameras.bin", "cameras.txt")
    return next((folder / name for name in MODELS if any((folder / name / file).is_file() for file in files)), None)


def read_colmap(folder: Path, side: int | None = None) -> Dataset:
    """The dataset of a COLMAP project, in COLMAP's world, views in the order of their names; images in `images/`.

    Raises:
        UserError: what is wrong with it, in one line.
    """
    try:
        import pycolmap
    except ModuleNotFoundError as missing:
        raise UserError(f"COLMAP folders need {missing.name}: pip install 'v2edit[scenes]'") from missing
    model = find_model(folder)
    assert model is not None
    try:
        scene = pycolmap.Reconstruction(str(model))
    except Exception as error:  # pycolmap raises whatever its C++ did
        reason = str(error).strip().splitlines()
        raise UserError(f"cannot read the COLMAP model {model}: {reason[0] if reason else type(error)}") from error
    pictures = next((place for place in (folder / "images", folder) if place.is_dir()), folder)
    views = []
    for image in sorted(scene.images.values(), key=lambda one: one.name):
        if not image.has_pose:
            continue
        camera = scene.cameras[image.camera_id]
        name = camera.model_name
        if name not in KNOWN:
            raise UserError(f"{model}: cannot read the camera model {name}; undistort with colmap image_undistorter")
        bends = camera.params[len(camera.params) - len(KNOWN[name]) :]
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().matrix()
        views.append(
            View(
                name=image.name,
                image=pictures / image.name,
                mask=None,
                intrinsics=np.array(camera.calibration_matrix()),
                size=(camera.height, camera.width),
                distortion=Distortion(**dict(zip(KNOWN[name], bends, strict=True)), fisheye="FISHEYE" in name),
                camera_to_world=from_opencv(pose),
            )
        )
    if not views:
        raise UserError(f"the COLMAP model {model} has no image with a pose")
    points = None
    if len(scene.points3D):
        places = np.array([one.xyz for one in scene.points3D.values()])
        colours = np.array([one.color for one in scene.points3D.values()], np.uint8)
        good = np.isfinite(places).all(1)
        points = Points(places[good], colours[good]) if good.any() else None
    return assemble(views, model, side, points=points)
