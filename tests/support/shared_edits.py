"""Edits by tiny models, alone or, as a script that torchrun runs, by several processes together: the first one saves
their latents."""

import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from support.clips import PAIR, SAME
from support.families import FAMILIES
from v2edit.backbones import Size
from v2edit.backbones.processes import LeadingBackbone, follow, join, split
from v2edit.editing import EditConfig, Editor
from v2edit.editing.progression import aligned_text
from v2edit.prompts import PromptPair

CONFIG = EditConfig(steps=4, guidance=4.0, beta=0.0)
# Settings, prompts, and frames and tokens of the clip.
EDITS: dict[str, tuple[EditConfig, PromptPair, tuple[int, int, int]]] = {
    "the same prompt": (replace(CONFIG, subtasks=2), SAME, (9, 2, 3)),
    "two subtasks": (replace(CONFIG, subtasks=2, beta=0.5, mixture=0.3), PAIR, (9, 4, 4)),
    "an odd number of tokens": (CONFIG, PAIR, (9, 3, 3)),
    "windows": (CONFIG, PAIR, (25, 3, 1)),
    "a loop": (replace(CONFIG, loop=True), PAIR, (16, 1, 3)),
    "skipped steps": (replace(CONFIG, cache=1.0), PAIR, (9, 2, 3)),
}


def edit(backbone: Any, name: str) -> tuple[Tensor, Tensor]:
    """Return the latents of a clip and of its edit."""
    config, pair, (frames, height, width) = EDITS[name]
    shape = backbone.latent_shape(Size(frames, height * backbone.side, width * backbone.side), config.loop)
    defaults = replace(backbone.defaults, magnitudes=((0.0, 1.0), (1.0, 2.0)))
    config = config.resolve(defaults, backbone.schedule(config.steps, shape))
    x0 = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    return x0, list(Editor(backbone).subtasks(x0, aligned_text(backbone, pair), config))[-1]


def main(out: str, *models: str) -> None:
    """Do all edits by the processes that torchrun has launched."""
    heads, results = join(), {}
    for model in models:
        backbone = FAMILIES[model]()
        split(backbone, heads)
        if heads.rank > 0:
            follow(backbone)
            continue
        leading = LeadingBackbone(backbone)
        results |= {f"{model}: {name}": edit(leading, name)[1] for name in EDITS}
        leading.release()
    if heads.rank == 0:
        torch.save(results, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
