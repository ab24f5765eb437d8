"""The time that an edit still takes, of all that it does: coding, denoising steps, carrying the change, writing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from v2edit.editing.coder import LONG

if TYPE_CHECKING:
    from v2edit.editing.editor import Progress

CLIP_STAGES = "encoding", "editing", "decoding", "carrying"  # in this order, of each subtask


@dataclass
class TimeLeft:
    """Adds to the progress of an edit the seconds that it still takes, by the mean time of a frame in each stage so
    far. Of each clip (a shot, or the whole) the model is given so many frames, `given`, each subtask makes so many
    `steps` and the change is `carried` to so many frames, those of all subtasks; in the end so many are `written`."""

    given: Sequence[int]
    carried: Sequence[int]
    steps: int
    subtasks: int
    written: int
    stages: dict[str, float] = field(default_factory=dict, init=False)  # seconds of each
    frames: dict[str, float] = field(default_factory=dict, init=False)  # that took them
    _last: tuple[Progress, float, float] | None = field(default=None, init=False)  # frames left of its stage, time

    @property
    def is_long(self) -> bool:
        return self.written > LONG

    def reporting(self, on_progress: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Return the callback for an edit that calls `on_progress` with the time left. Of a short clip it gets the
        steps alone."""

        def report(progress: Progress) -> None:
            if progress.stage == "editing" or self.is_long:
                on_progress(self.add_to(progress))

        return report

    def add_to(self, progress: Progress) -> Progress:
        """Return the progress with the seconds left, None while nothing is timed, and the stages to come that are not
        in them because none of their frames is timed yet."""
        self._note(progress)
        left = {stage: frames for stage, frames in self.left(progress).items() if frames > 0}
        if not self.stages:
            return progress
        seconds = sum(self.stages[stage] / self.frames[stage] * left[stage] for stage in left if stage in self.frames)
        then = tuple(stage for stage in left if stage not in self.frames)
        known = seconds if seconds or not then else None
        return replace(progress, seconds_left=known, then=() if then == (progress.stage,) else then)

    def left(self, progress: Progress) -> dict[str, float]:
        """Return how many frames of each stage are to come, those of a denoising step each time."""
        at, stage, share = progress.shot_number - 1, progress.stage, 1 - progress.step / progress.steps
        once = "encoding", "carrying"  # what follows from the first subtask's latents, and from all subtasks' videos
        if stage == "writing":
            return {"writing": share * self.written}
        place, later = CLIP_STAGES.index(stage), self.subtasks - progress.subtask
        left = {}
        for name, own in zip(CLIP_STAGES, self._units(at), strict=True):
            order = CLIP_STAGES.index(name)
            here = share if order == place else float(order > place)
            subtasks = here if name in once else here + later
            after = sum(self._units(k)[order] for k in range(at + 1, len(self.given)))
            left[name] = subtasks * own + after * (1 if name in once else self.subtasks)
        if not self.is_long:
            return {"editing": left["editing"]}
        return left | {"writing": float(self.written)}

    def _units(self, clip: int) -> tuple[int, int, int, int]:
        """Return the frames of each stage of a clip and subtask."""
        given = self.given[clip]
        coded = given if given > LONG else 0
        return coded, given * self.steps, coded, self.carried[clip]

    def _note(self, progress: Progress) -> None:
        """Add the time since the last progress to the stage, if all of it was spent there."""
        now, stage, left = time.monotonic(), progress.stage, self.left(progress)[progress.stage]
        if self._last is not None:
            last, last_left, last_time = self._last
            same = (last.stage, last.shot_number, last.subtask) == (stage, progress.shot_number, progress.subtask)
            frames = last_left - left if same else 0.0
            if stage == "editing" and progress.step == 1 and last.shot_number == progress.shot_number:
                frames = float(self.given[progress.shot_number - 1])  # right after what came before the steps
            if frames > 0:
                self.stages[stage] = self.stages.get(stage, 0.0) + now - last_time
                self.frames[stage] = self.frames.get(stage, 0.0) + frames
        self._last = progress, left, now
