"""Scenes of primitives: objects, floors, skies, motions and cameras, sampled from a seed.

World axes: x to the right, y away from the viewer, z up; the floor is z = 0. Lengths are in world units (a big
object is 1.6 wide), angles in radians, time in seconds at 8 frames a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

RGB = tuple[float, float, float]
COLOURS: dict[str, RGB] = {
    "red": (0.85, 0.10, 0.10), "orange": (0.98, 0.50, 0.05), "yellow": (0.95, 0.88, 0.15),
    "green": (0.12, 0.65, 0.18), "blue": (0.12, 0.25, 0.90), "purple": (0.58, 0.15, 0.78),
}  # fmt: skip
FLOORS: dict[str, RGB] = {
    "gray": (0.55, 0.55, 0.57), "white": (0.88, 0.88, 0.86),
    "brown": (0.47, 0.32, 0.20), "teal": (0.15, 0.45, 0.45),
}  # fmt: skip
SKIES: dict[str, RGB] = {
    "blue": (0.45, 0.68, 0.95), "pink": (0.96, 0.66, 0.76),
    "golden": (0.96, 0.80, 0.45), "dark": (0.08, 0.09, 0.16),
}  # fmt: skip
SHAPES = ("ball", "cube", "cone", "cylinder")
SIZES = {"big": 0.80, "small": 0.48}  # radius of the ball; the other shapes fill about the same box
PLACES = {"left": -1.05, "middle": 0.0, "right": 1.05}  # x of the object's centre
MOTIONS = ("stay", "slide left", "slide right", "hop")
CAMERAS = ("still", "orbit left", "orbit right")

FPS = 8
SLIDE = 0.8  # how far a sliding object travels over the whole clip
HOP_HEIGHT, HOP_SECONDS = 0.7, 1.0
ORBIT = math.radians(36.0)  # how far an orbiting camera turns over the whole clip


@dataclass(frozen=True)
class Object:
    """A primitive on the floor. `dx`, `dy` and `yaw` are its jitter, which no prompt mentions."""

    shape: str
    colour: str
    size: str
    place: str
    motion: str = "stay"
    dx: float = 0.0
    dy: float = 0.0
    yaw: float = 0.6

    @property
    def radius(self) -> float:
        return SIZES[self.size]

    def position(self, frame: int, frames: int) -> tuple[float, float, float]:
        """Return the position (x, y, z) of the centre of its foot at a frame."""
        x, z = PLACES[self.place] + self.dx, 0.0
        if self.motion.startswith("slide"):
            sign = 1.0 if self.motion == "slide right" else -1.0
            x += sign * SLIDE * ((frame / (frames - 1) if frames > 1 else 0.5) - 0.5)
        elif self.motion == "hop":
            z = HOP_HEIGHT * abs(math.sin(math.pi * frame / FPS / HOP_SECONDS))
        return x, self.dy, z


@dataclass(frozen=True)
class Scene:
    """A scene to render. Objects are ordered from left to right."""

    objects: tuple[Object, ...]
    floor: str
    sky: str
    camera: str = "still"
    azimuth: float = 0.0
    floor_phase: tuple[float, float] = (0.0, 0.0)

    def with_object(self, index: int, **changes: object) -> Scene:
        """Return the scene with fields of one object replaced."""
        objects = list(self.objects)
        objects[index] = replace(objects[index], **changes)  # pyright: ignore[reportArgumentType]
        return replace(self, objects=tuple(objects))

    def azimuth_at(self, frame: int, frames: int) -> float:
        """Return the camera's angle around the vertical axis at a frame (0: looking along +y)."""
        if self.camera == "still":
            return self.azimuth
        sign = 1.0 if self.camera == "orbit right" else -1.0
        return self.azimuth + sign * ORBIT * ((frame / (frames - 1) if frames > 1 else 0.5) - 0.5)


def sample_object(rng: Random, place: str, colours: list[str], motion: str | None = None) -> Object:
    """Sample an object at a place, its colour from `colours`."""
    return Object(
        shape=rng.choice(SHAPES),
        colour=rng.choice(colours),
        size=rng.choice(tuple(SIZES)),
        place=place,
        motion=motion or rng.choice(MOTIONS),
        dx=rng.uniform(-0.08, 0.08),
        dy=rng.uniform(-0.25, 0.25),
        yaw=rng.uniform(0.3, 0.9),
    )


def sample_scene(rng: Random, count: int | None = None) -> Scene:
    """Sample a scene of one or two objects (`count` fixes the number). Two never share a colour, so that an instruction
    can name one, and never slide towards or away from each other, so that they do not collide."""
    places = rng.choice((["left"], ["middle"], ["right"])) if (count or rng.choice((1, 2))) == 1 else ["left", "right"]
    objects: list[Object] = []
    for place in places:
        free = [c for c in COLOURS if all(c != o.colour for o in objects)]
        new = sample_object(rng, place, free)
        if any({o.motion, new.motion} == {"slide left", "slide right"} for o in objects):
            new = replace(new, motion=objects[0].motion)
        objects.append(new)
    return Scene(
        objects=tuple(objects),
        floor=rng.choice(tuple(FLOORS)),
        sky=rng.choice(tuple(SKIES)),
        camera=rng.choice(CAMERAS),
        azimuth=rng.uniform(-0.2, 0.2),
        floor_phase=(rng.uniform(0, 2), rng.uniform(0, 2)),
    )
