"""The settings of a reconstruction. Defaults are written here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

from v2edit.errors import UserError

MAX_DEGREE = 3
TRANSFORMS = "transforms.json"  # a dataset, as nerfstudio names it
BLENDER_SPLITS = tuple(f"transforms_{split}.json" for split in ("train", "val", "test"))  # as NeRF's Blender scenes are
SCENE_FACTS = "scene.json"  # prompts of a scene, in its folder


@dataclass(frozen=True)
class FitConfig:
    """Settings of the reconstruction of a scene."""

    gaussians: int = 8000
    """Number of Gaussians of a scene. Small images need thousands, photographs on a GPU hundreds of those."""
    fit_steps: int = 800
    """Steps of the first reconstruction, one image each."""
    refit_steps: int = 300
    """Steps of each later one, which starts from the scene as it was."""
    degree: int = 1
    """Degree of the colours' spherical harmonics: 0 to 3; more follows highlights, and is larger."""

    def __post_init__(self) -> None:
        for name, low in (("gaussians", 1), ("fit_steps", 1), ("refit_steps", 1)):
            if getattr(self, name) < low:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected {low} or more")
        if not 0 <= self.degree <= MAX_DEGREE:
            raise UserError(f"--degree is {self.degree}, expected 0 to {MAX_DEGREE}")
