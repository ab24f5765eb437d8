"""What an edit does where its settings leave it to the model. Torch-free, so that a plan need not load it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Offload = Literal["none", "model", "group"]


@dataclass(frozen=True)
class Defaults:
    """CogVideoX's, as published (V2Edit Sec. 4.1), unless a model has its own."""

    guidance: float = 7.0
    """Classifier-free guidance."""
    beta: float = 0.5
    """How far down the controls act, as a share of the timesteps."""


PUBLISHED_DEFAULTS = Defaults()
# The built-in model follows its prompts at once: pulled less and held all the way down it keeps more, and looks more
# like the true edit where it changes (docs/ablations.md). Nobody has measured that for CogVideoX.
BUILT_IN_DEFAULTS = Defaults(guidance=2.0, beta=0.0)
