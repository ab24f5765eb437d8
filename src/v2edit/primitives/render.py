"""Ray caster for primitives: exact frames, object masks and cameras of a scene.

Letters: T frames, P rays of a frame (supersampled pixels), M rays of a part. All tensors are float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from v2edit.primitives.scene import (
    AIR_HEIGHT,
    APPROACH,
    COLOURS,
    FLOORS,
    LIGHTS,
    ORBIT,
    PAN,
    PATTERN_TONES,
    SKIES,
    Object,
    Pattern,
    Scene,
    progress,
)
from v2edit.primitives.shapes import FAR, Hits, intersect_hat, intersect_shape, nearest, round_solid

FOV = math.radians(40.0)  # vertical; along the shorter side where the frame is upright
DISTANCE, HEIGHT, TARGET_Z = 5.5, 2.1, 1.05
AMBIENT, DIFFUSE, SPECULAR = 0.46, 0.60, 0.22
SHADOW = 0.32  # the share of the diffuse light that reaches a shadow
WALL_Y, WALL_HEIGHT, POST_Y, CLOUD_Y = 5.0, 2.3, 4.5, 12.0
GOLD, SNOW, PAPER = (1.0, 0.76, 0.25), (0.93, 0.95, 0.98), (0.97, 0.96, 0.91)
NIGHT = (0.30, 0.34, 0.55)
BALLOON_RADIUS = 0.42


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
    poses = []
    for k in range(frames):
        at = progress(k, frames)
        sign = -1.0 if scene.camera.endswith("left") else 1.0
        angle = scene.azimuth + (sign * ORBIT * (at - 0.5) if scene.camera.startswith("orbit") else 0.0)
        turn = sign * PAN * (at - 0.5) if scene.camera.startswith("pan") else 0.0
        distance = DISTANCE - (APPROACH * (at - 0.25) if scene.camera == "come nearer" else 0.0)
        poses.append(camera_pose(angle, HEIGHT, distance, turn))
    return ClipCameras(intrinsics_of(height, width), np.stack(poses))


def orbit_cameras(positions: Sequence[tuple[float, float]], height: int, width: int) -> ClipCameras:
    """Return cameras at (azimuth in radians, height) around the scene that look at its centre."""
    return ClipCameras(intrinsics_of(height, width), np.stack([camera_pose(angle, up) for angle, up in positions]))


def intrinsics_of(height: int, width: int) -> np.ndarray:
    """Return the camera matrix [3, 3], in pixels."""
    focal = 0.5 * min(height, width) / math.tan(FOV / 2)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


def camera_pose(angle: float, height: float, distance: float = DISTANCE, turn: float = 0.0) -> np.ndarray:
    """Return the pose [4, 4] of a camera at an azimuth, that looks `turn` to the right of the scene's centre."""
    pose = np.eye(4)
    eye = np.array([distance * math.sin(angle), -distance * math.cos(angle), height])
    backward = eye - np.array([0.0, 0.0, TARGET_Z])
    cos, sin = math.cos(turn), math.sin(turn)  # a turn to the right is clockwise from above
    backward = np.array([cos * backward[0] + sin * backward[1], cos * backward[1] - sin * backward[0], backward[2]])
    backward /= np.linalg.norm(backward)
    right = np.cross([0.0, 0.0, 1.0], backward)
    right /= np.linalg.norm(right)
    pose[:3, :4] = np.stack([right, np.cross(backward, right), backward, eye], axis=1)
    return pose


def render_clip(
    scene: Scene,
    frames: int = 9,
    height: int = 64,
    width: int = 96,
    samples: int = 2,
    cameras: ClipCameras | None = None,
) -> RenderedClip:
    """Render a clip of `frames` frames with `samples` x `samples` rays per pixel, by the scene's own cameras unless
    `cameras` (as many) are given."""
    cameras = cameras or scene_cameras(scene, frames, height, width)
    assert len(cameras.camera_to_world) == frames
    origin, rays, frame = _rays(cameras, height, width, samples)
    radiance, owner = _Renderer(scene, frames).render(origin, rays, frame)
    shape = (frames, height * samples, width * samples)
    if scene.style == "pencil":
        radiance = _draw_in_pencil(radiance.view(*shape, 3), owner.view(shape))
    pixels = radiance.view(frames, height, samples, width, samples, 3).mean((2, 4))
    owner = owner.view(frames, height, samples, width, samples)
    coverage = torch.zeros(len(scene.objects) + (scene.balloon is not None), frames, height, width)
    for index, share in enumerate(coverage):
        share[:] = (owner == index).float().mean((2, 4))
    return RenderedClip((pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy(), coverage.numpy(), cameras)


def _rays(cameras: ClipCameras, height: int, width: int, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return origins and unit directions of all rays [T * P, 3], and the frame of each [T * P]."""
    pose = torch.from_numpy(cameras.camera_to_world).float()
    focal = float(cameras.intrinsics[0, 0])
    u = (torch.arange(width * samples) + 0.5) / samples - width / 2
    v = (torch.arange(height * samples) + 0.5) / samples - height / 2
    grid_v, grid_u = torch.meshgrid(v, u, indexing="ij")
    local = torch.stack([grid_u / focal, -grid_v / focal, -torch.ones_like(grid_u)], -1).view(-1, 3)
    rays = torch.nn.functional.normalize(local, dim=-1) @ pose[:, :3, :3].transpose(1, 2)
    frame = torch.arange(len(pose)).repeat_interleave(len(local))
    return pose[frame, :3, 3], rays.reshape(-1, 3), frame


class _Renderer:
    """The parts of a scene that rays can meet, at every frame of a clip."""

    def __init__(self, scene: Scene, frames: int) -> None:
        self.scene = scene
        self.solids = [o for o in scene.objects for _ in o.offsets]
        self.owners = [index for index, o in enumerate(scene.objects) for _ in o.offsets]
        self.feet = [
            torch.tensor([o.position(k, frames) for k in range(frames)]) + torch.tensor([offset, 0.0, 0.0])
            for o in scene.objects
            for offset in o.offsets
        ]
        if (balloon := scene.balloon) is not None:
            # A ball whose foot is in the air.
            self.solids.append(Object("ball", balloon.colour, "small", balloon.place, dx=balloon.dx))
            self.owners.append(len(scene.objects))
            x = self.solids[-1].position(0, frames)[0]
            self.feet.append(torch.tensor([[x, 0.4, AIR_HEIGHT - BALLOON_RADIUS]]).expand(frames, 3))
        elevation, azimuth = scene.light_elevation, scene.light_azimuth
        self.light = torch.tensor(
            [math.sin(azimuth) * math.cos(elevation), -math.cos(azimuth) * math.cos(elevation), math.sin(elevation)]
        )
        self.tint = torch.tensor(LIGHTS[scene.light])
        self.zenith = torch.tensor(SKIES[scene.sky])
        self.horizon = torch.lerp(self.zenith, torch.ones(3), 0.1 if scene.sky == "dark" else 0.4)
        if scene.style == "snow":
            self.zenith, self.horizon = (torch.lerp(c, torch.tensor(SNOW), 0.35) for c in (self.zenith, self.horizon))

    def render(self, origin: Tensor, rays: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Return the radiance [R, 3] and the object of each ray [R], -1 for the background."""
        radiance, distance = self._background(origin, rays, frame)
        owner = torch.full((len(rays),), -1, dtype=torch.int8)
        glass: list[tuple[int, Tensor, Hits]] = []
        for index, solid in enumerate(self.solids):
            part, (t, normal, local, is_hat) = self._meet(index, origin, rays, frame)
            front = t < distance[part]
            part, t, normal, local, is_hat = part[front], t[front], normal[front], local[front], is_hat[front]
            if solid.material == "glass":
                glass.append((index, part, (t, normal)))
                continue
            distance[part], owner[part] = t, self.owners[index]
            point = origin[part] + t[:, None] * rays[part]
            colour = self._surface(index, local, normal, rays[part], is_hat)
            lit = self._lit(point, normal, frame[part], index)
            radiance[part] = self._shade(colour, normal, rays[part], lit)
        for index, part, (t, normal) in sorted(glass, key=lambda g: -float(g[2][0].sum()) / max(1, len(g[1]))):
            front = t < distance[part]
            part, t, normal = part[front], t[front], normal[front]
            owner[part] = self.owners[index]
            facing = (normal * rays[part]).sum(-1).abs()[:, None]
            rim = 0.25 + 0.55 * (1 - facing) ** 2
            body = torch.tensor(COLOURS[self.solids[index].colour]) * 0.35 + 0.6
            shine = self._shade(torch.zeros(len(part), 3), normal, rays[part], torch.ones(len(part)))
            radiance[part] = torch.lerp(radiance[part] * body, torch.ones(3), rim * 0.6) + 2 * shine
        if self.scene.style == "night":
            radiance = radiance * torch.tensor(NIGHT)
        return radiance, owner

    def _meet(self, index: int, origin: Tensor, rays: Tensor, frame: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return which rays come near a solid [M], and of these distance, normal, local point and whether it is the
        hat; the local point is in the solid's own axes, its foot at the origin."""
        solid, foot = self.solids[index], self.feet[index]
        is_balloon = self.owners[index] == len(self.scene.objects)
        radius = BALLOON_RADIUS if is_balloon else solid.radius
        height = 2 * radius if is_balloon else solid.height
        top = height + (0.75 * radius if solid.hat else 0.0)
        centre = foot[frame] + torch.tensor([0.0, 0.0, top / 2])
        bound = math.hypot(top / 2, 1.15 * radius) + 1e-3
        along = ((centre - origin) * rays).sum(-1)
        apart = (centre - origin).square().sum(-1) - along.square()
        part = ((apart < bound * bound) & (along > -bound)).nonzero()[:, 0]
        cos, sin = math.cos(solid.yaw), math.sin(solid.yaw)
        turn = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])  # columns: the solid's own axes
        o, d = (origin[part] - foot[frame[part]]) @ turn, rays[part] @ turn
        t, normal = intersect_shape(solid.shape, radius, o, d)
        is_hat = torch.zeros(len(part), dtype=torch.bool)
        if solid.hat:
            hat = intersect_hat(radius, height, solid.shape, o, d)
            is_hat = hat[0] < t
            t, normal = nearest((t, normal), hat)
        return part, (t, normal @ turn.T, o + t[:, None] * d, is_hat)

    def _surface(self, index: int, local: Tensor, normal: Tensor, rays: Tensor, is_hat: Tensor) -> Tensor:
        """Return the colour of surface points [M, 3]."""
        solid = self.solids[index]
        colour = torch.tensor(COLOURS[solid.colour]).expand(len(local), 3)
        if solid.material == "gold":
            mirrored = rays - 2 * (rays * normal).sum(-1, keepdim=True) * normal
            around = torch.lerp(
                torch.tensor(FLOORS[self.scene.floor]), self.zenith, (mirrored[:, 2:] * 2 + 0.5).clamp(0, 1)
            )
            colour = torch.tensor(GOLD) * (0.35 + 0.85 * around)
        elif solid.pattern.kind != "plain":
            tone = torch.tensor(PATTERN_TONES[solid.pattern.tone])
            covered = pattern_mask(solid.pattern, local, solid.radius, solid.height)
            colour = torch.where(covered[:, None], tone, colour)
        if solid.hat:
            colour = torch.where(is_hat[:, None], torch.tensor(COLOURS[solid.hat]), colour)
        if self.scene.style == "snow":
            colour = torch.lerp(colour, torch.tensor(SNOW), ((normal[:, 2:] - 0.45) * 6).clamp(0, 1))
        return colour

    def _lit(self, point: Tensor, normal: Tensor, frame: Tensor, owner: int) -> Tensor:
        """Return the share of the light that reaches points [M]: less where another solid is in the way."""
        lit = torch.ones(len(point))
        rays, start = self.light.expand_as(point), point + 1e-3 * normal
        for index in range(len(self.solids)):
            if index != owner:
                part, (t, *_) = self._meet(index, start, rays, frame)
                shade = 0.65 if self.solids[index].material == "glass" else SHADOW
                lit[part] = torch.where(t < FAR, lit[part] * shade, lit[part])
        return lit.clamp(min=SHADOW)

    def _shade(self, colour: Tensor, normal: Tensor, rays: Tensor, lit: Tensor) -> Tensor:
        """Shade by Lambert and a broad highlight of the light, and a little light from above."""
        lambert = (normal @ self.light).clamp(min=0) * lit
        mirrored = rays - 2 * (rays * normal).sum(-1, keepdim=True) * normal
        highlight = SPECULAR * (mirrored @ self.light).clamp(min=0) ** 12 * lit
        ambient = AMBIENT + 0.12 * normal[:, 2]
        return colour * (ambient[:, None] + DIFFUSE * lambert[:, None] * self.tint) + highlight[:, None] * self.tint

    def _background(self, origin: Tensor, rays: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Return radiance [R, 3] and distance [R] of sky, floor and backdrop."""
        up = rays[:, 2]
        radiance = torch.lerp(self.horizon, self.zenith, (up * 4.0).clamp(0, 1)[:, None])
        if self.scene.backdrop.kind == "clouds":
            radiance = self._add_clouds(radiance, origin, rays)
        distance = torch.where(up < -1e-4, -origin[:, 2] / up.clamp(max=-1e-4), FAR)
        part = (distance < FAR).nonzero()[:, 0]
        t = distance[part]
        point = origin[part] + t[:, None] * rays[part]
        normal = torch.tensor([0.0, 0.0, 1.0]).expand_as(point)
        near = ((15.0 - t) / 8.0).clamp(0, 1)  # Far away the pattern is finer than a pixel: it fades out.
        colour = torch.tensor(FLOORS[self.scene.floor]) * self._floor_pattern(point, near)[:, None]
        if self.scene.style == "snow":
            colour = torch.lerp(colour, torch.tensor(SNOW), 0.82)
        lit = self._lit(point, normal, frame[part], -1)
        floor = colour * (AMBIENT + 0.12 + DIFFUSE * (self.light[2] * lit)[:, None] * self.tint)
        radiance[part] = torch.lerp(floor, self.horizon, 0.6 * ((t - 9.0) / 25.0).clamp(0, 1)[:, None])
        if self.scene.backdrop.kind == "wall":
            self._add_wall(radiance, distance, origin, rays)
        elif self.scene.backdrop.kind == "posts":
            self._add_posts(radiance, distance, origin, rays)
        return radiance, distance

    def _floor_pattern(self, point: Tensor, near: Tensor) -> Tensor:
        """Return the relative brightness [M] that the floor's pattern gives to points."""
        scene = self.scene
        cos, sin = math.cos(scene.floor_angle), math.sin(scene.floor_angle)
        x = cos * point[:, 0] + sin * point[:, 1] + scene.floor_phase[0]
        y = cos * point[:, 1] - sin * point[:, 0] + scene.floor_phase[1]
        if scene.floor_pattern == "patches":
            dark = 0.18 * (0.5 + 0.5 * torch.sin(x * math.pi / 1.3) * torch.sin(y * math.pi / 1.3))
        elif scene.floor_pattern == "tiles":
            dark = 0.30 * ((torch.remainder(x, 1.2) < 0.14) | (torch.remainder(y, 1.2) < 0.14)).float()
        elif scene.floor_pattern == "planks":
            dark = 0.22 * (torch.remainder(x, 1.3) < 0.65).float()
        else:
            dark = torch.zeros_like(x)
        return 1.0 - near * dark

    def _add_clouds(self, radiance: Tensor, origin: Tensor, rays: Tensor) -> Tensor:
        ahead = rays[:, 1].clamp(min=1e-3)
        t = (CLOUD_Y - origin[:, 1]) / ahead
        x, z = (origin[:, k] + t * rays[:, k] for k in (0, 2))
        white = torch.lerp(self.zenith, torch.ones(3), 0.35 if self.scene.sky == "dark" else 0.85)
        for place, size in self.scene.backdrop.items:
            reach = ((x - 1.5 * place) / (1.6 * size)) ** 2 + (
                (z - 3.6 - 0.5 * math.sin(5 * place)) / (0.55 * size)
            ) ** 2
            radiance = torch.lerp(radiance, white, torch.exp(-reach.square())[:, None])
        return radiance

    def _add_wall(self, radiance: Tensor, distance: Tensor, origin: Tensor, rays: Tensor) -> None:
        t = (WALL_Y - origin[:, 1]) / rays[:, 1].clamp(min=1e-3)
        x, z = (origin[:, k] + t * rays[:, k] for k in (0, 2))
        wall = (t > 0) & (t < distance) & (z < WALL_HEIGHT)
        for place, size in self.scene.backdrop.items:
            wall &= ~(((x - place).abs() < 0.6 * size) & ((z - 1.35).abs() < 0.5 * size))
        tone = self.scene.backdrop.tone * torch.tensor([0.95, 0.90, 0.84])
        front = max(0.0, -float(self.light[1]))
        radiance[wall] = tone * (AMBIENT + DIFFUSE * front * self.tint)
        distance[wall] = t[wall]

    def _add_posts(self, radiance: Tensor, distance: Tensor, origin: Tensor, rays: Tensor) -> None:
        tone = self.scene.backdrop.tone * torch.tensor([0.85, 0.75, 0.62])
        for place, size in self.scene.backdrop.items:
            part = (rays[:, 1] > 0.2).nonzero()[:, 0]
            t, normal = round_solid(
                origin[part] - torch.tensor([place, POST_Y, 0.0]), rays[part], 0.2 * size, 0.2 * size, 3.0 * size
            )
            front = t < distance[part]
            part, t, normal = part[front], t[front], normal[front]
            radiance[part] = self._shade(tone.expand(len(part), 3), normal, rays[part], torch.ones(len(part)))
            distance[part] = t


def pattern_mask(pattern: Pattern, local: Tensor, radius: float, height: float) -> Tensor:
    """Return which surface points [M] have the pattern's tone; the pattern lies in the object's front plane."""
    cos, sin = math.cos(pattern.angle), math.sin(pattern.angle)
    x, z = local[:, 0], local[:, 2] - height / 2
    u, v = cos * x + sin * z, cos * z - sin * x
    shift = pattern.phase
    if pattern.kind == "stripes":
        return torch.remainder(u / 0.46 + shift, 1.0) < 0.42
    if pattern.kind == "checks":
        return (torch.remainder(u / 0.8 + shift, 1.0) < 0.5) ^ (torch.remainder(v / 0.8 + shift, 1.0) < 0.5)
    if pattern.kind == "dots":
        du, dv = (torch.remainder(w / 0.52 + shift, 1.0) - 0.5 for w in (u, v))
        return torch.hypot(du, dv) < 0.30
    assert pattern.kind == "decal", pattern.kind
    centre_x, centre_z = (0.25 * radius * f for f in (cos, sin))
    return torch.hypot(x - centre_x, z - centre_z) < 0.42 * radius


def _draw_in_pencil(radiance: Tensor, owner: Tensor) -> Tensor:
    """Return the frames [T, H, W, 3] as drawn in pencil: gray tones on paper, and lines where brightness or owner
    jumps."""
    tone = (radiance.clamp(0, 1) @ torch.tensor([0.30, 0.59, 0.11])).clamp(0, 1)
    line = torch.zeros_like(tone)
    for dim in (1, 2):
        jump = (tone.diff(dim=dim).abs() > 0.10) | (owner.diff(dim=dim) != 0)
        before, after = line.narrow(dim, 0, jump.shape[dim]), line.narrow(dim, 1, jump.shape[dim])
        before.masked_fill_(jump, 1.0)
        after.masked_fill_(jump, 1.0)
    gray = 0.45 + 0.52 * tone
    return torch.tensor(PAPER) * torch.lerp(gray, torch.full_like(gray, 0.22), line)[..., None]
