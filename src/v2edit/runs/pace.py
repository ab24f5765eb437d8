"""The time left, estimated from the mean duration of the steps made so far."""

import time
from collections.abc import Mapping
from typing import Any


class Pace:
    """Progress of loops and the time that they still take, by a mean step duration for each kind of loop. Loops named
    `edit-1`, `edit-2` … are of one kind, the part before the first dash, and their steps take about as long as each
    other, or as their `weights` say. The first update of a loop is only the start of its clock: what comes before it
    is loading."""

    def __init__(
        self,
        plan: Mapping[str, int] | None = None,
        saved: Mapping[str, Any] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Begin with `plan`, the steps of each loop by its name, what `to_dict` returned in an earlier process, and the
        `weights` of loops whose steps take longer than those of others of their kind (default: 1)."""
        plan, saved = plan or {}, saved or {}
        self.plan, self._weights = dict(plan), dict(weights or {})
        self._left: dict[str, int] = {**plan, **saved.get("left", {})}
        self._durations: dict[str, tuple[float, float]] = {k: (mean, 1) for k, mean in saved.get("pace", {}).items()}
        self._last: tuple[str, int, float] | None = None  # the latest update: loop, steps left and time

    @property
    def total(self) -> int:
        """Steps of all loops of the plan."""
        return sum(self.plan.values())

    @property
    def done(self) -> int:
        """Steps of the plan that are made."""
        return self.total - sum(self._left.values())

    def update(self, name: str, done: int, total: int) -> float | None:
        """Note that `done` of `total` steps of a loop are made, and return the seconds that the loop still takes: None
        while no step of its kind has been timed. A loop whose count goes back starts again, and is timed anew."""
        kind, left, now = _kind(name), total - done, time.monotonic()
        if self._last is not None and self._last[0] == name:
            _, last_left, last_time = self._last
            if left > last_left:
                self._durations.pop(kind, None)
            elif left < last_left:
                seconds, count = self._durations.get(kind, (0.0, 0))
                self._durations[kind] = seconds + now - last_time, count + self._weighted(name, last_left - left)
        self._left[name], self._last = left, (name, left, now)
        mean = self._mean(name)
        return None if mean is None else mean * self._weighted(name, left)

    def to_dict(self) -> dict[str, Any]:
        """Return what another process needs to go on, and the seconds that all loops still take."""
        pace = {kind: seconds / count for kind, (seconds, count) in self._durations.items()}
        terms = [(self._mean(name), self._weighted(name, steps)) for name, steps in self._left.items() if steps]
        left = None if any(mean is None for mean, _ in terms) else sum((mean or 0) * steps for mean, steps in terms)
        return {"left": self._left, "pace": pace, "seconds_left": left, "at": time.time()}

    def _weighted(self, name: str, steps: int) -> float:
        return self._weights.get(name, 1.0) * steps

    def _mean(self, name: str) -> float | None:
        """Return the mean seconds of a step of weight 1 of a loop's kind, or None where none has been timed."""
        seconds, count = self._durations.get(_kind(name), (0.0, 0))
        return seconds / count if count else None


def _kind(name: str) -> str:
    return name.partition("-")[0]
