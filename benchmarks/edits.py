"""How well edits of the built-in world come out, against their rendered truth.

    python benchmarks/edits.py --kinds recolour --count 24

Seeds count from 2,000,000,000, which no training or tuning uses. For each kind: PSNR inside the changed region against
the true edited clip, outside it against the source, the same for doing nothing and for the autoencoder alone (the floor
and the ceiling), and for recolours the share whose object has the target colour (nearest of the world's colours by
hue, of the mean over the object's true mask).
"""

from __future__ import annotations

import argparse
import colorsys
import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from v2edit import backbones, video
from v2edit.editing import EditConfig, Editor
from v2edit.editing.editor import to_size
from v2edit.prompts import PromptPair
from v2edit.world.edits import KINDS, Edit, Truth, sample_edit, truth
from v2edit.world.scene import COLOURS, FPS

FIRST_SEED = 2_000_000_000


@dataclass(frozen=True)
class Score:
    """`inside` and `outside` in dB; `success` where a kind has a test of its own."""

    inside: float
    outside: float
    success: bool | None


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Over the pixels [T, H, W] of a mask, of uint8 [T, H, W, 3]; 60 dB at most."""
    error = (a.astype(np.float64) - b.astype(np.float64))[where]
    return 10 * math.log10(255**2 / max(float((error**2).mean()), 0.065)) if error.size else 60.0


def colour_of(frames: np.ndarray, coverage: np.ndarray) -> str:
    """The world's colour nearest in hue to the mean over an object's mask [T, H, W]."""
    mean = frames[coverage > 0.5].mean(0) / 255
    hue = colorsys.rgb_to_hsv(*mean)[0]

    def apart(name: str) -> float:
        gap = abs(colorsys.rgb_to_hsv(*COLOURS[name])[0] - hue)
        return min(gap, 1 - gap)

    return min(COLOURS, key=apart)


def score(edit: Edit, clips: Truth, frames: np.ndarray) -> Score:
    success = None
    if "recolour" in edit.kind:
        assert edit.subject is not None
        success = colour_of(frames, clips.target.coverage[edit.subject]) == edit.target.objects[edit.subject].colour
    inside = psnr(frames, clips.target.frames, clips.changed)
    return Score(inside, psnr(frames, clips.source.frames, ~clips.changed), success)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["recolour"])
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="another range, to tune on")
    parser.add_argument("--model", default=backbones.BUILT_IN)
    parser.add_argument("--sheets", type=Path, help="folder for a contact sheet of each edit")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of EditConfig, as JSON")
    options = parser.parse_args()
    config = dataclasses.replace(
        EditConfig(), **{k: _value(v) for k, v in (item.split("=", 1) for item in options.set)}
    )
    backbone = backbones.load(options.model)
    editor = Editor(backbone)
    for kind in options.kinds:
        rows: dict[str, list[Score]] = {"source": [], "autoencoder of the truth": [], "edited": []}
        started = time.time()
        for seed in range(options.first_seed, options.first_seed + options.count):
            edit = sample_edit(Random(seed), kind)
            clips = truth(edit)
            pair = PromptPair(edit.source_prompt, edit.target_prompt)
            edited = editor.edit(clips.source.frames, pair, dataclasses.replace(config, seed=seed)).frames
            ideal = to_size(backbone.decode(backbone.encode(clips.target.frames)), backbones.Size(*edited.shape[:3]))
            for name, frames in zip(rows, (clips.source.frames, ideal, edited), strict=True):
                rows[name].append(score(edit, clips, frames))
            if options.sheets:
                options.sheets.mkdir(parents=True, exist_ok=True)
                sheet = {
                    "source": clips.source.frames,
                    "truth": clips.target.frames,
                    edit.instruction: edited,
                }
                video.contact_sheet(sheet, options.sheets / f"{kind.replace(' ', '-')}-{seed}.png")
        for name, scores in rows.items():
            figures = {
                "kind": kind,
                "what": name,
                "inside": round(float(np.mean([s.inside for s in scores])), 2),
                "outside": round(float(np.mean([s.outside for s in scores])), 2),
                "success": None
                if scores[0].success is None
                else f"{sum(bool(s.success) for s in scores)}/{len(scores)}",
            }
            print(json.dumps(figures), flush=True)
        print(
            f"{kind}: {(time.time() - started) / options.count:.1f} s an edit, {FPS} fps, {config}",
            flush=True,
        )


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
