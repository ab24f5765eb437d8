"""What both towers of the CLIP are told token by token, beside the contrast of frames and captions.

A contrast alone says whether a caption fits, not which word of it does not, and shapes are learnt last. So each patch
also tells of the object that it shows, the class token of the scene, and the last word of a phrase (a tower of CLIP
reads from left to right) of all that the phrase says.

Letters: B frames or captions, N tokens, D width, F fields (`FIELDS`). Labels are indices of answers, -1 where nothing
is asked; rows of them are lists of F.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.primitives.text import FIELDS as SAID
from recipes.primitives.text import Phrase, object_values, part_values, phrase_labels
from v2edit.primitives.questions import COLOURS_ALONE, OF_CLIPS
from v2edit.primitives.scene import Scene

FIELDS = {field: values for field, values in SAID.items() if field not in OF_CLIPS}
OF_SCENE = ("floor", "sky", "light", "style")
OF_OBJECT = tuple(field for field in FIELDS if field not in OF_SCENE)
MOST_OBJECTS = 6  # that a frame shows, the balloon and copies among them
LEAST_SHOWN = 0.15  # share of a patch, for it to tell of an object
EVERYTHING = frozenset({"colour", "size", "place", "row", "material", "hat", "hat colour"})
EVERYTHING |= {"balloon colour", "balloon place"}


class ClipProbe(nn.Module):
    """Reads fields off tokens: logits are cosines at a fixed scale. Both towers have the same answers' directions, so
    that a patch and a word that say the same come to lie near each other."""

    SCALE = 16.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ParameterDict({field: nn.Parameter(torch.randn(len(v), width)) for field, v in FIELDS.items()})

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of tokens [N, D] by labels int64 [N, F], over the fields that are asked for."""
        tokens, losses = F.normalize(tokens, dim=-1), []
        for k, head in enumerate(self.heads[field] for field in FIELDS):
            if (labels[:, k] >= 0).any():
                logits = self.SCALE * tokens @ F.normalize(head, dim=-1).T
                losses.append(F.cross_entropy(logits, labels[:, k], ignore_index=-1))
        return torch.stack(losses).mean()


def _labels(values: dict[str, str], asked: tuple[str, ...], scene: Scene) -> list[int]:
    """Return the labels of these fields, -1 of all others; a pencil drawing is not asked for colours."""
    hidden = COLOURS_ALONE if scene.style == "pencil" else ()
    return [
        FIELDS[field].index(values[field] if values.get(field) in FIELDS[field] else FIELDS[field][0])
        if field in asked and field not in hidden
        else -1
        for field in FIELDS
    ]


def object_labels(scene: Scene) -> np.ndarray:
    """Return what a patch is to tell by the number of the object that it shows, int64 [1 + MOST_OBJECTS, F]: the first
    row is that of no object, the balloon's comes after the objects'."""
    said = [{}, *(object_values(obj, EVERYTHING) for obj in scene.objects)]
    said += [part_values(scene, "balloon", EVERYTHING)] if scene.balloon else []
    said += [{}] * (1 + MOST_OBJECTS - len(said))
    return np.array([_labels(values, OF_OBJECT, scene) for values in said])


def scene_labels(scene: Scene) -> list[int]:
    """Return what the class token is to tell."""
    return _labels({field: getattr(scene, field) for field in OF_SCENE}, OF_SCENE, scene)


def patch_labels(owners: np.ndarray, labels: np.ndarray, grid: int) -> np.ndarray:
    """Return what each patch is to tell, int64 [B, grid * grid, F]: of the object that most of its pixels show. Takes
    the object at each pixel, uint8 [B, H, W], and `object_labels` [B, 1 + MOST_OBJECTS, F]."""
    count, height, width = owners.shape
    cells = owners.reshape(count, grid, height // grid, grid, width // grid)
    shown = np.stack([(cells == k + 1).mean((2, 4)).reshape(count, -1) for k in range(MOST_OBJECTS)], axis=-1)
    owner = np.where(shown.max(-1) >= LEAST_SHOWN, shown.argmax(-1) + 1, 0)
    return np.take_along_axis(labels, owner[..., None], axis=1)


def last_tokens(phrases: list[Phrase], offsets: list[tuple[int, int]]) -> tuple[list[int], list[list[int]]]:
    """Return the last token of each phrase of a caption, and what it is to tell."""
    kept = [k for k, field in enumerate(SAID) if field in FIELDS]
    rows = phrase_labels(phrases, offsets)
    last = [max((k for k, token in enumerate(offsets) if one.holds(token)), default=-1) for one in phrases]
    last = [k for k in last if k >= 0]
    return last, [[rows[k][field] for field in kept] for k in last]
