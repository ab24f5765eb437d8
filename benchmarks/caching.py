"""Quality against skipped steps: step caching on the built-in model beside fewer steps with as many rows.

    python benchmarks/caching.py             (some minutes)

One task of each kind, tuning seeds, 25 steps, with the built-in model's beta and CogVideoX's. FLOPs are those of the
network, counted on fake tensors. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from v2edit import backbones
from v2edit.backbones import Backbone, FakeModel
from v2edit.bench.methods import V2Edit
from v2edit.bench.tasks import BenchTask, primitives_tasks
from v2edit.editing.cost import CostModel, count_forwards
from v2edit.metrics.registry import Measures
from v2edit.primitives.classifier import SceneClassifier

STEPS = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1, help="tasks of each kind")
    parser.add_argument("--beta", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--cache", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    backbone, tasks = backbones.load(), primitives_tasks("tuning", options.count)
    fake = backbones.load_fake_model(backbones.find())
    print("| beta | | rows that run | FLOPs | score | outside | inside |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for beta in options.beta:
        whole = V2Edit(steps=STEPS, beta=beta)
        settings = {"all steps": whole}
        for cache in options.cache:
            cached = settings[f"`--cache {cache:g}`"] = replace(whole, cache=cache)
            rows = count_rows(backbone, cached)
            steps = min(range(3, STEPS), key=lambda n: abs(count_rows(backbone, replace(whole, steps=n)) - rows))
            settings[f"`--steps {steps}`"] = replace(whole, steps=steps)
        for title, config in settings.items():
            rows = count_rows(backbone, config) / count_rows(backbone, whole)
            flops = count_flops(fake, tasks[0], config) / count_flops(fake, tasks[0], whole)
            figures = measure(backbone, tasks, config)
            print(f"| {beta:g} | {title} | {rows:.0%} | {flops:.0%} | {figures} |", flush=True)


def count_rows(backbone: Backbone, config: V2Edit) -> int:
    """Return the rows that pass through the network's layers in an edit."""
    schedule = backbone.schedule(config.steps)
    return sum(count_forwards(schedule, config.resolve(backbone.defaults, schedule)))


def count_flops(fake: FakeModel, task: BenchTask, config: V2Edit) -> float:
    """Count the FLOPs of the network in an edit of a task's clip."""
    size = backbones.Size(*task.clips.source.frames.shape[:3])
    schedule = fake.backbone.schedule(config.steps)
    model = CostModel(fake, config.resolve(fake.backbone.defaults, schedule))
    return sum(steps * model.step(kind, size).flops for kind, steps in model.steps.items())


def measure(backbone: Backbone, tasks: Sequence[BenchTask], config: V2Edit) -> str:
    """Edit the tasks, and return the means of their score and of PSNR outside and inside the change."""
    method, read = config.build(backbone), SceneClassifier.load().read
    figures = []
    for task in tasks:
        frames = method(task.clips.source.frames, task.prompts, task.seed)
        measured = task.measure({"frames": frames}, None, Measures(read))
        figures.append([measured[name] for name in ("score", "psnr_outside", "psnr_inside")])
    score, outside, inside = np.mean(figures, axis=0)
    return f"{score:.3f} | {outside:.2f} | {inside:.2f}"


if __name__ == "__main__":
    main()
