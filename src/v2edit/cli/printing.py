"""What commands print of their results: a comparison of prompts, the state of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from v2edit.cli.output import Reporter

if TYPE_CHECKING:
    from v2edit.batch.state import BatchStatus
    from v2edit.prompts.comparison import PromptComparison


def print_comparison(comparison: PromptComparison) -> None:
    """Print a comparison: in colour on a terminal (removed red, added green, cut dim), with plain marks elsewhere."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    if console.color_system is None or console.no_color:
        print(comparison.marked)
        return
    styles = {"shared": "", "removed": "red strike", "added": "green", "cut": "dim strike"}
    console.print(Text.assemble(*((text, styles[kind]) for kind, text in comparison.pieces)))


def print_batch(status: BatchStatus, reporter: Reporter) -> None:
    """Print how many tasks are done, and a line for each that is running or has failed."""
    counts = {"done": len(status.done), "running": len(status.running), "waiting": status.waiting}
    counts["failed"] = len(status.failed)
    plural = "s" * (len(status.tasks) != 1)
    print(
        f"{len(status.tasks)} task{plural}: {', '.join(f'{count} {what}' for what, count in counts.items() if count)}"
    )
    for one in status.running:
        print(f"running  {one.name}: {one.worker}, attempt {one.attempt}, since {one.since}")
    for one in status.failed:
        print(f"failed   {one.name}: {one.reason} ({one.attempts} attempt{'s' if one.attempts > 1 else ''})")
    if not status.active and status.waiting:
        print("no batch is running here; the same command continues it")
    print(status.folder / "index.html")
    failed = [{"name": task.name, "reason": task.reason, "attempts": task.attempts} for task in status.failed]
    reporter.result(folder=status.folder, counts=counts, failed=failed)
