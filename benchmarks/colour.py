"""How well an edited video is held to its source's colours (`--colour`), and how its drift is measured.

    python benchmarks/colour.py drifts CLIP ...      (known drifts laid over real clips with a known local edit)
    python benchmarks/colour.py looks CLIP ...       (edits of a whole video's look, which must stay)
    python benchmarks/colour.py edits --seeds tuning (edits by the built-in model against their true results)
    python benchmarks/colour.py long                 (its long clips: flash and joints)

Levels are those of 8 bits, root mean square over means of a few pixels. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from long import FIRST_SEED, SPEED, sample_orbit

from v2edit import backbones, video
from v2edit.bench.tasks import primitives_tasks
from v2edit.editing import EditConfig, Editor
from v2edit.editing.local import LocalEdit
from v2edit.metrics.drift import measure_drift
from v2edit.metrics.pixels import psnr
from v2edit.primitives.captions import caption
from v2edit.primitives.edits import KINDS
from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import COLOURS
from v2edit.prompts import PromptPair
from v2edit.video.colour_hold import cell_means, estimate_drift, hold_colours

FRAMES, SIDE = 17, 192
Change = Callable[[np.ndarray], np.ndarray]  # of float frames [T, H, W, 3], 0 to 255


def offset(v: np.ndarray) -> np.ndarray:
    return v + np.array([7.0, -5.0, 3.0])


def gain(v: np.ndarray) -> np.ndarray:
    return (v - 128) * 1.1 + 128


def gamma(v: np.ndarray) -> np.ndarray:
    return 255 * (v.clip(0, 255) / 255) ** 0.9


def flash(v: np.ndarray) -> np.ndarray:
    return np.concatenate([v[:1] * 1.04 + np.array([6.0, 5.0, 8.0]), v[1:]])


def slow(v: np.ndarray) -> np.ndarray:
    return v + np.linspace(0, 1, len(v))[:, None, None, None] * np.array([9.0, 2.0, -7.0])


def vignette(v: np.ndarray) -> np.ndarray:
    y, x = (np.linspace(-1, 1, size) for size in v.shape[1:3])
    return v * (1 - 0.04 * (y[:, None] ** 2 + x[None] ** 2))[None, :, :, None]


DRIFTS: dict[str, Change] = {
    "none": lambda v: v, "offset": offset, "gain": gain, "gamma": gamma, "flash": flash, "slow": slow,
    "vignette": vignette, "offset, flash, slow": lambda v: slow(flash(offset(v))),
}  # fmt: skip
EDITS: dict[str, Change] = {
    "recoloured": lambda v: np.roll(v, 1, -1) * 0.8 + np.array([50.0, -20.0, 0.0]),
    "inverted": lambda v: 255 - v,
    "texture": lambda v: np.roll(v, (v.shape[1] // 2, v.shape[2] // 3), (1, 2))[::-1],
}
LOOKS: dict[str, Change] = {
    "night": lambda v: v * np.array([0.25, 0.3, 0.45]),
    "dusk": lambda v: v * np.array([0.75, 0.7, 0.8]),
    "sunset": lambda v: v * np.array([1.1, 0.9, 0.7]),
    "black and white": lambda v: np.repeat(v.mean(-1, keepdims=True), 3, -1),
    "snow": lambda v: v + (235 - v) * np.linspace(0.3, 0.9, v.shape[1])[None, :, None, None],
    "green sky": lambda v: np.concatenate([v[:, : v.shape[1] // 2] * [0.4, 1, 0.4], v[:, v.shape[1] // 2 :]], 1),
    "sketch": lambda v: 255 - 0.2 * np.roll(v, 3, 2).mean(-1, keepdims=True).repeat(3, -1),
}


def read_small(path: Path) -> np.ndarray:
    """Read a clip's first frames at a small size."""
    frames = np.asarray(video.read(path, max_frames=FRAMES).frames)
    scale = SIDE / min(frames.shape[1:3])
    small = F.interpolate(torch.from_numpy(frames).permute(0, 3, 1, 2).float(), scale_factor=scale, mode="area")
    return small.round().permute(0, 2, 3, 1).numpy().astype(np.uint8)


def blob(shape: tuple[int, ...], part: float) -> np.ndarray:
    """Return an ellipse that covers a part of the frame and wanders through it, float [T, H, W, 1]."""
    count, height, width = shape[:3]
    y, x = np.mgrid[0:height, 0:width]
    centre = np.linspace(0.4, 0.6, count)[:, None, None]
    square = ((y - height * 0.5) / height) ** 2 + ((x - width * centre) / width) ** 2
    return (square < np.quantile(square, part)).astype(float)[..., None]


def autoencode(v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur and grain, as an autoencoder leaves them, float [T, H, W, 3]."""
    for axis in (1, 2):
        v = (np.roll(v, 1, axis) + 2 * v + np.roll(v, -1, axis)) / 4
    return v + rng.normal(0, 2, v.shape)


def to_bytes(v: np.ndarray) -> np.ndarray:
    return np.rint(v).clip(0, 255).astype(np.uint8)


def apart(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Return how far two videos' colours are apart in the cells of a mask, in levels."""
    means, others = cell_means(a)[0], cell_means(b)[0]
    inside = cell_means(np.repeat(where.astype(np.uint8), 3, -1))[0][..., 0] > 0.5
    return float(np.sqrt(np.square(means - others)[inside].mean())) if inside.any() else float("nan")


def measure_one(source: np.ndarray, make: Change, change: Change, part: float, seed: int) -> list[float]:
    """Return of one edit and drift: the drift that is measured, the true one, and how far the colours are from those
    without drift, outside and inside the edit, each before and after they are held."""
    mask, v = blob(source.shape, part), source.astype(float)
    v = autoencode(make(v).clip(0, 255) * mask + v * (1 - mask), np.random.default_rng(seed))
    ideal, edited = to_bytes(v), to_bytes(change(v))
    drift = estimate_drift(source, edited)
    held, found = hold_colours(edited, drift), measure_drift(drift)["colour"]
    levels = [apart(clip, ideal, where) for where in (mask == 0, mask == 1) for clip in (edited, held)]
    return [float("nan") if found is None else found, levels[0], *levels]


def print_drifts(clips: list[Path], parts: list[float]) -> None:
    print("| drift | edited part | unknown | measured | true | outside | held | inside | held |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    sources = [read_small(path) for path in clips]
    for name, change in DRIFTS.items():
        for part in parts:
            figures = [
                measure_one(source, make, change, part, number)
                for number, source in enumerate(sources)
                for make in EDITS.values()
            ]
            square = np.sqrt(np.nanmean(np.square(figures), 0))
            unknown = np.isnan(figures).any(1).mean()
            print(f"| {name} | {part:.0%} | {unknown:.0%} | {' | '.join(f'{v:.2f}' for v in square)} |", flush=True)


def print_looks(clips: list[Path]) -> None:
    print("| look | changed by | undone, mean | most |\n|---|---:|---:|---:|")
    sources = [read_small(path) for path in clips]
    for name, change in LOOKS.items():
        rows = []
        for number, source in enumerate(sources):
            edited = to_bytes(autoencode(change(source.astype(float)).clip(0, 255), np.random.default_rng(number)))
            everywhere = np.ones((*source.shape[:3], 1))
            rows.append(
                (
                    apart(edited, source, everywhere),
                    apart(hold_colours(edited, estimate_drift(source, edited)), edited, everywhere),
                )
            )
        changed, undone = np.array(rows).T
        print(f"| {name} | {changed.mean():.1f} | {undone.mean():.1f} | {undone.max():.1f} |", flush=True)


def print_edits(seeds: str, count: int, steps: int, kinds: list[str]) -> None:
    """Compare edits by the built-in model as they come from the autoencoder with the same ones held."""
    print("| kind | outside, free | keep | inside, free | keep | colour | flash |\n|---|---:|---:|---:|---:|---:|---:|")
    backbone = backbones.load()
    for kind in kinds:
        rows = []
        for task in primitives_tasks(seeds, count, [kind]):
            source, target, changed = task.clips.source.frames, task.clips.target.frames, task.clips.changed
            config = EditConfig(steps=steps, seed=task.seed)
            result = Editor(backbone).edit(source, task.prompts, config, local=LocalEdit(keep_colours=False))
            held = hold_colours(result.frames, result.drift)
            regions = ((source, ~changed), (target, changed))
            row = [
                psnr(frames, ideal, mask)
                for ideal, mask in regions
                for frames in map(np.asarray, (result.frames, held))
            ]
            drift = measure_drift(result.drift)
            rows.append([*row, *(float("nan") if drift[name] is None else drift[name] for name in ("colour", "flash"))])
        print(f"| {kind} | {' | '.join(f'{value:.2f}' for value in np.nanmean(rows, 0))} |", flush=True)


def print_long(count: int, steps: int, lengths: list[int]) -> None:
    """Measure edits of long clips by the built-in model, free and held."""
    print("| frames | colours | colour | flash | joints |\n|---:|---|---:|---:|---:|")
    backbone = backbones.load()
    for frames in lengths:
        rows: dict[str, list[list[float]]] = {"autoencoded": [], "free": [], "keep": []}
        for number in range(count):
            scene, rng = sample_orbit(FIRST_SEED + number, SPEED), Random(number)
            subject = rng.randrange(len(scene.objects))
            colour = rng.choice([c for c in COLOURS if all(c != thing.colour for thing in scene.objects)])
            pair = PromptPair(caption(scene), caption(scene.with_object(subject, colour=colour)))
            source = render_clip(scene, frames).frames
            local, config = LocalEdit(keep_colours=False), EditConfig(steps=steps, seed=number)
            result = Editor(backbone).edit(source, pair, config, local=local)
            clips = {"autoencoded": backbone.decode(backbone.encode(source)), "free": result.frames}
            clips["keep"] = hold_colours(result.frames, result.drift)
            for name, clip in clips.items():
                drift = measure_drift(estimate_drift(source, clip), result.joints)
                rows[name].append([float("nan") if value is None else value for value in drift.values()])
        for name, figures in rows.items():
            print(f"| {frames} | {name} | {' | '.join(f'{v:.2f}' for v in np.nanmean(figures, 0))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["drifts", "looks", "edits", "long"])
    parser.add_argument("clips", type=Path, nargs="*")
    parser.add_argument("--parts", type=float, nargs="+", default=[0.05, 0.2, 0.4, 0.6])
    parser.add_argument("--seeds", choices=["tuning", "reporting"], default="reporting")
    parser.add_argument("--count", type=int, default=3, help="tasks of each kind, or long clips")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--frames", type=int, nargs="+", default=[33, 65], help="lengths of the long clips")
    options = parser.parse_args()
    if options.what == "drifts":
        print_drifts(options.clips, options.parts)
    elif options.what == "looks":
        print_looks(options.clips)
    elif options.what == "edits":
        print_edits(options.seeds, options.count, options.steps, options.kinds)
    else:
        print_long(options.count, options.steps, options.frames)


if __name__ == "__main__":
    main()
