"""What a mask is worth, given or found by the model: quality inside and outside, the found mask against the true one.

    python benchmarks/local.py                   (5 tasks of each kind on reporting seeds, the true mask on 2 of them)
    python benchmarks/local.py --seeds tuning    (where thresholds are chosen)

The built-in world's true edits are known, so the true mask is, too. Each task is edited with a mask that the model
finds; the same latents, decoded without it, are the edit without mask where the controls act to the end, as by default
on this model. FlowEdit is at its best settings (docs/ablations.md). Results are kept in --out, as `.npz` files and
pictures: source, truth, edit, composite, true and found mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from v2edit import backbones
from v2edit.backbones import Size
from v2edit.bench.baselines import FlowEdit
from v2edit.bench.methods import Method
from v2edit.bench.report import Table
from v2edit.bench.scoring import Row
from v2edit.bench.tasks import BenchTask, primitives_tasks
from v2edit.editing import EditConfig, Editor
from v2edit.editing.local import LocalEdit
from v2edit.editing.resize import resize_clip
from v2edit.metrics.attributes import measure
from v2edit.primitives.classifier import SceneClassifier
from v2edit.video import contact_sheet
from v2edit.video.colour_hold import estimate_drift, hold_colours

STEPS = 25
FLOWEDIT = FlowEdit(STEPS, n_max=0.8, source_guidance=2.5, guidance=2.5)
OBJECT_KINDS = ("recolour", "reshape", "resize", "insert", "remove", "reshape and recolour")
PLAIN, FOUND, GIVEN, PEER = "without mask", "found mask", "true mask", "FlowEdit"


def edit_all(backbone: backbones.Backbone, task: BenchTask, config: EditConfig) -> dict[str, np.ndarray]:
    """Edit a task with the mask that the model finds: both videos and the mask."""
    session = Editor(backbone).begin(task.prompts, replace(config, seed=task.seed), local=LocalEdit(find=True))
    found = np.asarray(session.next_subtask(task.clips.source.frames))
    if config.beta:  # below it the latents were blended
        plain = np.asarray(Editor(backbone).edit(session.source, task.prompts, replace(config, seed=task.seed)).frames)
    else:
        plain = resize_clip(backbone.decode(session.current), Size(*found.shape[:3]))
        plain = hold_colours(plain, estimate_drift(session.source, plain))
    share = np.ones(found.shape[:3], np.float32) if session.share is None else np.asarray(session.share)
    return {PLAIN: plain, FOUND: found, "share": share}


def edit_given(backbone: backbones.Backbone, task: BenchTask, config: EditConfig) -> dict[str, np.ndarray]:
    """Edit a task with its true mask."""
    local = LocalEdit(task.clips.changed.astype(np.float32))
    seeded = replace(config, seed=task.seed)
    edited = Editor(backbone).edit(task.clips.source.frames, task.prompts, seeded, local=local)
    return {GIVEN: np.asarray(edited.frames)}


def edit_peer(method: Method, task: BenchTask) -> dict[str, np.ndarray]:
    return {PEER: method(task.clips.source.frames, task.prompts, task.seed)}


def kept(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return what a file holds, made and written where it is missing."""
    if not path.exists():
        np.savez_compressed(path, **make())  # pyright: ignore[reportArgumentType]
    with np.load(path) as file:
        return dict(file)


def overlap(share: np.ndarray, changed: np.ndarray) -> tuple[float, float, float]:
    """Return intersection over union, precision and recall of the pixels that take more than half of the edit."""
    found = share > 0.5
    both = (found & changed).sum()
    return both / max(1, (found | changed).sum()), both / max(1, found.sum()), both / max(1, changed.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="reporting", choices=("reporting", "tuning"))
    parser.add_argument("--count", type=int, default=5, help="tasks of each kind")
    parser.add_argument("--skip", type=int, default=0, help="tasks of each kind, the first ones, that are left out")
    parser.add_argument("--beta", type=float, help="in place of the model's own, 0")
    parser.add_argument("--given", type=int, default=2, help="of these, with the true mask given")
    parser.add_argument("--out", type=Path, default=Path("runs/local"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = EditConfig(STEPS, beta=options.beta)
    folder = options.out / (options.seeds if options.beta is None else f"{options.seeds}-beta-{options.beta:g}")
    folder.mkdir(parents=True, exist_ok=True)
    backbone, read = backbones.load("primitives", device="cpu"), SceneClassifier.load().read
    flow_edit, rows, overlaps = FLOWEDIT.build(backbone), [], {}
    tasks = primitives_tasks(options.seeds, options.skip + options.count)
    first = {task.kind: task.seed + options.skip for task in reversed(tasks)}
    tasks = [task for task in tasks if task.seed >= first[task.kind]]
    for task in sorted(tasks, key=lambda task: task.seed - first[task.kind]):
        clips, path = task.clips, folder / task.name
        videos = kept(path.with_suffix(".npz"), partial(edit_all, backbone, task, config))
        share = videos.pop("share")
        peer = kept(folder / f"{task.name}-flowedit.npz", partial(edit_peer, flow_edit, task))
        given = {}
        if task.seed - first[task.kind] < options.given:
            given = kept(folder / f"{task.name}-given.npz", partial(edit_given, backbone, task, config))
        for method, frames in (videos | peer | given).items():
            figures = measure(task.edit, clips, frames, read)
            rows.append(Row(task.kind, task.name, method, vars(figures)))
        overlaps.setdefault(task.kind, []).append((*overlap(share, clips.changed), share.mean()))
        masks = {name: as_picture(mask) for name, mask in (("true mask", clips.changed), ("mask found", share))}
        sheet = {"source": clips.source.frames, "truth": clips.target.frames, **videos, **masks}
        contact_sheet(sheet, path.with_suffix(".png"))
        print(task.name, *(f"{x:.2f}" for x in overlaps[task.kind][-1]), flush=True)
    report(rows, overlaps)


def as_picture(mask: np.ndarray) -> np.ndarray:
    return np.repeat(np.rint(255 * mask.astype(np.float32)).astype(np.uint8)[..., None], 3, axis=3)


def report(rows: Sequence[Row], overlaps: dict[str, list[tuple[float, ...]]]) -> None:
    """Print the tables: of each kind the gains over the edit without mask and the mask's overlap, and all methods."""
    table = Table([row for row in rows if row.method != GIVEN])
    print("\n| kind | outside | gain | inside | gain | success | gain | IoU | precision | recall | covers |")
    for kind, values in overlaps.items():
        cells = []
        for column in ("psnr_outside", "psnr_inside", "success"):
            plain, found = (table.values(method, column, kind) for method in (PLAIN, FOUND))
            cells += [f"{plain.mean():.2f}", f"{(found - plain).mean():+.2f}"]
        print("|", " | ".join([kind, *cells, *(f"{x:.2f}" for x in np.mean(values, axis=0))]), "|")
    gains = [table.values(FOUND, "psnr_outside", k) - table.values(PLAIN, "psnr_outside", k) for k in OBJECT_KINDS]
    print(f"outside over object edits: {np.concatenate(gains).mean():+.2f} dB")
    for other in (PLAIN, PEER):
        for column in ("score", "success", "psnr_outside", "psnr_inside"):
            print(f"{FOUND} - {other}, {column}: {table.difference(FOUND, other, column).text(4, '+')}")
    some = {(row.kind, row.task) for row in rows if row.method == GIVEN}
    table = Table([row for row in rows if (row.kind, row.task) in some])
    for kind in table.kinds if some else ():
        inside, outside = (table.values(GIVEN, c, kind).mean() for c in ("psnr_inside", "psnr_outside"))
        gain = inside - table.values(PLAIN, "psnr_inside", kind).mean()
        print(f"{GIVEN}, {kind}: outside {outside:.1f} (60 is the most), inside {gain:+.2f} dB against none")


if __name__ == "__main__":
    main()
