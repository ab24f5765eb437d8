"""The first run on a GPU, tried tiny on a CPU: all its sections work, and what is wrong is said first."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu/first.py"


def run(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, "-o", out, "--tiny", *words], capture_output=True, text=True)


@pytest.mark.heavy
def test_every_section_runs(tmp_path):
    done = run(tmp_path / "report")
    results = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "report").glob("*.json")}
    assert len(results) == 7 and not [name for name, result in results.items() if "error" in result], done.stdout
    wrong = [text for result in results.values() for text in result["wrong"] if "needs torchao" not in text]
    assert wrong == []
    gradients = results["scenes"]["tables"]["rasterisers"]
    assert 0 < max(row["largest difference"] for row in gradients) < 1e-3  # two backends, and not the same tensors


def test_a_section_that_fails_is_told_first_and_the_next_one_runs(tmp_path):
    out = tmp_path / "report"
    out.mkdir()
    (out / "kernels.json").write_text(json.dumps({"tables": {}, "wrong": ["flash: off by 0.3"], "seconds": 1.0}))
    (out / "command.json").write_text(json.dumps({"error": "exit code 1", "log": "", "seconds": 1.0}))
    done = run(out, "--only", "kernels", "command", "--models", "no such model")
    report = (out / "report.md").read_text()
    assert done.returncode == 1 and "kernels: kept" in done.stdout  # a failed one is run again
    assert "**command failed**: exit code 1" in report and "no such model" in report
    assert "**kernels: flash: off by 0.3**" in report and report.index("flash: off") < report.index("## kernels")
