"""How well the built-in model draws: prompts obeyed in free generation, and what its autoencoder keeps.

    python benchmarks/generation.py --count 100 [--sheet sheet.png]

Fresh prompts to clips by the plain diffusers pipeline; the classifier tells what each shows. An attribute of an object
counts where the object stands; a place is right when what stands there, or nothing, is as asked. Prints a
Markdown table; the classifier's own rate of right answers on renders stands beside it, as the ceiling.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image

from v2edit import backbones
from v2edit.metrics.pixels import psnr
from v2edit.primitives.captions import describe
from v2edit.primitives.classifier import SceneClassifier
from v2edit.primitives.render import RenderedClip, render_clip
from v2edit.primitives.scene import Scene, sample_scene
from v2edit.video import contact_sheet

FIRST_SEED = 2_500_000_000  # of no training, tuning or reporting of edits
FRAMES, HEIGHT, WIDTH, AT_ONCE = 9, 64, 96, 10


def obeyed(asked: Scene, shown: Scene) -> dict[str, list[bool]]:
    """For each attribute, whether each thing that the prompt says of it is so."""
    there = {(one.place, one.row): one for one in shown.objects}
    answers: dict[str, list[bool]] = {"count": [len(asked.objects) == len(shown.objects)]}
    for one in asked.objects:
        other = there.get((one.place, one.row))
        for field in ("shape", "colour", "size", "motion", "material", "copies"):
            right = other is not None and getattr(one, field) == getattr(other, field)
            answers.setdefault(field, []).append(right)
        answers.setdefault("place", []).append(other is not None)
    for field in ("floor", "sky", "camera", "light", "style"):
        answers[field] = [getattr(asked, field) == getattr(shown, field)]
    answers["everything"] = [all(all(values) for values in answers.values())]
    return answers


def generate(pipeline: object, prompts: list[str], steps: int, guidance: float, seed: int) -> np.ndarray:
    """uint8 [N, T, H, W, 3]."""
    clips = pipeline(  # pyright: ignore[reportCallIssue]
        prompts, height=HEIGHT, width=WIDTH, num_frames=FRAMES, num_inference_steps=steps, guidance_scale=guidance,
        output_type="np", max_sequence_length=pipeline.transformer.config.max_text_seq_length,
        generator=torch.Generator().manual_seed(seed),
    ).frames  # fmt: skip
    return (clips * 255).round().astype(np.uint8)


def table(rows: dict[str, dict[str, list[bool]]]) -> str:
    fields = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(fields) + " |", "|---" * (len(fields) + 1) + "|"]
    for name, answers in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{100 * np.mean(answers[f]):.0f} %" for f in fields) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--model", default=backbones.BUILT_IN)
    parser.add_argument("--sheet", type=Path, help="a PNG of the first clips; their prompts go beside it")
    options = parser.parse_args()
    backbone = backbones.load(options.model)
    pipeline = backbone.pipeline  # pyright: ignore[reportAttributeAccessIssue]
    pipeline.set_progress_bar_config(disable=True)
    classifier = SceneClassifier.load()
    scenes = [sample_scene(Random(options.first_seed + k)) for k in range(options.count)]
    rows: dict[str, dict[str, list[bool]]] = {
        name: defaultdict(list) for name in ("generated", "autoencoder of a render", "render")
    }
    frame_db, object_db, shown = [], [], {}
    started = time.time()
    for start in range(0, options.count, AT_ONCE):
        some = scenes[start : start + AT_ONCE]
        clips = generate(pipeline, [describe(one) for one in some], options.steps, options.guidance, start)
        for scene, clip in zip(some, clips, strict=True):
            truth: RenderedClip = render_clip(scene, FRAMES, HEIGHT, WIDTH)
            again = backbone.decode(backbone.encode(truth.frames))
            frame_db.append(psnr(again, truth.frames))
            if (inside := truth.coverage.sum(0) > 0.5).any():
                object_db.append(psnr(again, truth.frames, inside))
            for answers, frames in zip(rows.values(), (clip, again, truth.frames), strict=True):
                for field, values in obeyed(scene, classifier.classify(frames)).items():
                    answers[field] += values
            shown[f"{len(shown)}: {describe(scene)}"] = clip
    print(table(rows))
    print(
        f"\nautoencoder: {np.mean(frame_db):.1f} dB over the frame, {np.mean(object_db):.1f} dB inside objects; "
        f"{options.count} prompts, {options.steps} steps, guidance {options.guidance:g}, "
        f"{(time.time() - started) / options.count:.1f} s each"
    )
    if options.sheet:
        first = dict(list(shown.items())[:12])
        contact_sheet(first, options.sheet)
        print(f"{options.sheet}: {Image.open(options.sheet).size}")


if __name__ == "__main__":
    main()
