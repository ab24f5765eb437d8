"""Calibrate a model for step caching, and write what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from v2edit.backbones.magnitudes import CACHE_FILE, write_magnitudes
from v2edit.errors import UserError
from v2edit.jobs.options import OUT, ModelOptions, expect_at_least, expect_new_file


@dataclass(frozen=True)
class Calibrate:
    """Measure how the work of a model's layers changes from step to step, which edits with --cache go by."""

    prompts: Annotated[Positional[tuple[str, ...]], arg(metavar="PROMPT")]
    """What to generate clips of, in the model's own style: one prompt is enough, each takes as long as generating."""
    out: Annotated[Path, arg(aliases=OUT, metavar="FILE")] = Path(CACHE_FILE)
    """The JSON file to write. An edit reads it in the model's folder, or by --cache-file."""
    steps: int = 50
    """Denoising steps of each clip."""
    model_options: Annotated[OmitArgPrefixes[ModelOptions], arg(name="model")] = ModelOptions()

    def run(self, on_step: Callable[[int, int], None] = lambda done, of: None) -> Path:
        """Write the file and return its path. Raises `UserError` for what the user can mend, in one line."""
        if not self.prompts:
            raise UserError("give a PROMPT, in quotes: what to generate a clip of")
        expect_at_least(2, steps=self.steps)
        expect_new_file(self.out, "-o")
        checkpoint = self.model_options.find()
        backbone = self.model_options.load(checkpoint)
        from v2edit.editing.calibration import measure_magnitudes

        magnitudes = measure_magnitudes(backbone, self.prompts, self.steps, on_step)
        write_magnitudes(self.out, checkpoint.name, magnitudes)
        return self.out
