"""The examples run, in any folder, in few steps and on small clips; batches and scenes, which take longer, too."""

import functools
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from v2edit.primitives.sample import write_sample
from v2edit.scenes.primitives import write_task

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
STEPS = "3"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STEPS", STEPS)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    if "batch" in path.stem:  # its workers import it as the main module
        words = [sys.executable, str(path), str(out)]
        subprocess.run(words, check=True, capture_output=True, timeout=300, env=os.environ | {"TQDM_DISABLE": "1"})
    else:
        monkeypatch.setattr("v2edit.primitives.sample.write_sample", functools.partial(write_sample, size=32))
        monkeypatch.setattr("v2edit.scenes.primitives.write_task", functools.partial(write_task, views=12, side=32))
        monkeypatch.setattr(sys, "argv", [str(path), str(out)])
        runpy.run_path(str(path), run_name="__main__")
        assert capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out], "an example writes into the folder that it is given, and nowhere else"
    runs = [run for run in out.rglob("run.json")]
    assert runs and all((run.parent / "contact.png").is_file() for run in runs)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_explained_and_linked(path: Path) -> None:
    docstring = re.match(r'"""(.+?)"""', path.read_text(encoding="utf-8"), re.DOTALL)
    assert docstring and f"python examples/{path.name} [FOLDER]" in docstring[1]
    assert f"examples/{path.name}" in (ROOT / "README.md").read_text(encoding="utf-8")
