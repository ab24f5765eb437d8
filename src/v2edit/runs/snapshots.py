"""What a long loop keeps on disk, so that it can go on after any end of its process.

A loop is a snapshot of the snapshots: one safetensors file, which holds all that its steps to come depend on and is
replaced whole. What lies between the loops is a function of what they make, and is not kept.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2edit.errors import UserError
from v2edit.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
SAVE_EVERY = 5  # denoising steps
# What saving may cost where steps are short: this part of the time, and once in so many seconds.
SHARE, PAUSE = 0.05, 1.0
FACTS = "facts"


@dataclass(frozen=True)
class LoopState:
    """A loop's state: tensors by name, and what else JSON holds."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshots:
    """The loops in a folder. `told` hears the name of a snapshot and how many of its steps are left."""

    folder: Path
    every: int = SAVE_EVERY
    on_step: Callable[[str, int], None] = lambda name, left: None

    def loop(self, name: str, every_step: bool = True) -> LoopSnapshot:
        """`every_step`: steps are long, and every so many of them are kept; otherwise as often as it costs little."""
        return LoopSnapshot(self, name, self.every if every_step else None)


@dataclass(frozen=True)
class LoopSnapshot:
    """One loop, and where it stands; without a snapshots nothing is kept."""

    snapshots: Snapshots | None = None
    name: str = ""
    every: int | None = None

    @property
    def path(self) -> Path:
        assert self.snapshots is not None
        return self.snapshots.folder / f"{self.name}.safetensors"

    def load(self) -> LoopState | None:
        """Where the loop stood, on the CPU; None where it is still to begin.

        Raises `UserError` where the file cannot be read.
        """
        if self.snapshots is None or not self.path.exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self.path), "pt") as file:
                names, facts = file.keys(), json.loads((file.metadata() or {})[FACTS])
                # Copied out of the mapped file, which the next step replaces.
                return LoopState({name: file.get_tensor(name).clone() for name in names}, facts)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise UserError(f"the state in {self.path} is damaged ({error}): start again, with another -o") from error

    def save(self, kept: LoopState) -> None:
        """Replaces what is kept, whole or not at all. Raises `OSError` where the disk does not take it."""
        from safetensors.torch import save

        tensors = {name: one.detach().cpu().clone().contiguous() for name, one in kept.tensors.items()}
        atomic_write(self.path, save(tensors, {FACTS: json.dumps(kept.facts)}))

    def steps(self, first: int, end: int, state: Callable[[], LoopState]) -> Iterator[int]:
        """The steps `first` to `end` - 1 of a loop, whose body makes one each. `state` tells where the loop stands
        between two; that is kept after the last one, too, and when the user interrupts, who is heard after a step."""
        if self.snapshots is None:
            yield from range(first, end)
            return
        self.snapshots.on_step(self.name, end - first)
        saved, cost = time.monotonic(), 0.0
        with defer_interrupt() as asked:
            for k in range(first, end):
                yield k
                now, done = time.monotonic(), k + 1
                due = done % self.every == 0 if self.every else now - saved > max(PAUSE, cost / SHARE)
                if due or asked or done == end:
                    self.save(state())
                    saved = time.monotonic()
                    cost = saved - now
                self.snapshots.on_step(self.name, end - done)
                if asked:
                    raise KeyboardInterrupt


@contextmanager
def defer_interrupt() -> Iterator[list[int]]:
    """Within, an interrupt is noted in the list, and no more than that; a second one is the usual KeyboardInterrupt.

    Only for signals that would raise it: SIGINT, and SIGTERM where a program has put them on a level.
    """
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked:
            signal.default_int_handler(number, frame)
        asked.append(number)
        with suppress(RuntimeError):  # It may have come in the middle of a line being written.
            log.warning("stopping after this step; once more, and it stops at once")

    ours: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        ours = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is signal.default_int_handler]
    for number in ours:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number in ours:
            signal.signal(number, signal.default_int_handler)
