"""Whatever a user calls a scene: a folder, a file, a splat."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from v2edit.errors import UserError
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.formats.colmap import find_model, read_colmap
from v2edit.scenes.formats.nerfstudio import FILE, read_transforms
from v2edit.scenes.formats.ply import read_splat
from v2edit.scenes.gaussians import Gaussians

PICKLES = {".ckpt", ".pth", ".pt", ".pkl", ".pickle", ".bin", ".yml", ".yaml"}
EXPECTED = "a folder with transforms.json, a COLMAP project, or a splat .ply"


@dataclass(frozen=True)
class Scene:
    """A scene as it came: posed images, or Gaussians that somebody else fitted."""

    path: Path
    dataset: Dataset | None = None
    gaussians: Gaussians | None = None


def read_scene(path: Path, side: int | None = None) -> Scene:
    """Reads a scene; the longer side of its images is made `side` pixels where it is more.

    Nothing in it is executed: checkpoints and nerfstudio's `config.yml`, which could, are not opened.

    Raises:
        UserError: there is no scene, or what is wrong with it, in one line.
    """
    if not path.exists():
        raise UserError(f"no such scene: {path}")
    if path.is_dir():
        if (path / FILE).is_file():
            return Scene(path, read_transforms(path / FILE, side))
        if find_model(path) is not None:
            return Scene(path, read_colmap(path, side))
        raise UserError(f"there is no scene in {path}: expected {EXPECTED}")
    if path.suffix.lower() == ".json":
        return Scene(path, read_transforms(path, side))
    if path.suffix.lower() == ".ply":
        return Scene(path, gaussians=read_splat(path))
    if path.suffix.lower() in PICKLES:
        raise UserError(
            f"{path} is not opened: files of its kind can run code. Export the scene with ns-export gaussian-splat, "
            "or give the dataset that it was trained on"
        )
    raise UserError(f"{path} is no scene: expected {EXPECTED}")
