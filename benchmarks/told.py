"""Whether `v2edit edit --dry-run` tells the truth: what it says an edit takes against what that edit then took.

    python benchmarks/told.py                  (some minutes; the built-in model)
    python benchmarks/told.py --clock wall     (on a machine that does nothing else)

Each row is two processes: one tells, one edits. Seconds are those of the processor by default, so that other work on
the machine is no matter (on one thread and an idle machine they are the clock's); memory is the peak of the process.
Prints Markdown; ratios are told / taken, and the exit code is 1 where one is off by more than 25 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from v2edit import video
from v2edit.primitives.edits import sample_edit
from v2edit.primitives.render import render_clip

# (frames, height, width, steps): as trained, a long clip, another aspect and more pixels, which are fitted.
CLIPS = ((9, 64, 64, 25), (65, 64, 64, 6), (17, 96, 288, 12))
ALLOWED = 0.25
ON_THE_PROCESSOR = """
import time; time.perf_counter = time.process_time
import v2edit.cli.output; v2edit.cli.output.age = time.process_time
"""
RUN = "import sys; from v2edit.cli.app import main; sys.exit(main(sys.argv[1:]))"


def spent(words: list[str], clock: str) -> tuple[float, int, str]:
    """Seconds and the peak in bytes of a process, and what it printed."""
    code = (ON_THE_PROCESSOR if clock == "cpu" else "") + RUN
    begin = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    printed = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    took = time.perf_counter() - begin
    if child.returncode != 0:
        raise SystemExit(f"v2edit {' '.join(words)} ended with {child.returncode}")
    return (used.ru_utime + used.ru_stime if clock == "cpu" else took), used.ru_maxrss * 1024, printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--seed", type=int, default=2_000_000_000)
    options = parser.parse_args()
    edit = sample_edit(Random(options.seed), "recolour")
    words = ["--source-prompt", edit.source_prompt, "--target-prompt", edit.target_prompt, "--device", "cpu", "--json"]
    print("| frames | pixels | steps | told s | took s | ratio | told MiB | took MiB | ratio |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    worst = 0.0
    for frames, height, width, steps in CLIPS:
        with tempfile.TemporaryDirectory() as folder:
            clip = str(Path(folder) / "clip.mp4")
            video.write(render_clip(edit.source, frames, height, width).frames, clip, fps=8)
            command = ["edit", clip, *words, "--steps", str(steps), "-o", str(Path(folder) / "run")]
            _, _, printed = spent([*command, "--dry-run"], options.clock)
            told = next(e for line in printed.splitlines() if (e := json.loads(line))["event"] == "result")
            seconds, peak, _ = spent(command, options.clock)
        ratios = told["seconds_in_all"] / seconds, told["peak"] / peak
        worst = max(worst, *(abs(one - 1) for one in ratios))
        print(
            f"| {frames} | {width} x {height} | {steps} |"
            f" {told['seconds_in_all']:.1f} | {seconds:.1f} | {ratios[0]:.2f} |"
            f" {told['peak'] / 2**20:.0f} | {peak / 2**20:.0f} | {ratios[1]:.2f} |",
            flush=True,
        )
    sys.exit(worst > ALLOWED)


if __name__ == "__main__":
    main()
