"""Batches: files of tasks, what is in their folders, and pools of workers that start at once."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from v2edit import video
from v2edit.editing import EditConfig
from v2edit.workers import Ended, Event, Refused, Started, Worker

PROMPTS = {"source_prompt": "a red ball", "target_prompt": "a blue cube"}
QUICK = EditConfig(steps=2)


def write_tasks(path: Path, *lines: dict[str, Any] | str) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8", errors="surrogateescape")
    return path


def write_clip(path: Path) -> Path:
    """Write a clip of a red square."""
    frames = np.zeros((5, 32, 32, 3), np.uint8)
    frames[:, 8:24, 8:24] = (200, 30, 30)
    return video.write(frames, path, fps=8)


def leftovers(folder: Path) -> list[str]:
    """Return the files that only a running batch may have in its folder."""
    return [path.name for path in (*folder.glob("*/.state"), *folder.glob(".batch/running/*"), *folder.glob("*-2"))]


def pid_of(worker: str) -> int:
    return int(re.findall(r"process (\d+)$", worker)[0])


class InlinePool:
    """A `WorkerPool` whose workers are objects of this process."""

    def __init__(self, factories: Sequence[Callable[[], Worker]], threads: int | None = None) -> None:
        self.count = len(factories)
        self._factories = factories
        self._workers: dict[int, Worker] = {}
        self._events: list[Event] = []

    def start(self, worker: int) -> None:
        self._workers[worker] = self._factories[worker]()
        place, reason = self._workers[worker].load()
        self._events.append(Refused(worker, reason) if place is None else Started(worker, place))

    def submit(self, worker: int, job: Any) -> None:
        self._events.append(Ended(worker, self._workers[worker].run(job)))

    def wait(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        self._workers.clear()
