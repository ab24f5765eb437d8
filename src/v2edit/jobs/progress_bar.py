"""The progress bars of the Python functions: in a terminal or a notebook, as tqdm shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_bar(show: bool, also: Callable[[Any], None] | None = None) -> Iterator[Callable[[Any], None]]:
    """Yield a callback for the steps of a job, which moves a bar while `show` and calls `also`."""
    if not show:
        yield also or (lambda progress: None)
        return
    from tqdm.auto import tqdm

    with tqdm(unit="step", leave=False, dynamic_ncols=True) as bar:

        def on_progress(progress: Any) -> None:
            if (bar.desc, bar.total) != (f"{progress.phase}: ", progress.steps):
                bar.set_description(progress.phase, refresh=False)
                bar.reset(progress.steps)
            bar.update(progress.step - bar.n)
            if also is not None:
                also(progress)

        yield on_progress


@contextmanager
def count_bar(
    show: bool, also: Callable[[int, int, str], None] | None = None
) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a callback that is told (done, total, what) and moves a bar while `show`."""
    if not show:
        yield also or (lambda done, total, what: None)
        return
    from tqdm.auto import tqdm

    with tqdm(leave=False, dynamic_ncols=True) as bar:

        def on_progress(done: int, total: int, what: str) -> None:
            bar.total = total
            bar.set_postfix_str(what, refresh=False)
            bar.update(done - bar.n)
            if also is not None:
                also(done, total, what)

        yield on_progress
