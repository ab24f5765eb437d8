"""Films of scenes: a smooth flight along a path or a turntable, of one scene or two with a wipe between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from v2edit.scenes.camera_paths import CameraPath
from v2edit.scenes.cameras import Cameras
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.rer import Colour, render_video

Layout = Literal["one", "side", "wipe"]


def fly_along(path: CameraPath, count: int) -> Cameras:
    """Return `count` cameras of a smooth flight along a path: positions, turns and focal lengths by splines through its
    cameras, evenly in time. A closed path is flown once around: the first camera would follow the last."""
    from scipy.interpolate import CubicSpline, PchipInterpolator
    from scipy.spatial.transform import Rotation, RotationSpline

    cameras = path.cameras
    if len(cameras) == 1:
        return cameras[np.zeros(count, int)]
    # A closed path goes on into its own beginning, at both ends, so that no end is felt.
    around = min(3, len(cameras) - 1) if path.closed else 0
    at = np.arange(-around, len(cameras) + around + path.closed)
    through = cameras[at % len(cameras)]
    times = np.linspace(0, len(cameras) - (0 if path.closed else 1), count, endpoint=not path.closed)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, 3] = CubicSpline(at, through.centres)(times)
    turns = Rotation.from_matrix(through.camera_to_world[:, :3, :3])
    poses[:, :3, :3] = RotationSpline(at, turns)(times).as_matrix()
    intrinsics = PchipInterpolator(at, through.intrinsics)(times)  # which never leaves the range of the cameras'
    return replace(cameras, intrinsics=intrinsics, camera_to_world=poses)


def framed(cameras: Cameras, height: int, width: int, whole: bool) -> Cameras:
    """Return the cameras with images of another size and square pixels: what they see is cropped to the new shape, or,
    where the `whole` of it is to be seen, extended."""
    ratios = height / cameras.height, width / cameras.width
    scale = min(ratios) if whole else max(ratios)
    intrinsics = cameras.intrinsics.copy()
    intrinsics[:, :2] *= scale
    intrinsics[:, 0, 2] += (width - scale * cameras.width) / 2
    intrinsics[:, 1, 2] += (height - scale * cameras.height) / 2
    return replace(cameras, intrinsics=intrinsics, height=height, width=width)


def render_film(
    scenes: Sequence[Gaussians], cameras: Cameras, layout: Layout, background: Colour, only: int | None = None
) -> Iterator[np.ndarray]:
    """Yield the frames of a film, uint8 [H, W, 3], or the `only` one of that number: of one scene, of two side by side,
    or of two with a line between them (the first on its left) that goes to the left edge and back."""
    for k in range(len(cameras)) if only is None else [only]:
        frames = [render_video(scene, cameras[[k]], background)[0] for scene in scenes]
        if layout == "wipe":
            place = round(cameras.width * (0.5 + 0.5 * np.cos(2 * np.pi * k / len(cameras))))
            frame = np.where(np.arange(cameras.width)[:, None] < place, *frames)
            frame[:, max(0, place - 1) : place + 1] = 255
            yield frame
        else:
            yield np.concatenate(frames, axis=1)
