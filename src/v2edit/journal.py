"""What a long loop keeps on disk, so that it can go on after any end of its process.

A loop is a chapter of the journal: one safetensors file, which holds all that its steps to come depend on and is
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
from v2edit.folders import write_whole

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
SAVE_EVERY = 5  # denoising steps
# What saving may cost where steps are short: this part of the time, and once in so many seconds.
SHARE, PAUSE = 0.05, 1.0
FACTS = "facts"


@dataclass(frozen=True)
class Kept:
    """A loop's state: tensors by name, and what else JSON holds."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Journal:
    """The chapters in a folder. `told` hears the name of a chapter and how many of its steps are left."""

    folder: Path
    every: int = SAVE_EVERY
    told: Callable[[str, int], None] = lambda name, left: None

    def chapter(self, name: str, every_step: bool = True) -> Chapter:
        """`every_step`: steps are long, and every so many of them are kept; otherwise as often as it costs little."""
        return Chapter(self, name, self.every if every_step else None)


@dataclass(frozen=True)
class Chapter:
    """One loop, and where it stands; without a journal nothing is kept."""

    journal: Journal | None = None
    name: str = ""
    every: int | None = None

    @property
    def path(self) -> Path:
        assert self.journal is not None
        return self.journal.folder / f"{self.name}.safetensors"

    def load(self) -> Kept | None:
        """Where the loop stood, on the CPU; None where it is still to begin.

        Raises `UserError` where the file cannot be read.
        """
        if self.journal is None or not self.path.exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self.path), "pt") as file:
                names, facts = file.keys(), json.loads((file.metadata() or {})[FACTS])
                # Copied out of the mapped file, which the next step replaces.
                return Kept({name: file.get_tensor(name).clone() for name in names}, facts)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise UserError(f"the state in {self.path} is damaged ({error}): start again, with another -o") from error

    def save(self, kept: Kept) -> None:
        """Replaces what is kept, whole or not at all. Raises `OSError` where the disk does not take it."""
        from safetensors.torch import save

        tensors = {name: one.detach().cpu().clone().contiguous() for name, one in kept.tensors.items()}
        write_whole(self.path, save(tensors, {FACTS: json.dumps(kept.facts)}))

    def steps(self, first: int, end: int, state: Callable[[], Kept]) -> Iterator[int]:
        """The steps `first` to `end` - 1 of a loop, whose body makes one each. `state` tells where the loop stands
        between two; that is kept after the last one, too, and when the user interrupts, who is heard after a step."""
        if self.journal is None:
            yield from range(first, end)
            return
        self.journal.told(self.name, end - first)
        saved, cost = time.monotonic(), 0.0
        with patience() as asked:
            for k in range(first, end):
                yield k
                now, done = time.monotonic(), k + 1
                due = done % self.every == 0 if self.every else now - saved > max(PAUSE, cost / SHARE)
                if due or asked or done == end:
                    self.save(state())
                    saved = time.monotonic()
                    cost = saved - now
                self.journal.told(self.name, end - done)
                if asked:
                    raise KeyboardInterrupt


@contextmanager
def patience() -> Iterator[list[int]]:
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
