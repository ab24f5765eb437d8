"""The cost of one subtask: forwards, seconds and peak memory as a clip grows, and the FLOPs of CogVideoX-5b's.

    python benchmarks/edit.py                (the built-in model; some minutes)
    python benchmarks/edit.py --flops        (counted on fake tensors: no weights, no GPU)

Seconds are those of a first subtask, coding included; memory is the process's peak (on a GPU: of its tensors), with
the model in it. Prints Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from measure import peak_bytes
from published import MODELS

from v2edit import backbones
from v2edit.attention import Replacement
from v2edit.backbones.fake import FakeModel
from v2edit.backbones.families import FAMILIES, PUBLISHED_DEFAULTS
from v2edit.editing import EditConfig, Editor
from v2edit.editing.progression import aligned_text
from v2edit.primitives.edits import sample_edit
from v2edit.primitives.render import render_clip
from v2edit.prompts import PromptPair

FORWARDS = {"first": 130, "later": 170}  # of a subtask at 50 steps; tests/test_editor.py holds them


def measure(device: str, lengths: list[int], sides: list[int], steps: int) -> None:
    """Time the built-in model's first subtask, for clips of growing length and of growing size."""
    backbone = backbones.load(device=device)
    editor, config = Editor(backbone), EditConfig(steps=steps)
    edit = sample_edit(Random(2_000_000_000), "recolour")
    text = aligned_text(backbone, PromptPair(edit.source_prompt, edit.target_prompt))
    denoise, rows = backbone.denoise, []

    def count_rows(latents: torch.Tensor, *rest: object) -> torch.Tensor:
        rows.append(len(latents))
        return denoise(latents, *rest)  # pyright: ignore[reportArgumentType]

    backbone.denoise = count_rows  # pyright: ignore[reportAttributeAccessIssue]
    print(f"{steps} steps, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| frames | pixels | video tokens | forwards | seconds | seconds a frame | peak memory |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    clips = [(frames, 64) for frames in lengths] + [(33, side) for side in sides if side != 64]
    for number, (frames, side) in enumerate([clips[0], *clips]):  # the first one twice: a warm-up
        clip = render_clip(edit.source, frames, side, side).frames
        rows.clear()
        latents: list[torch.Tensor] = []

        def run() -> None:
            x0 = backbone.encode(clip)  # noqa: B023 (called here)
            latents.extend(editor.subtasks(x0, text, config))  # noqa: B023
            backbone.decode(latents[0])  # noqa: B023

        started = time.perf_counter()
        _, peak = peak_bytes(run, backbone.device.type)
        seconds = time.perf_counter() - started
        tokens = latents[0].shape[1] * latents[0].shape[3] * latents[0].shape[4] / 4
        if number > 0:
            print(
                f"| {frames} | {side} x {side} | {tokens:,.0f} | {sum(rows)} | {seconds:.1f} | {seconds / frames:.3f} |"
                f" {peak / 2**20:.0f} MiB |",
                flush=True,
            )


def print_flops() -> None:
    """Print the FLOPs of a subtask of CogVideoX-5b at 720 x 480, an open clip's and a loop's, by windows and in full;
    and the bytes that a step of four rows allocates beside the weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = MODELS["CogVideoX-5b"].write(Path(folder))
        fake = FakeModel(path, FAMILIES[0], torch.bfloat16, PUBLISHED_DEFAULTS)
    backbone, native_size = fake.backbone, fake.backbone.native_size
    print(f"CogVideoX-5b ({fake.weights['transformer'] / 2e9:.2f} B parameters), 720 x 480, PFLOP and GiB:\n")
    print("| frames | attention | tokens | a forward | first subtask (130) | later (170) | encode and decode | GiB |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    maps = Replacement(200, (((0, 1.0),), ((1, 1.0),), ((2, 1.0),), ((2, 1.0),)))
    for frames, attention in ((49, "full"), (73, "full"), (73, "windows"), (73, "loop")):
        loop = attention == "loop"
        size = backbone.nearest_size(backbones.Size(frames, 480, 720), loop)
        backbone.native_size = replace(native_size, frames=10**6) if attention == "full" else native_size
        forward, coding = fake.forward(4, size, loop, maps), (fake.encoding(size, loop), fake.decoding(size, loop))
        each = forward.flops / 4e15
        print(
            f"| {frames} | {attention} | {fake.tokens(size, loop):,} | {each:.3f} | {FORWARDS['first'] * each:.1f} |"
            f" {FORWARDS['later'] * each:.1f} | {sum(part.flops for part in coding) / 1e15:.2f} |"
            f" {forward.peak / 2**30:.1f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flops", action="store_true", help="the table of CogVideoX-5b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, nargs="+", default=[9, 17, 33, 65, 129])
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 96, 128], help="at 33 frames")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    if options.flops:
        print_flops()
    else:
        measure(options.device, options.frames, options.sides, options.steps)


if __name__ == "__main__":
    main()
