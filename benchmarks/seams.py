"""Measure the seams of local edits on real clips with masks, with edits whose truth is known.

    python benchmarks/seams.py --data DATA [--frames 6] [--grow 2 8] [--show FOLDER]

DATA holds `videos/davis-NAME` and `videos/davis-NAME-masks`. The edit shows another texture within the mask, and all of
its frames have a drift: none, one colour, one that grows across the picture and swings in time, one colour with the
blur of an autoencoder, and with an edit that shows beyond its mask. Against the composite of the same edit without a
drift: ring (RMSE where the share is between 0 and 1), step (mean gradient of the smoothed error there, in percent of
the smoothed source's own gradients), inside (the mean colour's error where the share is 1). All in levels of 255 but
for the step.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from v2edit import video
from v2edit.video.composite import composite
from v2edit.video.feather import dilate, feathered_share
from v2edit.video.masks import read_mask

CLIPS = ("car-shadow", "horsejump-high", "kite-surf")
COLOUR = np.array([6, -4, 3], np.float32)
GROWS = (2, 4, 8, 16)


def smooth(frames: np.ndarray, radius: int) -> np.ndarray:
    """Blur frames [T, H, W, 3] by a box twice, to float32."""
    out = torch.from_numpy(frames.astype(np.float32)).permute(0, 3, 1, 2)
    for _ in range(2):
        for size in ((2 * radius + 1, 1), (1, 2 * radius + 1)):
            padding = (size[0] // 2, size[1] // 2)
            out = F.avg_pool2d(out, size, 1, padding, count_include_pad=False)
    return out.permute(0, 2, 3, 1).numpy()


def gradient(frames: np.ndarray) -> np.ndarray:
    """Return the length of the gradient of frames [T, H, W, 3], [T, H, W]."""
    rows, columns = np.gradient(frames, axis=(1, 2))
    return np.sqrt((rows**2 + columns**2).sum(-1))


def find_span(occupied: np.ndarray) -> slice:
    places = np.flatnonzero(occupied)
    return slice(max(int(places[0]) - 4, 0), int(places[-1]) + 5)


def to_bytes(frames: np.ndarray) -> np.ndarray:
    return frames.clip(0, 255).round().astype(np.uint8)


def drifts(ideal: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Return edits by the name of their drift, from the ideal one, uint8 [T, H, W, 3]."""
    count, _, width, _ = ideal.shape
    across = np.linspace(-1.5, 1.5, width)[None, None, :, None] * np.cos(np.arange(count) / 2)[:, None, None, None]
    blurred = smooth(ideal, 1)
    halo = (dilate((mask * 255).astype(np.uint8), 24) > 0)[..., None]
    return {
        "none": ideal,
        "colour": to_bytes(ideal + COLOUR),
        "across": to_bytes(ideal + COLOUR * across),
        "blur": to_bytes(blurred + COLOUR),
        "halo": to_bytes(np.where(halo, ideal * 0.7, ideal) + COLOUR),
        "halo only": to_bytes(np.where(halo, ideal * 0.7, ideal)),
    }


def measure(data: Path, name: str, frames: int, grows: list[int], show: Path | None) -> list[tuple]:
    clip = video.read(data / "videos" / f"davis-{name}", frames)
    mask = np.asarray(read_mask(data / "videos" / f"davis-{name}-masks", clip))
    source = np.asarray(clip.frames)
    texture = source[:, ::-1, ::-1]
    rows = []
    for grow in grows:
        share = feathered_share(mask, grow=grow)
        inside, ring = share == 1, (share > 0) & (share < 1)
        box = (slice(None), *(find_span(np.asarray((share > 0).any(axis))) for axis in ((0, 2), (0, 1))))
        wide = dilate((mask * 255).astype(np.uint8), grow)[..., None] > 0
        ideal = np.where(wide, texture // 2 + source // 2, source)
        for drift, edited in drifts(ideal, mask).items():
            truth = to_bytes(np.where(wide, ideal * 0.7, ideal)) if drift.startswith("halo") else ideal
            truth = composite(source, truth, share)
            own = gradient(smooth(source[box], 2))[ring[box]].mean()
            for seam in ("feather", "match"):
                began = time.perf_counter()
                result = composite(source, edited, share, seam)
                seconds = time.perf_counter() - began
                error = result.astype(np.float32) - truth
                step = gradient(smooth(error[box], 2))[ring[box]].mean() / own * 100
                off = np.abs([one[m].mean(0) for one, m in zip(error, inside, strict=True) if m.any()]).mean()
                rows.append((drift, grow, seam, np.sqrt((error[ring] ** 2).mean()), step, off, seconds / frames))
                if show and grow == 8:
                    save_zoom(show / f"{name}-{drift}-{seam}.png", result[0], ring[0])
    return rows


def save_zoom(path: Path, frame: np.ndarray, ring: np.ndarray) -> None:
    """Write a part of a frame at the left edge of its mask, 8-fold."""
    places = np.argwhere(ring)
    left = places[places[:, 1].argmin()]
    y, x = (max(0, min(int(left[axis]) - 40, ring.shape[axis] - 80)) for axis in (0, 1))
    video.write_still(np.ascontiguousarray(frame[y : y + 80, x : x + 80].repeat(8, 0).repeat(8, 1)), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--grow", type=int, nargs="+", default=GROWS)
    parser.add_argument("--show", type=Path)
    options = parser.parse_args()
    if options.show:
        options.show.mkdir(parents=True, exist_ok=True)
    rows = [row for name in CLIPS for row in measure(options.data, name, options.frames, options.grow, options.show)]
    print(f"{'drift':10} {'grow':>4} {'seam':8} {'ring':>6} {'step %':>7} {'inside':>7} {'s/frame':>8}")
    for key in dict.fromkeys(row[:3] for row in rows):
        figures = np.mean([row[3:] for row in rows if row[:3] == key], 0)
        print(
            f"{key[0]:10} {key[1]:4} {key[2]:8} {figures[0]:6.2f} {figures[1]:7.1f} {figures[2]:7.2f} {figures[3]:8.3f}"
        )


if __name__ == "__main__":
    main()
