"""Snapshots of long loops on disk, from which a run resumes after any end of its process.

A loop's snapshot is one safetensors file with all that its steps to come depend on; it is replaced whole. What a run
computes between its loops is a function of their results, and has no snapshot."""

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
# Where steps are short, saving may cost this part of the time, and happens at most once in so many seconds.
SHARE, PAUSE = 0.05, 1.0
FACTS = "facts"


@dataclass(frozen=True)
class LoopState:
    """A loop's state: tensors by name, and facts that JSON can hold."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshots:
    """The snapshots in a folder. `on_step` is called with the name of a loop and the number of its steps left."""

    folder: Path
    every: int = SAVE_EVERY
    on_step: Callable[[str, int], None] = lambda name, left: None

    def loop(self, name: str, every_step: bool = True) -> LoopSnapshot:
        """Return the snapshot of a loop, saved every `self.every` steps or (not `every_step`) where it costs little."""
        return LoopSnapshot(self, name, self.every if every_step else None)


@dataclass(frozen=True)
class LoopSnapshot:
    """The snapshot of one loop; without a folder of snapshots nothing is saved."""

    snapshots: Snapshots | None = None
    name: str = ""
    every: int | None = None

    @property
    def path(self) -> Path:
        assert self.snapshots is not None
        return self.snapshots.folder / f"{self.name}.safetensors"

    def load(self, tensors: bool = True) -> LoopState | None:
        """Read the saved state, on the CPU, its `tensors` or the facts alone; None before the first. Raises `UserError`
        where it cannot be read."""
        if self.snapshots is None or not self.path.exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self.path), "pt") as file:
                names, facts = file.keys() if tensors else (), json.loads((file.metadata() or {})[FACTS])
                # Copied out of the mapped file, which the next step replaces.
                return LoopState({name: file.get_tensor(name).clone() for name in names}, facts)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise UserError(f"the state in {self.path} is damaged ({error}): start again, with another -o") from error

    def save(self, state: LoopState) -> None:
        """Replace the saved state, whole or not at all. Raises `OSError` where the disk does not take it."""
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.tensors.items()}
        atomic_write(self.path, save(tensors, {FACTS: json.dumps(state.facts)}))

    def steps(
        self,
        first: int,
        end: int,
        read_state: Callable[[], LoopState],
        must_save: Callable[[int], bool] = lambda k: False,
    ) -> Iterator[int]:
        """Yield the steps `first` to `end` - 1 of a loop and save its state between them: when it is due, after a step
        that it `must_save`, after the last, and after the step in which the user interrupts (KeyboardInterrupt is
        raised then)."""
        if self.snapshots is None:
            yield from range(first, end)
            return
        self.snapshots.on_step(self.name, end - first)
        last_save, save_seconds = time.monotonic(), 0.0
        with defer_interrupt() as interrupts:
            for k in range(first, end):
                yield k
                now, count = time.monotonic(), k + 1
                due = count % self.every == 0 if self.every else now - last_save > max(PAUSE, save_seconds / SHARE)
                if due or must_save(k) or interrupts or count == end:
                    self.save(read_state())
                    last_save = time.monotonic()
                    save_seconds = last_save - now
                self.snapshots.on_step(self.name, end - count)
                if interrupts:
                    raise KeyboardInterrupt


@contextmanager
def defer_interrupt() -> Iterator[list[int]]:
    """Defer the first interrupt: its signal is appended to the list; a second one raises KeyboardInterrupt as usual.
    Only signals that would raise it are deferred: SIGINT, and SIGTERM where a program handles it alike."""
    interrupts: list[int] = []

    def on_signal(number: int, frame: Any) -> None:
        if interrupts:
            signal.default_int_handler(number, frame)
        interrupts.append(number)
        with suppress(RuntimeError):  # It may have come in the middle of a line being written.
            log.warning("stopping after this step; once more, and it stops at once")

    deferred: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        deferred = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is signal.default_int_handler]
    for number in deferred:
        signal.signal(number, on_signal)
    try:
        yield interrupts
    finally:
        for number in deferred:
            signal.signal(number, signal.default_int_handler)
