"""Random cameras, Gaussians and datasets."""

from pathlib import Path

import numpy as np
import torch

from v2edit.scenes.cameras import Cameras, look_at
from v2edit.scenes.dataset import Dataset, Points
from v2edit.scenes.gaussians import Gaussians, colour_to_sh

HEIGHT, WIDTH = 24, 34


def cameras_of(seed: int, count: int = 1, height: int = HEIGHT, width: int = WIDTH) -> Cameras:
    rng = np.random.default_rng(seed)
    eyes = rng.normal(size=(count, 3))
    eyes = 4 * eyes / np.linalg.norm(eyes, axis=1, keepdims=True)
    intrinsics = np.array([[30.0, 0, width / 2 + 1.3], [0, 33.0, height / 2 - 0.7], [0, 0, 1]])
    return Cameras(
        np.tile(intrinsics, (count, 1, 1)), look_at(eyes, np.zeros(3), np.array([0.1, 0.2, 1])), height, width
    )


def gaussians_of(seed: int, count: int = 60, degree: int = 2) -> Gaussians:
    draw = torch.Generator().manual_seed(seed)
    return Gaussians(
        means=torch.randn(count, 3, generator=draw),
        quats=torch.randn(count, 4, generator=draw) * 3,
        log_scales=torch.randn(count, 3, generator=draw) * 0.7 - 1.5,
        logit_opacities=torch.randn(count, generator=draw) * 2,
        sh=torch.randn(count, (degree + 1) ** 2, 3, generator=draw) * 0.5,
    )


UP = np.array([0.0, 0, 1])


def ring(count: int, turn: float = 2 * np.pi, height: int = 12, width: int = 16) -> Cameras:
    """Cameras on a circle, or an arc of it, that look at (1, 2, 0.5)."""
    angles = np.linspace(0, turn, count, endpoint=turn < 6)
    eyes = np.stack([1 + 3 * np.cos(angles), 2 + 3 * np.sin(angles), np.full(count, 1.7)], axis=1)
    matrix = np.array([[20.0, 0, 8.2], [0, 21, 5.9], [0, 0, 1]])
    return Cameras(np.tile(matrix, (count, 1, 1)), look_at(eyes, np.array([1, 2, 0.5]), UP), height, width)


def dataset_of(cameras: Cameras, seed: int = 0, masks: bool = False) -> Dataset:
    rng = np.random.default_rng(seed)
    shape = (len(cameras), cameras.height, cameras.width)
    return Dataset(
        cameras,
        rng.integers(0, 256, (*shape, 3), np.uint8),
        tuple(f"images/v{k:03d}.png" for k in range(len(cameras))),
        rng.random(len(cameras)) < 0.3,
        rng.random(shape) < 0.8 if masks else None,
        Points(rng.normal(size=(7, 3)), rng.integers(0, 256, (7, 3), np.uint8)),
        np.array([[0, 1.0, 0, 2], [-1, 0, 0, 3], [0, 0, 1, 4], [0, 0, 0, 1]]),
    )


def surface(points: np.ndarray, colour: tuple[float, float, float], size: float) -> Gaussians:
    """Opaque round Gaussians at points; the lower ones are darker, as where the light comes from above."""
    count = len(points)
    light = 0.6 + 0.4 * np.clip((points[:, 2:] - points[:, 2].min()) / max(np.ptp(points[:, 2]), 1e-6), 0, 1)
    return Gaussians(
        torch.from_numpy(points).float(), torch.tensor([1.0, 0, 0, 0]).expand(count, 4),
        torch.full((count, 3), float(np.log(size))), torch.full((count,), 4.0),
        colour_to_sh(torch.from_numpy(light * np.array(colour)).float())[:, None],
    )  # fmt: skip


def ball(centre: tuple[float, float, float], colour: tuple[float, float, float], count: int = 700) -> Gaussians:
    """A hollow ball of radius 0.5."""
    k = np.arange(count) + 0.5
    z, turn = 1 - 2 * k / count, k * np.pi * (1 + 5**0.5)
    flat = np.sqrt(1 - z * z)
    return surface(0.5 * np.stack([flat * np.cos(turn), flat * np.sin(turn), z], 1) + centre, colour, 0.03)


def write_colmap(folder: Path, given_in: Dataset, model: str, parameters: list[float]) -> None:
    """Write a COLMAP project by COLMAP's own writer: binary model in sparse/0, images in images/."""
    import pycolmap
    from PIL import Image

    scene = pycolmap.Reconstruction()
    cameras = given_in.cameras
    size = {"width": cameras.width, "height": cameras.height}
    scene.add_camera_with_trivial_rig(pycolmap.Camera(model=model, params=parameters, camera_id=1, **size))
    (folder / "images").mkdir(parents=True)
    for k, view in enumerate(cameras.world_to_camera):
        name = given_in.names[k].removeprefix("images/")
        pose = pycolmap.Rigid3d(view[:3])
        scene.add_image_with_trivial_frame(pycolmap.Image(name=name, camera_id=1, image_id=k + 1), pose)
        (folder / "images" / name).parent.mkdir(exist_ok=True)
        Image.fromarray(given_in.images[k]).save(folder / "images" / name)
    assert given_in.points is not None
    for position, colour in zip(given_in.points.positions, given_in.points.colours, strict=True):
        scene.add_point3D(position, pycolmap.Track(), colour)
    (folder / "sparse" / "0").mkdir(parents=True)
    scene.write(str(folder / "sparse" / "0"))
