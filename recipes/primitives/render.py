"""Step 1: render the training clips of the built-in world to disk, once.

    python -m recipes.primitives.render --clips 20000

Writes out/clips/00000.npy ...: uint8 [1000, 9, 64, 64, 4], the fourth channel the share of a pixel that objects fill
(the autoencoder's loss has more weight there). Clip i of the training set is the scene of seed i; seeds from
EVALUATION_SEED on are never trained on. Finished shards are kept, so an interrupted run continues.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from pathlib import Path
from random import Random

import numpy as np

OUT = Path(__file__).parent / "out"
SHARD = 1000
FRAMES, SIZE = 9, 64
EVALUATION_SEED = 1_000_000_000


def render_training_clip(seed: int) -> np.ndarray:
    """Render the scene of a seed: RGB and object coverage, uint8 [T, H, W, 4]."""
    from v2edit.primitives.render import render_clip
    from v2edit.primitives.scene import sample_scene

    clip = render_clip(sample_scene(Random(seed)), FRAMES, SIZE, SIZE)
    coverage = (clip.coverage.sum(0).clip(0, 1) * 255).round().astype(np.uint8)
    return np.concatenate([clip.frames, coverage[..., None]], axis=-1)


def render_shard(index: int) -> int:
    """Render one shard unless it exists."""
    import torch

    torch.set_num_threads(1)
    path = OUT / "clips" / f"{index:05d}.npy"
    if not path.exists():
        partial = path.with_suffix(f".partial-{os.getpid()}")
        with partial.open("wb") as file:
            np.save(file, np.stack([render_training_clip(index * SHARD + k) for k in range(SHARD)]))
        partial.rename(path)
    return index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    (OUT / "clips").mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for index in pool.imap(render_shard, range(-(-options.clips // SHARD))):
            print(f"shard {index:05d} done", flush=True)


if __name__ == "__main__":
    main()
