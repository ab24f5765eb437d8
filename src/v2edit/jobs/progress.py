"""The steps of long work in words and in figures: what the reporters of the command line and the studio show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from v2edit.runs import Pace

if TYPE_CHECKING:
    from v2edit.editing.editor import Progress
    from v2edit.scenes.rer import SceneProgress


@dataclass(frozen=True)
class Update:
    """One step of long work: `done` of `total` steps of a `phase`, in words and in figures for programs."""

    phase: str  # the time left is estimated for each phase by itself
    text: str
    done: int
    total: int
    figures: dict[str, Any]
    known: tuple[float | None, tuple[str, ...]] | None = None  # the seconds left and stages that are not in them

    def time_left(self, pace: Pace) -> tuple[float | None, tuple[str, ...]]:
        """Return the seconds left, None while no step is timed, and the stages to come that are not in them; `pace` is
        that of all updates."""
        if self.known is not None:
            return self.known
        return pace.update(self.phase, self.done, self.total), ()

    def facts(self, left: float | None, then: Sequence[str]) -> dict[str, Any]:
        """Return the figures for programs, with the time left as `time_left` returned it."""
        facts = self.figures | ({"then": then} if then else {})
        return facts | {"seconds_left": None if left is None else round(left, 1)}


def describe_edit_step(progress: Progress) -> Update:
    """Describe a step of an edit of a video."""
    step, known = f"{progress.step}/{progress.steps}", (progress.seconds_left, progress.then)
    figures = {name: getattr(progress, name) for name in ("subtask", "subtasks", "step", "steps")}
    if progress.shots > 1:
        figures |= {name: getattr(progress, name) for name in ("shot", "shot_number", "shots")}
    if progress.seed is not None:
        figures |= {name: getattr(progress, name) for name in ("seed", "seed_number", "seeds")}
    if progress.stage != "editing":
        figures["stage"] = progress.stage
        text = f"{progress.phase}, frame {step}"
        return Update(progress.phase, text, progress.step, progress.steps, figures, known)
    done, total = (progress.subtask - 1) * progress.steps + progress.step, progress.subtasks * progress.steps
    return Update(f"editing shot {progress.shot}", f"{progress.phase}, step {step}", done, total, figures, known)


def describe_scene_step(progress: SceneProgress) -> Update:
    """Describe a step of an edit of a scene."""
    figures = {"stage": progress.phase, "step": progress.step, "steps": progress.steps, "psnr": progress.psnr}
    psnr = "" if progress.psnr is None else f", PSNR {progress.psnr:.1f} dB"
    text = f"{progress.phase}{psnr}, step {progress.step}/{progress.steps}"
    return Update(progress.phase, text, progress.step, progress.steps, figures)


def describe_count(done: int, total: int, what: str) -> Update:
    """Describe how many of a number of things are done, and which was the last."""
    figures = {"step": done, "steps": total, "what": what}
    return Update("counting", f"{done} of {total}: {what}", done, total, figures)
