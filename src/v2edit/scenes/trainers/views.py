"""Datasets for trainers and the frames that they render, in coordinates of the size that trainers expect.

Letters: C views, N Gaussians."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from v2edit.errors import UserError
from v2edit.scenes.camera_paths import TRANSFORM_FILE
from v2edit.scenes.cameras import Cameras
from v2edit.scenes.dataset import Dataset, Points, views_dataset
from v2edit.scenes.formats.nerfstudio import SPLITS, write_transforms
from v2edit.scenes.gaussians import Gaussians
from v2edit.video.stills import IMAGES, natural_key, read_image


@dataclass(frozen=True, eq=False)
class TrainingFrame:
    """The coordinates that a scene is trained in: moved by -`centre` [3], then scaled by `scale`, so that its cameras
    are around the origin within ±1, as nerfstudio's defaults have them, whose near and far planes and contraction of
    space expect it. All fits of a run share one, and nothing is turned."""

    centre: np.ndarray
    scale: float

    @classmethod
    def of(cls, cameras: Cameras) -> TrainingFrame:
        """Return the frame of a scene that is first trained from these cameras."""
        centre = cameras.centres.mean(0)
        return cls(centre, 1 / max(float(np.abs(cameras.centres - centre).max()), 1e-9))

    def apply(self, cameras: Cameras) -> Cameras:
        """Return cameras in these coordinates."""
        poses = cameras.camera_to_world.copy()
        poses[:, :3, 3] = (poses[:, :3, 3] - self.centre) * self.scale
        return replace(cameras, camera_to_world=poses)

    def restore(self, gaussians: Gaussians) -> Gaussians:
        """Return Gaussians of these coordinates in the scene's own."""
        means = gaussians.means / self.scale + torch.from_numpy(self.centre).to(gaussians.means)
        return replace(gaussians, means=means, log_scales=gaussians.log_scales - math.log(self.scale))

    def write(self, folder: Path, applied: np.ndarray | None) -> None:
        """Write the transform as nerfstudio does, for a dataset whose `applied_transform` is `applied`."""
        moved = np.eye(4)
        moved[:3, 3] = -self.centre
        transform = moved if applied is None else moved @ applied
        facts = {"transform": transform[:3].tolist(), "scale": self.scale}
        (folder / TRANSFORM_FILE).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def write_training(folder: Path, dataset: Dataset, frame: TrainingFrame) -> None:
    """Write the views of a dataset for a trainer: all of them for training and, since some want such, one of them for
    measuring, too."""
    folder.mkdir(parents=True)
    points = dataset.points
    if points is not None:
        points = Points((points.positions - frame.centre) * frame.scale, points.colours)
    moved = replace(dataset, cameras=frame.apply(dataset.cameras), points=points, applied=None)
    path = write_transforms(folder, replace(moved, is_held_out=np.zeros(len(dataset), bool)))
    facts = json.loads(path.read_text(encoding="utf-8"))
    names = [one["file_path"] for one in facts["frames"]]
    splits = dict.fromkeys(SPLITS, names[:1]) | {SPLITS[0]: names}
    path.write_text(json.dumps(facts | splits, indent=1) + "\n", encoding="utf-8")


def write_cameras(folder: Path, cameras: Cameras, frame: TrainingFrame) -> None:
    """Write cameras for a trainer to render from: as a dataset, whose images are blank."""
    write_training(folder, views_dataset(None, cameras), frame)


def read_frames(folder: Path, cameras: Cameras, name: str) -> np.ndarray:
    """Read the frames that a trainer rendered, in the order of their names, uint8 [C, H, W, 3]. Raises `UserError`
    where there are not as many as cameras, or not of their size."""
    files = [file for file in folder.rglob("*") if file.suffix.lower() in IMAGES]
    files.sort(key=lambda file: (natural_key(str(file.relative_to(folder))), file.name))
    if len(files) != len(cameras):
        rendered = f"{len(files)} frames" if files else "nothing"
        raise UserError(f"{name} rendered {rendered} into its output, expected {len(cameras)} images")
    frames = [read_image(file)[0] for file in files]
    if wrong := [frame.shape for frame in frames if frame.shape[:2] != (cameras.height, cameras.width)]:
        size, expected = f"{wrong[0][1]}x{wrong[0][0]}", f"{cameras.width}x{cameras.height}"
        raise UserError(f"{name} rendered frames of {size}, expected {expected}, as its cameras have")
    return np.stack(frames)
