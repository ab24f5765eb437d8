"""Find out where an edit happens, free of charge: the difference of what source and edit denoise to, at every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ChangeMap:
    """What is known of where a subtask's edit happens after some of its controlled steps: the `difference` of the
    branches' x0, summed over `steps`, [1, F, 1, h, w]."""

    difference: Tensor
    steps: int

    @classmethod
    def of(cls, x0_source: Tensor, x0_edit: Tensor) -> ChangeMap:
        """Return the change map of one step: r = mean over channels of |x0_edit - x0_source|."""
        return cls((x0_edit - x0_source).abs().mean(2, keepdim=True), 1)

    def __add__(self, other: ChangeMap) -> ChangeMap:
        return ChangeMap(self.difference + other.difference, self.steps + other.steps)

    def find_mask(self) -> Tensor | None:
        """Return how much of the edit each latent takes, [1, F, 1, h, w] of 0 to 1; None where it is everywhere."""
        mean = self.difference / self.steps
        threshold = otsu_threshold(mean)
        return (mean > threshold).float()


def otsu_threshold(values: Tensor, bins: int = 128) -> float:
    """Return the threshold that parts values into two classes with the greatest variance between them (Otsu 1979)."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low
    counts = torch.histc(values.float().cpu(), bins, low, high).double()
    centres = low + (torch.arange(bins).double() + 0.5) * (high - low) / bins
    below, mass = counts.cumsum(0), (counts * centres).cumsum(0)
    between = (mass[-1] * below / below[-1] - mass) ** 2 / (below * (below[-1] - below)).clamp(min=1e-9)
    return low + (float(between[:-1].argmax()) + 1) * (high - low) / bins
