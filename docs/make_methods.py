"""Make the picture of docs/ablations.md: what each method makes of one reporting task of each of six kinds.

    python docs/make_methods.py BENCH

BENCH is the folder of the benchmark whose command docs/ablations.md gives. A row is the first task of a kind, by a
frame in the middle of the clip: the source, the true result, and what the methods make of it, as it comes out.
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from v2edit.backbones import find
from v2edit.bench.baselines import FlowEdit, VideoToVideo
from v2edit.bench.methods import FULL, MethodConfig, V2Edit, clip_variants
from v2edit.bench.tasks import primitives_tasks
from v2edit.bench.trials import list_trials, model_identity

KINDS = ["recolour", "sky", "outline", "wear", "exchange", "multiply"]
STEPS = 25
SHOWN = (FULL, "w/o AMR", "w/o INC", "w/o PNC")
BASELINES: dict[str, MethodConfig] = {
    "FlowEdit": FlowEdit(STEPS, n_max=0.9, source_guidance=1.5, guidance=4.0),
    "V2V": VideoToVideo(STEPS, strength=0.95, guidance=2.0),
}
WIDTH, HEIGHT, GAP, HEAD, LINE = 144, 96, 3, 22, 20  # of a frame, between frames, of the titles and of an instruction
PAPER, INK = (24, 25, 28), (236, 236, 240)
SHEET = Path(__file__).with_name("methods.jpg")


def main() -> None:
    variants = clip_variants(V2Edit(steps=STEPS))
    methods = {title: variants[title] for title in SHOWN} | BASELINES
    tasks = primitives_tasks("reporting", 1, KINDS)
    trials = list_trials(tasks, methods, model_identity(find()), torch.device("cpu"), Path(sys.argv[1]) / "results")
    titles = ["source", "truth", *methods]
    size = len(titles) * (WIDTH + GAP) + GAP, HEAD + len(tasks) * (LINE + HEIGHT + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (WIDTH + GAP), 3), title, INK, font)
    for row, task in enumerate(tasks):
        top = HEAD + row * (LINE + HEIGHT + GAP)
        draw.text((GAP, top), task.instruction, INK, font)
        edits = [trial.load()["frames"] for trial in trials if trial.task == task]
        for column, frames in enumerate((task.source, task.truth, *edits)):
            picture = Image.fromarray(frames[len(frames) // 2]).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
            sheet.paste(picture, (GAP + column * (WIDTH + GAP), top + LINE))
    sheet.save(SHEET, quality=88)
    print(SHEET)


if __name__ == "__main__":
    main()
