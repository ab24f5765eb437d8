"""Time an edit with idle threads that sleep, as V2Edit sets it, and with torch's own, which spin.

    python benchmarks/waiting.py            (on a quiet machine, then on one that does something else, too)
    python benchmarks/waiting.py --busy 1   (beside one process that computes)

Whole processes, in turn; medians of the rounds. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# A variable of another OpenMP than torch's on Linux, at its default: a setting that V2Edit leaves alone.
POLICIES = {"sleep": {}, "spin": {"KMP_BLOCKTIME": "200"}}
BUSY = "while True: sum(range(10**6))"
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


def seconds(words: list[str], variables: dict[str, str]) -> float:
    """Return the seconds that a process takes, with these environment variables beside the user's others."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "v2edit", "--quiet", *words], env=environment, check=True)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--busy", type=int, default=0, help="processes that compute meanwhile")
    options = parser.parse_args()
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(options.busy)]
    times: dict[str, list[float]] = {name: [] for name in POLICIES}
    try:
        with tempfile.TemporaryDirectory() as folder:
            seconds(["sample", "--seed", "3", "--kind", "recolour", "-o", f"{folder}/sample"], {})
            instruction = json.loads(Path(folder, "sample", "clip.json").read_text(encoding="utf-8"))["instruction"]
            edit = ["edit", f"{folder}/sample/clip.mp4", instruction, "--steps", str(options.steps)]
            for number in range(options.rounds):
                for name, variables in POLICIES.items():
                    times[name].append(seconds([*edit, "-o", f"{folder}/{name}-{number}"], variables))
    finally:
        for other in others:
            other.kill()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{os.cpu_count()} cores, load {load:.1f}, {options.busy} other processes of its own\n")
    print("| idle threads | seconds, median | of each round |\n|---|---:|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.1f} | {', '.join(f'{value:.1f}' for value in values)} |")


if __name__ == "__main__":
    main()
