"""Ray caster for primitives: exact frames, object masks and cameras of a scene.

Letters: T frames, P rays of a frame (supersampled pixels), R samples a pixel, N objects. All tensors are float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from v2edit.primitives.scene import COLOURS, FLOORS, RGB, SKIES, Object, Scene

FOV = math.radians(40.0)  # vertical; along the shorter side where the frame is upright
DISTANCE, HEIGHT, TARGET_Z = 6.0, 2.1, 0.85
LIGHT = (-0.45, -0.55, 0.70)  # towards the light, normalised below
AMBIENT, DIFFUSE, SPECULAR = 0.50, 0.55, 0.25
PATCH, PATCH_DEPTH = 1.3, 0.16  # the floor's soft pattern: side of a patch, relative depth of the dark patches
FAR = 1e4  # the distance of a ray that hits nothing


@dataclass(frozen=True)
class ClipCameras:
    """Pinhole cameras of a clip. `camera_to_world` is as in OpenGL (along -z, y up); pixel centres lie at +0.5."""

    intrinsics: np.ndarray  # float64 [3, 3]
    camera_to_world: np.ndarray  # float64 [T, 4, 4]


@dataclass(frozen=True)
class RenderedClip:
    """A clip: `frames` uint8 [T, H, W, 3]; `coverage` float32 [N, T, H, W], the share of each pixel that an object
    fills; and the cameras."""

    frames: np.ndarray
    coverage: np.ndarray
    cameras: ClipCameras


def scene_cameras(scene: Scene, frames: int, height: int, width: int) -> ClipCameras:
    """Return the cameras of a clip of this scene."""
    return orbit_cameras([(scene.azimuth_at(k, frames), HEIGHT) for k in range(frames)], height, width)


def orbit_cameras(positions: Sequence[tuple[float, float]], height: int, width: int) -> ClipCameras:
    """Return cameras at (azimuth in radians, height) around the scene that look at its centre."""
    focal = 0.5 * min(height, width) / math.tan(FOV / 2)
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    poses = np.tile(np.eye(4), (len(positions), 1, 1))
    for k, (angle, up) in enumerate(positions):
        eye = np.array([DISTANCE * math.sin(angle), -DISTANCE * math.cos(angle), up])
        backward = eye - np.array([0.0, 0.0, TARGET_Z])
        backward /= np.linalg.norm(backward)
        right = np.cross([0.0, 0.0, 1.0], backward)
        right /= np.linalg.norm(right)
        poses[k, :3, :4] = np.stack([right, np.cross(backward, right), backward, eye], axis=1)
    return ClipCameras(intrinsics, poses)


def render_clip(
    scene: Scene,
    frames: int = 9,
    height: int = 64,
    width: int = 64,
    samples: int = 2,
    cameras: ClipCameras | None = None,
) -> RenderedClip:
    """Render a clip of `frames` frames with `samples` x `samples` rays per pixel, by the scene's own cameras unless
    `cameras` (as many) are given."""
    cameras = cameras or scene_cameras(scene, frames, height, width)
    assert len(cameras.camera_to_world) == frames
    origin, rays = _rays(cameras, height, width, samples)  # [T, 1, 3], [T, P, 3]
    radiance, nearest = _background(scene, origin, rays, frames)
    owner = torch.full(nearest.shape, -1, dtype=torch.int8)
    for index, one in enumerate(scene.objects):
        foot = torch.tensor([one.position(k, frames) for k in range(frames)])[:, None, :]
        distance, normal = _intersect(one, origin - foot, rays)
        hit = distance < nearest
        nearest = torch.where(hit, distance, nearest)
        owner[hit] = index
        radiance[hit] = _shade(COLOURS[one.colour], normal[hit], rays[hit])
    pixels = radiance.view(frames, height, samples, width, samples, 3).mean((2, 4))
    owner = owner.view(frames, height, samples, width, samples)
    shares = [(owner == index).float().mean((2, 4)) for index in range(len(scene.objects))]
    coverage = torch.stack(shares) if shares else torch.zeros(0, frames, height, width)
    return RenderedClip((pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy(), coverage.numpy(), cameras)


def _rays(cameras: ClipCameras, height: int, width: int, samples: int) -> tuple[Tensor, Tensor]:
    pose = torch.from_numpy(cameras.camera_to_world).float()
    focal = float(cameras.intrinsics[0, 0])
    u = (torch.arange(width * samples) + 0.5) / samples - width / 2
    v = (torch.arange(height * samples) + 0.5) / samples - height / 2
    grid_v, grid_u = torch.meshgrid(v, u, indexing="ij")
    local = torch.stack([grid_u / focal, -grid_v / focal, -torch.ones_like(grid_u)], -1).view(-1, 3)
    local = local / local.norm(dim=-1, keepdim=True)
    return pose[:, None, :3, 3], local @ pose[:, :3, :3].transpose(1, 2)


def _background(scene: Scene, origin: Tensor, rays: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Shade sky and floor, the floor with a soft contact shadow under each object that fades as it rises."""
    up = rays[..., 2]
    zenith = torch.tensor(SKIES[scene.sky])
    horizon = torch.lerp(zenith, torch.ones(3), 0.1 if scene.sky == "dark" else 0.4)
    sky = torch.lerp(horizon, zenith, (up * 4.0).clamp(0, 1)[..., None])

    distance = torch.where(up < -1e-4, -origin[..., 2] / up.clamp(max=-1e-4), FAR)
    x, y = (origin[..., i] + distance * rays[..., i] for i in (0, 1))
    waves = (torch.sin((p + phase) * (math.pi / PATCH)) for p, phase in zip((x, y), scene.floor_phase, strict=True))
    # Far away the pattern is finer than a pixel: it fades out before it could flicker.
    near = ((14.0 - distance) / 8.0).clamp(0, 1)
    shade = 1.0 - PATCH_DEPTH * near * (0.5 + 0.5 * math.prod(waves))
    for one in scene.objects:
        foot = torch.tensor([one.position(k, frames) for k in range(frames)])
        spread = one.radius * (1.05 + 0.5 * foot[:, 2:])
        reach = ((x - foot[:, :1] - 0.25 * one.radius) ** 2 + (y - foot[:, 1:2] - 0.2 * one.radius) ** 2) / spread**2
        shade = shade * (1.0 - 0.55 / (1.0 + 2.0 * foot[:, 2:]) * torch.exp(-1.5 * reach * reach))
    haze = 0.6 * ((distance - 9.0) / 25.0).clamp(0, 1)[..., None]
    floor = torch.lerp(torch.tensor(FLOORS[scene.floor]) * shade[..., None], horizon, haze)
    return torch.where((distance < FAR)[..., None], floor, sky), distance


def _shade(colour: RGB, normal: Tensor, rays: Tensor) -> Tensor:
    """Shade by Lambert and a broad highlight of one distant light, and a little light from above."""
    light = torch.nn.functional.normalize(torch.tensor(LIGHT), dim=0)
    lambert = (normal @ light).clamp(min=0)
    from_sky = 0.12 * normal[:, 2]
    mirrored = rays - 2 * (rays * normal).sum(-1, keepdim=True) * normal
    highlight = SPECULAR * (mirrored @ light).clamp(min=0) ** 12
    return torch.tensor(colour) * (AMBIENT + from_sky + DIFFUSE * lambert)[:, None] + highlight[:, None]


def _intersect(one: Object, origin: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Intersect rays with the object at the origin: distance along each ray (FAR: missed) and surface normal."""
    r = one.radius
    if one.shape == "ball":
        return _ball(origin - torch.tensor([0.0, 0.0, r]), rays, r)
    if one.shape == "cube":
        return _box(origin, rays, 0.80 * r, 1.60 * r, one.yaw)
    if one.shape == "cylinder":
        return round_solid(origin, rays, 0.72 * r, 0.72 * r, 1.80 * r)
    assert one.shape == "cone", one.shape
    return round_solid(origin, rays, 1.0 * r, 0.0, 2.0 * r)


def _ball(origin: Tensor, rays: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    b = (origin * rays).sum(-1)
    root = b * b - (origin * origin).sum(-1) + radius * radius
    distance = torch.where(root > 0, -b - root.clamp(min=0).sqrt(), FAR)
    return distance, (origin + distance[..., None] * rays) / radius


def _box(origin: Tensor, rays: Tensor, half: float, height: float, yaw: float) -> tuple[Tensor, Tensor]:
    cos, sin = math.cos(yaw), math.sin(yaw)
    turn = torch.tensor(
        [[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]]
    )  # columns: the box's own axes in the world
    o, d = origin @ turn, rays @ turn
    d = torch.where(d.abs() < 1e-7, torch.full_like(d, 1e-7), d)
    low, high = torch.tensor([-half, -half, 0.0]), torch.tensor([half, half, height])
    near, far = torch.minimum((low - o) / d, (high - o) / d), torch.maximum((low - o) / d, (high - o) / d)
    entry, axis = near.max(-1)
    hit = (entry < far.min(-1).values) & (entry > 0)
    normal = -torch.nn.functional.one_hot(axis, 3).float() * d.sign()
    return torch.where(hit, entry, FAR), normal @ turn.T


def round_solid(origin: Tensor, rays: Tensor, foot: float, top: float, height: float) -> tuple[Tensor, Tensor]:
    """Intersect with a cylinder or a cone: the radius falls from `foot` at z = 0 to `top` at z = height."""
    slope = (top - foot) / height
    ox, oy, oz = origin.unbind(-1)
    dx, dy, dz = rays.unbind(-1)
    radius = foot + slope * oz  # of the solid at the ray's origin: x² + y² = (radius + slope t dz)²
    a = dx * dx + dy * dy - (slope * dz) ** 2
    b = ox * dx + oy * dy - radius * slope * dz
    c = ox * ox + oy * oy - radius * radius
    root = b * b - a * c
    a = torch.where(a.abs() < 1e-7, torch.full_like(a, 1e-7), a)
    roots = torch.stack([(-b - root.clamp(min=0).sqrt()) / a, (-b + root.clamp(min=0).sqrt()) / a])
    z = oz + roots * dz
    valid = (root > 0) & (roots > 0) & (z >= 0) & (z <= height)
    side = torch.where(valid, roots, FAR).min(0).values
    point = origin + side[..., None] * rays
    outward = torch.stack([point[..., 0], point[..., 1], -slope * (foot + slope * point[..., 2])], -1)
    normal = torch.nn.functional.normalize(outward, dim=-1)
    distance = side
    for level, extent, up in ((height, top, 1.0), (0.0, foot, -1.0)):
        if extent == 0.0:
            continue
        cap = (level - oz) / torch.where(dz.abs() < 1e-7, torch.full_like(dz, 1e-7), dz)
        inside = (ox + cap * dx) ** 2 + (oy + cap * dy) ** 2 <= extent * extent
        nearer = inside & (cap > 0) & (cap < distance)
        distance = torch.where(nearer, cap, distance)
        normal = torch.where(nearer[..., None], torch.tensor([0.0, 0.0, up]), normal)
    return distance, normal
