"""Camera paths, along which a scene is rendered for editing: views, orbits, and nerfstudio's path files.

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
from v2edit.scenes.orientation import box_of, estimate_up

TRANSFORM_FILE = "dataparser_transforms.json"  # nerfstudio's transform from a dataset's coordinates to a run's
MAX_GAP = 1.5  # of a closed path, between its ends, in its steps
FULL_TURN = 0.75  # of a circle: views that reach around further are orbited all the way
MAX_FOV = 170.0  # degrees
MAX_SIDE = 2**16  # pixels
ELEVATION, FOV, MARGIN = math.atan(1 / 3), math.radians(50), 0.1  # of an orbit around a splat; of 1 at each edge


@dataclass(frozen=True)
class CameraPath:
    """Cameras in order along a path; `closed`: the first follows the last."""

    cameras: Cameras
    closed: bool

    def sampled(self, count: int) -> CameraPath:
        """Return `count` of the cameras, evenly spaced; all of them where there are fewer."""
        total = len(self.cameras)
        if total <= count:
            return self
        indices = np.arange(count) * total / count if self.closed else np.linspace(0, total - 1, count)
        return replace(self, cameras=self.cameras[np.round(indices).astype(int)])


def along_views(cameras: Cameras) -> CameraPath:
    """Return the path through a dataset's own views, in their order."""
    return CameraPath(cameras, _is_closed(cameras))


def orbit(cameras: Cameras, count: int, up: np.ndarray | None = None) -> CameraPath:
    """Return the arc that fits a dataset's views: around the upright axis through the point they look at, at their mean
    distance and height, over the angle they cover; a full circle where that is most of it. `up` [3], without which it
    is that of the views, is upwards. Raises `UserError` if the views look straight down."""
    focus, up = focus_of(cameras), up_of(cameras) if up is None else up
    offsets = cameras.centres - focus
    heights = offsets @ up
    flat = offsets - heights[:, None] * up
    ahead = flat[len(flat) // 2]
    if np.linalg.norm(ahead) < 1e-9:
        raise UserError("cannot fit an orbit to views from straight above: give --path a camera path")
    ahead = ahead / np.linalg.norm(ahead)
    aside = np.cross(up, ahead)
    angles = np.sort(np.arctan2(flat @ aside, flat @ ahead))
    # The widest gap between neighbours is the part of the circle without views.
    gaps = np.diff(angles, append=angles[0] + 2 * math.pi)
    widest = int(gaps.argmax())
    covered = 2 * math.pi - gaps[widest]
    closed = bool(covered > FULL_TURN * 2 * math.pi)
    start = angles[(widest + 1) % len(angles)]
    turn = start + (np.arange(count) * 2 * math.pi / count if closed else np.linspace(0, covered, count))
    around = np.cos(turn)[:, None] * ahead + np.sin(turn)[:, None] * aside
    eyes = focus + np.linalg.norm(flat, axis=1).mean() * around + heights.mean() * up
    middle = np.median(cameras.intrinsics, axis=0)
    poses = look_at(eyes, focus, up)
    return CameraPath(Cameras(np.tile(middle, (count, 1, 1)), poses, cameras.height, cameras.width), closed)


def orbit_around(positions: np.ndarray, count: int, side: int, up: np.ndarray | None = None) -> CameraPath:
    """Return a full circle of square images around points [N, 3] that come without cameras, from a little above. All of
    their box (see `box_of`) is in every image. `up` [3], without which it is estimated, is upwards."""
    up = estimate_up(positions) if up is None else up
    front = np.array([0.0, -1, 0] if abs(up[2]) > 0.9 else [0.0, 0, -1])  # where things face in z-up and y-up worlds
    ahead = front - (front @ up) * up
    ahead /= np.linalg.norm(ahead)
    axes = np.stack([ahead, np.cross(up, ahead), up])
    low, high = box_of(positions, axes)
    centre, half = (low + high) / 2 @ axes, (high - low) / 2
    # The least distance at which the cylinder around the box is seen: of its rims, from one of the cameras.
    rim, radius = np.arange(64) * 2 * math.pi / 32, float(np.hypot(*half[:2]))
    heights = np.repeat([-half[2], half[2]], 32)
    points = np.stack([np.cos(rim) * radius, np.sin(rim) * radius, heights], axis=1)
    backward = np.array([math.cos(ELEVATION), 0, math.sin(ELEVATION)])
    upward = np.array([-math.sin(ELEVATION), 0, math.cos(ELEVATION)])
    reach = np.maximum(np.abs(points[:, 1]), np.abs(points @ upward)) / (math.tan(FOV / 2) * (1 - MARGIN))
    distance = float((reach + points @ backward).max()) or 1.0
    turn = np.arange(count) * 2 * math.pi / count
    around = np.cos(turn)[:, None] * axes[0] + np.sin(turn)[:, None] * axes[1]
    eyes = centre + distance * (math.cos(ELEVATION) * around + math.sin(ELEVATION) * up)
    focal = 0.5 * side / math.tan(FOV / 2)
    matrix = np.array([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]])
    poses = look_at(eyes, centre, up)
    return CameraPath(Cameras(np.tile(matrix, (count, 1, 1)), poses, side, side), closed=True)


def read_path(path: Path, views: np.ndarray | None, applied: np.ndarray | None = None) -> CameraPath:
    """Read a camera path as nerfstudio's viewer saves it, into the coordinates of the dataset that it belongs to. The
    file is in the coordinates that nerfstudio trained in. The transform to these stands in `dataparser_transforms.json`
    beside the path, or one or two folders up; without one, nerfstudio's defaults are followed: `views` [C, 4, 4], the
    dataset's poses, are turned upright, centred and scaled into ±1. `applied` is the dataset's own `applied_transform`.
    Without `views` the path is for a splat, which is in those coordinates itself. Raises `UserError` for a file that is
    no camera path."""
    facts = _read_object(path)
    entries = facts.get("camera_path")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} is no camera path: it has no camera_path with cameras in it")
    height, width = (_number(facts, key, path) for key in ("render_height", "render_width"))
    if facts.get("camera_type", "perspective") != "perspective":
        raise UserError(f"{path} is of type {facts['camera_type']}: only perspective cameras can be edited along")
    poses, matrices = [], []
    for camera in entries:
        try:
            pose = np.array(camera["camera_to_world"], np.float64).reshape(4, 4)
            fov = float(camera["fov"])
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise UserError(f"{path}: a camera has no camera_to_world of 16 numbers and no fov") from error
        if not np.isfinite(pose).all() or abs(np.linalg.det(pose[:3, :3])) < 1e-6 or not 0 < fov < MAX_FOV:
            raise UserError(f"{path}: a camera's pose is singular or its fov is not within 0 to {MAX_FOV:.0f} degrees")
        focal = 0.5 * height / math.tan(math.radians(fov) / 2)  # vertical, as three.js's cameras have it
        poses.append(pose)
        matrices.append([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    to_dataset = np.eye(4) if views is None else np.linalg.inv(_training_transform(path, views, applied))
    transformed = to_dataset @ np.stack(poses)
    scale = np.cbrt(np.linalg.det(transformed[:, :3, :3]))
    transformed[:, :3, :3] /= scale[:, None, None]
    cameras = Cameras(np.array(matrices), transformed, round(height), round(width))
    return CameraPath(cameras, facts.get("is_cycle") is True or _is_closed(cameras))


def write_path(path: Path, camera_path: CameraPath, fps: float, applied: np.ndarray | None = None) -> Path:
    """Write a path as nerfstudio's viewer does, and the file beside it that says that its coordinates are the
    dataset's, whose `applied_transform` is `applied`."""
    cameras = camera_path.cameras
    fovs = np.degrees(2 * np.arctan(0.5 * cameras.height / cameras.intrinsics[:, 1, 1]))
    facts = {
        "camera_type": "perspective",
        "render_height": cameras.height,
        "render_width": cameras.width,
        "fps": fps,
        "seconds": len(cameras) / fps,
        "is_cycle": camera_path.closed,
        "camera_path": [
            {"camera_to_world": pose.flatten().tolist(), "fov": fov, "aspect": cameras.width / cameras.height}
            for pose, fov in zip(cameras.camera_to_world, fovs.tolist(), strict=True)
        ],
    }
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    transform = {"transform": (np.eye(4) if applied is None else applied)[:3].tolist(), "scale": 1.0}
    (path.parent / TRANSFORM_FILE).write_text(json.dumps(transform) + "\n", encoding="utf-8")
    return path


def nerfstudio_frame(views: np.ndarray) -> np.ndarray:
    """Return the similarity [4, 4] that nerfstudio applies to a dataset's poses [C, 4, 4] by default: mean up to z,
    mean position to the origin, the largest coordinate of a position to 1."""
    up = views[:, :3, 1].mean(0)
    rotation = _rotation_between(up / np.linalg.norm(up), np.array([0.0, 0, 1]))
    centred = (views[:, :3, 3] - views[:, :3, 3].mean(0)) @ rotation.T
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = rotation, -rotation @ views[:, :3, 3].mean(0)
    return np.diag([1 / max(np.abs(centred).max(), 1e-9)] * 3 + [1.0]) @ transform


def _training_transform(path: Path, views: np.ndarray, applied: np.ndarray | None) -> np.ndarray:
    """Return the transform [4, 4] from a dataset's coordinates to those of a path file."""
    file = next((p for folder in list(path.absolute().parents)[:3] if (p := folder / TRANSFORM_FILE).is_file()), None)
    if file is None:
        return nerfstudio_frame(views)
    facts = _read_object(file)
    try:
        transform = np.eye(4)
        transform[:3] = np.array(facts["transform"], np.float64).reshape(3, 4)
        transform = np.diag([float(facts["scale"])] * 3 + [1.0]) @ transform
        # The file's transform begins at the reconstruction's coordinates, before `applied` made them the dataset's.
        transform = transform @ np.linalg.inv(np.eye(4) if applied is None else applied)
        np.linalg.inv(transform)
    except (KeyError, TypeError, ValueError, OverflowError, np.linalg.LinAlgError) as error:
        raise UserError(f"{file} holds no transform of 3x4 numbers and a scale") from error
    return transform


def _rotation_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the shortest rotation [3, 3] of one unit vector onto another."""
    axis, cosine = np.cross(a, b), float(a @ b)
    if cosine < -1 + 1e-8:  # any half turn across it
        side = np.cross(a, [1.0, 0, 0] if abs(a[0]) < 0.9 else [0, 1.0, 0])
        side /= np.linalg.norm(side)
        return 2 * np.outer(side, side) - np.eye(3)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + cosine)


def _is_closed(cameras: Cameras) -> bool:
    """Whether the last camera is about as near to the first, and looks as alike, as neighbours are to each other."""
    if len(cameras) < 4:
        return False
    centres, directions = cameras.centres, cameras.directions
    moved = np.linalg.norm(np.diff(centres, axis=0, append=centres[:1]), axis=1)
    turned = np.linalg.norm(np.diff(directions, axis=0, append=directions[:1]), axis=1)
    # A path that hardly moves is no loop: all its cameras are near each other.
    extent = np.linalg.norm(centres - centres.mean(0), axis=1).max()
    return bool(
        moved[-1] <= MAX_GAP * np.median(moved[:-1])
        and turned[-1] <= MAX_GAP * max(np.median(turned[:-1]), 1e-6)
        and moved[:-1].sum() > 4 * extent
    )


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} where the file holds something else."""
    try:
        facts = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return facts if isinstance(facts, dict) else {}


def _number(facts: dict[str, Any], key: str, path: Path) -> float:
    """Return an entry that must be a number of pixels."""
    value = facts.get(key)
    if not isinstance(value, int | float) or not 0 < value < MAX_SIDE:
        raise UserError(f"{path}: {key} is {value!r:.60}, expected a number above 0")
    return float(value)
