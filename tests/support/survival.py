"""Runs that are ended at random moments and gone on with, until they are done."""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from v2edit.jobs.functions import resume_run
from v2edit.runs.naming import REQUEST_FILE, STATE_DIR

EVERY = 5
# Processes that begin with all of this imported and nothing computed, so that what is ended is the work.
SERVER = multiprocessing.get_context("forkserver")
IMPORTED = ["pytest", "v2edit.jobs.functions", "v2edit.backbones.cogvideox", "v2edit.editing.editor",
            "v2edit.scenes.rer", "v2edit.scenes.reading", "v2edit.scenes.formats.nerfstudio",
            "v2edit.video.sheets", "av", "PIL.Image",
            "diffusers.pipelines.cogvideo.pipeline_cogvideox", "transformers.models.t5.modeling_t5"]  # fmt: skip
SERVER.set_forkserver_preload(IMPORTED)


def work(start: Callable[..., Any], options: dict[str, Any], out: Path, log: Path) -> None:
    """In a process of its own: begins the run at `out` or goes on with it; each step done is a line of the log."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # as the command line has them
    sys.stderr = log.with_suffix(".err").open("a")

    def done(at: Any) -> None:
        what = f"edit {at.subtask}" if hasattr(at, "subtask") else at.phase
        with log.open("a") as file:
            file.write(f"{os.getpid()};{what};{at.step}\n")

    try:
        if (out / STATE_DIR / REQUEST_FILE).exists() or (out / "run.json").exists():
            resume_run(out, show_progress=False, on_progress=done)
        else:
            start(**options, out=out, save_every=EVERY, show_progress=False, on_progress=done)
    except KeyboardInterrupt as stop:
        assert not str(stop) or f"v2edit resume {out}" in str(stop), stop
        sys.exit(130)


def contents(folder: Path) -> dict[str, bytes]:
    """All that is in a finished run, but for the manifest, which has times in it."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert "run.json" in files
    return {name: path.read_bytes() for name, path in files.items() if name != "run.json"}


def unlike(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """The files that are not in both, with the same bytes."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


@dataclass
class Survival:
    """What came of it: how many ends, in which phase each came, how many runs were done, and the most denoising steps
    that had to be done again."""

    ends: int = 0
    runs: int = 0
    most_redone: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)


def survive(
    start: Callable[..., Any], options: dict[str, Any], folder: Path, ends: int, how: signal.Signals, seed: int
) -> Survival:
    """Ends runs `ends` times at random moments and goes on each time; asserts that every run that is done has the
    bytes of one that nothing happened to, that no more than `EVERY` denoising steps are done again, and that nothing
    else is left."""
    chance, found = random.Random(seed), Survival()
    folder.mkdir()
    waited = SERVER.Process(target=time.sleep, args=(0,))  # for the server's imports
    waited.start()
    waited.join()
    begin = time.monotonic()
    process = run(start, options, folder / "whole" / "run", folder / "whole.log")
    working(process, folder / "whole.log", 0)
    loads = time.monotonic() - begin
    process.join()
    works = time.monotonic() - begin - loads
    whole = contents(folder / "whole" / "run")
    while found.ends < ends:
        out, log = folder / str(found.runs) / "run", folder / f"{found.runs}.log"
        while True:
            steps = lines(log)
            process = run(start, options, out, log)
            if not steps:  # The first time something must have begun; later any moment is good.
                while not (out / STATE_DIR / REQUEST_FILE).exists() and process.is_alive():
                    time.sleep(0.001)
            if found.ends == ends:
                process.join()
            elif chance.random() < 0.2:  # Most of such a small run's time goes into loading, and little is at stake.
                process.join(chance.uniform(0, loads))
            else:
                working(process, log, len(steps))
                process.join(chance.uniform(0, works))
            if alive := process.is_alive():
                os.kill(process.pid, how)
            process.join()
            found.most_redone = max(found.most_redone, redone(steps, lines(log)))
            if not alive or process.exitcode == 0:
                assert process.exitcode == 0, (process.exitcode, log.with_suffix(".err").read_text())
                break
            found.codes[process.exitcode] += 1
            found.ends += 1
            found.phases[phase(out, lines(log), steps)] += 1
        assert found.most_redone <= EVERY, found
        assert not (other := unlike(contents(out), whole)), (other, found)
        assert [path.name for path in out.parent.iterdir()] == ["run"] and not (out / STATE_DIR).exists()
        found.runs += 1
    return found


def run(start: Callable[..., Any], options: dict[str, Any], out: Path, log: Path) -> Any:
    process = SERVER.Process(target=work, args=(start, options, out, log))
    process.start()
    return process


def working(process: Any, log: Path, before: int) -> None:
    """Waits for the first step that a process makes, after those `before` it, or for its end."""
    while len(lines(log)) <= before and process.is_alive():
        time.sleep(0.002)


def lines(log: Path) -> list[tuple[str, str, int]]:
    text = log.read_text() if log.exists() else ""
    whole = [line.split(";") for line in text.splitlines() if line.count(";") == 2]
    return [(who, what, int(step)) for who, what, step in whole]


def redone(before: list[tuple[str, str, int]], after: list[tuple[str, str, int]]) -> int:
    """How many denoising steps were done once more."""
    known = {(what, step) for _, what, step in before}
    return sum((what, step) in known for _, what, step in after[len(before) :] if "edit" in what)


def phase(out: Path, after: list[tuple[str, str, int]], before: list[tuple[str, str, int]]) -> str:
    """Where an end found a process."""
    if len(after) == len(before):
        return "loading"
    last = after[-1][1]
    if any((out / STATE_DIR / "results").glob("*")) or not (out / STATE_DIR / REQUEST_FILE).exists():
        return "writing"
    return "editing" if "edit" in last else "reconstructing"
