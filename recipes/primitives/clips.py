"""Step 1: render the training clips and stills of the built-in world to disk, once.

    python -m recipes.primitives.clips --clips 12000 --stills 40000

Writes out/clips/00000.npy ...: uint8 [500, 9, 64, 96, 4], and out/stills/00000.npy ...: uint8 [2000, 1, 64, 96, 4]. The
fourth channel is the object that fills most of the pixel (1 for the first, 0 for none). Clip i shows the scene of seed
i, still i that of seed STILLS_FROM + i; seeds from EVALUATION_SEED on are never trained on. Finished shards are kept,
so an interrupted run continues, and a larger number adds to them;
`--first` leaves out those before a clip and a still, as where a machine that is new goes on training: with others.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from random import Random

import numpy as np

from recipes.primitives.training import OUT
from v2edit.primitives.scene import Scene, sample_scene

FRAMES, HEIGHT, WIDTH = 9, 64, 96
STILLS_FROM, EVALUATION_SEED = 10_000_000, 1_000_000_000
SHARDS = {"clips": (500, FRAMES, 0), "stills": (2000, 1, STILLS_FROM)}  # length, frames, first seed


def shard_scenes(kind: str, index: int) -> list[Scene]:
    """Return the scenes of a shard."""
    length, _, first = SHARDS[kind]
    return [sample_scene(Random(first + index * length + k)) for k in range(length)]


def render_with_owners(scene: Scene, frames: int) -> np.ndarray:
    """Render a scene: RGB and the object at each pixel, uint8 [T, H, W, 4]."""
    from v2edit.primitives.render import render_clip

    clip = render_clip(scene, frames, HEIGHT, WIDTH)
    owner = np.where(clip.coverage.max(0) >= 0.4, clip.coverage.argmax(0) + 1, 0).astype(np.uint8)
    return np.concatenate([clip.frames, owner[..., None]], axis=-1)


def render_shard(job: tuple[str, int]) -> str:
    """Render one shard unless it exists."""
    import torch

    torch.set_num_threads(1)
    kind, index = job
    path = OUT / kind / f"{index:05d}.npy"
    if not path.exists():
        partial = path.with_suffix(f".partial-{os.getpid()}")
        with partial.open("wb") as file:
            np.save(file, np.stack([render_with_owners(scene, SHARDS[kind][1]) for scene in shard_scenes(kind, index)]))
        partial.rename(path)
    return f"{kind} {index:05d}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=12_000)
    parser.add_argument("--stills", type=int, default=40_000)
    parser.add_argument("--first", type=int, nargs=2, metavar=("CLIP", "STILL"), default=(0, 0))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    firsts = {kind: first // SHARDS[kind][0] for kind, first in zip(SHARDS, options.first, strict=True)}
    counts = {kind: -(-getattr(options, kind) // SHARDS[kind][0]) for kind in SHARDS}
    for kind in SHARDS:
        (OUT / kind).mkdir(parents=True, exist_ok=True)
    # In turn, so that training can begin with some of both.
    jobs = [(kind, firsts[kind] + k) for k in range(max(counts.values())) for kind in SHARDS if k < counts[kind]]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for name in pool.imap(render_shard, jobs):
            print(f"{name} done", flush=True)


if __name__ == "__main__":
    main()
