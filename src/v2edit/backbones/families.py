"""The table of model families: the files in their folders and the defaults of their edits. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Offload = Literal["none", "model", "group"]
DType = Literal["auto", "float32", "bfloat16", "float16"]

BUILT_IN = "primitives"
BUILT_IN_FOLDER = Path(__file__).parents[1] / "weights" / BUILT_IN
PUBLISHED = "zai-org/CogVideoX-5b"  # the suggestion for videos of the real world
INDEX = "model_index.json"
FAMILIES = {"CogVideoXPipeline": "CogVideoX", "CogVideoXVideoToVideoPipeline": "CogVideoX"}
SCHEDULERS = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
# Each part of a model, and the files that it cannot be without: one of each group.
SAFE, PICKLED = "*.safetensors", "*.bin"
WEIGHTS = (("config.json",), (SAFE,))
PARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "text_encoder": WEIGHTS,
    "tokenizer": (("tokenizer.json", "spiece.model"),),
    "transformer": WEIGHTS,
    "vae": WEIGHTS,
    "scheduler": (("scheduler_config.json",),),
}

# Libraries whose classes a model's parts may name: diffusers imports whatever library an index names.
LIBRARIES = ("diffusers", "transformers")


@dataclass(frozen=True)
class Defaults:
    """Defaults of a model's edits: CogVideoX's as published (V2Edit Sec. 4.1), unless it has its own."""

    guidance: float = 7.0
    """Classifier-free guidance."""
    beta: float = 0.5
    """The end of the controls' window, as a share of the timesteps."""


PUBLISHED_DEFAULTS = Defaults()
# The built-in model follows its prompts at once: with less guidance and the controls on to the end it keeps more, and
# is closer to the true edit where it changes (docs/ablations.md). This is not measured for CogVideoX.
BUILT_IN_DEFAULTS = Defaults(guidance=2.0, beta=0.0)
