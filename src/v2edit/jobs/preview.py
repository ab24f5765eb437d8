"""Preview: the prompts of an edit, what they share, and what the edit costs, before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from v2edit.prompts import PromptPair, write_prompts

if TYPE_CHECKING:
    from v2edit.backbones import Checkpoint, LoadOptions
    from v2edit.editing.config import EditConfig
    from v2edit.prompts.comparison import PromptComparison


@dataclass(frozen=True)
class Preview:
    """The prompts of an edit, each compared with the next, and its cost."""

    prompts: PromptPair
    instruction: str | None
    comparisons: list[PromptComparison]
    steps: int  # denoising steps of each subtask,
    of_steps: int  # of so many
    forwards: list[int]  # rows through the network, one number a subtask

    def save(self, path: Path) -> None:
        """Save the prompts as JSON, to edit by hand and to give to an edit. Raises `UserError` where it cannot."""
        write_prompts(path, self.prompts, self.instruction)


def preview(
    prompts: PromptPair, instruction: str | None, checkpoint: Checkpoint, config: EditConfig, options: LoadOptions
) -> Preview:
    """Compare prompts on a model's own tokens and count the forwards of the edit."""
    from v2edit import backbones
    from v2edit.editing.cost import count_forwards, steps_per_subtask
    from v2edit.prompts.comparison import compare_prompts

    info = backbones.read_info(checkpoint, options)
    schedule = info.schedule(config.steps)
    resolved = config.for_prompts(prompts).resolve(info.defaults, schedule)
    comparisons = [compare_prompts(before, after, info.tokenizer) for before, after in pairwise(prompts.chain)]
    steps, forwards = steps_per_subtask(schedule, resolved), count_forwards(schedule, resolved, info.classifier_free)
    return Preview(prompts, instruction, comparisons, steps, resolved.steps, forwards)
