"""Edit many videos: a file of tasks, worker processes, a page of all results.

    python examples/04_batch.py [FOLDER]

Each line of the file is a task. Options given to `run_batch` hold for all tasks, those in a line for that task. The
model is loaded once for each worker; with GPUs there is one worker for each. Called again, only what is missing is
done. The command line is `v2edit batch tasks.jsonl -o out`, and `v2edit batch-status out` says how far it is.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import v2edit
from v2edit.primitives.sample import write_sample

STEPS = int(os.environ.get("STEPS", "50"))


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    (folder / "sample").mkdir(parents=True)
    write_sample(4, folder / "sample", "recolour")  # as `v2edit sample --seed 4 --kind recolour` does
    tasks = [  # paths as the file of tasks sees them
        {
            "video": "sample/clip.mp4",
            "instruction": "make the yellow ball purple",
        },
        {"video": "sample/clip.mp4", "instruction": "make the sky golden", "seed": 7, "name": "evening"},
    ]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks), encoding="utf-8")

    status = v2edit.run_batch(folder / "tasks.jsonl", out=folder / "batch", steps=STEPS)
    print(len(status.done), "done,", len(status.failed), "failed; see", status.folder / "index.html")


if __name__ == "__main__":  # workers are processes that import this file
    main()
