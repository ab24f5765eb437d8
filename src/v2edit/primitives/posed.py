"""The built-in world held still and seen from many sides: scenes to reconstruct and edit, with their true result."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

from v2edit.primitives.edits import Edit, EditTruth, render_truth, sample_edit
from v2edit.primitives.render import HEIGHT, ClipCameras, orbit_cameras, scene_cameras
from v2edit.primitives.scene import ORBIT, Scene

VIEWS, SIDE, PATH = 48, 96, 9
SPREAD = ORBIT / 2 + math.radians(6)  # how far to either side views are taken: a little beyond the path's ends
HEIGHTS = (HEIGHT, HEIGHT + 0.45, HEIGHT - 0.45)


def sample_posed_edit(rng: Random, kind: str | None = None) -> Edit:
    """A random edit of a scene that stands still while the camera goes round it."""
    edit = sample_edit(rng, kind)
    camera = rng.choice(("orbit left", "orbit right"))
    source, target = (_still(scene, camera) for scene in (edit.source, edit.target))
    return replace(edit, source=source, target=target)


def views_of(edit: Edit, count: int = VIEWS, side: int = SIDE) -> ClipCameras:
    """The cameras that the scene was photographed by, from one side to the other at changing heights."""
    middle = edit.source.azimuth
    turns = [middle - SPREAD + 2 * SPREAD * (k + 0.5) / count for k in range(count)]
    return orbit_cameras([(turn, HEIGHTS[k % len(HEIGHTS)]) for k, turn in enumerate(turns)], side, side)


def path_of(edit: Edit, count: int = PATH, side: int = SIDE) -> ClipCameras:
    """The path that a clip of this scene is filmed along."""
    return scene_cameras(edit.source, count, side, side)


def posed_truth(edit: Edit, cameras: ClipCameras, samples: int = 3) -> EditTruth:
    """Both scenes of an edit as these cameras see them."""
    height, width = round(2 * cameras.intrinsics[1, 2]), round(2 * cameras.intrinsics[0, 2])
    return render_truth(edit, len(cameras.camera_to_world), height, width, samples, cameras)


def _still(scene: Scene, camera: str) -> Scene:
    return replace(scene, objects=tuple(replace(one, motion="stay") for one in scene.objects), camera=camera)
