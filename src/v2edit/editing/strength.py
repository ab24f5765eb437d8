"""The words of --strength: one dial over a model's own alpha, beta and guidance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from v2edit.backbones.families import ALPHA_NOISE, BETA_NOISE, Defaults

if TYPE_CHECKING:
    from v2edit.sampling import Schedule

NORMAL = "normal"


@dataclass(frozen=True)
class Strength:
    """What a word makes of a model's defaults, in the noise's share of a level, which compares models. Chosen on the
    built-in world (docs/ablations.md)."""

    start: float = 1.0
    """The noise at alpha is so many times the default's."""
    hold: float = 0.0
    """The noise at beta is so far on the way from the default's to that at alpha; below 0, to none."""
    guidance: float = 1.0
    """Guidance is so many times as far above 1, which is none."""

    def apply(self, defaults: Defaults, schedule: Schedule, alpha: float | None = None) -> Defaults:
        """Return a model's defaults at this strength, on a schedule; `alpha` is that of an edit that has its own."""
        if self == Strength():
            return defaults
        before = ALPHA_NOISE if defaults.alpha is None else noise_at(schedule, defaults.alpha)
        start = before * self.start
        held = BETA_NOISE if defaults.beta is None else noise_at(schedule, defaults.beta)
        most = start if alpha is None else noise_at(schedule, alpha)
        end = held + self.hold * (max(most - held, 0.0) if self.hold > 0 else held)
        guidance_2 = None if defaults.guidance_2 is None else self._guide(defaults.guidance_2)
        return replace(
            defaults,
            guidance=self._guide(defaults.guidance),
            guidance_2=guidance_2,
            alpha=defaults.alpha if start == before else schedule.largest_share(start),
            beta=defaults.beta if end == held else schedule.largest_share(end),
        )

    def _guide(self, guidance: float) -> float:
        return 1 + self.guidance * (guidance - 1)


STRENGTHS = {
    "subtle": Strength(start=0.85, hold=-0.5),
    NORMAL: Strength(),
    "strong": Strength(hold=2 / 3, guidance=1.5),
}


def noise_at(schedule: Schedule, share: float) -> float:
    """Return the noise's share at the level from which a share of the steps is left, 0 where none is."""
    return next((schedule.noise(k) for k in range(schedule.steps) if schedule.share(k) <= share), 0.0)
