"""Pinhole cameras and what is done with them as a set.

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

    intrinsics: float64 [C, 3, 3], in pixels. camera_to_world: float64 [C, 4, 4].
    """

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

    def __getitem__(self, chosen: np.ndarray | slice | list[int]) -> Cameras:
        return replace(self, intrinsics=self.intrinsics[chosen], camera_to_world=self.camera_to_world[chosen])

    @property
    def world_to_camera(self) -> np.ndarray:
        """float64 [C, 4, 4] in OpenCV's axes (looks along +z, y down), as COLMAP and gsplat have them."""
        return np.linalg.inv(self.camera_to_world @ FLIP)

    @property
    def centres(self) -> np.ndarray:
        """float64 [C, 3]: where they stand."""
        return self.camera_to_world[:, :3, 3]

    @property
    def directions(self) -> np.ndarray:
        """float64 [C, 3]: unit vectors along which they look."""
        return -self.camera_to_world[:, :3, 2]

    def resized(self, height: int, width: int) -> Cameras:
        """The same views in images of another size; the aspect may change, what is seen does not."""
        scale = np.array([[width / self.width], [height / self.height], [1.0]])
        return replace(self, intrinsics=self.intrinsics * scale, height=height, width=width)


def from_opencv(world_to_camera: np.ndarray) -> np.ndarray:
    """OpenCV's world-to-camera [..., 4, 4] as OpenGL's camera-to-world."""
    return np.linalg.inv(world_to_camera) @ FLIP


def look_at(eyes: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """camera_to_world [C, 4, 4] of cameras at `eyes` [C, 3] that look at `target` [3] with `up` [3] upwards."""
    backward = eyes - target
    backward = backward / np.linalg.norm(backward, axis=-1, keepdims=True)
    right = np.cross(up, backward)
    right = right / np.linalg.norm(right, axis=-1, keepdims=True)
    poses = np.tile(np.eye(4), (len(eyes), 1, 1))
    poses[:, :3] = np.stack([right, np.cross(backward, right), backward, eyes], axis=-1)
    return poses


def focus_of(cameras: Cameras) -> np.ndarray:
    """The point [3] that the cameras' axes pass nearest to, in the least-squares sense; where they look the same way,
    a point in front of them."""
    if _parallel(cameras):
        spread = np.linalg.norm(cameras.centres - cameras.centres.mean(0), axis=1).max()
        return cameras.centres.mean(0) + cameras.directions.mean(0) * max(2 * spread, 1.0)
    across = _across(cameras)
    return np.linalg.solve(across.mean(0), (across @ cameras.centres[:, :, None]).mean(0)[:, 0])


def distance_of(cameras: Cameras, places: np.ndarray) -> float:
    """How far away what cameras look at is, the median: where their axes meet or, where they do not meet before them
    (cameras that turn on the spot, or slide along), what of `places` [N, 3] they see. Without any of these a guess, by
    how far they move."""
    spread = float(np.linalg.norm(cameras.centres - cameras.centres.mean(0), axis=1).max())
    # As far as an orbit's middle is from it, or further; how near turning heads come to one another is no distance.
    meeting = float(np.median(((focus_of(cameras) - cameras.centres) * cameras.directions).sum(1)))
    if not _parallel(cameras) and meeting > max(0.5 * spread, 1e-6):
        return meeting
    depths = [np.empty(0)]
    for view, matrix in zip(cameras.world_to_camera, cameras.intrinsics, strict=True):
        there = places @ view[:3, :3].T + view[:3, 3]
        there = there[there[:, 2] > 1e-6]
        spots = (there @ matrix.T)[:, :2] / there[:, 2:]
        depths.append(there[((spots >= 0) & (spots < [cameras.width, cameras.height])).all(1), 2])
    found = np.concatenate(depths)
    return float(np.median(found)) if found.size else max(2 * spread, 1.0)


def _parallel(cameras: Cameras) -> bool:
    """Whether the cameras' axes look the same way, and so meet nowhere."""
    return bool(np.linalg.eigvalsh(_across(cameras).mean(0))[0] < 1e-4)


def _across(cameras: Cameras) -> np.ndarray:
    """Projections [C, 3, 3] onto the planes across the cameras' axes."""
    return np.eye(3) - cameras.directions[:, :, None] * cameras.directions[:, None, :]


def up_of(cameras: Cameras) -> np.ndarray:
    """The world's upward direction [3], unit length: across all that the cameras call right, since people hold them
    level; where they all face the same way, the mean of what they call up."""
    right, mean = cameras.camera_to_world[:, :3, 0], cameras.camera_to_world[:, :3, 1].mean(0)
    values, axes = np.linalg.eigh(right.T @ right / len(right))
    up = axes[:, 0] * np.sign(axes[:, 0] @ mean) if values[1] > 10 * values[0] + 1e-3 else mean
    return up / np.linalg.norm(up)
