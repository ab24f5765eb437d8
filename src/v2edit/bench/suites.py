"""The suites: which tasks there are, and which methods they are tried with. Making one loads torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from v2edit.bench.methods import Settings, methods, with_field

if TYPE_CHECKING:
    from v2edit.bench.tasks import Task

Name = Literal["primitives", "scenes"]
FIT = "fit."  # what sets a scene's reconstruction, which is the same for all methods


@dataclass(frozen=True)
class Suite:
    """`tasks` of seeds, a count and kinds (all of the suite where none is named); `methods` by their titles; how many
    tasks of each kind there are unless that is said."""

    tasks: Callable[[str, int, Sequence[str]], Sequence[Task]]
    methods: dict[str, Settings]
    count: int
    quick_count: int


def suite_of(name: Name, steps: int, assignments: Sequence[str] = ()) -> Suite:
    """The suite of a name, at so many steps, with what the assignments set (see `methods`; in the suite of scenes
    fit.FIELD=VALUE sets a field of its reconstructions).

    Raises:
        UserError: what is to be set there is not.
    """
    if name == "primitives":
        from v2edit.bench import tasks, variants

        known = methods(variants.V2Edit(steps=steps), variants.table_c, assignments)
        return Suite(tasks.primitives, known, tasks.COUNT, tasks.QUICK_COUNT)

    from v2edit.bench import scenes
    from v2edit.scenes.config import FitConfig

    fit = FitConfig()
    for one in assignments:
        if one.startswith(FIT):
            fit = with_field(fit, *one.removeprefix(FIT).partition("=")[::2])
    others = [one for one in assignments if not one.startswith(FIT)]
    known = methods(scenes.SceneV2Edit(steps=steps, subtasks=scenes.SUBTASKS), scenes.table_c, others)
    return Suite(partial(scenes.scenes, fit=fit), known, scenes.COUNT, scenes.QUICK_COUNT)
