"""Pictures of a textured corner of a room, by cameras that are known: cheap captures to find cameras of."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from v2edit.scenes.cameras import Cameras, look_at

HEIGHT, WIDTH, FOCAL, TEXELS = 192, 256, 240.0, 240
# The floor and two walls of a room, each by a corner and its two sides.
PLANES = [((0, 0, 0), (4, 0, 0), (0, 4, 0)), ((0, 0, 0), (4, 0, 0), (0, 0, 3)), ((0, 0, 0), (0, 4, 0), (0, 0, 3))]


def texture(seed: int) -> np.ndarray:
    """Coloured spots and corners of all sizes."""
    rng = np.random.default_rng(seed)
    picture = np.full((TEXELS, TEXELS, 3), 128, np.uint8)
    for size in (60, 30, 15, 9):
        for _ in range(int(0.5 * (TEXELS / size) ** 2)):
            x, y = rng.integers(0, TEXELS, 2)
            colour = tuple(map(int, rng.integers(0, 256, 3)))
            if rng.random() < 0.5:
                cv2.rectangle(
                    picture, (int(x), int(y)), (int(x + size), int(y + size * rng.uniform(0.4, 1))), colour, -1
                )
            else:
                cv2.circle(picture, (int(x), int(y)), int(size // 2), colour, -1)
    return picture


def arc(count: int, turn: float = 1.2, seed: int = 0) -> Cameras:
    """Cameras on an arc of `turn` radians around the room's corner, held by hand."""
    rng = np.random.default_rng(seed)
    angles = np.pi / 4 + np.linspace(-turn / 2, turn / 2, count)
    eyes = np.stack([0.5 + 4 * np.cos(angles), 0.5 + 4 * np.sin(angles), np.full(count, 2.0)], axis=1)
    eyes += rng.normal(0, 0.05, eyes.shape)
    poses = np.concatenate([
        look_at(eye[None], np.array([1.0, 1, 0.9]) + rng.normal(0, 0.1, 3), np.array([0.0, 0, 1])) for eye in eyes
    ])  # fmt: skip
    return Cameras(np.tile(matrix_of(HEIGHT, WIDTH), (count, 1, 1)), poses, HEIGHT, WIDTH)


def matrix_of(height: int, width: int) -> np.ndarray:
    return np.array([[FOCAL, 0, width / 2], [0, FOCAL, height / 2], [0, 0, 1]])


def turning(count: int) -> Cameras:
    """Cameras that turn on one spot."""
    angles = np.pi + np.pi / 4 + np.linspace(-0.35, 0.35, count)
    eye = np.array([3.5, 3.5, 1.6])
    ahead = np.stack([np.cos(angles), np.sin(angles), np.full(count, -0.15)], axis=1)
    poses = np.concatenate([look_at(eye[None], eye + one, np.array([0.0, 0, 1])) for one in ahead])
    return Cameras(np.tile(matrix_of(HEIGHT, WIDTH), (count, 1, 1)), poses, HEIGHT, WIDTH)


def photograph(cameras: Cameras, seed: int = 0) -> np.ndarray:
    """Render the room, uint8 [C, H, W, 3]; another `seed`, another room."""
    textures = [texture(10 * seed + k) for k in range(len(PLANES))]
    pictures = []
    for view, matrix in zip(cameras.world_to_camera, cameras.intrinsics, strict=True):
        picture = np.full((cameras.height, cameras.width, 3), 30, np.uint8)
        for (corner, side, other), painted in zip(PLANES, textures, strict=True):
            across = np.stack([np.array(side) / TEXELS, np.array(other) / TEXELS, np.array(corner)], axis=1)
            homography = matrix @ (view[:3, :3] @ across + np.outer(view[:3, 3], [0, 0, 1]))
            size = cameras.width, cameras.height
            shown = cv2.warpPerspective(painted, homography, size, flags=cv2.INTER_AREA)
            inside = cv2.warpPerspective(np.full(painted.shape[:2], 255, np.uint8), homography, size)
            picture[inside > 127] = shown[inside > 127]
        pictures.append(picture)
    return np.stack(pictures)


def write_photos(folder: Path, pictures: np.ndarray, names: list[str] | None = None) -> Path:
    """Write pictures as photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / (names[k] if names else f"IMG_{k:04d}.jpg"), quality=95)
    return folder
