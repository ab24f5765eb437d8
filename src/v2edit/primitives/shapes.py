"""Where rays meet shapes: distances and normals, in the object's own coordinates.

Every function takes ray origins and unit directions float32 [M, 3] with the object's foot at the origin, and returns
distances [M] (FAR where the ray misses) and unit normals [M, 3].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

FAR = 1e4  # the distance of a ray that hits nothing
Hits = tuple[Tensor, Tensor]


def intersect_shape(shape: str, radius: float, origin: Tensor, rays: Tensor) -> Hits:
    """Intersect rays with a shape of a radius that stands at the origin."""
    r = radius
    if shape == "ball":
        return ball(origin - torch.tensor([0.0, 0.0, r]), rays, r)
    if shape == "cube":
        return box(origin, rays, 0.80 * r, 1.60 * r)
    if shape == "cylinder":
        return round_solid(origin, rays, 0.72 * r, 0.72 * r, 1.80 * r)
    if shape == "cone":
        return round_solid(origin, rays, 1.0 * r, 0.0, 2.0 * r)
    if shape == "tower":
        roof = round_solid(origin - torch.tensor([0.0, 0.0, 2.1 * r]), rays, 0.75 * r, 0.0, 0.9 * r)
        return nearest(box(origin, rays, 0.48 * r, 2.1 * r), roof)
    centre = torch.tensor([0.0, 0.0, r])
    if shape == "ring":
        return trace(lambda p: ring_distance(p, 0.72 * r, 0.28 * r), origin - centre, rays, 1.1 * r)
    assert shape == "star", shape
    return trace(lambda p: star_distance(p, 1.12 * r, 0.55 * r, 0.26 * r), origin - centre, rays, 1.25 * r)


def intersect_hat(radius: float, height: float, shape: str, origin: Tensor, rays: Tensor) -> Hits:
    """Intersect rays with the hat on top of a shape: a brim and a crown."""
    top = {"cone": 0.78, "tower": 0.86, "star": 0.94, "ball": 0.95}.get(shape, 1.0) * height
    brim = round_solid(origin - torch.tensor([0.0, 0.0, top]), rays, 0.68 * radius, 0.68 * radius, 0.14 * radius)
    crown = round_solid(origin - torch.tensor([0.0, 0.0, top]), rays, 0.42 * radius, 0.36 * radius, 0.72 * radius)
    return nearest(brim, crown)


def nearest(a: Hits, b: Hits) -> Hits:
    """Return the nearer of two hits of each ray."""
    first = a[0] <= b[0]
    return torch.where(first, a[0], b[0]), torch.where(first[:, None], a[1], b[1])


def ball(origin: Tensor, rays: Tensor, radius: float) -> Hits:
    b = (origin * rays).sum(-1)
    root = b * b - (origin * origin).sum(-1) + radius * radius
    distance = -b - root.clamp(min=0).sqrt()
    distance = torch.where((root > 0) & (distance > 0), distance, FAR)
    return distance, (origin + distance[..., None] * rays) / radius


def box(origin: Tensor, rays: Tensor, half: float, height: float) -> Hits:
    d = torch.where(rays.abs() < 1e-7, torch.full_like(rays, 1e-7), rays)
    low, high = torch.tensor([-half, -half, 0.0]), torch.tensor([half, half, height])
    to_low, to_high = (low - origin) / d, (high - origin) / d
    entry, axis = torch.minimum(to_low, to_high).max(-1)
    hit = (entry < torch.maximum(to_low, to_high).min(-1).values) & (entry > 0)
    return torch.where(hit, entry, FAR), -torch.nn.functional.one_hot(axis, 3).float() * d.sign()


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


def trace(distance_to: Callable[[Tensor], Tensor], origin: Tensor, rays: Tensor, bound: float, steps: int = 28) -> Hits:
    """Intersect by sphere tracing (Hart 1996) within a bounding ball around the origin; normals by differences."""
    along = (origin * rays).sum(-1)
    root = along * along - (origin * origin).sum(-1) + bound * bound
    part = ((root > 0) & (root.clamp(min=0).sqrt() > along)).nonzero()[:, 0]
    distance, normal = torch.full((len(rays),), FAR), torch.zeros_like(rays)
    origin, rays, half, along = origin[part], rays[part], root[part].sqrt(), along[part]
    t = (-along - half).clamp(min=0)
    for _ in range(steps):
        t = t + distance_to(origin + t[:, None] * rays)
    point = origin + t[:, None] * rays
    hit = (t < half - along) & (distance_to(point) < 4e-3 * bound)
    part, point = part[hit], point[hit]
    distance[part] = t[hit]
    moves = torch.eye(3) * (1e-3 * bound)
    gradient = torch.stack([distance_to(point + move) - distance_to(point - move) for move in moves], -1)
    normal[part] = torch.nn.functional.normalize(gradient, dim=-1)
    return distance, normal


def ring_distance(p: Tensor, major: float, minor: float) -> Tensor:
    """Return the distance to a torus that stands upright, its axis along y."""
    around = torch.hypot(p[..., 0], p[..., 2]) - major
    return torch.hypot(around, p[..., 1]) - minor


def star_distance(p: Tensor, outer: float, inner: float, half_depth: float) -> Tensor:
    """Return the distance to a star of five points in the xz plane, extruded along y."""
    # Folded into one sector of 36 degrees between a tip, which is up, and a notch (Quilez, "2D distance functions").
    cos, sin = math.cos(math.pi / 5), math.sin(math.pi / 5)
    x, y = p[..., 0].abs(), p[..., 2]
    for kx, ky in ((cos, -sin), (-cos, -sin)):
        beyond = 2 * (kx * x + ky * y).clamp(min=0)
        x, y = x - kx * beyond, y - ky * beyond
    x, y = x.abs(), y - outer
    ex, ey = inner * sin, inner * cos - outer
    along = ((x * ex + y * ey) / (ex * ex + ey * ey)).clamp(0, 1)
    flat = torch.hypot(x - along * ex, y - along * ey) * torch.sign(y * ex - x * ey)
    deep = p[..., 1].abs() - half_depth
    outside = torch.hypot(flat.clamp(min=0), deep.clamp(min=0))
    return torch.maximum(flat, deep).clamp(max=0) + outside
