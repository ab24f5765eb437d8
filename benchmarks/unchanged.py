"""Compare the results of two checkouts, byte for byte: what a refactoring must leave unchanged.

    python benchmarks/unchanged.py run CHECKOUT --inputs IN -o BEFORE     (once for each checkout, with the same inputs)
    python benchmarks/unchanged.py compare BEFORE AFTER                   (exit code 1 where anything differs)

Six edits by the built-in model: the demo's, one of three subtasks, a loop, a clip of 33 frames, a scene, and a
benchmark of one task of each kind, whose figures are compared but for its seconds. The inputs are made by the first
run, by the checkout given there. Run both on one machine: another processor rounds differently.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import subprocess
import sys
from pathlib import Path

INPUTS = """
import sys
from pathlib import Path
from random import Random
from v2edit.primitives.edits import sample_edit
from v2edit.primitives.render import render_clip
from v2edit.scenes.primitives import write_task
from v2edit import video
folder = Path(sys.argv[1])
for name, frames in (("clip", 9), ("long", 33)):
    video.write(render_clip(sample_edit(Random(17), "recolour").source, frames).frames, folder / f"{name}.mp4", fps=8)
(folder / "scene").mkdir()
write_task(3, folder / "scene", "recolour")
"""
RECOLOUR = "make the ball red"
EDITS = {
    "demo": ["edit", "{inputs}/clip.mp4", RECOLOUR],
    "subtasks": ["edit", "{inputs}/clip.mp4", RECOLOUR, "--subtasks", "3", "--mixture", "0.7"],
    "loop": ["edit", "{inputs}/clip.mp4", RECOLOUR, "--loop", "--steps", "25"],
    "long": ["edit", "{inputs}/long.mp4", RECOLOUR, "--steps", "25"],
    "scene": ["scene", "{inputs}/scene", "turn the green stars yellow", "--steps", "25"],
}
BENCH = ["bench", "--count", "1", "--clip", "primitives"]
RENAMED = ("source", "unedited")  # a row, since November 2026
CLOSE = 1e-9  # figures may differ by the rounding of a sum, results by nothing


def run(checkout: Path, inputs: Path, out: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve() / "src"), "OMP_WAIT_POLICY": "PASSIVE"}
    environment["MKL_CBWR"] = "AUTO,STRICT"

    def python(*words: str) -> None:
        subprocess.run([sys.executable, *words], env=environment, check=True, cwd=checkout)

    if not inputs.is_dir():
        inputs.mkdir(parents=True)
        python("-c", INPUTS, str(inputs))
    out.mkdir(parents=True, exist_ok=True)
    for name, words in EDITS.items():
        if not (out / name).exists():
            python("-m", "v2edit", *(word.format(inputs=inputs) for word in words), "-o", str(out / name))
    python("-m", "v2edit", *BENCH, "-o", str(out / "bench"))


def compare(before: Path, after: Path) -> int:
    differing = []
    for name in EDITS:
        files = [path for path in (before / name).rglob("*") if path.is_file() and path.name != "run.json"]
        others = [path for path in (after / name).rglob("*") if path.is_file() and path.name != "run.json"]
        names = {path.relative_to(before) for path in files} | {path.relative_to(after) for path in others}
        unlike = [one for one in names if not _same(before / one, after / one)]
        differing += unlike
        print(f"{name}: {len(names)} files, {len(unlike)} differ {' '.join(map(str, sorted(unlike)))}")
    rows = [list(csv.DictReader((folder / "bench" / "report.csv").open())) for folder in (before, after)]
    figures, worst, unlike = 0, 0.0, []
    for one, other in zip(*rows, strict=True):
        for (field, value), found in zip(one.items(), other.values(), strict=True):
            if field == "seconds":
                continue
            figures += 1
            if value != found and (value, found) != RENAMED:
                gap = abs(float(value or "nan") - float(found or "nan"))
                worst = max(worst, gap if not math.isnan(gap) else math.inf)
                if not gap <= CLOSE:
                    unlike.append(f"{one['kind']} {one['method']} {field}: {value} is {found}")
    print(f"bench: {len(rows[0])} rows, {figures} figures, {len(unlike)} differ, the others by {worst:.1e} at most")
    print(*unlike, sep="\n")
    return int(bool(differing or unlike))


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("checkout", type=Path)
    running.add_argument("--inputs", type=Path, required=True)
    running.add_argument("-o", dest="out", type=Path, required=True)
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "run":
        run(options.checkout, options.inputs.resolve(), options.out.resolve())
        return 0
    return compare(options.before, options.after)


if __name__ == "__main__":
    sys.exit(main())
