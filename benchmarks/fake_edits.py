"""Whole edits of published models on a fake CUDA device: peaks by phase, and what makes the host wait in a step.

    python benchmarks/fake_edits.py [NAME ...] [--layers N] [--frames T] [--offload none|model|group]

Counted on tensors without data, not measured: bf16, two subtasks of a few steps of the real editor with the real
offloading, controlled steps and free ones."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from device_ledger import COPY_WAIT, CUDA, FLOAT32, MIXED, WAITS, Ledger
from fake_cuda import fake_cuda
from published import MODELS

from v2edit.backbones.base import Size
from v2edit.backbones.fake import FakeModel
from v2edit.backbones.families import Offload, family_of
from v2edit.backbones.memory import MemoryMode
from v2edit.editing import EditConfig, Editor
from v2edit.prompts import PromptPair

GIB = 2**30
PAIR = PromptPair("a big red ball lies on the floor of a hall", "a big blue cube lies on the floor of a hall")
CONFIG = EditConfig(steps=3, alpha=1.0, beta=0.5, subtasks=2, mixture=0.5)  # two controlled steps and a free one
PHASES = {"encode_text": "encoding prompts", "encode": "encoding", "decode": "decoding"}


@dataclass(frozen=True)
class FakeEdit:
    """An edit that ran on the fake device: its clip, and what was recorded."""

    size: Size
    ledger: Ledger

    @property
    def peaks(self) -> dict[str, Counter[str]]:
        """The peaks in bytes by phase and device."""
        return self.ledger.peaks

    def in_steps(self, *kinds: str) -> Counter[str]:
        """Count the events of some kinds in denoising steps, by their lines; without the first steps, which make the
        tables of the others."""
        return self.in_phase("denoising", *kinds, from_step=1)

    def in_phase(self, phase: str, *kinds: str, from_step: int = -1) -> Counter[str]:
        """Count the events of some kinds in a phase, by their lines."""
        counts: Counter[str] = Counter()
        for event, count in self.ledger.events.items():
            if event.phase == phase and event.step >= from_step and event.kind in kinds:
                counts[str(event)] += count
        return counts


def fake_model(name: str, folder: Path, layers: int | None = None) -> FakeModel:
    """Build a published model on fake tensors, with so many layers of each kind (default: all)."""
    published = MODELS[name]
    stacks = ["num_layers", *(["num_single_layers"] if name == "HunyuanVideo" else [])]
    changes = {} if layers is None else dict.fromkeys(stacks, layers)
    family = family_of(published.pipeline)
    assert family is not None
    return FakeModel(published.write(folder, **changes), family, torch.bfloat16, family.defaults, name)


def run_edit(
    fake: FakeModel,
    offload: Offload = "none",
    frames: int | None = None,
    config: EditConfig = CONFIG,
    memory: int | None = None,
    row_by_row: bool = False,
    max_rows: int | None = None,
    prompts: PromptPair = PAIR,
) -> FakeEdit:
    """Edit a clip of a model's native size, with so many frames (default: the native number), on the fake device, with
    at most so many rows in a call, and those of a layer one at a time if `row_by_row`."""
    backbone = fake.backbone
    native = backbone.native_size
    size = backbone.nearest_size(Size(frames or native.frames, native.height, native.width), config.loop)
    with fake_cuda(fake.mode, memory) as ledger, in_phases(backbone, ledger):
        adopt(fake, ledger)
        backbone.place(CUDA, MemoryMode(offload, max_rows=max_rows, row_by_row=row_by_row))
        video = np.zeros((size.frames, size.height, size.width, 3), np.uint8)
        ledger.enter("denoising")

        def next_step(at: Any) -> None:
            ledger.enter("denoising", at.step % at.steps)

        result = Editor(backbone).edit(video, prompts, config, next_step)
        assert [one.shape for one in result.subtasks] == [video.shape] * config.subtasks
    return FakeEdit(size, ledger)


def adopt(fake: FakeModel, ledger: Ledger) -> None:
    """Count the weights, which were made before, in main memory."""
    for part in fake.backbone.pipeline.components.values():
        if isinstance(part, nn.Module):
            for tensor in (*part.parameters(), *part.buffers()):
                ledger.add(tensor)


@contextmanager
def in_phases(backbone: Any, ledger: Ledger) -> Iterator[None]:
    """Tell the ledger the phases of an edit, whose calls of the backbone they are; what is between is denoising."""

    def phased(name: str) -> Any:
        method = getattr(backbone, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            ledger.enter(PHASES[name])
            out = method(*args, **kwargs)
            ledger.enter("denoising", 0)
            return out

        return call

    with mock.patch.multiple(backbone, **{name: phased(name) for name in PHASES}):
        yield


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--layers", type=int)
    parser.add_argument("--frames", type=int, nargs="*", default=[None])
    parser.add_argument("--offload", nargs="*", default=["none", "model", "group"])
    options = parser.parse_args()
    phases = ["loading", "encoding prompts", "encoding", "denoising", "decoding"]
    print(f"| model | clip | offload | {' | '.join(phases)} | main memory | waits in a step |")
    for name in options.names:
        for frames in options.frames:
            for offload in options.offload:
                start = time.perf_counter()
                with tempfile.TemporaryDirectory() as folder:
                    edit = run_edit(fake_model(name, Path(folder), options.layers), offload, frames)
                size, peaks = edit.size, edit.peaks
                waits, later = edit.in_steps(*WAITS), (CONFIG.steps - 1) * CONFIG.subtasks
                held = [*(peaks[phase]["cuda"] for phase in phases), max(one["cpu"] for one in peaks.values())]
                cells = [*(f"{one / GIB:.1f}" for one in held), f"{waits.total() / later:.0f}"]
                clip = f"{size.frames}x{size.height}x{size.width}"
                print(f"| {name} | {clip} | {offload} | {' | '.join(cells)} |", flush=True)
                for event, count in (waits + edit.in_steps(COPY_WAIT, MIXED, FLOAT32)).items():
                    print(f"    {count} x {event}", file=sys.stderr)
                print(f"    {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
