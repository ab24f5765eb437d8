"""How well cameras are found, against known ones, for real scenes: `v2edit scene` on pictures, without their poses.

    python benchmarks/poses.py ../shared/data/scenes/*                 # photographs, their names shuffled
    python benchmarks/poses.py ../shared/data/scenes/* --as video      # frames of a video, in their order
    python benchmarks/poses.py ../shared/data/scenes/stone_horse --every 2

Poses are compared after a similarity alignment of the cameras' centres. `rotation` is in degrees, `position` in per
cent of the scene's size (twice the greatest distance of a camera from the middle of all): medians and the greatest. The
known poses are COLMAP's, too, as the datasets came. `cpu_seconds` are of all cores together.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from v2edit import video
from v2edit.errors import UserError
from v2edit.scenes.config import TRANSFORMS
from v2edit.scenes.formats.nerfstudio import read_transforms
from v2edit.scenes.poses.find import PictureSource, find_poses
from v2edit.scenes.reading import read_scene

COLUMNS = ("scene", "pictures", "registered", "rotation", "max", "position %", "max", "error px", "cpu_seconds")
FPS = 8


def align(found: np.ndarray, known: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the scale, rotation [3, 3] and translation [3] of the similarity that takes points [N, 3] nearest to known
    ones (Umeyama 1991)."""
    middle, other = found.mean(0), known.mean(0)
    left, values, right = np.linalg.svd((known - other).T @ (found - middle) / len(found))
    signs = np.array([1, 1, np.sign(np.linalg.det(left @ right))])
    rotation = left @ np.diag(signs) @ right
    scale = float((values * signs).sum() / ((found - middle) ** 2).sum(1).mean())
    return scale, rotation, other - scale * rotation @ middle


def compare_poses(found: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the errors of poses [N, 4, 4] against known ones after alignment: degrees [N], and per cent [N] of the
    scene's size."""
    scale, rotation, translation = align(found[:, :3, 3], known[:, :3, 3])
    moved = scale * found[:, :3, 3] @ rotation.T + translation
    turned = np.swapaxes(rotation @ found[:, :3, :3], 1, 2) @ known[:, :3, :3]
    cosines = (np.trace(turned, axis1=1, axis2=2) - 1) / 2
    size = 2 * np.linalg.norm(known[:, :3, 3] - known[:, :3, 3].mean(0), axis=1).max()
    return np.degrees(np.arccos(np.clip(cosines, -1, 1))), 100 * np.linalg.norm(moved - known[:, :3, 3], axis=1) / size


def measure(scene: Path, every: int, kind: str, keep: Path | None) -> list[str]:
    """Throw a scene's poses away, find them again and return its row."""
    files = sorted((scene / "images").iterdir())[::every]
    known = read_transforms(scene / TRANSFORMS, 32)
    poses = {Path(name).name: pose for name, pose in zip(known.names, known.cameras.camera_to_world, strict=True)}
    with tempfile.TemporaryDirectory() as name:
        place, out = Path(name), Path(name) / "found"
        if kind == "video":
            source = place / "clip.mp4"
            frames = np.stack([video.read(file).frames[0] for file in files])
            video.write(frames, source, fps=FPS)
            names = {f"frame-{k:06d}": file.name for k, file in enumerate(files)}
        else:
            source = place / "photos"
            source.mkdir()
            order = list(range(len(files)))
            random.Random(0).shuffle(order)
            names = {f"{k:04d}": file.name for k, file in zip(order, files, strict=True)}
            for short, own in names.items():
                shutil.copy(scene / "images" / own, source / f"{short}.jpg")
        started = time.process_time()
        try:
            report = find_poses(PictureSource(source, len(files) if kind == "video" else None), out)
        except UserError as error:
            return [scene.name, str(len(files)), str(error)]
        seconds = time.process_time() - started
        dataset = read_scene(out, 32).dataset
        assert dataset is not None
        if keep is not None:
            shutil.copytree(out, keep / f"{scene.name}-{kind}")
    truth = np.stack([poses[names[Path(one).stem]] for one in dataset.names])
    rotation, position = compare_poses(dataset.cameras.camera_to_world, truth)
    errors = [f"{x:.2f}" for row in (rotation, position) for x in (np.median(row), row.max())]
    figures = [*errors, f"{report.error:.2f}", f"{seconds:.0f}"]
    return [scene.name, str(report.pictures), str(report.registered), *figures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, nargs="+", help="folders with transforms.json; others are passed over")
    parser.add_argument("--every", type=int, default=1, help="take every N-th picture")
    parser.add_argument("--as", dest="kind", choices=("photos", "video"), default="photos")
    parser.add_argument("--keep", type=Path, help="a folder to copy the datasets to")
    options = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for scene in options.scenes:
        if (scene / TRANSFORMS).is_file():
            print(f"| {' | '.join(measure(scene, options.every, options.kind, options.keep))} |", flush=True)


if __name__ == "__main__":
    main()
