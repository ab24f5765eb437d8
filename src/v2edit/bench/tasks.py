"""The tasks: edits of the built-in world, each named by its kind and its seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from random import Random

from v2edit.errors import UserError
from v2edit.prompts import PromptPair
from v2edit.world.edits import KINDS, Edit, Truth, sample_edit, truth

# Training takes seeds below a billion, and what judges a model in training a few from there on. What is chosen on
# tuning seeds is reported on others. Each kind has a thousand of its own, so that no two kinds share their sources.
FIRST_SEED = {"tuning": 1_900_000_000, "reporting": 2_000_000_000}
SEEDS_A_KIND = 1000
COUNT, QUICK_COUNT = 20, 3


@dataclass(frozen=True)
class Task:
    """One edit to try; `v2edit world sample --seed SEED --kind KIND` writes its clips."""

    kind: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind.replace(' ', '-')}-{self.seed}"

    @cached_property
    def edit(self) -> Edit:
        return sample_edit(Random(self.seed), self.kind)

    @property
    def prompts(self) -> PromptPair:
        return PromptPair(self.edit.source_prompt, self.edit.target_prompt)

    @property
    def identity(self) -> str:
        """All that the task is, as text: two tasks of one name differ when the world has changed between them."""
        return json.dumps(asdict(self.edit))

    @property
    def clips(self) -> Truth:
        """The true source and target, rendered (and kept while the task is worked on)."""
        return _clips(self)


@lru_cache(maxsize=2)
def _clips(task: Task) -> Truth:
    return truth(task.edit)


def primitives(seeds: str, count: int, kinds: Sequence[str] = ()) -> list[Task]:
    """The suite: `count` tasks of each kind (of all, or of those named), from the reporting or the tuning seeds.

    Raises `UserError` for an unknown kind, or for more tasks than there are seeds.
    """
    kinds = [kind.replace("-", " ") for kind in kinds]
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"there is no kind of edit {kind!r}; known are {', '.join(KINDS)}")
    if not 1 <= count <= SEEDS_A_KIND:
        raise UserError(f"--count is {count}, expected 1 to {SEEDS_A_KIND} tasks of each kind")
    chosen = [kind for kind in KINDS if not kinds or kind in kinds]
    first = {kind: FIRST_SEED[seeds] + SEEDS_A_KIND * KINDS.index(kind) for kind in chosen}
    return [Task(kind, first[kind] + index) for kind in chosen for index in range(count)]
