"""Edit the clips of the simple world, which the built-in model's world has replaced, and measure them as they were.

    python -m benchmarks.simple_world FOLDER --count 10

The simple world (64 x 64 pixels, one or two objects of four shapes, captions that say everything) is a part of today's:
the same words, other pictures. The last commit that renders it is checked out into FOLDER/then; its code writes the
clips and prompts and measures the edits, beside what its own model made of them, with its own classifier. What is there
is not made again."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

LAST = "fc3c945"  # the last commit with the simple world
NAME = "today"
DUMP = """
import json, sys
from pathlib import Path
import numpy as np
from v2edit.bench.tasks import primitives_tasks
for task in primitives_tasks("reporting", int(sys.argv[1])):
    facts = {"source": task.prompts.source, "target": task.prompts.target, "seed": task.seed}
    path = Path(sys.argv[2]) / task.name
    np.save(path.with_suffix(".npy"), task.source)
    path.with_suffix(".json").write_text(json.dumps(facts))
"""


def edit_tasks(tasks: Path, results: Path) -> None:
    """Edit all tasks in a folder as `v2edit bench` does, at 25 steps, each into a folder of frames."""
    import numpy as np

    from v2edit.backbones.loading import load
    from v2edit.bench.methods import V2Edit
    from v2edit.prompts import PromptPair

    method = V2Edit(steps=25).build(load())
    for path in sorted(tasks.glob("*.json")):
        folder = results / path.stem
        if folder.exists():
            continue
        facts = json.loads(path.read_text())
        pair = PromptPair(facts["source"], facts["target"])
        edited = method(np.load(path.with_suffix(".npy")), pair, facts["seed"])
        made = results / f".{path.stem}"
        made.mkdir(parents=True, exist_ok=True)
        for k, frame in enumerate(edited):
            Image.fromarray(frame).save(made / f"{k:03d}.png")
        made.rename(folder)
        print(path.stem, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=10, help="tasks of each of eight kinds")
    options = parser.parse_args()
    folder = options.folder.resolve()
    then, tasks, results = folder / "then", folder / "tasks", folder / "results"
    tasks.mkdir(parents=True, exist_ok=True)
    if not then.exists():
        subprocess.run(["git", "worktree", "add", "--detach", then, LAST], check=True)
    run = {"cwd": then, "check": True, "env": {**os.environ, "PYTHONPATH": str(then / "src")}}
    subprocess.run([sys.executable, "-c", DUMP, str(options.count), tasks], **run)
    edit_tasks(tasks, results)
    bench = ["bench", "--count", str(options.count), "--seeds", "reporting", "--methods", "v2edit"]
    subprocess.run(
        [sys.executable, "-m", "v2edit", *bench, "--results", f"{NAME}={results}", "-o", folder / "bench"], **run
    )


if __name__ == "__main__":
    main()
