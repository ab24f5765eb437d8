"""Compare what `v2edit edit --dry-run --timed` estimates with what the edit takes.

    python benchmarks/estimate.py                  (some minutes; the built-in model)
    python benchmarks/estimate.py --clock wall     (on a machine that does nothing else)

Each row is two processes: a dry run and the edit. Seconds are those of the processor by default, so that other work
on the machine is no matter (on one thread and an idle machine they are the clock's); memory is the peak of the
process. Prints Markdown; ratios are estimate / measurement, and the exit code is 1 where one is off by more than 25 %.
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
ALLOWED_ERROR = 0.25
ON_THE_PROCESSOR = """
import time; time.perf_counter = time.process_time
import v2edit.cli.commands; v2edit.cli.commands.process_age = time.process_time
"""
RUN = "import sys; from v2edit.cli.app import main; sys.exit(main(sys.argv[1:]))"


def measure(words: list[str], clock: str) -> tuple[float, int, str]:
    """Run a command; return its seconds, its peak memory in bytes and its standard output."""
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
    print("| frames | pixels | steps | estimated s | s | ratio | estimated MiB | MiB | ratio |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    worst = 0.0
    for frames, height, width, steps in CLIPS:
        with tempfile.TemporaryDirectory() as folder:
            clip = str(Path(folder) / "clip.mp4")
            video.write(render_clip(edit.source, frames, height, width).frames, clip, fps=8)
            command = ["edit", clip, *words, "--steps", str(steps), "-o", str(Path(folder) / "run")]
            _, _, printed = measure([*command, "--dry-run", "--timed"], options.clock)
            estimate = next(e for line in printed.splitlines() if (e := json.loads(line))["event"] == "result")
            seconds, peak, _ = measure(command, options.clock)
        ratios = estimate["total_seconds"] / seconds, estimate["peak"] / peak
        worst = max(worst, *(abs(ratio - 1) for ratio in ratios))
        print(
            f"| {frames} | {width} x {height} | {steps} |"
            f" {estimate['total_seconds']:.1f} | {seconds:.1f} | {ratios[0]:.2f} |"
            f" {estimate['peak'] / 2**20:.0f} | {peak / 2**20:.0f} | {ratios[1]:.2f} |",
            flush=True,
        )
    sys.exit(worst > ALLOWED_ERROR)


if __name__ == "__main__":
    main()
