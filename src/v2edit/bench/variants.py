"""V2Edit as a method to be compared, and the ablations of the paper's Table C as configurations of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from v2edit.bench.methods import Method
from v2edit.editing.config import EditConfig
from v2edit.prompts import PromptPair

if TYPE_CHECKING:
    from v2edit.backbones import Backbone


@dataclass(frozen=True)
class V2Edit(EditConfig):
    """The editor with a configuration; its `seed` is each task's."""

    def on(self, backbone: Backbone) -> Method:
        from v2edit.editing.editor import Editor

        def edit(frames: np.ndarray, pair: PromptPair, seed: int) -> np.ndarray:
            return Editor(backbone).edit(frames, pair, replace(self, seed=seed)).frames

        return edit


def table_c(full: V2Edit) -> dict[str, V2Edit]:
    """V2Edit and what each of its parts is good for (V2Edit Sec. A.3). Where `full` takes its edits in one step, that
    is what it is without progression, too."""
    return {
        "full": full,
        "w/o progression": replace(full, subtasks=1),
        "w/o INC": replace(full, inc=False),
        "w/o PNC": replace(full, pnc=False),
        "w/o AMR": replace(full, amr=False),
        "w/o PNC, AMR": replace(full, pnc=False, amr=False),
    }
