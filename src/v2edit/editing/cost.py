"""What an edit costs, before it is run."""

from __future__ import annotations

from v2edit.editing.config import EditConfig
from v2edit.editing.controls import first_step
from v2edit.noise import Schedule


def steps_run(schedule: Schedule, config: EditConfig) -> int:
    """How many of the schedule's steps each subtask takes."""
    return schedule.steps - first_step(schedule, config.alpha, config.inc)


def forwards(schedule: Schedule, config: EditConfig, guidance: float) -> list[int]:
    """How many rows pass through the network in each subtask: branches x guidance halves, over all steps. In the
    window of the controls the sources run beside the edit; below it the edit runs alone."""
    of_sources = guidance if config.source_guidance is None else config.source_guidance
    alone, together = 1 + (guidance > 1), 1 + (max(guidance, of_sources) > 1)
    start = first_step(schedule, config.alpha, config.inc)
    held = sum((config.pnc or config.amr) and schedule.controlled(k, config.beta) for k in range(start, schedule.steps))
    counts = []
    for subtask in range(1, config.subtasks + 1):
        sources = 1 if subtask == 1 else (config.mixture > 0) + (config.mixture < 1)
        counts.append(alone * (steps_run(schedule, config) - held) + together * (1 + sources) * held)
    return counts
