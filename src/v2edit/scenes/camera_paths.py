"""Camera paths: what the scene is filmed along before it is edited.

Letters: C cameras.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from v2edit.errors import UserError
from v2edit.files import read_json
from v2edit.scenes.cameras import Cameras, focus_of, look_at, up_of

FRAME = "dataparser_transforms.json"  # nerfstudio's note of how a run's coordinates came from the dataset's
CLOSE = 1.5  # a path is closed when its ends are at most this many of its steps apart
FULL_TURN = 0.75  # of a circle: views that reach around further are orbited all the way
WIDEST = 170.0  # degrees
LARGEST = 2**16  # pixels of a side


@dataclass(frozen=True)
class CameraPath:
    """Cameras in order along a path; `closed`: after the last comes the first."""

    cameras: Cameras
    closed: bool

    def sampled(self, count: int) -> CameraPath:
        """`count` of the cameras, evenly spaced; all of them where there are fewer."""
        here = len(self.cameras)
        if here <= count:
            return self
        spots = np.arange(count) * here / count if self.closed else np.linspace(0, here - 1, count)
        return replace(self, cameras=self.cameras[np.round(spots).astype(int)])


def along_views(cameras: Cameras) -> CameraPath:
    """A dataset's own views in their order."""
    return CameraPath(cameras, _closed(cameras))


def orbit(cameras: Cameras, count: int) -> CameraPath:
    """The circle, or the arc, that dataset views fit: around the upright axis through the point they look at, at their
    mean distance and height, over the angle they cover; all the way round where that is most of it."""
    focus, up = focus_of(cameras), up_of(cameras)
    offsets = cameras.centres - focus
    heights = offsets @ up
    flat = offsets - heights[:, None] * up
    ahead = flat[len(flat) // 2]
    if np.linalg.norm(ahead) < 1e-9:
        raise UserError("cannot fit an orbit to views from straight above: give --path a camera path")
    ahead = ahead / np.linalg.norm(ahead)
    aside = np.cross(up, ahead)
    angles = np.sort(np.arctan2(flat @ aside, flat @ ahead))
    # The widest gap between neighbours is where nobody stood.
    gaps = np.diff(angles, append=angles[0] + 2 * math.pi)
    widest = int(gaps.argmax())
    covered = 2 * math.pi - gaps[widest]
    closed = covered > FULL_TURN * 2 * math.pi
    start = angles[(widest + 1) % len(angles)]
    turn = start + (np.arange(count) * 2 * math.pi / count if closed else np.linspace(0, covered, count))
    around = np.cos(turn)[:, None] * ahead + np.sin(turn)[:, None] * aside
    eyes = focus + np.linalg.norm(flat, axis=1).mean() * around + heights.mean() * up
    middle = np.median(cameras.intrinsics, axis=0)
    poses = look_at(eyes, focus, up)
    return CameraPath(Cameras(np.tile(middle, (count, 1, 1)), poses, cameras.height, cameras.width), closed)


def orbit_around(places: np.ndarray, count: int, side: int) -> CameraPath:
    """A full circle around points [N, 3] that come without cameras, of square images: up is -y, as in the world of
    COLMAP and of most splats."""
    centre = np.median(places, axis=0)
    radius = float(np.quantile(np.linalg.norm(places - centre, axis=1), 0.8)) or 1.0
    turn = np.arange(count) * 2 * math.pi / count
    eyes = centre + radius * np.stack([2.4 * np.sin(turn), np.full(count, -0.8), -2.4 * np.cos(turn)], axis=1)
    focal = 0.5 * side / math.tan(math.radians(25))
    matrix = np.array([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]])
    poses = look_at(eyes, centre, np.array([0.0, -1, 0]))
    return CameraPath(Cameras(np.tile(matrix, (count, 1, 1)), poses, side, side), closed=True)


def read_path(path: Path, views: np.ndarray | None, applied: np.ndarray | None = None) -> CameraPath:
    """A camera path as nerfstudio's viewer saves it, in the coordinates of the dataset that it was made for.

    The file is in the coordinates that nerfstudio trained in. What leads there stands in `dataparser_transforms.json`
    beside the path, one folder up or two; without one, nerfstudio's defaults are followed: `views` [C, 4, 4], the
    dataset's poses, turned upright, centred and scaled into ±1. `applied` is the dataset's own `applied_transform`.
    Without `views` the path is for a splat, which is in those coordinates itself.

    Raises:
        UserError: it is no such file.
    """
    facts = _json(path)
    listed = facts.get("camera_path")
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{path} is no camera path: it has no camera_path with cameras in it")
    height, width = (_number(facts, key, path) for key in ("render_height", "render_width"))
    if facts.get("camera_type", "perspective") != "perspective":
        raise UserError(f"{path} is of type {facts['camera_type']}: only perspective cameras can be edited along")
    poses, matrices = [], []
    for camera in listed:
        try:
            pose = np.array(camera["camera_to_world"], np.float64).reshape(4, 4)
            fov = float(camera["fov"])
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise UserError(f"{path}: a camera has no camera_to_world of 16 numbers and no fov") from error
        if not np.isfinite(pose).all() or abs(np.linalg.det(pose[:3, :3])) < 1e-6 or not 0 < fov < WIDEST:
            raise UserError(f"{path}: a camera's pose is singular or its fov is not within 0 to {WIDEST:.0f} degrees")
        focal = 0.5 * height / math.tan(math.radians(fov) / 2)  # of the height: three.js's cameras say it so
        poses.append(pose)
        matrices.append([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    to_dataset = np.eye(4) if views is None else np.linalg.inv(_into_training(path, views, applied))
    placed = to_dataset @ np.stack(poses)
    scale = np.cbrt(np.linalg.det(placed[:, :3, :3]))
    placed[:, :3, :3] /= scale[:, None, None]
    cameras = Cameras(np.array(matrices), placed, round(height), round(width))
    return CameraPath(cameras, facts.get("is_cycle") is True or _closed(cameras))


def write_path(path: Path, found: CameraPath, fps: float, applied: np.ndarray | None = None) -> Path:
    """Writes a path as nerfstudio's viewer would, with the note beside it that its coordinates are those of the
    dataset, whose `applied_transform` is `applied`."""
    cameras = found.cameras
    fovs = np.degrees(2 * np.arctan(0.5 * cameras.height / cameras.intrinsics[:, 1, 1]))
    facts = {
        "camera_type": "perspective",
        "render_height": cameras.height,
        "render_width": cameras.width,
        "fps": fps,
        "seconds": len(cameras) / fps,
        "is_cycle": found.closed,
        "camera_path": [
            {"camera_to_world": pose.flatten().tolist(), "fov": fov, "aspect": cameras.width / cameras.height}
            for pose, fov in zip(cameras.camera_to_world, fovs.tolist(), strict=True)
        ],
    }
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    note = {"transform": (np.eye(4) if applied is None else applied)[:3].tolist(), "scale": 1.0}
    (path.parent / FRAME).write_text(json.dumps(note) + "\n", encoding="utf-8")
    return path


def nerfstudio_frame(views: np.ndarray) -> np.ndarray:
    """The similarity [4, 4] that nerfstudio applies to a dataset's poses [C, 4, 4] by default: mean up to z, mean
    position to the origin, the furthest coordinate of a position to 1."""
    up = views[:, :3, 1].mean(0)
    turn = _rotation_between(up / np.linalg.norm(up), np.array([0.0, 0, 1]))
    centred = (views[:, :3, 3] - views[:, :3, 3].mean(0)) @ turn.T
    whole = np.eye(4)
    whole[:3, :3], whole[:3, 3] = turn, -turn @ views[:, :3, 3].mean(0)
    return np.diag([1 / max(np.abs(centred).max(), 1e-9)] * 3 + [1.0]) @ whole


def _into_training(path: Path, views: np.ndarray, applied: np.ndarray | None) -> np.ndarray:
    """Dataset coordinates to the ones that a path is in, [4, 4]."""
    note = next((p for folder in list(path.absolute().parents)[:3] if (p := folder / FRAME).is_file()), None)
    if note is None:
        return nerfstudio_frame(views)
    facts = _json(note)
    try:
        whole = np.eye(4)
        whole[:3] = np.array(facts["transform"], np.float64).reshape(3, 4)
        whole = np.diag([float(facts["scale"])] * 3 + [1.0]) @ whole
        # The note begins at the reconstruction's coordinates, of which the dataset's were made.
        whole = whole @ np.linalg.inv(np.eye(4) if applied is None else applied)
        np.linalg.inv(whole)
    except (KeyError, TypeError, ValueError, OverflowError, np.linalg.LinAlgError) as error:
        raise UserError(f"{note} holds no transform of 3x4 numbers and a scale") from error
    return whole


def _rotation_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The shortest rotation [3, 3] of one unit vector onto another."""
    axis, cosine = np.cross(a, b), float(a @ b)
    if cosine < -1 + 1e-8:  # any half turn across it
        side = np.cross(a, [1.0, 0, 0] if abs(a[0]) < 0.9 else [0, 1.0, 0])
        side /= np.linalg.norm(side)
        return 2 * np.outer(side, side) - np.eye(3)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + cosine)


def _closed(cameras: Cameras) -> bool:
    """Whether the last camera stands, and looks, about as near to the first as neighbours do to each other."""
    if len(cameras) < 4:
        return False
    centres, ways = cameras.centres, cameras.directions
    moved = np.linalg.norm(np.diff(centres, axis=0, append=centres[:1]), axis=1)
    turned = np.linalg.norm(np.diff(ways, axis=0, append=ways[:1]), axis=1)
    # A path that hardly moves is not a loop: its ends are near since everything is.
    extent = np.linalg.norm(centres - centres.mean(0), axis=1).max()
    return bool(
        moved[-1] <= CLOSE * np.median(moved[:-1])
        and turned[-1] <= CLOSE * max(np.median(turned[:-1]), 1e-6)
        and moved[:-1].sum() > 4 * extent
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        facts = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return facts if isinstance(facts, dict) else {}


def _number(facts: dict[str, Any], key: str, path: Path) -> float:
    value = facts.get(key)
    if not isinstance(value, int | float) or not 0 < value < LARGEST:
        raise UserError(f"{path}: {key} is {value!r:.60}, expected a number above 0")
    return float(value)
