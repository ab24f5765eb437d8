"""The suites: their tasks, and the methods that are compared on them. Making one loads torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from v2edit.bench.methods import REFERENCES, SOURCE_REFERENCES, MethodConfig
from v2edit.bench.selection import known_methods, with_field

if TYPE_CHECKING:
    from v2edit.bench.suite_files import SuiteLine
    from v2edit.bench.tasks import Task
    from v2edit.scenes.config import FitConfig

BUILT_IN_SUITES = ("primitives", "scenes")
FIT = "fit."  # before a field of a scene's reconstruction, which is the same for all methods


@dataclass(frozen=True)
class Suite:
    """Tasks and methods: `tasks` makes the tasks of a set of seeds, a count and kinds (default: all of the suite);
    `methods` are by title, `references` those that edit nothing; `count` and `quick_count` are the default numbers of
    tasks of a kind; `mistakes` are the lines that were left out. Tasks of files have no known truth."""

    name: str
    tasks: Callable[[str, int, Sequence[str]], Sequence[Task]]
    methods: dict[str, MethodConfig]
    count: int
    quick_count: int
    references: dict[str, MethodConfig]
    of_files: bool = False
    mistakes: Sequence[str] = ()


def make_suite(
    name: str, steps: int, assignments: Sequence[str] = (), own: Sequence[str] = (), frames: int | None = None
) -> Suite:
    """Return a suite whose methods take so many steps, with the assignments applied (see `selection.known_methods`; in
    the suite of scenes, fit.FIELD=VALUE sets a field of the reconstructions). A name that is none of the built-in ones
    is a file or a folder (`suite_files`), of whose clips the first `frames` are taken; `own` are methods of the user's,
    as package.module:Class. Raises `UserError` where one names an unknown method or field, or has a wrong value."""
    if name not in BUILT_IN_SUITES:
        from v2edit.bench import file_tasks, suite_files
        from v2edit.bench.methods import V2Edit, clip_variants

        suite = suite_files.read_suite(Path(name))
        fit, assignments, variants = None, list(assignments), clip_variants
        if any(line.is_scene for line in suite.lines):
            from v2edit.bench.scenes import scene_variants

            fit, assignments = _set_fit(assignments)
            variants = scene_variants
        known = known_methods(V2Edit(steps=steps), variants, assignments, own)
        select = partial(_select_file_tasks, suite.lines, frames, fit)
        return Suite(
            suite.name, select, known, suite_files.MAX_TASKS, file_tasks.QUICK_COUNT, SOURCE_REFERENCES, True,
            suite.mistakes,
        )  # fmt: skip
    if name == "primitives":
        from v2edit.bench import tasks
        from v2edit.bench.methods import V2Edit, clip_variants

        known = known_methods(V2Edit(steps=steps), clip_variants, assignments, own)
        return Suite(name, tasks.primitives_tasks, known, tasks.COUNT, tasks.QUICK_COUNT, REFERENCES)
    from v2edit.bench import scenes

    fit, others = _set_fit(assignments)
    known = known_methods(scenes.SceneV2Edit(steps=steps, subtasks=scenes.SUBTASKS), scenes.table_c, others, own)
    tasks_of = partial(scenes.scene_tasks, fit=fit)
    return Suite(name, tasks_of, known, scenes.COUNT, scenes.QUICK_COUNT, REFERENCES)


def _set_fit(assignments: Sequence[str]) -> tuple[FitConfig, list[str]]:
    """Return the configuration of reconstructions by the assignments fit.FIELD=VALUE, and the others."""
    from v2edit.scenes.config import FitConfig

    fit = FitConfig()
    for one in assignments:
        if one.startswith(FIT):
            fit = with_field(fit, *one.removeprefix(FIT).partition("=")[::2])
    return fit, [one for one in assignments if not one.startswith(FIT)]


def _select_file_tasks(
    lines: Sequence[SuiteLine], frames: int | None, fit: FitConfig | None, seeds: str, count: int, kinds: Sequence[str]
) -> Sequence[Task]:
    from v2edit.bench.file_tasks import select_tasks

    tasks = select_tasks(lines, frames, count, kinds)
    if fit is None:
        return tasks
    from v2edit.bench.file_scenes import FileScene

    return [FileScene(one.line, frames, fit) if one.line.is_scene else one for one in tasks]
