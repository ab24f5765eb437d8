"""Methods to compare: V2Edit and the ablations of its Table C, and the references; baselines are in `baselines`.

A method is named by its configuration, which is plain data: that travels to worker processes, tells results apart and
can be swept. Nothing here loads torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from v2edit.editing.config import EditConfig
from v2edit.prompts import PromptPair

if TYPE_CHECKING:
    from v2edit.backbones import Backbone

FULL = "V2Edit"  # V2Edit with all of its parts, which the others are compared with
UNEDITED = "unedited"


class Method(Protocol):
    """A video editor: uint8 frames [T, H, W, 3], two prompts and a seed to frames of that shape."""

    def __call__(self, frames: np.ndarray, pair: PromptPair, seed: int) -> np.ndarray: ...


class MethodConfig(Protocol):
    """The configuration of a method: a frozen dataclass."""

    def build(self, backbone: Backbone) -> Method:
        """Return the method on a model."""
        ...


@dataclass(frozen=True)
class Unedited:
    """The source itself: the least success and the best preservation."""

    def build(self, backbone: Backbone) -> Method:
        return lambda frames, pair, seed: frames


@dataclass(frozen=True)
class Autoencoded:
    """The *true* edited clip, or the source where nobody knows it, through the model's autoencoder: the bound on what
    any edit with these weights can do, or keep."""

    def build(self, backbone: Backbone) -> Method:
        from v2edit.backbones import Size
        from v2edit.editing.resize import resize_clip

        def edit(frames: np.ndarray, pair: PromptPair, seed: int) -> np.ndarray:
            size = Size(*frames.shape[:3])
            return resize_clip(backbone.decode(backbone.encode(resize_clip(frames, backbone.nearest_size(size)))), size)

        return edit


REFERENCES: dict[str, MethodConfig] = {UNEDITED: Unedited(), "autoencoder of the truth": Autoencoded()}
# Where no truth is known, the source through the autoencoder bounds what any edit can keep.
SOURCE_REFERENCES: dict[str, MethodConfig] = {UNEDITED: Unedited(), "autoencoder of the source": Autoencoded()}


@dataclass(frozen=True)
class V2Edit(EditConfig):
    """V2Edit with a configuration; its `seed` is overridden by each task's."""

    finds_mask: ClassVar[bool] = False  # whether the source stays where the model itself changes nothing

    def build(self, backbone: Backbone) -> Method:
        from v2edit.editing.editor import Editor
        from v2edit.editing.local import LocalEdit

        local = LocalEdit(find=self.finds_mask)

        def edit(frames: Any, pair: PromptPair, seed: int) -> Any:  # a stream of a stream
            return Editor(backbone).edit(frames, pair, replace(self, seed=seed), local=local).frames

        return edit


@dataclass(frozen=True)
class OwnMaskV2Edit(V2Edit):
    """V2Edit with the mask that the model finds (`--mask auto`)."""

    finds_mask: ClassVar[bool] = True


def clip_variants(full: V2Edit) -> dict[str, V2Edit]:
    """Return the variants on clips: Table C's, and V2Edit with its own mask."""
    known = table_c(full)
    return {FULL: known.pop(FULL), "V2Edit, own mask": OwnMaskV2Edit(**vars(full)), **known}


ABLATIONS = ("w/o progression", "w/o INC", "w/o PNC", "w/o AMR", "w/o PNC, AMR", "w/o reconstruction")


def table_c(full: V2Edit) -> dict[str, V2Edit]:
    """Return V2Edit and its ablations by title (V2Edit Sec. A.3, Table C). Where `full` has one subtask, "w/o
    progression" is the same configuration."""
    return {
        FULL: full,
        "w/o progression": replace(full, subtasks=1),
        "w/o INC": replace(full, inc=False),
        "w/o PNC": replace(full, pnc=False),
        "w/o AMR": replace(full, amr=False),
        "w/o PNC, AMR": replace(full, pnc=False, amr=False),
    }
