"""Posed scenes of the built-in world as datasets, with a camera path and the true edited scene."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np

from v2edit import video
from v2edit.errors import UserError
from v2edit.primitives import posed
from v2edit.primitives.edits import Edit
from v2edit.primitives.render import ClipCameras
from v2edit.primitives.scene import FPS
from v2edit.scenes.camera_paths import CameraPath, write_path
from v2edit.scenes.cameras import Cameras
from v2edit.scenes.config import SCENE_FACTS
from v2edit.scenes.dataset import HELD_OUT_EVERY, HELD_OUT_FROM, Dataset
from v2edit.scenes.formats.nerfstudio import write_transforms


@dataclass(frozen=True)
class PosedTask:
    """An edit of a posed scene: its photographs, those of the true edited scene by the same cameras, and the path."""

    edit: Edit
    dataset: Dataset
    truth: Dataset
    path: CameraPath


def sample_task(seed: int, kind: str | None = None, views: int = posed.VIEWS, side: int = posed.SIDE) -> PosedTask:
    """Return the scene task of a seed; the same seed gives the same task. Raises `UserError` for an unknown kind of
    edit."""
    if kind is not None and kind not in posed.POSED_KINDS:
        raise UserError(f"there is no kind of edit {kind!r}; known of scenes are {', '.join(posed.POSED_KINDS)}")
    edit = posed.sample_posed_edit(Random(seed), kind)
    cameras = posed.views_of(edit, views, side)
    clips = posed.posed_truth(edit, cameras)
    names = tuple(f"images/view_{k:03d}.png" for k in range(views))
    held_out = np.arange(views) % HELD_OUT_EVERY == HELD_OUT_FROM
    dataset = Dataset(convert_cameras(cameras), clips.source.frames, names, held_out)
    path = CameraPath(convert_cameras(posed.path_of(edit)), closed=False)
    return PosedTask(edit, dataset, replace(dataset, images=clips.target.frames), path)


def write_task(
    seed: int, folder: Path, kind: str | None = None, views: int = posed.VIEWS, side: int = posed.SIDE
) -> None:
    """Write the scene task of a seed into an existing folder.

    A nerfstudio dataset (`transforms.json`, `images/`), the same of the true edited scene in `truth/`, the path in
    `camera_paths/`, the prompts in `scene.json`, and `contact.png`. Raises `UserError` for an unknown kind of edit."""
    task = sample_task(seed, kind, views, side)
    write_transforms(folder, task.dataset)
    (folder / "truth").mkdir()
    write_transforms(folder / "truth", task.truth)
    (folder / "camera_paths").mkdir()
    write_path(folder / "camera_paths" / "orbit.json", task.path, FPS)
    rows = {"views": task.dataset.images, "truth": task.truth.images}
    video.contact_sheet(rows, folder / "contact.png")
    fields = ("instruction", "source_prompt", "target_prompt", "kind")
    facts = {name: getattr(task.edit, name) for name in fields} | {"seed": seed}
    (folder / SCENE_FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def convert_cameras(cameras: ClipCameras) -> Cameras:
    """Return a clip's cameras as a scene's; the principal point is the middle of the picture."""
    intrinsics = np.tile(cameras.intrinsics, (len(cameras.camera_to_world), 1, 1))
    height, width = round(2 * cameras.intrinsics[1, 2]), round(2 * cameras.intrinsics[0, 2])
    return Cameras(intrinsics, cameras.camera_to_world, height, width)
