"""How well scenes are reconstructed and edited, on views that were held out.

    python benchmarks/scenes.py reconstruct --count 4                     # scenes of the built-in world
    python benchmarks/scenes.py reconstruct --scene ../shared/data/scenes/dinosaur --side 128 --gaussians 12000
    python benchmarks/scenes.py edit --kinds recolour insert --count 4    # the whole loop, against the true edit

Seeds count from 2,000,000,000, which no training or tuning uses. Times are wall clock: run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from v2edit import backbones, video
from v2edit.editing import EditConfig, Editor
from v2edit.prompts import PromptPair
from v2edit.scenes.config import FitConfig
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.edit import edit_gaussians, film
from v2edit.scenes.fit import FitProgress, reconstruct
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.measure import compare, fidelity
from v2edit.scenes.source import read_scene
from v2edit.scenes.splat import write_splat
from v2edit.scenes.world import sample_task

FIRST_SEED = 2_000_000_000


def timed(dataset: Dataset, config: FitConfig) -> tuple[Gaussians, dict[str, float]]:
    """The reconstruction, and held-out PSNR and seconds of it. The first call of a process also compiles."""
    kept, started = dataset.kept_out, time.time()
    last: list[FitProgress] = []
    scene = reconstruct(dataset, config, last.append)
    seconds = time.time() - started
    held_out = compare(film(scene, kept.cameras), kept.images, kept.images).whole
    return scene, {"held_out": round(held_out, 2), "training": round(last[-1].psnr, 2), "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["reconstruct", "edit"])
    parser.add_argument("--scene", type=Path, help="a scene on disk instead of the built-in world's")
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--kinds", nargs="+", default=["recolour"])
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--gaussians", type=int, default=FitConfig.gaussians)
    parser.add_argument("--fit-steps", type=int, default=FitConfig.fit_steps)
    parser.add_argument("--refit-steps", type=int, default=FitConfig.refit_steps)
    parser.add_argument("--degree", type=int, default=FitConfig.degree)
    parser.add_argument("--model", default=backbones.BUILT_IN)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of EditConfig, as JSON")
    parser.add_argument("--out", type=Path, help="folder for pictures and splats")
    options = parser.parse_args()
    config = FitConfig(options.gaussians, options.fit_steps, options.refit_steps, options.degree)
    changes = dict(item.split("=", 1) for item in options.set)
    editing = dataclasses.replace(EditConfig(), **{name: json.loads(value) for name, value in changes.items()})
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)

    if options.scene:
        dataset = read_scene(options.scene, options.side).dataset
        assert dataset is not None
        scene, figures = timed(dataset, config)
        print(json.dumps({"scene": options.scene.name, "views": len(dataset), **figures}), flush=True)
        if options.out:
            kept = dataset.kept_out
            rows = {"photographs": kept.images, "reconstructed": film(scene, kept.cameras)}
            video.contact_sheet(rows, options.out / f"{options.scene.name}.png")
            write_splat(options.out / f"{options.scene.name}.ply", scene)
        return

    editor = Editor(backbones.load(options.model)) if options.what == "edit" else None
    for kind in options.kinds:
        table: list[dict[str, float]] = []
        for seed in range(FIRST_SEED, FIRST_SEED + options.count):
            task = sample_task(seed, kind, side=options.side)
            scene, figures = timed(task.dataset, config)
            if editor is not None:
                kept, true, started = task.dataset.kept_out, task.truth.kept_out.images, time.time()
                pair = PromptPair(task.edit.source_prompt, task.edit.target_prompt)
                done = edit_gaussians(
                    editor, scene, task.path, pair, dataclasses.replace(editing, seed=seed % 2**31), config
                )
                figures["edit_seconds"] = round(time.time() - started, 1)
                for name, one in (("unedited", scene), ("edited", done.gaussians)):
                    found = fidelity(one, kept.cameras, kept.images, true)
                    figures |= {f"{name}_{k}": v for k, v in dataclasses.asdict(found).items() if v is not None}
                figures["taken"] = done.changes[-1].taken
                if options.out:
                    shown = film(done.gaussians, kept.cameras)
                    rows = {"photographs": kept.images, "truth": true, task.edit.instruction: shown}
                    video.contact_sheet(rows, options.out / f"{kind.replace(' ', '-')}-{seed}.png")
            print(json.dumps({"kind": kind, "seed": seed, **{k: round(v, 2) for k, v in figures.items()}}), flush=True)
            table.append(figures)
        mean = {k: round(float(np.mean([row[k] for row in table if k in row])), 2) for k in table[0]}
        print(json.dumps({"kind": kind, "mean of": len(table), **mean}), flush=True)


if __name__ == "__main__":
    main()
