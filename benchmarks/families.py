"""Count what an edit with each published model takes: operations and memory at its native size, on fake tensors.

    python benchmarks/families.py [--quantize int8] [NAME ...]    (a table in Markdown; docs/performance.md holds it)
    python benchmarks/families.py --write                         (what `v2edit doctor` shows, into the package)

Counted, not measured: bf16, 50 steps with the family's defaults, one subtask; peaks are those of tensors on one device,
with all rows of a step at once, with its rows one at a time, and then with --offload model and group, weights included.
Then for cards of some sizes what --offload auto takes, with the peak, or the frames that fit in the smallest mode.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from published import MODELS

from v2edit.backbones import Size
from v2edit.backbones.costs import MemoryWay, PublishedCost, write_costs
from v2edit.backbones.fake import FakeModel
from v2edit.backbones.families import Quantise, family_of
from v2edit.backbones.memory import MemoryMode
from v2edit.backbones.quantisation import quantised_parts
from v2edit.editing import EditConfig
from v2edit.editing.cost import AT_ONCE, SMALLEST, CostModel, count_forwards, with_margin, without_margin

GIB = 2**30
CARDS, TAKEN = (24, 16, 12, 8), GIB // 2  # sizes of cards in GiB, and what of them is taken by other things


def cost_model_of(name: str, scheme: Quantise = "none") -> CostModel:
    """Return what counts edits with a published model, at its defaults."""
    published = MODELS[name]
    family = family_of(published.pipeline)
    assert family is not None
    with tempfile.TemporaryDirectory() as folder:
        fake = FakeModel(published.write(Path(folder)), family, torch.bfloat16, family.defaults)
    backbone = fake.backbone
    fake.schemes = dict.fromkeys(quantised_parts(backbone), scheme)
    return CostModel(fake, EditConfig().resolve(backbone.defaults, backbone.schedule(50)))


def count_cost(name: str) -> PublishedCost:
    """Count an edit with a published model in all memory modes."""
    cost_model = cost_model_of(name)
    size, placement, ways = cost_model.fake.backbone.native_size, cost_model.fake.placement, []
    for mode in cost_model.ladder(("none", "model", "group"), False):
        peak = max(cost_model.peaks(size, mode).values())
        if not ways or peak < min(way.peak for way in ways):
            ways.append(MemoryWay(mode, peak, with_margin(peak), placement.main_memory(mode.offload, pin=True)))
    clip = f"{size.frames}x{size.height}x{size.width}"
    return PublishedCost(name, clip, cost_model.edit(size, AT_ONCE).flops, tuple(ways))


def count_model(name: str, scheme: Quantise) -> list[str]:
    """Return a row of the table."""
    cost_model = cost_model_of(name, scheme)
    fake, config, backbone = cost_model.fake, cost_model.config, cost_model.fake.backbone
    size = backbone.native_size
    forwards = sum(count_forwards(backbone.schedule(50), config, backbone.classifier_free))
    row = fake.forward(1, size).flops
    modes = [AT_ONCE, *(MemoryMode(mode, False, 1, True) for mode in ("none", "model", "group"))]
    peaks = [max(cost_model.peaks(size, mode).values()) for mode in modes]
    edit = cost_model.edit(size, AT_ONCE).flops
    return [
        name, f"{size.frames}x{size.height}x{size.width}", f"{fake.tokens(size):,}", f"{row / 1e12:,.0f}",
        f"{forwards}", f"{edit / 1e15:.1f}", f"{sum(fake.weights.values()) / GIB:.1f}",
        *(f"{peak / GIB:.1f}" for peak in peaks), *(describe_fit(cost_model, size, card) for card in CARDS),
    ]  # fmt: skip


def describe_fit(cost_model: CostModel, size: Size, card: int) -> str:
    """Return what --offload auto takes on a card of so many GiB, and the peak; else the frames that fit."""
    free = card * GIB - TAKEN
    if mode := cost_model.fastest_mode(size, free, ("none", "model", "group")):
        rows = "" if mode.max_rows is None else f", {mode.max_rows} rows"
        tiled, layers = ", tiled" if mode.vae_tiling else "", ", row by row" if mode.row_by_row else ""
        return f"{mode.offload}{tiled}{rows}{layers}: {max(cost_model.peaks(size, mode).values()) / GIB:.1f}"
    frames = cost_model.max_frames(size, without_margin(free), SMALLEST)
    return f"{frames} frames" if frames else "no"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--quantize", choices=get_args(Quantise), default="none")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.write:
        write_costs([count_cost(name) for name in args.names])
        return
    cards = " | ".join(f"{card} GB" for card in CARDS)
    print("| model | clip | tokens | TFLOP a row | rows | PFLOP an edit | weights GiB | all rows | one at a time | "
          f"offload model | group | {cards} |")  # fmt: skip
    print("|---" * (11 + len(CARDS)) + "|")
    for name in args.names:
        start = time.perf_counter()
        print(f"| {' | '.join(count_model(name, args.quantize))} |", flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
