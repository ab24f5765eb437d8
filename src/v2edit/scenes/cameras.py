"""Sets of pinhole cameras: poses, intrinsics, and the geometry of a set.

Poses are OpenGL's camera-to-world, as nerfstudio has them (the camera looks along -z, y is up); pixel centres are at
+0.5. Letters: C cameras.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL's camera axes to OpenCV's and back


@dataclass(frozen=True, eq=False)
class Cameras:
    """C cameras with images of one size.

    intrinsics: float64 [C, 3, 3], in pixels. camera_to_world: float64 [C, 4, 4]."""

    intrinsics: np.ndarray
    camera_to_world: np.ndarray
    height: int
    width: int

    def __post_init__(self) -> None:
        count = len(self.camera_to_world)
        assert self.intrinsics.shape == (count, 3, 3), self.intrinsics.shape
        assert self.camera_to_world.shape == (count, 4, 4), self.camera_to_world.shape

    def __len__(self) -> int:
        return len(self.camera_to_world)

    def __getitem__(self, index: np.ndarray | slice | list[int]) -> Cameras:
        return replace(self, intrinsics=self.intrinsics[index], camera_to_world=self.camera_to_world[index])

    @property
    def world_to_camera(self) -> np.ndarray:
        """Extrinsics, float64 [C, 4, 4], in OpenCV's axes (looks along +z, y down), as in COLMAP and gsplat."""
        return np.linalg.inv(self.camera_to_world @ FLIP)

    @property
    def centres(self) -> np.ndarray:
        """Positions of the cameras, float64 [C, 3]."""
        return self.camera_to_world[:, :3, 3]

    @property
    def directions(self) -> np.ndarray:
        """Viewing directions, unit vectors, float64 [C, 3]."""
        return -self.camera_to_world[:, :3, 2]

    def resized(self, height: int, width: int) -> Cameras:
        """Return the same views with images of another size; the aspect may change, the field of view does not."""
        scale = np.array([[width / self.width], [height / self.height], [1.0]])
        return replace(self, intrinsics=self.intrinsics * scale, height=height, width=width)


def from_opencv(world_to_camera: np.ndarray) -> np.ndarray:
    """Convert OpenCV's world-to-camera [..., 4, 4] to OpenGL's camera-to-world."""
    return np.linalg.inv(world_to_camera) @ FLIP


def look_at(eyes: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Return camera_to_world [C, 4, 4] of cameras at `eyes` [C, 3] that look at `target` [3] with `up` [3] upwards."""
    backward = eyes - target
    backward = backward / np.linalg.norm(backward, axis=-1, keepdims=True)
    right = np.cross(up, backward)
    right = right / np.linalg.norm(right, axis=-1, keepdims=True)
    poses = np.tile(np.eye(4), (len(eyes), 1, 1))
    poses[:, :3] = np.stack([right, np.cross(backward, right), backward, eyes], axis=-1)
    return poses


def focus_of(cameras: Cameras) -> np.ndarray:
    """Return the point [3] nearest to the cameras' axes, in the least-squares sense; a point in front of the cameras
    where they all look the same way."""
    if _are_parallel(cameras):
        spread = np.linalg.norm(cameras.centres - cameras.centres.mean(0), axis=1).max()
        return cameras.centres.mean(0) + cameras.directions.mean(0) * max(2 * spread, 1.0)
    planes = _across_axes(cameras)
    return np.linalg.solve(planes.mean(0), (planes @ cameras.centres[:, :, None]).mean(0)[:, 0])


def distance_of(cameras: Cameras, positions: np.ndarray) -> float:
    """Return the median distance of the cameras from what they look at. That is where their axes meet; where they do
    not meet in front of them (cameras that turn on the spot, or slide along), the depth of those of `positions` [N, 3]
    that they see; without any, a guess by how far the cameras move."""
    spread = float(np.linalg.norm(cameras.centres - cameras.centres.mean(0), axis=1).max())
    # An orbit's axes meet at its radius or further; where the axes of turning cameras meet says nothing.
    meeting = float(np.median(((focus_of(cameras) - cameras.centres) * cameras.directions).sum(1)))
    if not _are_parallel(cameras) and meeting > max(0.5 * spread, 1e-6):
        return meeting
    depths = [np.empty(0)]
    for view, matrix in zip(cameras.world_to_camera, cameras.intrinsics, strict=True):
        points = positions @ view[:3, :3].T + view[:3, 3]
        points = points[points[:, 2] > 1e-6]
        pixels = (points @ matrix.T)[:, :2] / points[:, 2:]
        depths.append(points[((pixels >= 0) & (pixels < [cameras.width, cameras.height])).all(1), 2])
    visible = np.concatenate(depths)
    return float(np.median(visible)) if visible.size else max(2 * spread, 1.0)


def _are_parallel(cameras: Cameras) -> bool:
    """Whether the cameras' axes point the same way, and so meet nowhere."""
    return bool(np.linalg.eigvalsh(_across_axes(cameras).mean(0))[0] < 1e-4)


def _across_axes(cameras: Cameras) -> np.ndarray:
    """Return the projections [C, 3, 3] onto the planes perpendicular to the cameras' axes."""
    return np.eye(3) - cameras.directions[:, :, None] * cameras.directions[:, None, :]


def up_of(cameras: Cameras) -> np.ndarray:
    """Return the world's upward direction [3], unit length: perpendicular to all cameras' right axes, since people hold
    cameras level; where they all face the same way, the mean of their up axes."""
    right, mean = cameras.camera_to_world[:, :3, 0], cameras.camera_to_world[:, :3, 1].mean(0)
    values, axes = np.linalg.eigh(right.T @ right / len(right))
    up = axes[:, 0] * np.sign(axes[:, 0] @ mean) if values[1] > 10 * values[0] + 1e-3 else mean
    return up / np.linalg.norm(up)
