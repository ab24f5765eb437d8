"""Reading of scenes in any format, and the choice of the camera path that they are edited along."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from v2edit.errors import UserError
from v2edit.runs.layout import SPLAT_SUFFIXES
from v2edit.scenes.camera_paths import TRANSFORM_FILE, CameraPath, along_views, orbit, orbit_around, read_path
from v2edit.scenes.config import BLENDER_SPLITS
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.formats.colmap import find_models, read_colmap
from v2edit.scenes.formats.nerfstudio import FILE, read_blender, read_transforms
from v2edit.scenes.formats.rows import Splat
from v2edit.scenes.formats.splats import is_splat, read_splat_file
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.orientation import parse_up

PICKLES = {".ckpt", ".pth", ".pt", ".pkl", ".pickle", ".bin", ".yml", ".yaml"}
MIN_ALPHA = 0.1  # of a Gaussian that an orbit takes into account
EXPECTED = f"a folder with transforms.json, a COLMAP project, or a splat ({', '.join(SPLAT_SUFFIXES)})"


@dataclass(frozen=True)
class Scene:
    """The content of a scene's files: posed images, or a splat that another program optimised."""

    path: Path
    dataset: Dataset | None = None
    splat: Splat | None = None

    @property
    def gaussians(self) -> Gaussians | None:
        return None if self.splat is None else self.splat.gaussians


def read_scene(path: Path, side: int | None = None) -> Scene:
    """Read a scene; the longer side of its images is made `side` pixels where it is more. Nothing in it is executed:
    checkpoints and nerfstudio's `config.yml`, which could, are not opened. Raises `UserError` if there is no scene, or
    for what is wrong with it, in one line."""
    if not path.exists():
        raise UserError(f"no such scene: {path}")
    if path.is_dir():
        if (path / FILE).is_file():
            return Scene(path, read_transforms(path / FILE, side))
        if (path / BLENDER_SPLITS[0]).is_file():
            return Scene(path, read_blender(path, side))
        if find_models(path):
            return Scene(path, read_colmap(path, side))
        if is_splat(path):
            return Scene(path, splat=read_splat_file(path))
        raise UserError(f"there is no scene in {path}: expected {EXPECTED}")
    if is_splat(path):
        return Scene(path, splat=read_splat_file(path))
    if path.suffix.lower() == ".json":
        return Scene(path, read_transforms(path, side))
    if path.suffix.lower() in PICKLES:
        raise UserError(
            f"{path} is not opened: files of its kind can run code. Export the scene with ns-export gaussian-splat, "
            "or give the dataset that it was trained on"
        )
    raise UserError(f"{path} is no scene: expected {EXPECTED}")


def name_path(option: str, scene: Scene) -> str:
    """Return the path that an option names, with "auto" resolved as in `choose_path`."""
    if option != "auto":
        return option
    if scene.dataset is None:
        return "orbit"
    folder = (scene.path if scene.path.is_dir() else scene.path.parent) / "camera_paths"
    saved = [file for file in sorted(folder.glob("*.json")) if file.name != TRANSFORM_FILE]
    return str(saved[0]) if len(saved) == 1 else "views"


def choose_path(option: str, scene: Scene, frames: int, side: int, up: str = "auto") -> CameraPath:
    """Return the camera path that an option names, of at most `frames` cameras. `option` is "views" (the dataset's own
    cameras), "orbit", a nerfstudio camera-path .json, or "auto": the one path in the dataset's camera_paths folder,
    else its views, else an orbit. `side` is the longer side of the images. `up` is an orbit's upward axis (x, -x, …);
    auto takes that of the views, or the one that a splat's file states, or estimates it. Raises `UserError` if the
    scene has no such path, or the file is none."""
    upward = parse_up(up)
    dataset, option = scene.dataset, name_path(option, scene)
    if option == "orbit":
        if dataset is not None:
            return orbit(dataset.training.cameras, frames, upward)
        assert scene.splat is not None
        stated = scene.splat.up if upward is None else upward
        return orbit_around(visible_positions(scene.splat.gaussians), frames, side, stated)
    if option == "views":
        if dataset is None:
            raise UserError(f"{scene.path} has no views of its own: --path orbit, or a camera-path .json")
        return along_views(dataset.training.cameras).sampled(frames)
    file = Path(option)
    if not file.is_file():
        raise UserError(f"--path is {option!r}, expected auto, views, orbit, or a camera-path .json that exists")
    views = None if dataset is None else dataset.cameras.camera_to_world
    path = read_path(file, views, None if dataset is None else dataset.applied).sampled(frames)
    scale = min(1.0, side / max(path.cameras.height, path.cameras.width))
    size = round(path.cameras.height * scale), round(path.cameras.width * scale)
    return replace(path, cameras=path.cameras.resized(*size))


def visible_positions(gaussians: Gaussians) -> np.ndarray:
    """Return the positions, float64 [N, 3], of the Gaussians that are not nearly transparent, or of all."""
    visible = gaussians.logit_opacities.sigmoid() > MIN_ALPHA
    return gaussians.means[visible if visible.any() else slice(None)].double().numpy()


def is_unchanged(scene: Scene, path: CameraPath, recorded: str) -> bool:
    """Return whether a scene and its path are what they were when their fingerprint was `recorded`."""
    if recorded == fingerprint(scene, path):
        return True
    # Runs that began before splats could be antialiased: theirs were rendered as if they were not.
    is_plain = scene.gaussians is not None and not scene.gaussians.antialiased
    return is_plain and recorded == fingerprint(scene, path, without="antialiased")


def fingerprint(scene: Scene, path: CameraPath, without: str = "") -> str:
    """Return a checksum (SHA-256) of what an edit reads of a scene and its path, but fields named `without`."""
    total = hashlib.sha256()
    parts: list[Any] = [path.cameras, path.closed, scene.dataset, scene.gaussians]
    while parts:
        part = parts.pop()
        if is_dataclass(part):
            parts += [getattr(part, field.name) for field in fields(part) if field.name != without]
        else:
            array = np.asarray(part.cpu() if hasattr(part, "cpu") else part)
            content = repr(part).encode() if array.dtype.hasobject else array.tobytes()
            total.update(f"{array.dtype} {array.shape} ".encode() + content)
    return total.hexdigest()
