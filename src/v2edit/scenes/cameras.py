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
    ways = cameras.directions
    across = np.eye(3) - ways[:, :, None] * ways[:, None, :]  # projections onto the planes across the axes
    total, values = across.mean(0), np.linalg.eigvalsh(across.mean(0))
    if values[0] < 1e-4:  # parallel axes meet nowhere
        spread = np.linalg.norm(cameras.centres - cameras.centres.mean(0), axis=1).max()
        return cameras.centres.mean(0) + ways.mean(0) * max(2 * spread, 1.0)
    return np.linalg.solve(total, (across @ cameras.centres[:, :, None]).mean(0)[:, 0])


def up_of(cameras: Cameras) -> np.ndarray:
    """The world's upward direction [3], unit length: across all that the cameras call right, since people hold them
    level; where they all face the same way, the mean of what they call up."""
    right, mean = cameras.camera_to_world[:, :3, 0], cameras.camera_to_world[:, :3, 1].mean(0)
    values, axes = np.linalg.eigh(right.T @ right / len(right))
    up = axes[:, 0] * np.sign(axes[:, 0] @ mean) if values[1] > 10 * values[0] + 1e-3 else mean
    return up / np.linalg.norm(up)
