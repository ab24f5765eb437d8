"""What a benchmark leaves: its results and its page."""

from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from support.blind import read
from support.processes import ForkingPool
from v2edit.bench import trials
from v2edit.bench.command import BenchOptions, BenchReport, benchmark


def results_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Name -> when it was written, and its frames."""
    found = {}
    for path in sorted(folder.glob("results/*/*.npz")):
        with np.load(path) as result:
            found[f"{path.parent.name}/{path.name}"] = path.stat().st_mtime_ns, result["frames"].tobytes()
    return found


class Page(HTMLParser):
    """Collects what a browser would fetch, and the data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.data, self.script, self.inside = "", "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [value for key, value in given.items() if key in ("src", "href") and value]
        self.inside = (given.get("type") or "script") if tag == "script" else ""

    def handle_data(self, data: str) -> None:
        if self.inside == "application/json":
            self.data += data
        elif self.inside == "script":
            self.script += data


def compare(
    options: BenchOptions,
    on_progress: Callable[[int, int, str], None] = lambda done, total, what: None,
    command: list[str] | None = None,
    **changes: object,
) -> BenchReport:
    """Run a benchmark on the CPU, with changed options, by a classifier whose answers do not matter."""
    return benchmark(replace(options, device="cpu", **changes), read, on_progress, command)


def compare_with_forks(options: BenchOptions, model: Path, out: Path) -> None:
    """Run a benchmark with one worker that is a child of this process."""
    trials.ProcessPool = ForkingPool
    compare(options, processes=1, model=str(model), out=out)
