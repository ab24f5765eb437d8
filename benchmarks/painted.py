"""How well a mask painted over one view is carried to the others: intersection over union with the object's true mask.

    python benchmarks/painted.py --count 4 --out FOLDER                   # scenes of the built-in world, all around
    python benchmarks/painted.py --scene runs/horse/scene.ply --cameras runs/horse/camera_path.json --mask mask.png \\
        --view 0 --out FOLDER                                             # pictures of a scene of your own

Each object of the built-in scenes is painted over the view at 0 degrees, as it is seen there, the scene reconstructed
from 48 views all around. `chosen`: pixels that are mostly the Gaussians chosen; `edited`: those that an edit may
change, without its soft edge. Views that show less than 30 pixels of the object count for nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from v2edit import video
from v2edit.bench.scenes import SceneTask, scene_tasks
from v2edit.primitives.render import HEIGHT, orbit_cameras, render_clip
from v2edit.scenes.camera_paths import read_path
from v2edit.scenes.cameras import Cameras
from v2edit.scenes.config import FitConfig
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.formats.splats import read_splat, write_splat
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.optimise import reconstruct
from v2edit.scenes.painting import Painted, select_painted
from v2edit.scenes.regions import CLEARLY_SHOWN, shown_share
from v2edit.scenes.rer import render_video
from v2edit.video.masks import read_mask

SIDE, VIEWS = 96, 48
HEIGHTS = (HEIGHT, HEIGHT + 0.45, HEIGHT - 0.45)
ANGLES = (0, 30, 60, 90, 120, 150, 180)  # and the same to the other side
LEAST_PIXELS = 30


def carry(scene: Gaussians, painted: Painted, cameras: Cameras) -> dict[str, np.ndarray]:
    """Return where views show what a painted mask selects, bool [C, H, W]."""
    within = select_painted(scene, painted)
    levels = {"chosen": 0.5, "edited": CLEARLY_SHOWN}
    return {name: shown_share(scene, within, cameras, least) > 0 for name, least in levels.items()}


def measure(task: SceneTask, out: Path | None) -> list[tuple[int, dict[str, float]]]:
    """Return the figures of each object in each view: its angle, and the intersections over union."""
    world = task.edit.source
    turn = 2 * np.pi / VIEWS
    orbit = orbit_cameras([(world.azimuth + k * turn, HEIGHTS[k % 3]) for k in range(VIEWS)], SIDE, SIDE)
    cameras = Cameras(np.tile(orbit.intrinsics, (VIEWS, 1, 1)), orbit.camera_to_world, SIDE, SIDE)
    clip = render_clip(world, VIEWS, SIDE, SIDE, 2, orbit)
    names = tuple(f"{k:03d}" for k in range(VIEWS))
    kept = out / f"{task.name}.ply" if out else None
    if kept is not None and kept.is_file():
        scene = read_splat(kept)
    else:
        scene = reconstruct(Dataset(cameras, clip.frames, names, np.zeros(VIEWS, bool)), FitConfig())
        if kept is not None:
            write_splat(kept, scene)
    places = sorted({(sign * angle * VIEWS // 360) % VIEWS for angle in ANGLES for sign in (1, -1)})
    rows, pictures = [], {"photographs": clip.frames[places]}
    for number, shares in enumerate(clip.coverage):
        true = shares[places] > 0.5
        if true[0].sum() < LEAST_PIXELS:
            continue
        masks = carry(scene, Painted(true[0].astype(np.float32), cameras[[0]]), cameras[places])
        pictures |= {f"object {number}, {name}": _picture(mask, clip.frames[places]) for name, mask in masks.items()}
        for k, place in enumerate(places):
            if true[k].sum() >= LEAST_PIXELS:
                angle = min(place, VIEWS - place) * 360 // VIEWS
                rows.append((angle, {name: _overlap(mask[k], true[k]) for name, mask in masks.items()}))
    if out:
        video.contact_sheet(pictures, out / f"{task.name}.png")
    return rows


def _overlap(mask: np.ndarray, true: np.ndarray) -> float:
    return float((mask & true).sum() / (mask | true).sum())


def _picture(mask: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Return frames, uint8 [T, H, W, 3], whose pixels outside a mask [T, H, W] are dark."""
    return np.where(mask[..., None], frames, frames // 5)


def show(scene: Path, path: Path, mask: Path, view: int, out: Path) -> None:
    """Write pictures of a mask that is carried from a camera of a path to the others."""
    gaussians = read_splat(scene)
    cameras = read_path(path, None).cameras
    blank = np.zeros((1, cameras.height, cameras.width, 3), np.uint8)
    levels = np.asarray(read_mask(mask, video.Video(blank, 1))[0])  # pyright: ignore[reportArgumentType]
    masks = carry(gaussians, Painted(levels, cameras[[view]]), cameras)
    frames = render_video(gaussians, cameras)
    shown = {name: _picture(mask, frames) for name, mask in masks.items()}
    video.contact_sheet({"renders": frames, **shown}, out / f"{scene.parent.name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4, help="scenes of the built-in world")
    parser.add_argument("--kind", default="recolour", help="the edits whose scenes they are")
    parser.add_argument("--scene", type=Path, help="a splat instead")
    parser.add_argument("--cameras", type=Path, help="its camera path, from camera_path.json of its run")
    parser.add_argument("--mask", type=Path, help="the mask, painted over one camera's picture")
    parser.add_argument("--view", type=int, default=0, help="that camera's number on the path, from 0")
    parser.add_argument("--out", type=Path, help="folder for pictures and splats, which are used again")
    options = parser.parse_args()
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    if options.scene:
        show(options.scene, options.cameras, options.mask, options.view, options.out or Path())
        return
    rows: list[tuple[int, dict[str, float]]] = []
    for task in scene_tasks("reporting", options.count, [options.kind]):
        assert isinstance(task, SceneTask)
        rows += measure(task, options.out)
    print("| degrees | objects | chosen, mean | least | edited, mean | least |\n|---:|---:|---:|---:|---:|---:|")
    for angle in sorted({angle for angle, _ in rows}):
        some = [figures for at, figures in rows if at == angle]
        cells = [f"{fold([one[name] for one in some]):.3f}" for name in some[0] for fold in (np.mean, min)]
        print(f"| {angle} | {len(some)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
