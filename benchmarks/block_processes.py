"""Time the denoising of a long clip's blocks by several processes, and compare the bits with those of one.

    python benchmarks/block_processes.py --processes 1 2 4      (give it as many cores as processes, and nothing else)

The built-in model, one thread a process, a clip of noise; seconds are those between the first step's end and the last
one's, so that loading is not in them: medians of the rounds, in turn. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
from torch import Tensor

from v2edit import backbones
from v2edit.backbones import LoadOptions
from v2edit.editing import EditConfig, Editor
from v2edit.editing.progression import aligned_text
from v2edit.host import available_cores
from v2edit.prompts import PromptPair

PAIR = PromptPair("a small blue sphere on the left rests on a brown floor", "a small red sphere rests on a brown floor")


def edit(processes: int, latent_frames: int, steps: int) -> tuple[float, Tensor]:
    """Return the seconds that steps take in which the blocks of a clip are denoised, and its latents."""
    backbone = backbones.load(options=LoadOptions(device="cpu", block_processes=processes))
    shape = (latent_frames, *backbone.latent_shape(backbone.native_size)[1:])
    x0 = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    config, ends = EditConfig(steps=steps, long="blocks"), []
    editor, text = Editor(backbone), aligned_text(backbone, PAIR)
    (edited,) = editor.subtasks(x0, text, config, lambda at: ends.append(time.perf_counter()))
    return ends[-1] - ends[0], edited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--latent-frames", type=int, default=31)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    times: dict[int, list[float]] = {count: [] for count in options.processes}
    results: dict[int, Tensor] = {}
    for _ in range(options.rounds):
        for count in options.processes:
            seconds, results[count] = edit(count, options.latent_frames, options.steps)
            times[count].append(seconds)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{available_cores()} cores, load {load:.1f}; {options.latent_frames} latent frames, {options.steps} steps\n")
    print("| processes | seconds, median | of each round | the bits of the first |\n|---:|---:|---|---|")
    for count, values in times.items():
        same = "yes" if torch.equal(results[count], results[options.processes[0]]) else "NO"
        each = ", ".join(f"{value:.1f}" for value in values)
        print(f"| {count} | {statistics.median(values):.1f} | {each} | {same} |")


if __name__ == "__main__":
    main()
