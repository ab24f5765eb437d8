"""Edit real clips within masks and look at them: is all else the source's, bit for bit, and do the seams show?

    python benchmarks/masked.py --data DATA --out FOLDER

DATA has `videos` with DAVIS clips, as folders of images with folders of masks beside them, and `masks` with clips and
masks as lossy videos. For each clip: the size of its frames, whether every byte outside the share of the edit is the
source's, the part of the picture that is kept so, and the mean change inside, in levels of 255. FOLDER gets each run
and, 8-fold, source and edit side by side at a seam. The built-in model does not know such clips: what is inside is
nonsense, how it is joined to the rest is what counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import v2edit
from v2edit import video
from v2edit.jobs.masks import MaskOptions

PROMPTS = {
    "source_prompt": "on a green ground under a blue sky, a large red ball in the middle stands still.",
    "target_prompt": "on a green ground under a blue sky, a large blue cube in the middle stands still.",
}
CLIPS: list[tuple[str, str, dict[str, Any]]] = [
    ("davis", "videos/davis-kite-surf", {"mask": "videos/davis-kite-surf-masks"}),
    ("davis, --grow 0", "videos/davis-kite-surf", {"mask": "videos/davis-kite-surf-masks", "grow": 0}),
    ("720p, --keep lossy greys", "masks/ducky-float.mp4", {"keep": "masks/ducky-float-mask.mp4"}),
    ("a box", "videos/mallard-water.mp4", {"box": "40%,30%,20%,25%"}),
]
ZOOM, SIDE = 8, (48, 64)  # pixels of the source around a seam


def measure(title: str, clip: Path, options: dict[str, Any], frames: int, out: Path) -> str:
    """Edit a clip; return a line of figures, and write the zoom."""
    source = video.read(clip)
    end = float(source.times[frames]) if frames < len(source.frames) else None
    run = v2edit.edit_video(
        clip, **PROMPTS, **options, end=end, steps=6, save_frames=True, out=out, show_progress=False
    )
    edited = np.stack([np.asarray(Image.open(path)) for path in sorted((out / "edited").glob("*.png"))])
    original = np.asarray(source.frames)
    share = np.zeros(original.shape[:3], np.float32)
    part = slice(0, frames)
    share[part] = MaskOptions(**options).build(source, part).share
    kept = share == 0
    same = bool((edited[kept] == original[kept]).all())
    change = np.abs(edited[~kept].astype(int) - original[~kept]).mean()
    k = int(share.any((1, 2)).nonzero()[0][0])
    rows, columns = np.nonzero((share[k] > 0.3) & (share[k] < 0.7))
    if len(rows):
        y, x = (int(places[len(rows) // 2]) for places in (rows, columns))
        top, left = max(0, y - SIDE[0] // 2), max(0, x - SIDE[1] // 2)
        pair = [clip[k, top : top + SIDE[0], left : left + SIDE[1]] for clip in (original, edited)]
        picture = Image.fromarray(np.concatenate(pair, axis=1))
        size = picture.width * ZOOM, picture.height * ZOOM
        picture.resize(size, Image.Resampling.NEAREST).save(out.with_suffix(".png"))
    height, width = edited.shape[1:3]
    shape = f"{len(edited)}x{height}x{width}"
    assert run.edited.frames.shape[1:3] == (height, width)
    return f"| {title} | {shape} | {'yes' if same else 'NO'} | {100 * kept[part].mean():.1f} % | {change:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=17, help="that are edited of each clip")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    print("| clip | frames | all else bit-equal | of the picture | change inside |\n|---|---|---|---:|---:|")
    for number, (title, clip, given) in enumerate(CLIPS):
        masks = {name: str(options.data / value) if name == "mask" else value for name, value in given.items()}
        out = options.out / f"{number}-{Path(clip).stem}"
        print(measure(title, options.data / clip, masks, options.frames, out), flush=True)


if __name__ == "__main__":
    main()
