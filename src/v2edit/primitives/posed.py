"""Posed scenes of primitives: still, photographed from many sides, with the true result of their edit."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

from v2edit.primitives.edits import KINDS, Edit, EditTruth, render_truth, sample_edit
from v2edit.primitives.render import HEIGHT, ClipCameras, intrinsics_of, orbit_cameras, scene_cameras
from v2edit.primitives.scene import ORBIT, Scene

VIEWS, SIDE, PATH = 48, 96, 9
PATH_SIZE = 64, 96  # height and width of the path's frames, those that the model is trained on
# Nothing moves in a posed scene, and a style would change every pixel of every view.
POSED_KINDS = tuple(kind for kind in KINDS if kind not in ("motion", "style"))
SPREAD = ORBIT / 2 + math.radians(6)  # of the views to either side: a little beyond the path's ends
HEIGHTS = (HEIGHT, HEIGHT + 0.45, HEIGHT - 0.45)


def sample_posed_edit(rng: Random, kind: str | None = None) -> Edit:
    """Sample an edit, of one of POSED_KINDS, of a scene whose objects stay while the camera orbits it."""
    edit = sample_edit(rng, kind or rng.choice(POSED_KINDS))
    camera = rng.choice(("orbit left", "orbit right"))
    source, target = (_with_still_objects(scene, camera) for scene in (edit.source, edit.target))
    return replace(edit, source=source, target=target)


def views_of(edit: Edit, count: int = VIEWS, side: int = SIDE) -> ClipCameras:
    """Return the cameras of the photographs: from one side to the other, at three alternating heights, as wide as the
    path's frames, so that those show nothing that no photograph does."""
    middle = edit.source.azimuth
    azimuths = [middle - SPREAD + 2 * SPREAD * (k + 0.5) / count for k in range(count)]
    cameras = orbit_cameras([(azimuth, HEIGHTS[k % len(HEIGHTS)]) for k, azimuth in enumerate(azimuths)], side, side)
    intrinsics = cameras.intrinsics.copy()
    intrinsics[[0, 1], [0, 1]] = intrinsics_of(*PATH_SIZE)[0, 0] * side / PATH_SIZE[1]
    return replace(cameras, intrinsics=intrinsics)


def path_of(edit: Edit, count: int = PATH, height: int = PATH_SIZE[0], width: int = PATH_SIZE[1]) -> ClipCameras:
    """Return the cameras of the path that the scene is edited along: those of a clip of primitives."""
    return scene_cameras(edit.source, count, height, width)


def posed_truth(edit: Edit, cameras: ClipCameras, samples: int = 3) -> EditTruth:
    """Render both scenes of an edit from these cameras."""
    height, width = round(2 * cameras.intrinsics[1, 2]), round(2 * cameras.intrinsics[0, 2])
    return render_truth(edit, len(cameras.camera_to_world), height, width, samples, cameras)


def _with_still_objects(scene: Scene, camera: str) -> Scene:
    return replace(scene, objects=tuple(replace(thing, motion="stay") for thing in scene.objects), camera=camera)
