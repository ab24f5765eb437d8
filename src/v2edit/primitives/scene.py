"""Scenes of primitives: what stands where, how it looks, moves and is lit, sampled from a seed.

World axes: x to the right, y away from the viewer, z up; the floor is z = 0. Lengths are in world units (a big
object is 1.6 wide), angles in radians, time in seconds at 8 frames a second. Fields marked "never captioned" are the
details that only the video knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from random import Random

RGB = tuple[float, float, float]
COLOURS: dict[str, RGB] = {
    "red": (0.85, 0.10, 0.10), "orange": (0.98, 0.50, 0.05), "yellow": (0.95, 0.88, 0.15),
    "green": (0.12, 0.65, 0.18), "blue": (0.12, 0.25, 0.90), "purple": (0.58, 0.15, 0.78),
}  # fmt: skip
FLOORS: dict[str, RGB] = {
    "gray": (0.55, 0.55, 0.57), "white": (0.86, 0.86, 0.84),
    "brown": (0.47, 0.32, 0.20), "teal": (0.15, 0.45, 0.45),
}  # fmt: skip
SKIES: dict[str, RGB] = {
    "blue": (0.45, 0.68, 0.95), "pink": (0.96, 0.66, 0.76),
    "golden": (0.96, 0.80, 0.45), "dark": (0.08, 0.09, 0.16),
}  # fmt: skip
LIGHTS: dict[str, RGB] = {"white": (1.0, 1.0, 1.0), "warm": (1.12, 0.95, 0.72), "cool": (0.80, 0.95, 1.18)}
SHAPES = ("ball", "cube", "cone", "cylinder", "tower", "ring", "star")
MATERIALS = ("matt", "gold", "glass")
SIZES = {"big": 0.80, "small": 0.52}  # radius of the ball; the other shapes fill about the same box
PLACES = {"left": -1.55, "middle": 0.0, "right": 1.55}  # x of the object's centre
ROWS = {"front": -0.7, "back": 1.5}  # y of the object's centre
MOTIONS = ("stay", "slide left", "slide right", "hop")
CAMERAS = ("still", "orbit left", "orbit right", "pan left", "pan right", "come nearer")
STYLES = ("photo", "pencil", "night", "snow")

# Never captioned.
PATTERNS = ("plain", "stripes", "checks", "dots", "decal")
PATTERN_TONES: dict[str, RGB] = {"white": (0.95, 0.95, 0.92), "black": (0.10, 0.10, 0.12)}
FLOOR_PATTERNS = ("plain", "patches", "tiles", "planks")
BACKDROPS = ("open", "wall", "posts", "clouds")

FPS = 8
SLIDE = 0.8  # how far a sliding object travels over the whole clip
HOP_HEIGHT, HOP_SECONDS = 0.7, 1.0
ORBIT, PAN, APPROACH = math.radians(30.0), math.radians(14.0), 1.3  # over the whole clip
COPY_SCALE = 0.5  # of each of three
HEIGHTS = {"ball": 2.0, "cube": 1.6, "cone": 2.0, "cylinder": 1.8, "tower": 3.0, "ring": 2.0, "star": 2.0}  # in radii
AIR_HEIGHT = 2.35  # z of the centre of a balloon


@dataclass(frozen=True)
class Pattern:
    """The pattern on an object, never captioned: its kind, tone, angle in the object's front plane and phase."""

    kind: str = "plain"
    tone: str = "white"
    angle: float = 0.0
    phase: float = 0.0


@dataclass(frozen=True)
class Object:
    """An object on the floor, or three little ones side by side (`copies`). `hat` is the colour of the hat on top of
    it, None for none. `dx`, `dy` and `yaw` are its jitter, which no caption mentions."""

    shape: str
    colour: str
    size: str
    place: str
    row: str = "front"
    motion: str = "stay"
    material: str = "matt"
    hat: str | None = None
    copies: int = 1
    pattern: Pattern = Pattern()
    dx: float = 0.0
    dy: float = 0.0
    yaw: float = 0.6

    @property
    def radius(self) -> float:
        return SIZES[self.size] * (1.0 if self.copies == 1 else COPY_SCALE)

    @property
    def offsets(self) -> tuple[float, ...]:
        """Where the copies stand beside the object's place, along x."""
        return (0.0,) if self.copies == 1 else (-1.75 * self.radius, 0.0, 1.75 * self.radius)

    @property
    def height(self) -> float:
        return HEIGHTS[self.shape] * self.radius

    def position(self, frame: int, frames: int) -> tuple[float, float, float]:
        """Return the position (x, y, z) of the centre of its foot at a frame."""
        x, z = PLACES[self.place] + self.dx, 0.0
        if self.motion.startswith("slide"):
            sign = 1.0 if self.motion == "slide right" else -1.0
            x += sign * SLIDE * (progress(frame, frames) - 0.5)
        elif self.motion == "hop":
            z = HOP_HEIGHT * abs(math.sin(math.pi * frame / FPS / HOP_SECONDS))
        return x, ROWS[self.row] + self.dy, z


@dataclass(frozen=True)
class Balloon:
    """A balloon in the air above a place, still."""

    colour: str
    place: str
    dx: float = 0.0


@dataclass(frozen=True)
class Backdrop:
    """What stands far behind or in the sky, never captioned. `items` are x and size of each window, post or cloud."""

    kind: str = "open"
    tone: float = 0.6  # brightness of a wall or of posts
    items: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Scene:
    """A scene to render. Objects are ordered from left to right, and from front to back at one place."""

    objects: tuple[Object, ...]
    floor: str
    sky: str
    camera: str = "still"
    light: str = "white"
    style: str = "photo"
    balloon: Balloon | None = None
    floor_pattern: str = "plain"  # never captioned, as all below
    floor_angle: float = 0.0
    floor_phase: tuple[float, float] = (0.0, 0.0)
    backdrop: Backdrop = field(default_factory=Backdrop)
    light_azimuth: float = -0.7  # of the direction towards the light; 0: from behind the viewer, positive: right
    light_elevation: float = 0.9
    azimuth: float = 0.0

    def with_object(self, index: int, **changes: object) -> Scene:
        """Return the scene with fields of one object replaced, its objects in order."""
        objects = list(self.objects)
        objects[index] = replace(objects[index], **changes)  # pyright: ignore[reportArgumentType]
        return self.with_objects(objects)

    def with_objects(self, objects: list[Object]) -> Scene:
        """Return the scene with other objects, put in order."""
        return replace(self, objects=tuple(sorted(objects, key=slot_order)))


def slot_order(obj: Object) -> tuple[float, float]:
    """Return the key by which objects are ordered: from left to right, then from front to back."""
    return PLACES[obj.place], ROWS[obj.row]


def progress(frame: int, frames: int) -> float:
    """Return how far a clip is at a frame, 0 to 1 (one frame: the middle)."""
    return frame / (frames - 1) if frames > 1 else 0.5


def sample_pattern(rng: Random, colour: str) -> Pattern:
    """Sample a pattern that shows on a colour; six of ten objects have one."""
    kind = "plain" if rng.random() < 0.4 else rng.choice(PATTERNS[1:])
    tone = "black" if colour in ("yellow", "orange") else rng.choice(tuple(PATTERN_TONES))
    return Pattern(kind, tone, rng.uniform(0, math.pi), rng.random())


def sample_object(rng: Random, place: str, row: str, motion: str | None = None, material: str | None = None) -> Object:
    """Sample an object for a place and a row."""
    colour = rng.choice(tuple(COLOURS))
    if material is None:
        material = "matt" if rng.random() < 0.84 else rng.choice(MATERIALS[1:])
    return Object(
        shape=rng.choice(SHAPES),
        colour=colour,
        size=rng.choice(tuple(SIZES)),
        place=place,
        row=row,
        motion=motion or rng.choice(MOTIONS),
        material=material,
        hat=rng.choice(tuple(COLOURS)) if rng.random() < 0.12 else None,
        pattern=sample_pattern(rng, colour) if material == "matt" else Pattern(),
        dx=rng.uniform(-0.12, 0.12),
        dy=rng.uniform(-0.2, 0.2),
        yaw=rng.uniform(-0.6, 0.6),
    )


def sample_backdrop(rng: Random) -> Backdrop:
    """Sample a backdrop: nothing, a wall with windows, posts, or clouds."""
    kind = rng.choice(BACKDROPS)
    count = {"open": 0, "wall": rng.randint(1, 3), "posts": rng.randint(2, 4), "clouds": rng.randint(2, 4)}[kind]
    width = 10.0 / max(count, 1)
    items = tuple(
        (-5.0 + width * (k + 0.5) + rng.uniform(-0.25, 0.25) * width, rng.uniform(0.6, 1.0)) for k in range(count)
    )
    return Backdrop(kind, rng.uniform(0.3, 0.85), items)


def sample_scene(rng: Random, count: int | None = None, style: str | None = None) -> Scene:
    """Sample a scene of one to four objects (`count` fixes the number). No two of one shape share a colour, so that an
    instruction can name one, and neighbours in a row do not slide towards each other."""
    slots = [(place, row) for place in PLACES for row in ROWS]
    count = count or rng.choices((1, 2, 3, 4), (3, 4, 3, 2))[0]
    objects: list[Object] = []
    for place, row in rng.sample(slots, count):
        new = sample_object(rng, place, row)
        while any((o.shape, o.colour) == (new.shape, new.colour) for o in objects):
            new = replace(new, colour=rng.choice(tuple(COLOURS)))
        objects.append(new)
    for row in ROWS:  # All that slide in a row go the same way.
        sliding = [o.motion for o in objects if o.row == row and o.motion.startswith("slide")]
        if sliding:
            objects = [
                replace(o, motion=sliding[0]) if o.row == row and o.motion.startswith("slide") else o for o in objects
            ]
    for k, obj in enumerate(objects):  # Three side by side need a row for themselves.
        if sum(o.row == obj.row for o in objects) == 1 and rng.random() < 0.25:
            objects[k] = replace(obj, copies=3, size="big")
    if style is None:
        style = "photo" if rng.random() < 0.82 else rng.choice(STYLES[1:])
    balloon = Balloon(rng.choice(tuple(COLOURS)), rng.choice(tuple(PLACES)), rng.uniform(-0.25, 0.25))
    return Scene(
        objects=tuple(sorted(objects, key=slot_order)),
        floor=rng.choice(tuple(FLOORS)),
        sky=rng.choice(tuple(SKIES)),
        camera="still" if rng.random() < 0.35 else rng.choice(CAMERAS[1:]),
        light=rng.choice(tuple(LIGHTS)),
        style=style,
        balloon=balloon if rng.random() < 0.15 else None,
        floor_pattern=rng.choice(FLOOR_PATTERNS),
        floor_angle=rng.uniform(0, math.pi / 2),
        floor_phase=(rng.uniform(0, 2), rng.uniform(0, 2)),
        backdrop=sample_backdrop(rng),
        light_azimuth=rng.choice((-1, 1)) * rng.uniform(0.3, 1.4),
        light_elevation=rng.uniform(0.65, 1.1),
        azimuth=rng.uniform(-0.2, 0.2),
    )
