"""Make the pictures of the README: edits of clips and of a scene, by the built-in model, as they come out.

    python docs/make_figures.py [FOLDER]

The runs go to FOLDER (default: runs/figures), where what is there already is not made again, and the sheet to
docs/edits.jpg. It takes some minutes.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import v2edit
from v2edit import video

# Kind of edit and seed. They were chosen to differ from each other, before any was edited.
CLIPS = [
    ("recolour", 8), ("insert", 2), ("sky", 18), ("floor", 19), ("remove", 13), ("material", 14), ("air", 22),
]  # fmt: skip
SCENES = [("recolour", 10)]
WIDTH, HEIGHT = 144, 96  # of a frame of a clip, pixels; views of scenes are as high, and narrower
GAP, MARGIN, HEAD = 3, 10, 24
COLUMNS, SHOWN = 2, 2  # edits beside each other, frames of each video
PAPER, INK = (24, 25, 28), (236, 236, 240)
SHEET = Path(__file__).with_name("edits.jpg")


def make_sample(folder: Path, kind: str, seed: int, *options: str) -> None:
    """Make a clip or a scene with an edit to try, unless it is there."""
    if not folder.exists():
        words = ["sample", "--seed", str(seed), "--kind", kind.replace(" ", "-"), "-o", str(folder), *options]
        subprocess.run([sys.executable, "-m", "v2edit", *words], check=True)


def edit_clip(folder: Path, kind: str, seed: int) -> tuple[str, np.ndarray, np.ndarray]:
    """Return the instruction of a sample, its frames and the edited ones, uint8 [T, H, W, 3]."""
    sample, run = folder / f"{kind}-{seed}", folder / f"{kind}-{seed}-edit"
    make_sample(sample, kind, seed)
    instruction = json.loads((sample / "clip.json").read_text(encoding="utf-8"))["instruction"]
    if not run.exists():
        v2edit.edit_video(sample / "clip.mp4", instruction, out=run)
    before, after = (np.asarray(video.read(path).frames) for path in (sample / "clip.mp4", run / "edited.mp4"))
    return instruction, before, after


def edit_scene(folder: Path, kind: str, seed: int) -> tuple[str, np.ndarray, np.ndarray]:
    """Return the instruction of a scene and its held-out views before and after the edit, uint8 [T, H, W, 3]."""
    sample, run = folder / f"scene-{kind}-{seed}", folder / f"scene-{kind}-{seed}-edit"
    make_sample(sample, kind, seed, "--scene")
    instruction = json.loads((sample / "scene.json").read_text(encoding="utf-8"))["instruction"]
    if not run.exists():
        v2edit.edit_scene(sample, instruction, out=run)
    names = sorted((run / "held-out").glob("*.png"))
    photographs = [np.asarray(Image.open(sample / "images" / name.name).convert("RGB")) for name in names]
    return instruction, np.stack(photographs), np.stack([np.asarray(Image.open(name)) for name in names])


def draw_sheet(edits: list[tuple[str, np.ndarray, np.ndarray]]) -> Image.Image:
    """Draw a labelled cell for each edit: frames of the source, then the same frames edited."""
    width, height = 2 * SHOWN * (WIDTH + GAP) + 2 * MARGIN, HEAD + HEIGHT + MARGIN
    sheet = Image.new("RGB", (COLUMNS * width + MARGIN, -(-len(edits) // COLUMNS) * height + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (label, source, edited) in enumerate(edits):
        row, column = divmod(number, COLUMNS)
        left, top = MARGIN + column * width, MARGIN // 2 + row * height
        draw.text((left, top), label, INK, font)
        frames = np.linspace(0, len(source) // 2, SHOWN).round().astype(int)
        for place, frame in enumerate([*source[frames], *edited[frames]]):
            across = round(HEIGHT * frame.shape[1] / frame.shape[0])
            x = left + place * (across + GAP) + (MARGIN if place >= SHOWN else 0)
            picture = Image.fromarray(frame).resize((across, HEIGHT), Image.Resampling.LANCZOS)
            sheet.paste(picture, (x, top + HEAD))
    return sheet


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/figures")
    folder.mkdir(parents=True, exist_ok=True)
    clips = [edit_clip(folder, *one) for one in CLIPS]
    scenes = [edit_scene(folder, *one) for one in SCENES]
    titled = [(f"3D scene, in held-out views: {title}", before, after) for title, before, after in scenes]
    draw_sheet([*clips, *titled]).save(SHEET, quality=90)
    print(SHEET)


if __name__ == "__main__":
    main()
