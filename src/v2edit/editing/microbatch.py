"""The rows of a step, through the network in as few calls as memory allows.

Rows are laid out [half][branch]. Those of one call share its memory: when it runs out, the step is repeated in smaller
calls, and the rest of the edit keeps to them. Every way gives the same result, up to float rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from v2edit.attention import Replacement
from v2edit.backbones import Backbone
from v2edit.host import retry_smaller_on_oom
from v2edit.sampling import Schedule

# From the fastest to the smallest: how many rows a call takes.
SPLITS = (
    "all rows at once",
    "guidance's cfg_batches one after the other",
    "one row after the other (those that exchange attention maps together)",
)


class MicroBatcher:
    """How a backbone is called: with `most` rows at a time, as far as memory has shown (those that exchange attention
    maps cannot be parted)."""

    def __init__(self, backbone: Backbone, most: int = sys.maxsize) -> None:
        self.backbone, self.most = backbone, most

    def denoise(
        self,
        latents: Tensor,
        step: int,
        schedule: Schedule,
        text: Tensor,
        replacement: Replacement | None,
        loop: bool,
        cfg_batches: int,
    ) -> Tensor:
        """`Backbone.denoise` of rows [half][branch], in several calls if need be."""
        rows = len(latents)

        def through() -> Tensor:
            _, calls = self.split(rows, cfg_batches, replacement)
            if len(calls) == 1:
                return self.backbone.denoise(latents, step, schedule, text, replacement, loop)
            x0 = torch.empty_like(latents, dtype=torch.float32)
            for call in calls:
                maps = None if replacement is None else part_of(replacement, call)
                x0[call] = self.backbone.denoise(latents[call], step, schedule, text[call], maps, loop)
            return x0

        return retry_smaller_on_oom(through, partial(self.smaller, rows, cfg_batches, replacement))

    def split(self, rows: int, cfg_batches: int, replacement: Replacement | None) -> tuple[str, list[list[int]]]:
        """The rows of each call for such a step, and the one of SPLITS by which they are so."""
        ways = [(name, groups(rows, cfg_batches, replacement, number)) for number, name in enumerate(SPLITS)]
        return next((way for way in ways if largest(way[1]) <= self.most), ways[-1])

    def smaller(self, rows: int, cfg_batches: int, replacement: Replacement | None) -> str | None:
        """Takes the next way that needs less memory for such a step and says it in words; None where none is left."""
        _, before = self.split(rows, cfg_batches, replacement)
        self.most = largest(before) - 1
        name, after = self.split(rows, cfg_batches, replacement)
        return name if largest(after) < largest(before) else self.backbone.shrink()


def largest(calls: list[list[int]]) -> int:
    return max(map(len, calls))


def groups(rows: int, cfg_batches: int, replacement: Replacement | None, split: int) -> list[list[int]]:
    """The rows of each call by one of the SPLITS: those that a row takes attention maps from are with it."""
    together = {0: rows, 1: rows // cfg_batches, 2: 1}[split]
    group = [row // together for row in range(rows)]
    for row, sources in enumerate(replacement.sources if replacement else ()):
        for source, _ in sources:
            group = [group[source] if one == group[row] else one for one in group]
    return [[row for row in range(rows) if group[row] == one] for one in dict.fromkeys(group)]


def part_of(replacement: Replacement, rows: Sequence[int]) -> Replacement:
    """The same for some rows alone."""
    place = {row: index for index, row in enumerate(rows)}
    sources = (replacement.sources[row] for row in rows)
    return Replacement(
        replacement.shared, tuple(tuple((place[source], weight) for source, weight in row) for row in sources)
    )
