"""The settings of a reconstruction. Defaults are written here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from tyro.conf import arg

from v2edit.errors import UserError

MAX_DEGREE = 3
TRANSFORMS = "transforms.json"  # a dataset, as nerfstudio names it
BLENDER_SPLITS = tuple(f"transforms_{split}.json" for split in ("train", "val", "test"))  # as NeRF's Blender scenes are
MIN_PICTURES = 5  # without poses, to find these
SCENE_FACTS = "scene.json"  # prompts of a scene, in its folder

Quality = Literal["draft", "normal", "high"]
Number = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
SMALL = 600_000  # pixels of all images together: up to these, as the built-in world's scenes, a CPU is quick
PIXELS_PER_GAUSSIAN = 20  # at least, of all images together: more Gaussians have nothing to learn from
# Gaussians, fit_steps, refit_steps and degree. Photographs on a GPU: after nerfstudio's splatfacto and gsplat's own
# trainer, which take 7,000 to 30,000 steps, degree 3, and a million Gaussians at most.
PRESETS: dict[str, dict[Quality, tuple[int, int, int, int]]] = {
    "small": {"draft": (4000, 300, 100, 1), "normal": (8000, 800, 300, 1), "high": (16_000, 2400, 900, 1)},
    "cpu": {"draft": (8000, 800, 300, 1), "normal": (20_000, 4800, 600, 1), "high": (40_000, 8000, 2000, 1)},
    "gpu": {
        "draft": (100_000, 2000, 500, 1),
        "normal": (300_000, 7000, 1500, 3),
        "high": (1_000_000, 30_000, 3000, 3),
    },
}


@dataclass(frozen=True)
class FitConfig:
    """Settings of the reconstruction of a scene. Those that are not given go by the quality, the scene's images and
    whether a GPU rasterises."""

    quality: Quality = field(default="normal", kw_only=True)
    """How fine the scene is, and how long its reconstruction takes; for experts, the numbers below go over it."""
    gaussians: Number = None
    """Number of Gaussians of a scene."""
    fit_steps: Number = None
    """Steps of the first reconstruction, one image each."""
    refit_steps: Number = None
    """Steps of each later one, which starts from the scene as it was."""
    degree: Number = None
    """Degree of the colours' spherical harmonics: 0 to 3; more follows highlights, and is larger."""
    antialias: bool = False
    """Fit the scene so that it is as bold from far away and in small images (Mip-Splatting), in viewers that know of
    it, too."""

    def __post_init__(self) -> None:
        for name, low in (("gaussians", 1), ("fit_steps", 1), ("refit_steps", 1)):
            if (value := getattr(self, name)) is not None and value < low:
                raise UserError(f"--{name.replace('_', '-')} is {value}, expected {low} or more")
        if self.degree is not None and not 0 <= self.degree <= MAX_DEGREE:
            raise UserError(f"--degree is {self.degree}, expected 0 to {MAX_DEGREE}")

    def resolve(self, pixels: int, on_gpu: bool, by_other: bool = False) -> ResolvedFit:
        """Return these settings with those of the `quality` where they leave it open, for a scene whose images have so
        many pixels in all; where another program trains it, with the steps that these take (those for GPUs)."""
        if isinstance(self, ResolvedFit):
            return self
        preset = "gpu" if by_other else "small" if pixels <= SMALL else "gpu" if on_gpu else "cpu"
        names = [one.name for one in fields(self) if one.name not in ("quality", "antialias")]
        values = dict(zip(names, PRESETS[preset][self.quality], strict=True))
        if preset != "small":
            values["gaussians"] = min(values["gaussians"], pixels // PIXELS_PER_GAUSSIAN)
        values |= {name: value for name in names if (value := getattr(self, name)) is not None}
        return ResolvedFit(quality=self.quality, antialias=self.antialias, **values)


@dataclass(frozen=True)
class ResolvedFit(FitConfig):
    """Settings of a reconstruction with nothing left open."""

    gaussians: int = field(kw_only=True)
    fit_steps: int = field(kw_only=True)
    refit_steps: int = field(kw_only=True)
    degree: int = field(kw_only=True)

    def __str__(self) -> str:
        colours = f"{self.gaussians:,} Gaussians of degree {self.degree}"
        colours += ", antialiased" if self.antialias else ""
        return f"{colours}, {self.fit_steps:,} steps, then {self.refit_steps:,} after each subtask"
