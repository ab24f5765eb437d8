"""Numbers beyond their format: without a check they end in a black video."""

from __future__ import annotations

import torch
from torch import Tensor

from v2edit.errors import UserError


def check_finite(numbers: Tensor, what: str, dtype: torch.dtype) -> None:
    """Raise `UserError`, with the likely cause, where numbers that were computed in a format are not finite. Waits for
    the device."""
    if torch.isfinite(numbers).all():
        return
    cause = "the weights may be damaged, or --guidance far too high"
    if dtype == torch.float16:
        cause = "float16 is too narrow for this model; take --dtype bfloat16, or float32"
    raise UserError(f"{what} became infinite or no numbers (NaN): {cause}")
