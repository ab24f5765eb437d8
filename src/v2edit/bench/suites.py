"""The suites: their tasks, and the methods that are compared on them. Making one loads torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from v2edit.bench.methods import MethodConfig
from v2edit.bench.selection import known_methods, with_field

if TYPE_CHECKING:
    from v2edit.bench.tasks import BenchTask

Name = Literal["primitives", "scenes"]
FIT = "fit."  # before a field of a scene's reconstruction, which is the same for all methods


@dataclass(frozen=True)
class Suite:
    """Tasks and methods: `tasks` makes the tasks of a set of seeds, a count and kinds (default: all of the suite);
    `methods` are by title; `count` and `quick_count` are the default numbers of tasks of a kind."""

    tasks: Callable[[str, int, Sequence[str]], Sequence[BenchTask]]
    methods: dict[str, MethodConfig]
    count: int
    quick_count: int


def make_suite(name: Name, steps: int, assignments: Sequence[str] = ()) -> Suite:
    """Return a suite whose methods take so many steps, with the assignments applied (see `selection.known_methods`; in
    the suite of scenes, fit.FIELD=VALUE sets a field of the reconstructions). Raises `UserError` where one names an
    unknown method or field, or has a wrong value."""
    if name == "primitives":
        from v2edit.bench import tasks
        from v2edit.bench.methods import V2Edit, clip_variants

        known = known_methods(V2Edit(steps=steps), clip_variants, assignments)
        return Suite(tasks.primitives_tasks, known, tasks.COUNT, tasks.QUICK_COUNT)
    from v2edit.bench import scenes
    from v2edit.scenes.config import FitConfig

    fit = FitConfig()
    for one in assignments:
        if one.startswith(FIT):
            fit = with_field(fit, *one.removeprefix(FIT).partition("=")[::2])
    others = [one for one in assignments if not one.startswith(FIT)]
    known = known_methods(scenes.SceneV2Edit(steps=steps, subtasks=scenes.SUBTASKS), scenes.table_c, others)
    return Suite(partial(scenes.scene_tasks, fit=fit), known, scenes.COUNT, scenes.QUICK_COUNT)
