"""What --strength changes: its words, or other settings, on edits of the built-in world whose true result is known.

    python benchmarks/strength.py                                      (the three words; some 20 minutes)
    python benchmarks/strength.py --count 1 --edits hard --set alpha=0.6 beta=0.25,guidance=4

Tuning seeds, 25 steps; edits of the kinds of `v2edit bench`, and hard ones: an object at another place, with another
motion, or another motion of the camera. Prints Markdown: *success* (the share of what the edit changes that is read as
in the target), PSNR *outside* the change against the source, and *inside* it against the source and against the true
result.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import numpy as np
import torch

from v2edit import backbones
from v2edit.backbones import Backbone
from v2edit.bench.methods import V2Edit
from v2edit.bench.selection import with_field
from v2edit.bench.tasks import primitives_tasks
from v2edit.metrics.attributes import HIGHEST, measure
from v2edit.metrics.pixels import psnr
from v2edit.primitives.classifier import SceneClassifier
from v2edit.primitives.edits import Edit, render_truth, sample_edit
from v2edit.primitives.scene import CAMERAS, MOTIONS, PLACES
from v2edit.prompts import PromptPair

STEPS = 25
WORDS = ("strength=subtle", "strength=normal", "strength=strong")
COLUMNS = ("edits", "success", "outside", "inside to the source", "inside to the truth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="edits of each kind (default: 1 usual, 2 hard)")
    parser.add_argument("--edits", nargs="+", default=["usual", "hard"], choices=("usual", "hard"))
    parser.add_argument("--set", nargs="+", default=WORDS, metavar="FIELD=VALUE,…", help="settings to compare")
    options = parser.parse_args()
    torch.set_num_threads(1)
    backbone = backbones.load()
    print("|", " | ".join(("", *COLUMNS)), "|")
    print(f"|---|---|{'---:|' * (len(COLUMNS) - 1)}")
    for text in options.set:
        config = V2Edit(steps=STEPS)
        for assignment in filter(None, text.split(",")):
            config = with_field(config, *assignment.split("="))
        for name in options.edits:
            edits = usual_edits(options.count or 1) if name == "usual" else hard_edits(options.count or 2)
            success, *others = figures_of(backbone, edits, config)
            print(f"| {text} | {name} | {success:.3f} |", " | ".join(f"{x:.2f}" for x in others), "|", flush=True)


def usual_edits(count: int) -> Iterator[tuple[int, Edit]]:
    """Yield seeds and edits, `count` of each kind."""
    for task in primitives_tasks("tuning", count):
        yield task.seed, task.edit


def hard_edits(count: int) -> Iterator[tuple[int, Edit]]:
    """Yield seeds and edits of layout and motion, which the source's noise holds: `count` of each of three kinds."""
    tasks = (one.seed for one in primitives_tasks("tuning", 1000, ["recolour"]))
    edits = ((seed, sample_edit(Random(seed), "recolour")) for seed in tasks)
    alone = ((seed, edit) for seed, edit in edits if len(edit.source.objects) == 1)  # so that every place is free
    for (seed, edit), _ in zip(alone, range(count), strict=False):
        (subject,), rng = edit.source.objects, Random(seed)
        for field, values in (("place", PLACES), ("motion", MOTIONS)):
            value = rng.choice([one for one in values if one != getattr(subject, field)])
            named = replace(edit.source_named, objects=(frozenset({"colour", field}),))
            target = edit.source.with_object(0, **{field: value})
            yield seed, replace(edit, kind=field, target=target, source_named=named, target_named=named)
        camera = rng.choice([one for one in CAMERAS if one != edit.source.camera])
        named = replace(edit.source_named, scene=edit.source_named.scene | {"camera"})
        target = replace(edit.source, camera=camera)
        yield seed, replace(edit, kind="camera", target=target, source_named=named, target_named=named)


def figures_of(backbone: Backbone, edits: Iterator[tuple[int, Edit]], config: V2Edit) -> list[float]:
    """Return the means of `COLUMNS` but for the first, over edits with a configuration."""
    method, read, rows = config.build(backbone), SceneClassifier.load().read, []
    for seed, edit in edits:
        clips = render_truth(edit)
        source, changed = clips.source.frames, clips.changed
        frames = method(source, PromptPair(edit.source_prompt, edit.target_prompt), seed)
        scores = measure(edit, clips, frames, read)
        kept = psnr(frames, source, changed, highest=HIGHEST)
        rows.append([scores.success, scores.psnr_outside, kept, scores.psnr_inside])
    return np.nanmean(rows, axis=0).tolist()


if __name__ == "__main__":
    main()
