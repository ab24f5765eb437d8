"""A model of COLMAP's as a dataset: upright, centred and scaled, in nerfstudio's format, with a smooth path through it.

Letters: N pictures, P points.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from v2edit.files import atomic_write, read_json
from v2edit.scenes.camera_paths import CameraPath, write_path
from v2edit.scenes.cameras import Cameras, focus_of, from_opencv, look_at, up_of
from v2edit.scenes.config import TRANSFORMS
from v2edit.scenes.dataset import Points
from v2edit.scenes.formats.colmap import MODELS
from v2edit.scenes.formats.nerfstudio import POINTS
from v2edit.scenes.formats.ply import write_points
from v2edit.scenes.poses.pictures import WrittenPicture, fit_size

if TYPE_CHECKING:
    import pycolmap

REPORT = "cameras.json"  # in the dataset's folder: how its cameras were found
PATH, PATH_CAMERAS, PATH_FPS = "views.json", 120, 24
MAX_TRACKS = 5000  # points whose parallax is measured
UP = np.array([0.0, 0, 1])
QUARTER = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # a picture's axes, turned by one


@dataclass(frozen=True)
class PoseReport:
    """How cameras were found: of `pictures` so many are `registered`, the others are `left_out`, by name; `error` is
    the mean reprojection error in pixels, `models` the pictures of each part that they fall into, `intrinsics` those of
    each camera, `parallax` in degrees, `matching` the way of it and `pairs` their number, `cuts` in seconds; `unread`
    are the names of files beside the pictures that are none, by why."""

    pictures: int
    registered: int
    left_out: list[str]
    error: float
    models: list[int]
    intrinsics: list[dict[str, Any]]
    points: int
    parallax: float
    matching: str
    pairs: int
    cuts: list[float]
    unread: dict[str, list[str]]

    def __str__(self) -> str:
        return f"{self.registered} of {self.pictures} pictures, mean error {self.error:.2f} px, {self.points:,} points"


def read_report(folder: Path) -> PoseReport:
    """Read how a dataset's cameras were found. Raises `ValueError` for a file that does not say so."""
    facts = read_json(folder / REPORT)
    if not isinstance(facts, dict) or facts.keys() != {one.name for one in fields(PoseReport)}:
        raise ValueError(f"{folder / REPORT} does not say how cameras were found")
    return PoseReport(**facts)


def measure_parallax(model: pycolmap.Reconstruction) -> float:
    """Return the median over a model's points of the widest angle between the first ray to it and another, degrees."""
    centres = {k: model.images[k].projection_center() for k in model.reg_image_ids()}
    numbers = sorted(model.point3D_ids())
    angles = []
    for number in numbers[:: max(1, len(numbers) // MAX_TRACKS)]:
        point = model.points3D[number]
        rays = np.stack([centres[one.image_id] for one in point.track.elements]) - point.xyz
        rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-12)
        angles.append(float(np.degrees(np.arccos(np.clip(rays @ rays[0], -1, 1).min()))))
    return float(np.median(angles)) if angles else 0.0


def describe_camera(camera: pycolmap.Camera) -> dict[str, Any]:
    """Return the intrinsics and the distortion of a COLMAP camera under nerfstudio's names."""
    matrix = camera.calibration_matrix()
    names = MODELS[camera.model_name]
    distortion = dict(zip(names, map(float, camera.params[len(camera.params) - len(names) :]), strict=True))
    facts = {"w": camera.width, "h": camera.height, "fl_x": matrix[0, 0], "fl_y": matrix[1, 1]}
    facts |= {"cx": matrix[0, 2], "cy": matrix[1, 2]}
    return {name: float(x) if isinstance(x, float) else x for name, x in facts.items()} | distortion


def matrix_of(lens: Mapping[str, Any]) -> np.ndarray:
    """Return the matrix [3, 3] of intrinsics under nerfstudio's names."""
    return np.array([[lens["fl_x"], 0, lens["cx"]], [0, lens["fl_y"], lens["cy"]], [0, 0, 1]])


def stand_camera_up(lens: dict[str, Any], pose: np.ndarray, turns: int) -> tuple[dict[str, Any], np.ndarray]:
    """Return the intrinsics and the pose (world to camera, OpenCV's axes, [4, 4]) of a picture that was written turned,
    by so many quarters as `np.rot90` counts them, once it is upright in the middle of a file of the same size."""
    lens = dict(lens)
    for _ in range(turns % 4):
        # Of the upright picture, x is the other's -y and y its x; the tangential distortion (p2, p1) is a vector.
        lens |= {"fl_x": lens["fl_y"], "fl_y": lens["fl_x"], "cx": lens["h"] - lens["cy"], "cy": lens["cx"]}
        lens |= {"w": lens["h"], "h": lens["w"]}
        if "p1" in lens:
            lens |= {"p2": -lens["p1"], "p1": lens["p2"]}
        pose = QUARTER @ pose
    if turns % 2:
        canvas = lens["w"], lens["h"]  # (H, W) of the file: that of the picture before it stood up
        (height, width), (y, x) = fit_size((lens["h"], lens["w"]), canvas)
        across, down = width / lens["w"], height / lens["h"]
        lens |= {"fl_x": lens["fl_x"] * across, "fl_y": lens["fl_y"] * down, "w": canvas[1], "h": canvas[0]}
        lens |= {"cx": lens["cx"] * across + x, "cy": lens["cy"] * down + y}
    return lens, pose


def normalising_transform(cameras: Cameras) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the rotation [3, 3], the centre [3] and the scale that make a world upright (z), its origin what the
    cameras look at, and their greatest distance from it 1: COLMAP's own is arbitrary in all of them."""
    up = up_of(cameras)
    ahead = cameras.directions.mean(0)
    ahead = ahead - (ahead @ up) * up
    if np.linalg.norm(ahead) < 1e-3:
        ahead = np.linalg.svd(up[None])[2][1]
    ahead = ahead / np.linalg.norm(ahead)
    centres, focus = cameras.centres, focus_of(cameras)
    spread = np.linalg.norm(centres - centres.mean(0), axis=1).max()
    if np.linalg.norm(focus - centres.mean(0)) > 10 * spread:  # their axes hardly meet
        focus = centres.mean(0)
    scale = 1 / max(float(np.linalg.norm(centres - focus, axis=1).max()), 1e-9)
    return np.stack([np.cross(ahead, up), ahead, up]), focus, scale


def write_dataset(
    folder: Path, model: pycolmap.Reconstruction, written: Sequence[WrittenPicture], ids: Sequence[int], with_path: bool
) -> None:
    """Write `transforms.json` and the points of a model into the folder of its pictures, whose `ids` in the model are
    given; `with_path`: a smooth path through the cameras, too, as where their order is none."""
    place = {number: k for k, number in enumerate(ids)}
    registered = sorted((k for k in model.reg_image_ids()), key=lambda k: place[k])
    cameras = [
        stand_camera_up(
            describe_camera(model.cameras[model.images[k].camera_id]),
            np.vstack([model.images[k].cam_from_world().matrix(), [0, 0, 0, 1]]),
            written[place[k]].picture.turns,
        )
        for k in registered
    ]
    matrices = np.stack([matrix_of(lens) for lens, _ in cameras])
    poses = from_opencv(np.stack([pose for _, pose in cameras]))
    views = Cameras(matrices, poses, cameras[0][0]["h"], cameras[0][0]["w"])
    rotation, centre, scale = normalising_transform(views)
    world = views.camera_to_world.copy()
    world[:, :3, :3] = rotation @ world[:, :3, :3]
    world[:, :3, 3] = scale * (world[:, :3, 3] - centre) @ rotation.T
    views = Cameras(matrices, world, views.height, views.width)
    numbers = sorted(model.point3D_ids())
    if numbers:
        positions = np.stack([model.points3D[k].xyz for k in numbers])
        colours = np.stack([model.points3D[k].color for k in numbers]).astype(np.uint8)
        write_points(folder / POINTS, Points(scale * (positions - centre) @ rotation.T, colours))
    frames = []
    for k, (lens, _), pose in zip(registered, cameras, world, strict=True):
        one = written[place[k]]
        frame = {"file_path": f"images/{one.file}", "transform_matrix": pose.tolist(), **lens}
        frames.append(frame | ({"mask_path": f"masks/{one.mask}"} if one.mask else {}))
    facts: dict[str, Any] = {"camera_model": "OPENCV", "frames": frames}
    if numbers:
        facts = {"ply_file_path": POINTS} | facts
    atomic_write(folder / TRANSFORMS, f"{json.dumps(facts, indent=1)}\n".encode())
    if with_path:
        (folder / "camera_paths").mkdir()
        write_path(folder / "camera_paths" / PATH, smooth_path(views, PATH_CAMERAS), PATH_FPS)


def write_report(folder: Path, report: PoseReport) -> None:
    """Write how a dataset's cameras were found beside it."""
    atomic_write(folder / REPORT, f"{json.dumps(asdict(report), indent=1)}\n".encode())


def smooth_path(cameras: Cameras, count: int) -> CameraPath:
    """Return `count` upright cameras along the shortest tour through all of a set, which may be in any order."""
    order, closed = _shortest_tour(cameras)
    eyes, directions = cameras.centres[order], cameras.directions[order]
    if closed:
        eyes, directions = np.append(eyes, eyes[:1], 0), np.append(directions, directions[:1], 0)
    extent = max(float(np.ptp(eyes, axis=0).max()), 1e-9)
    steps = np.linalg.norm(np.diff(eyes, axis=0), axis=1) / extent + np.linalg.norm(np.diff(directions, axis=0), axis=1)
    places = np.concatenate([[0], np.cumsum(steps + 1e-9)])
    wanted = np.linspace(0, places[-1], count, endpoint=not closed)
    between = [np.stack([np.interp(wanted, places, one[:, k]) for k in range(3)], 1) for one in (eyes, directions)]
    ahead = between[1] / np.maximum(np.linalg.norm(between[1], axis=1, keepdims=True), 1e-9)
    level = np.abs(ahead @ UP) > 0.99  # straight up or down: any side is up
    poses = np.concatenate([
        look_at(eye[None], (eye + direction), np.array([0.0, 1, 0]) if steep else UP)
        for eye, direction, steep in zip(between[0], ahead, level, strict=True)
    ])  # fmt: skip
    middle = np.tile(np.median(cameras.intrinsics, axis=0), (count, 1, 1))
    return CameraPath(Cameras(middle, poses, cameras.height, cameras.width), closed)


def _shortest_tour(cameras: Cameras) -> tuple[list[int], bool]:
    """Return an order of cameras in which each is near the one before and looks alike, and whether it closes: from
    neighbour to neighbour, then with crossings undone (2-opt), cut open at its widest gap."""
    centres = cameras.centres / max(float(np.ptp(cameras.centres, axis=0).max()), 1e-9)
    apart = np.linalg.norm(centres[:, None] - centres, axis=2)
    apart = apart + 0.5 * np.linalg.norm(cameras.directions[:, None] - cameras.directions, axis=2)
    count, tour = len(apart), [0]
    while len(tour) < count:
        left = np.setdiff1d(np.arange(count), tour)
        tour.append(int(left[apart[tour[-1], left].argmin()]))
    improved = True
    while improved:
        improved = False
        for i in range(count - 1):
            for j in range(i + 2, count if i else count - 1):
                a, b, c, d = tour[i], tour[i + 1], tour[j], tour[(j + 1) % count]
                if apart[a, c] + apart[b, d] < apart[a, b] + apart[c, d] - 1e-9:
                    tour[i + 1 : j + 1] = tour[i + 1 : j + 1][::-1]
                    improved = True
    gaps = np.array([apart[tour[k], tour[(k + 1) % count]] for k in range(count)])
    widest = int(gaps.argmax())
    closed = count >= 8 and gaps[widest] <= 2 * np.median(gaps)
    return (tour if closed else tour[widest + 1 :] + tour[: widest + 1]), bool(closed)
