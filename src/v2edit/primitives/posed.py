"""Posed scenes of the built-in world: still, photographed from many sides, with the true result of their edit."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

from v2edit.primitives.edits import Edit, EditTruth, render_truth, sample_edit
from v2edit.primitives.render import HEIGHT, ClipCameras, orbit_cameras, scene_cameras
from v2edit.primitives.scene import ORBIT, Scene

VIEWS, SIDE, PATH = 48, 96, 9
SPREAD = ORBIT / 2 + math.radians(6)  # of the views to either side: a little beyond the path's ends
HEIGHTS = (HEIGHT, HEIGHT + 0.45, HEIGHT - 0.45)


def sample_posed_edit(rng: Random, kind: str | None = None) -> Edit:
    """Sample an edit of a scene whose objects stay while the camera orbits it."""
    edit = sample_edit(rng, kind)
    camera = rng.choice(("orbit left", "orbit right"))
    source, target = (_with_still_objects(scene, camera) for scene in (edit.source, edit.target))
    return replace(edit, source=source, target=target)


def views_of(edit: Edit, count: int = VIEWS, side: int = SIDE) -> ClipCameras:
    """Return the cameras of the photographs: from one side to the other, at three alternating heights."""
    middle = edit.source.azimuth
    azimuths = [middle - SPREAD + 2 * SPREAD * (k + 0.5) / count for k in range(count)]
    return orbit_cameras([(azimuth, HEIGHTS[k % len(HEIGHTS)]) for k, azimuth in enumerate(azimuths)], side, side)


def path_of(edit: Edit, count: int = PATH, side: int = SIDE) -> ClipCameras:
    """Return the cameras of the path that the scene is edited along: those of a clip of the built-in world."""
    return scene_cameras(edit.source, count, side, side)


def posed_truth(edit: Edit, cameras: ClipCameras, samples: int = 3) -> EditTruth:
    """Render both scenes of an edit from these cameras."""
    height, width = round(2 * cameras.intrinsics[1, 2]), round(2 * cameras.intrinsics[0, 2])
    return render_truth(edit, len(cameras.camera_to_world), height, width, samples, cameras)


def _with_still_objects(scene: Scene, camera: str) -> Scene:
    return replace(scene, objects=tuple(replace(thing, motion="stay") for thing in scene.objects), camera=camera)
