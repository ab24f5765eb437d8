"""Step 7: compare V2Edit, its ablations and baselines on edits of the detailed world.

    python -m recipes.world.export
    python -m recipes.world.bench --count 3 --kinds recolour outline -o out
    python -m recipes.world.bench --sweep mixture=0.2,0.3,0.4       (on tuning seeds)

The methods, the settings and the report are those of `v2edit bench`. Success and what was kept are read off the frames
by out/classifier/classifier.safetensors; "unsaid" is what of the source its prompt does not name.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from random import Random
from typing import ClassVar

import numpy as np
import torch
from safetensors.torch import load_file

from recipes.world.classifier import NEVER_CAPTIONED, QUESTIONS, WEIGHTS_FILE, WorldClassifier, as_video
from recipes.world.clips import OUT, find_trained
from recipes.world.edits import KINDS, Edit, EditTruth, render_truth, sample_edit
from recipes.world.export import MODEL
from recipes.world.measures import measure
from v2edit.backbones.hub import find
from v2edit.bench import report, trials
from v2edit.bench.methods import REFERENCES, V2Edit, clip_variants
from v2edit.bench.scoring import MetricModels, score_trials
from v2edit.bench.selection import known_methods, select_methods, sweep_methods
from v2edit.bench.tasks import FIRST_SEED, SEEDS_A_KIND, Arrays, BenchTask
from v2edit.files import lock_folder
from v2edit.metrics.columns import COLUMNS, Column
from v2edit.metrics.registry import Measures

UNSAID = {
    "unsaid": Column("unsaid", 3, note="share of what the source shows and its prompt does not name that is kept"),
    **{f"unsaid {name}": Column(name, 2, note="the same, of this alone") for name in NEVER_CAPTIONED},
}


@dataclass(frozen=True)
class WorldTask(BenchTask):
    """An edit of a clip of the detailed world, with its true result."""

    code: ClassVar[tuple[str, ...]] = tuple(part for part in BenchTask.code if not part.startswith("primitives/"))

    @cached_property
    def edit(self) -> Edit:  # pyright: ignore[reportIncompatibleVariableOverride] of another world
        return sample_edit(Random(self.seed), self.kind)

    @property
    def identity(self) -> str:
        return json.dumps(asdict(self.edit), default=sorted)  # sets, whose own order changes with the process

    @property
    def clips(self) -> EditTruth:  # pyright: ignore[reportIncompatibleMethodOverride] likewise
        return _clips(self)

    def measure(self, result: Arrays, start: Arrays | None, measures: Measures) -> dict[str, float]:
        return measure(self.edit, self.clips, result["frames"], read_answers)


@lru_cache(maxsize=2)
def _clips(task: WorldTask) -> EditTruth:
    return render_truth(task.edit)


@cache
def _classifier() -> WorldClassifier:
    classifier = WorldClassifier()
    classifier.load_state_dict(load_file(find_trained("classifier") / WEIGHTS_FILE))
    return classifier.eval()


@torch.no_grad()
def read_answers(frames: np.ndarray) -> np.ndarray:
    """Return the classifier's answer to each question on a clip, uint8 [T, H, W, 3]."""
    logits = _classifier()(as_video(frames[None]))
    return np.array([int(logits[question][0].argmax()) for question in QUESTIONS])


def world_tasks(seeds: str, count: int, kinds: list[str]) -> list[WorldTask]:
    """Return so many tasks of each kind (default: of all) from the "reporting" or "tuning" seeds."""
    wanted = [kind for kind in KINDS if not kinds or kind.replace(" ", "-") in kinds]
    first = {kind: FIRST_SEED[seeds] + SEEDS_A_KIND * KINDS.index(kind) for kind in wanted}
    return [WorldTask(kind, first[kind] + k) for kind in wanted for k in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10, help="tasks of each kind")
    parser.add_argument("--kinds", nargs="*", default=[])
    parser.add_argument("--methods", nargs="*", default=[])
    parser.add_argument("--set", dest="settings", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--sweep", nargs="*", default=[], metavar="FIELD=VALUE,VALUE")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--processes", type=int)
    parser.add_argument("-o", dest="out", type=Path, default=OUT / "bench")
    options = parser.parse_args()
    seeds = "tuning" if options.sweep else "reporting"
    tasks = world_tasks(seeds, options.count, options.kinds)
    known = known_methods(V2Edit(steps=options.steps), clip_variants, options.settings)
    methods = sweep_methods(known, options.sweep) if options.sweep else {}
    if options.methods or not options.sweep:
        methods |= select_methods(known, options.methods)
    checkpoint = find(str(options.model))

    def tell(done: int, total: int, what: str) -> None:
        print(f"{done}/{total} {what}", flush=True)

    with (
        lock_folder(options.out, trials.LOCK, "benchmark"),
        trials.open_pool(checkpoint, "cpu", options.processes) as (pool, place),
    ):
        identity = trials.model_identity(checkpoint)
        listed = trials.list_trials(tasks, REFERENCES | methods, identity, place, options.out / "results")
        trials.run_trials(listed, pool, tell)
        scored = score_trials(listed, MetricModels(), pool, options.out / "sheets", options.out, None, tell)
    rows = [row for one in scored for row in one.rows]
    columns = {name: column for name, column in COLUMNS.items() if name != "score"}
    table = report.Table(rows, {"score": COLUMNS["score"], **UNSAID, **columns}, REFERENCES)
    markdown = report.as_markdown(table, next(iter(methods)))
    (options.out / f"{'-'.join(['sweep', *options.sweep]) if options.sweep else 'report'}.md").write_text(markdown)
    (options.out / "report.csv").write_text(report.as_csv(rows, sorted({name for row in rows for name in row.figures})))
    print(markdown)


if __name__ == "__main__":
    main()
