"""What an edit costs, before it is run."""

from __future__ import annotations

from v2edit.editing.config import EditConfig, Settled
from v2edit.editing.controls import first_step
from v2edit.editing.standing import CHAPTER
from v2edit.noise import Schedule


def steps_run(schedule: Schedule, config: EditConfig) -> int:
    """How many of the schedule's steps each subtask takes."""
    return schedule.steps - first_step(schedule, config.alpha, config.inc)


def forwards(schedule: Schedule, config: Settled) -> list[int]:
    """How many rows pass through the network in each subtask: branches x guidance halves, over all steps. In the
    window of the controls the sources run beside the edit; below it the edit runs alone."""
    alone, together = 1 + (config.guidance > 1), 1 + (max(config.guidance, config.source_guidance) > 1)
    start = first_step(schedule, config.alpha, config.inc)
    held = sum((config.pnc or config.amr) and schedule.controlled(k, config.beta) for k in range(start, schedule.steps))
    counts = []
    for subtask in range(1, config.subtasks + 1):
        sources = 1 if subtask == 1 else (config.mixture > 0) + (config.mixture < 1)
        counts.append(alone * (steps_run(schedule, config) - held) + together * (1 + sources) * held)
    return counts


def plan(schedule: Schedule, config: EditConfig) -> dict[str, int]:
    """The steps of each loop of an edit, by the name of its chapter in a journal."""
    return {f"{CHAPTER}-{subtask}": steps_run(schedule, config) for subtask in range(1, config.subtasks + 1)}
