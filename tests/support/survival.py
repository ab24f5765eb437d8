"""Runs that are ended at random moments and resumed until they are done."""

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

from support.processes import SERVER
from v2edit.jobs.functions import resume_run
from v2edit.runs.naming import REQUEST_FILE, STATE_DIR

EVERY = 3  # denoising steps between two snapshots


def work(start: Callable[..., Any], options: dict[str, Any], out: Path, log: Path) -> None:
    """Begin the run at `out`, or resume it, in a process of its own; each step is a line of the log."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # as in the command line
    sys.stderr = log.with_suffix(".err").open("a")

    def on_progress(progress: Any) -> None:
        phase = f"edit {progress.subtask}" if hasattr(progress, "subtask") else progress.phase
        with log.open("a") as file:
            file.write(f"{os.getpid()};{phase};{progress.step}\n")

    try:
        if (out / STATE_DIR / REQUEST_FILE).exists() or (out / "run.json").exists():
            resume_run(out, show_progress=False, on_progress=on_progress)
        else:
            start(**options, out=out, save_every=EVERY, show_progress=False, on_progress=on_progress)
    except KeyboardInterrupt as stop:
        assert not str(stop) or f"v2edit resume {out}" in str(stop), stop
        sys.exit(130)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a finished run, but for the manifest, which has times in it."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert "run.json" in files
    return {name: path.read_bytes() for name, path in files.items() if name != "run.json"}


def differing_files(a: dict[str, bytes], b: dict[str, bytes]) -> list[str]:
    """Return the names of files that are not in both with the same bytes."""
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


@dataclass
class Survival:
    """The numbers of ends (also by phase and exit code) and of finished runs, and the most denoising steps that were
    made again after an end."""

    ends: int = 0
    runs: int = 0
    most_redone: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)


def survive(
    start: Callable[..., Any], options: dict[str, Any], folder: Path, ends: int, how: signal.Signals, seed: int
) -> Survival:
    """End runs `ends` times at random moments and resume them each time; assert that every finished run has the bytes
    of an undisturbed one, that no more than `EVERY` denoising steps are made again, and that nothing else is left."""
    rng, survival = random.Random(seed), Survival()
    folder.mkdir()
    warm_up = SERVER.Process(target=time.sleep, args=(0,))  # waits for the server's imports
    warm_up.start()
    warm_up.join()
    begin = time.monotonic()
    process = start_process(start, options, folder / "whole" / "run", folder / "whole.log")
    wait_for_step(process, folder / "whole.log", 0)
    loading_time = time.monotonic() - begin
    process.join()
    working_time = time.monotonic() - begin - loading_time
    whole = contents(folder / "whole" / "run")
    while survival.ends < ends:
        out, log = folder / str(survival.runs) / "run", folder / f"{survival.runs}.log"
        while True:
            steps = read_log(log)
            process = start_process(start, options, out, log)
            if not steps:  # The first time the run must have begun; later any moment is good.
                while not (out / STATE_DIR / REQUEST_FILE).exists() and process.is_alive():
                    time.sleep(0.001)
            if survival.ends == ends:
                process.join()
            elif rng.random() < 0.2:  # Most of such a small run's time goes into loading, and little is at stake.
                process.join(rng.uniform(0, loading_time))
            else:
                wait_for_step(process, log, len(steps))
                process.join(rng.uniform(0, working_time))
            if is_alive := process.is_alive():
                os.kill(process.pid, how)
            process.join()
            survival.most_redone = max(survival.most_redone, count_redone(steps, read_log(log)))
            if not is_alive or process.exitcode == 0:
                assert process.exitcode == 0, (process.exitcode, log.with_suffix(".err").read_text())
                break
            survival.codes[process.exitcode] += 1
            survival.ends += 1
            survival.phases[phase_of(out, read_log(log), steps)] += 1
        assert survival.most_redone <= EVERY, survival
        assert not (names := differing_files(contents(out), whole)), (names, survival)
        assert [path.name for path in out.parent.iterdir()] == ["run"] and not (out / STATE_DIR).exists()
        survival.runs += 1
    return survival


def start_process(start: Callable[..., Any], options: dict[str, Any], out: Path, log: Path) -> Any:
    process = SERVER.Process(target=work, args=(start, options, out, log))
    process.start()
    return process


def wait_for_step(process: Any, log: Path, before: int) -> None:
    """Wait for the first step that a process makes, after those `before` it, or for its end."""
    while len(read_log(log)) <= before and process.is_alive():
        time.sleep(0.002)


def read_log(log: Path) -> list[tuple[str, str, int]]:
    text = log.read_text() if log.exists() else ""
    complete = [line.split(";") for line in text.splitlines() if line.count(";") == 2]
    return [(pid, phase, int(step)) for pid, phase, step in complete]


def count_redone(before: list[tuple[str, str, int]], after: list[tuple[str, str, int]]) -> int:
    """Return the number of denoising steps that were made again."""
    known = {(phase, step) for _, phase, step in before}
    return sum((phase, step) in known for _, phase, step in after[len(before) :] if "edit" in phase)


def phase_of(out: Path, after: list[tuple[str, str, int]], before: list[tuple[str, str, int]]) -> str:
    """Return the phase in which a process was ended."""
    if len(after) == len(before):
        return "loading"
    last = after[-1][1]
    if any((out / STATE_DIR / "results").glob("*")) or not (out / STATE_DIR / REQUEST_FILE).exists():
        return "writing"
    return "editing" if "edit" in last else "reconstructing"
