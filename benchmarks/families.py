"""Count what an edit with each published model takes: operations and memory at its native size, on fake tensors.

    python benchmarks/families.py [--quantize int8] [NAME ...]    (a table in Markdown; docs/performance.md holds it)

Counted, not measured: bf16, 50 steps with the family's defaults, one subtask; peaks are those of tensors on one device,
with all rows of a step at once, with its rows one at a time, and then with --offload model and group, weights included.
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

from v2edit.backbones.fake import FakeModel
from v2edit.backbones.families import Quantise, family_of
from v2edit.backbones.quantisation import quantised_parts
from v2edit.editing import EditConfig
from v2edit.editing.cost import CostModel, count_forwards
from v2edit.editing.microbatch import SPLITS

GIB, ROW_BY_ROW = 2**30, len(SPLITS) - 1


def count_model(name: str, scheme: Quantise) -> list[str]:
    """Return a row of the table."""
    published = MODELS[name]
    family = family_of(published.pipeline)
    assert family is not None
    with tempfile.TemporaryDirectory() as folder:
        fake = FakeModel(published.write(Path(folder)), family, torch.bfloat16, family.defaults)
    backbone = fake.backbone
    fake.schemes = dict.fromkeys(quantised_parts(backbone), scheme)
    size, schedule = backbone.native_size, backbone.schedule(50)
    config = EditConfig().resolve(backbone.defaults, schedule)
    cost_model = CostModel(fake, config)
    forwards = sum(count_forwards(schedule, config, backbone.classifier_free))
    row = fake.forward(1, size).flops
    peaks = [
        max(cost_model.peaks(size, "none", False).values()),
        *(max(cost_model.peaks(size, mode, False, ROW_BY_ROW, True).values()) for mode in ("none", "model", "group")),
    ]
    edit = cost_model.edit(size, "none", False).flops
    return [
        name, f"{size.frames}x{size.height}x{size.width}", f"{fake.tokens(size):,}", f"{row / 1e12:,.0f}",
        f"{forwards}", f"{edit / 1e15:.1f}", f"{sum(fake.weights.values()) / GIB:.1f}",
        *(f"{peak / GIB:.1f}" for peak in peaks),
    ]  # fmt: skip


def main() -> None:
    print("| model | clip | tokens | TFLOP a row | rows | PFLOP an edit | weights GiB | all rows | one at a time | "
          "offload model | group |")  # fmt: skip
    print("|---" * 11 + "|")
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--quantize", choices=get_args(Quantise), default="none")
    args = parser.parse_args()
    for name in args.names:
        start = time.perf_counter()
        print(f"| {' | '.join(count_model(name, args.quantize))} |", flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
