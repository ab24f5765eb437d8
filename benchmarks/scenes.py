"""How well scenes are reconstructed and edited, on views that were held out, as `v2edit scene` does it, and how long.

    python benchmarks/scenes.py reconstruct --count 4                     # scenes of the built-in world
    python benchmarks/scenes.py reconstruct --scene ../shared/data/scenes/dinosaur --side 128 --gaussians 12000
    python benchmarks/scenes.py edit --kinds recolour insert --count 4    # the whole command, against the true edit

`edit` runs the command itself on what `v2edit sample --scene` writes, in a process of its own; what follows `--`
goes to it. Methods are compared by `v2edit bench --suite scenes`, on the same seeds: from 2,000,000,000, which no
training or tuning uses. `seconds` are wall clock, for a quiet machine; `cpu_seconds` are of all cores together.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from v2edit import video
from v2edit.bench.scenes import SceneTask, scene_tasks
from v2edit.metrics.clip_score import ClipEncoder
from v2edit.metrics.registry import Measures
from v2edit.primitives.classifier import SceneClassifier
from v2edit.scenes.config import FitConfig
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.formats.splats import read_splat, write_splat
from v2edit.scenes.measure import photograph_psnr
from v2edit.scenes.optimise import FitProgress, reconstruct
from v2edit.scenes.reading import read_scene
from v2edit.scenes.rer import render_video


def measure_reconstruction(dataset: Dataset, config: FitConfig, name: str, out: Path | None) -> dict[str, float]:
    """Reconstruct a scene; return its PSNR on held-out and training views, and seconds (a process's first compiles)."""
    held_out, started, spent = dataset.held_out, time.time(), time.process_time()
    reports: list[FitProgress] = []
    scene = reconstruct(dataset, config, reports.append)
    seconds, spent, renders = time.time() - started, time.process_time() - spent, render_video(scene, held_out.cameras)
    if out:
        video.contact_sheet({"photographs": held_out.images, "reconstructed": renders}, out / f"{name}.png")
        write_splat(out / f"{name}.ply", scene)
    return {
        "held_out": photograph_psnr(renders, held_out),
        "training": reports[-1].psnr or math.nan,
        "seconds": seconds,
        "cpu_seconds": spent,
    }


def measure_edit(task: SceneTask, words: list[str], out: Path | None) -> dict[str, float]:
    """Run a whole `v2edit scene`; return its figures."""
    clip, read = ClipEncoder.load(), SceneClassifier.load().read
    with tempfile.TemporaryDirectory() as folder:
        scene, run = Path(folder, "scene"), (out or Path(folder)) / task.name
        _v2edit("sample", "--scene", "--seed", task.seed, "--kind", task.kind, "-o", scene)
        started, spent = time.time(), _children()
        _v2edit("scene", scene, task.edit.instruction, "-o", run, *words)
        seconds, spent = time.time() - started, _children() - spent
        renders = {}
        for name in ("scene", "edited"):
            gaussians = read_splat(run / f"{name}.ply")
            cameras = {"frames": task.posed.path.cameras, "held_out": task.posed.dataset.held_out.cameras}
            renders[name] = {key: render_video(gaussians, views) for key, views in cameras.items()}
    if out:
        rows = {"before": renders["scene"], task.edit.instruction: renders["edited"]}
        pictures = {"photographs": task.posed.dataset.held_out.images, "truth": task.posed.truth.held_out.images}
        pictures |= {name: row["held_out"] for name, row in rows.items()}
        video.contact_sheet(pictures, out / f"{task.name}.png")
    measures = Measures(read, clip)
    unedited = task.measure(renders["scene"], None, measures)["psnr_held_out"]
    figures = task.measure(renders["edited"], renders["scene"], measures)
    return {**figures, "unedited": unedited, "seconds": seconds, "cpu_seconds": spent}


def _children() -> float:
    """Return the processor seconds of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _v2edit(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "v2edit", *map(str, words)], check=True, capture_output=True, text=True)


def main() -> None:
    words = sys.argv[1:]
    own, passed_on = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["reconstruct", "edit"])
    parser.add_argument("--scene", type=Path, help="reconstruct a scene on disk instead of the built-in world's")
    parser.add_argument("--side", type=int, default=128, help="longest side of its images")
    parser.add_argument("--kinds", nargs="+", default=["recolour"])
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--seeds", choices=["reporting", "tuning"], default="reporting")
    parser.add_argument("--gaussians", type=int, default=FitConfig.gaussians)
    parser.add_argument("--fit-steps", type=int, default=FitConfig.fit_steps)
    parser.add_argument("--degree", type=int, default=FitConfig.degree)
    parser.add_argument("--out", type=Path, help="folder for pictures, splats and runs")
    options = parser.parse_args(own)
    config = FitConfig(gaussians=options.gaussians, fit_steps=options.fit_steps, degree=options.degree)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)

    if options.scene:
        dataset = read_scene(options.scene, options.side).dataset
        assert dataset is not None
        _print_row(
            scene=options.scene.name,
            views=len(dataset),
            **measure_reconstruction(dataset, config, options.scene.name, options.out),
        )
        return
    for kind in options.kinds:
        table: list[dict[str, float]] = []
        for task in scene_tasks(options.seeds, options.count, [kind], config):
            assert isinstance(task, SceneTask)
            if options.what == "edit":
                table.append(measure_edit(task, passed_on, options.out))
            else:
                table.append(measure_reconstruction(task.posed.dataset, config, task.name, options.out))
            _print_row(kind=kind, seed=task.seed, **table[-1])
        known = {k: [row[k] for row in table if not math.isnan(row[k])] for k in table[0]}
        _print_row(
            kind=kind, mean_of=len(table), **{k: float(np.mean(values)) for k, values in known.items() if values}
        )


def _print_row(**figures: float | str) -> None:
    kept = {k: v for k, v in figures.items() if not (isinstance(v, float) and math.isnan(v))}
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in kept.items()}), flush=True)


if __name__ == "__main__":
    main()
