"""The first run on a GPU: check and measure what no CPU can, in one command, and write a report to send back.

    python benchmarks/gpu/first.py -o gpu-report                     (all of it: some 25 minutes of an 80 GB card)
    python benchmarks/gpu/first.py -o gpu-report --only machine kernels
    python benchmarks/gpu/first.py -o try --tiny                     (on a CPU, tiny: does the command itself work?)

Weights are random, of published configurations (benchmarks/gpu/models.py): times, memory, exactness and determinism do
not depend on what they were trained for. Each section is a process of its own with a time limit; one that fails is
reported and the next begins. Run again, and the sections that succeeded are kept."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "src")]

MINUTES = {"machine": 3, "kernels": 4, "attention": 5, "edits": 15, "command": 6, "subtask": 12, "scenes": 6}


def run_section(name: str, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run a section in a process of its own; return its result, or its error and the end of what it printed."""
    path, begin = out / f"{name}.json", time.perf_counter()
    if path.exists() and "error" not in (before := json.loads(path.read_text())):
        print(f"{name}: kept", flush=True)
        return before
    words = [sys.executable, __file__, "-o", str(out), "--section", name, *(["--tiny"] if options.tiny else [])]
    words += ["--models", *options.models, "--models-folder", str(options.models_folder or out / "models")]
    log = out / f"{name}.log"
    with log.open("w") as file:
        try:
            code = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, timeout=60 * MINUTES[name]).returncode
            error = f"exit code {code}" if code else None
        except subprocess.TimeoutExpired:
            error = f"longer than {MINUTES[name]} minutes"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if error:
        result |= {"error": error, "log": log.read_text()[-4000:]}
    result["seconds"] = round(time.perf_counter() - begin, 1)
    path.write_text(json.dumps(result, indent=1))
    print(f"{name}: {error or 'done'}, {result['seconds']:.0f} s", flush=True)
    return result


def write_report(out: Path, results: dict[str, dict[str, Any]]) -> None:
    """Write the results as Markdown, the failures first."""
    lines = ["# First run of V2Edit on this GPU", ""]
    failed = {name: result for name, result in results.items() if "error" in result}
    lines += [f"- **{name} failed**: {result['error']}" for name, result in failed.items()]
    wrong = [f"- **{name}: {text}**" for name, result in results.items() for text in result.get("wrong", [])]
    lines += wrong or ["- all checks of the sections that ran passed"]
    for name, result in results.items():
        lines += ["", f"## {name} ({result['seconds']:.0f} s)", ""]
        for title, rows in result.get("tables", {}).items():
            lines += [f"**{title}**", "", *markdown_table(rows), ""]
        if text := result.get("text"):
            lines += ["```", text.strip(), "```"]
        if "error" in result:
            lines += ["```", result["log"], "```"]
    (out / "report.md").write_text("\n".join(lines) + "\n")


def markdown_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return rows of equal keys as a table."""
    if not rows:
        return ["(nothing)"]
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[format_cell(row.get(name, "")) for name in names] for row in rows]
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|", *(f"| {' | '.join(row)} |" for row in cells)]


def format_cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("gpu-report"))
    parser.add_argument("--only", nargs="+", choices=MINUTES, default=list(MINUTES), metavar="SECTION")
    parser.add_argument("--models", nargs="+", default=["CogVideoX-5b", "Wan 2.1 1.3B"])
    parser.add_argument("--models-folder", type=Path, help="where random models are written (some 15 GB)")
    parser.add_argument("--tiny", action="store_true", help="one layer, small clips, on the CPU")
    parser.add_argument("--section", choices=MINUTES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.section:
        from gpu import sections

        sections.run(options.section, options)
        return 0
    results = {name: run_section(name, options.out, options) for name in options.only}
    write_report(options.out, results)
    print(f"the report is in {options.out / 'report.md'}: send this folder, without models/")
    return int(any("error" in result or result.get("wrong") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
